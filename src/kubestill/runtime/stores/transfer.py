"""Bulk bytes between this machine and a cloud service: parallel, checked as they pass, in chunks.

The vendors' libraries read a whole part into memory before they send it, and copy what they
receive several times. Here the bytes go from file to socket and back in chunks, each checksummed
while it is still in the processor's cache: about half the processor time, which matters because
training shares it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import accumulate
from typing import Protocol, TypeVar

from kubestill.errors import StoreError
from kubestill.runtime.stores import crc32c
from kubestill.runtime.stores.base import Content

T = TypeVar("T")

CHUNK = 1 << 20
PART = 32 << 20
"""Bytes of a part, at least; smaller objects travel in one request."""
STREAMS = 8
"""Requests that one transfer has in flight at most."""
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and seconds without a byte of the answer."""
PASSING = frozenset({408, 425, 429, 499, *range(500, 600)} - {501, 505, 511})
"""Answers after which the same request may well succeed a little later."""


class Garbled(Exception):
    """What arrived answers nothing that was asked, or has another checksum: try again."""


class Patience(Protocol):
    """Calls an operation until it succeeds or is given up, then with an error of ours."""

    def __call__(self, operation: Callable[[], T], *, progress: Callable[[], object] = ...) -> T:
        """Return what `operation` returns; patience starts anew when `progress()` changes."""
        ...


class Payload(Protocol):
    """Bytes to send; `read` is called by several threads."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer only at the end."""
        ...


class File:
    """A local file as a payload."""

    def __init__(self, path: str):
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """See `Payload.read`."""
        return os.pread(self._fd, length, offset)


class Buffers:
    """The concatenation of buffers as a payload."""

    def __init__(self, parts: Sequence[Content]):
        self._views = [memoryview(part).cast("B") for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._views)))
        self.size = self._ends[-1] if self._ends else 0

    def read(self, offset: int, length: int) -> bytes:
        """See `Payload.read`."""
        end = min(offset + length, self.size)
        pieces: list[memoryview] = []
        index = bisect_right(self._ends, offset)
        while offset < end:
            view, start = self._views[index], self._ends[index] - len(self._views[index])
            pieces.append(view[offset - start : end - start])
            offset, index = self._ends[index], index + 1
        return b"".join(pieces)


class Span:
    """A span of a payload, read chunk by chunk, as often as needed."""

    def __init__(self, payload: Payload, start: int, end: int):
        self._payload = payload
        self._start = start
        self._end = min(end, payload.size)

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[bytes]:
        for offset in range(self._start, self._end, CHUNK):
            length = min(CHUNK, self._end - offset)
            chunk = self._payload.read(offset, length)
            if len(chunk) < length:
                raise StoreError("the file became shorter while it was sent")
            yield chunk


def cut(size: int, step: int) -> list[tuple[int, int]]:
    """Return (start, end) of the spans of `step` bytes that `size` bytes fall into."""
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def joined(checksums: Sequence[int], spans: Sequence[tuple[int, int]]) -> int:
    """Return the checksum of the whole from those of its spans."""
    whole = 0
    for checksum, (start, end) in zip(checksums, spans, strict=True):
        whole = crc32c.combine(whole, checksum, end - start)
    return whole


def read_up_to(read: Callable[[int], bytes], most: int | None) -> bytes:
    """Return all that a response holds; of more than `most` bytes, the first of them and one more.

    Args:
        read: Returns the next bytes, at most as many as are asked for; none at the end.
        most: None for any number.
    """
    chunks: list[bytes] = []
    size = 0
    while wanted := CHUNK if most is None else min(CHUNK, most + 1 - size):
        chunk = read(wanted)
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def receive(
    chunks: Callable[[int, int], Iterator[bytes]],
    fd: int,
    *,
    size: int,
    checksum: int | None,
    what: str,
    patiently: Patience,
) -> None:
    """Fill a file with an object's bytes, by several requests at a time.

    Args:
        chunks: Asks for a span of the object, from a byte up to another, and yields what comes.
        fd: The file, open for writing.
        size: Bytes of the object.
        checksum: The CRC-32C that they must have; None where nobody knows it.
        what: The object's name, for messages.
        patiently: Repeats what fails and may pass. A span goes on where its connection broke.
    """
    os.ftruncate(fd, size)
    spans = cut(size, max(PART, -(-size // STREAMS)))

    def fetch(span: tuple[int, int]) -> int:
        position, end = span
        crc = 0

        def read_on() -> None:
            nonlocal position, crc
            with closing(chunks(position, end)) as arriving:  # pyright: ignore
                for chunk in arriving:
                    os.pwrite(fd, chunk, position)
                    crc = crc32c.extend(crc, chunk)
                    position += len(chunk)
            if position < end:
                raise Garbled(f"{what} ended early, at byte {position}")

        patiently(read_on, progress=lambda: position)
        return crc

    def fetch_all() -> None:
        with ThreadPoolExecutor(STREAMS) as pool:
            found = joined(list(pool.map(fetch, spans)), spans)
        if checksum is not None and found != checksum:
            raise Garbled(f"{what} arrived with another checksum")

    patiently(fetch_all)
