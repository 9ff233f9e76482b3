"""Bulk bytes to and from Cloud Storage: parallel, checked as they pass, in bounded memory.

The client library reads a whole part into memory before it sends it, and copies what it receives
several times. Here the bytes go from file to socket and back in chunks, each checksummed while it
is still in the processor's cache: about half the library's processor time, which matters because a
training shares it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from kubestill.errors import StoreError
from kubestill.runtime.stores import crc32c
from kubestill.runtime.stores.base import Content
from kubestill.runtime.stores.gcs_client import LONG, STREAMS, TIMEOUT, Connection
from kubestill.runtime.stores.gcs_errors import Garbled, checked

T = TypeVar("T")

CHUNK = 1 << 20
PART = 32 << 20
"""Bytes of a part, at least; smaller objects travel in one request."""
MOST_PARTS = 32
"""What one compose request can join."""

_AS_STORED = {"Accept-Encoding": "gzip"}
"""Otherwise the service unpacks what is stored compressed, and no checksum or range fits."""


class Patience(Protocol):
    """Calls an operation until it succeeds or is given up, then with an error of ours."""

    def __call__(self, operation: Callable[[], T], *, progress: Callable[[], object] = ...) -> T:
        """Return what `operation` returns; patience starts anew when `progress()` changes."""
        ...


class Source(Protocol):
    """Bytes to send; `read` is called by several threads."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer only at the end."""
        ...


class File:
    """A local file as a source."""

    def __init__(self, path: str):
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """See `Source.read`."""
        return os.pread(self._fd, length, offset)


class Buffers:
    """The concatenation of buffers as a source."""

    def __init__(self, parts: Sequence[Content]):
        self._views = [memoryview(part).cast("B") for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._views)))
        self.size = self._ends[-1] if self._ends else 0

    def read(self, offset: int, length: int) -> bytes:
        """See `Source.read`."""
        end = min(offset + length, self.size)
        pieces: list[memoryview] = []
        index = bisect_right(self._ends, offset)
        while offset < end:
            view, start = self._views[index], self._ends[index] - len(self._views[index])
            pieces.append(view[offset - start : end - start])
            offset, index = self._ends[index], index + 1
        return b"".join(pieces)


def read_object(connection: Connection, bucket: str, name: str) -> tuple[bytes, str]:
    """Return (content, generation) of a small object.

    Not by the client library: it never closes the connection on which it heard that there is none.
    """
    with connection.session.get(
        _address(connection, bucket, name),
        params={"alt": "media"},
        headers=_AS_STORED,
        stream=True,
        timeout=TIMEOUT,
    ) as response:
        content: bytes = checked(response).raw.read(decode_content=False)
    hashes = dict(item.strip().split("=", 1) for item in response.headers["X-Goog-Hash"].split(","))
    if crc32c.from_base64(hashes["crc32c"]) != crc32c.extend(0, content):
        raise Garbled(f"{name} arrived with another checksum")
    return content, response.headers["X-Goog-Generation"]


