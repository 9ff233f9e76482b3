"""Read state files back as bytes that are proved to be the ones that were written."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeAlias

from kubestill.errors import CorruptData, NotFound
from kubestill.runtime.base import LARGEST
from kubestill.runtime.checkpoints import checksum
from kubestill.runtime.checkpoints.manifest import StateFile
from kubestill.runtime.stores.base import Content, Store
from kubestill.runtime.stores.crc32c import combine
from kubestill.runtime.stores.files import translated

Proof: TypeAlias = Literal["crc32c", "sha256"]
"""What a file's bytes are checked with besides their number; `checksum` says when which."""

_HASH_CHUNK = 16 << 20
_READ_CHUNK = 1 << 20
_MOST_READERS = 4


def read_verified(store: Store, file: StateFile, *, proof: Proof) -> mmap.mmap:
    """Read a state file into anonymous memory, and check there that it is as recorded.

    Raises:
        CorruptData: The file is missing, truncated or altered.
        StoreError: The store did not answer.
    """
    with _local_file(store, file) as path, translated(store.uri, file.key):
        memory = large_pages(file.bytes)
        crc = _fill(memory, path, file)
    if proof == "crc32c":
        altered = crc != file.crc32c
    else:
        altered = digests([memoryview(memory)])[0] != file.sha256
    if altered:
        raise CorruptData(f"{file.key} does not match its {proof}")
    return memory


def verify_file(store: Store, file: StateFile) -> None:
    """Check that a state file has the size and the SHA-256 on record, in little memory.

    Raises:
        CorruptData: The file is missing, truncated or altered.
        StoreError: The store did not answer.
    """
    with _local_file(store, file) as path, translated(store.uri, file.key):
        with open(path, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != file.sha256:
        raise CorruptData(f"{file.key} does not match its sha256")


def scan(
    store: Store,
    file: StateFile,
    *,
    proof: Proof,
    begin: Callable[[memoryview], None],
    take: Callable[[int, memoryview], None],
) -> None:
    """Go through a state file once, in little memory, and check that it is as recorded.

    Args:
        store: Where it lies.
        file: The file.
        proof: What it is checked with.
        begin: Gets its header. Nothing is to be believed before this returns.
        take: Gets each piece of it, from the first on, and the byte at which it begins.

    Raises:
        CorruptData: The file is missing, truncated or altered.
        StoreError: The store did not answer.
    """
    sha256, crc, piece = hashlib.sha256(), 0, memoryview(bytearray(_READ_CHUNK))
    with _local_file(store, file) as path, translated(store.uri, file.key):
        with open(path, "rb", buffering=0) as opened:
            begin(read_header(opened.fileno(), file))
            for start in range(0, file.bytes, _READ_CHUNK):
                chunk = piece[: min(_READ_CHUNK, file.bytes - start)]
                _read_at(opened.fileno(), start, chunk, file.key)
                if proof == "crc32c":
                    crc = checksum.extend(crc, chunk)
                else:
                    sha256.update(chunk)
                take(start, chunk)
    if (crc != file.crc32c) if proof == "crc32c" else (sha256.hexdigest() != file.sha256):
        raise CorruptData(f"{file.key} does not match its {proof}")


def read_header(descriptor: int, file: StateFile) -> memoryview:
    """Return the header of an open state file, with its length before it; nothing is checked.

    Raises:
        CorruptData: The file ends before.
    """
    length = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
    # Damage may make it as long as the file; what is cut short is refused.
    header = memoryview(bytearray(min(length, file.bytes, 8 + LARGEST)))
    _read_at(descriptor, 0, header, file.key)
    return header


def digests(parts: Sequence[Content]) -> tuple[str, int]:
    """Return SHA-256 and CRC-32C of the concatenated buffers; other threads run meanwhile."""
    sha256, crc = hashlib.sha256(), 0
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _HASH_CHUNK):
            chunk = view[start : start + _HASH_CHUNK]
            sha256.update(chunk)
            crc = checksum.extend(crc, chunk)
    return sha256.hexdigest(), crc


def _fill(memory: mmap.mmap, path: str, file: StateFile) -> int:
    """Read the whole file into `memory` with a few threads; return its CRC-32C."""
    chunks = -(-file.bytes // _READ_CHUNK)
    readers = min(_MOST_READERS, os.cpu_count() or 1, chunks)
    share = -(-chunks // readers) * _READ_CHUNK
    spans = [range(start, min(start + share, file.bytes)) for start in range(0, file.bytes, share)]
    crc = 0
    with memoryview(memory) as whole, open(path, "rb", buffering=0) as opened:

        def read(span: range) -> int:
            # Each chunk is summed while it is still in the processor's cache.
            part = 0
            for start in span[::_READ_CHUNK]:
                with whole[start : min(start + _READ_CHUNK, span.stop)] as chunk:
                    _read_at(opened.fileno(), start, chunk, file.key)
                    part = checksum.extend(part, chunk)
            return part

        with ThreadPoolExecutor(len(spans), "checkpoint-reader") as pool:
            for span, part in zip(spans, pool.map(read, spans), strict=True):
                crc = combine(crc, part, len(span))
    return crc


def _read_at(descriptor: int, start: int, chunk: memoryview, key: str) -> None:
    done = 0
    while done < len(chunk):
        count = os.preadv(descriptor, [chunk[done:]], start + done)
        if not count:
            raise CorruptData(f"{key} ends at byte {start + done}")
        done += count


def large_pages(size: int) -> mmap.mmap:
    """Return fresh memory, which the system can hand out in few large steps."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


@contextmanager
def _local_file(store: Store, file: StateFile) -> Generator[str]:
    """Give the path of a file of the recorded size, downloaded where it is not local."""
    path = store.local_path(file.key)
    if path is not None:
        yield _of_size(path, file)
        return
    with tempfile.TemporaryDirectory(prefix="kubestill-restore-") as folder:
        path = os.path.join(folder, "state")
        try:
            store.download(file.key, path)
        except NotFound as error:
            raise CorruptData(f"{file.key} is missing") from error
        yield _of_size(path, file)


def _of_size(path: str, file: StateFile) -> str:
    if not os.path.isfile(path):
        raise CorruptData(f"{file.key} is missing")
    size = os.path.getsize(path)
    if size != file.bytes:
        raise CorruptData(f"{file.key} has {size} bytes instead of {file.bytes}")
    return path
