"""Reading state files back as bytes that are proved to be the ones that were written."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from kubestill.errors import CorruptData, NotFound
from kubestill.runtime.checkpoints.manifest import StateFile
from kubestill.runtime.stores.base import Content, Store

_HASH_CHUNK = 16 << 20


def map_verified(store: Store, file: StateFile) -> mmap.mmap:
    """Map a state file whose size and SHA-256 are as recorded, copy-on-write.

    The mapping of a local file sees what somebody later does to it: copy out of it soon.

    Raises:
        CorruptData: The file is missing, truncated or altered.
        StoreError: The store did not answer.
    """
    with _local_file(store, file.key) as path:
        size = os.path.getsize(path)
        if size != file.bytes:
            raise CorruptData(f"{file.key} has {size} bytes instead of {file.bytes}")
        with open(path, "rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    if digest([memoryview(mapped)]) != file.sha256:
        raise CorruptData(f"{file.key} does not match its sha256")
    return mapped


def digest(parts: Sequence[Content]) -> str:
    """Return the SHA-256 of the concatenated buffers; other threads run meanwhile."""
    total = hashlib.sha256()
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _HASH_CHUNK):
            total.update(view[start : start + _HASH_CHUNK])
    return total.hexdigest()


@contextmanager
def _local_file(store: Store, key: str) -> Generator[str]:
    path = store.local_path(key)
    if path is not None:
        if not os.path.isfile(path):
            raise CorruptData(f"{key} is missing")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="kubestill-restore-") as folder:
        path = os.path.join(folder, "state")
        try:
            store.download(key, path)
        except NotFound as error:
            raise CorruptData(f"{key} is missing") from error
        yield path