class Upload:
    """One object on its way up."""

    def __init__(self, connection: Connection, blob: Any, source: Source, patiently: Patience):
        self._connection = connection
        self._blob = blob
        self._source = source
        self._patiently = patiently

    def run(self, scratch: str | None) -> str:
        """Send the object and return its generation.

        Args:
            scratch: Name prefix for the parts of a big object, which are removed at the end; None
                to send it in one request.
        """
        size = self._source.size
        if scratch is None or size <= PART:
            generation, _ = self._send(self._blob.name, 0, size)
            return generation
        step = max(PART, -(-size // MOST_PARTS))
        starts = range(0, size, step)
        names = [f"{scratch}{number:02d}" for number in range(len(starts))]
        with ThreadPoolExecutor(STREAMS) as pool:
            ends = (start + step for start in starts)
            checksums = [checksum for _, checksum in pool.map(self._send, names, starts, ends)]
            generation = self._compose(names, _joined(checksums, size, step))
            list(pool.map(self._discard, names))
        return generation

    def _send(self, name: str, start: int, end: int) -> tuple[str, int]:
        """Send a span under a name; return (generation, checksum)."""
        body = _Body(self._source, start, min(end, self._source.size))
        url = f"{self._connection.host}/upload/storage/v1/b/{self._blob.bucket.name}/o"

        def post() -> tuple[str, int]:
            response = self._connection.session.post(
                url,
                params={"uploadType": "media", "name": name, "fields": "generation,crc32c"},
                headers={"Content-Type": "application/octet-stream"},
                data=body,
                timeout=TIMEOUT,
            )
            answer = checked(response).json()
            if crc32c.from_base64(answer["crc32c"]) != body.checksum:
                raise Garbled(f"{name} arrived with another checksum")
            return str(answer["generation"]), body.checksum

        return self._patiently(post)

    def _compose(self, names: list[str], checksum: int) -> str:
        bucket = self._blob.bucket
        self._blob.content_type = "application/octet-stream"

        def compose() -> str:
            self._blob.compose([bucket.blob(name) for name in names], retry=None, timeout=LONG)
            if crc32c.from_base64(self._blob.crc32c) != checksum:
                raise Garbled(f"{self._blob.name} was composed with another checksum")
            return str(self._blob.generation)

        return self._patiently(compose)

    def _discard(self, name: str) -> None:
        # What cannot be removed now is swept by a later check_writable.
        with suppress(StoreError):
            self._patiently(
                lambda: self._blob.bucket.blob(name).delete(retry=None, timeout=TIMEOUT)
            )


class Download:
    """One object on its way down, into a file that is not yet visible."""

    def __init__(self, connection: Connection, blob: Any, fd: int, patiently: Patience):
        """Describe the transfer; `blob` has its metadata loaded."""
        self._connection = connection
        self._blob = blob
        self._fd = fd
        self._patiently = patiently

    def run(self) -> None:
        """Fill the file with the object's bytes."""
        size = int(self._blob.size)
        os.ftruncate(self._fd, size)
        step = max(PART, -(-size // STREAMS))
        starts = range(0, size, step)

        def fetch_all() -> None:
            with ThreadPoolExecutor(STREAMS) as pool:
                ends = (min(start + step, size) for start in starts)
                checksums = list(pool.map(self._fetch, starts, ends))
            if _joined(checksums, size, step) != crc32c.from_base64(self._blob.crc32c):
                raise Garbled(f"{self._blob.name} arrived with another checksum")

        self._patiently(fetch_all)

    def _fetch(self, start: int, end: int) -> int:
        """Write a span to the file, going on where a broken connection left off; return its CRC."""
        url = _address(self._connection, self._blob.bucket.name, self._blob.name)
        # The generation keeps spans of two versions of an object from being mixed.
        params = {"alt": "media", "generation": str(self._blob.generation)}
        position, checksum = start, 0

        def read_on() -> None:
            nonlocal position, checksum
            headers = {"Range": f"bytes={position}-{end - 1}", **_AS_STORED}
            with self._connection.session.get(
                url, params=params, headers=headers, stream=True, timeout=TIMEOUT
            ) as response:
                raw = checked(response).raw
                while chunk := raw.read(min(CHUNK, end - position), decode_content=False):
                    os.pwrite(self._fd, chunk, position)
                    checksum = crc32c.extend(checksum, chunk)
                    position += len(chunk)
            if position < end:
                raise Garbled(f"{self._blob.name} ended early, at byte {position}")

        self._patiently(read_on, progress=lambda: position)
        return checksum


class _Body:
    """A span of a source as a request's body, of known length, which can be sent more than once."""

    def __init__(self, source: Source, start: int, end: int):
        self._source = source
        self._start = start
        self._end = end
        self.checksum = 0

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[bytes]:
        self.checksum = 0
        for offset in range(self._start, self._end, CHUNK):
            length = min(CHUNK, self._end - offset)
            chunk = self._source.read(offset, length)
            if len(chunk) < length:
                raise StoreError("the file became shorter while it was sent")
            self.checksum = crc32c.extend(self.checksum, chunk)
            yield chunk


def _joined(checksums: Sequence[int], size: int, step: int) -> int:
    """Return the checksum of `size` bytes from those of its spans of `step`."""
    whole = 0
    for number, checksum in enumerate(checksums):
        whole = crc32c.combine(whole, checksum, min(step, size - number * step))
    return whole


def _address(connection: Connection, bucket: str, name: str) -> str:
    return f"{connection.host}/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
