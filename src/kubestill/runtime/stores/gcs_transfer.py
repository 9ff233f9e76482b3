"""Big objects on their way to Cloud Storage."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from kubestill.errors import StoreError
from kubestill.runtime.stores import crc32c
from kubestill.runtime.stores.gcs_client import LONG, Connection
from kubestill.runtime.stores.gcs_errors import checked, understood
from kubestill.runtime.stores.transfer import (
    PART,
    STREAMS,
    TIMEOUT,
    Garbled,
    Patience,
    Payload,
    Span,
    cut,
    joined,
)

MOST_PARTS = 32
"""What one compose request can join."""


class Upload:
    """One object on its way up."""

    def __init__(self, connection: Connection, blob: Any, payload: Payload, patiently: Patience):
        self._connection = connection
        self._blob = blob
        self._payload = payload
        self._patiently = patiently

    def run(self, scratch: str | None) -> str:
        """Send the object and return its generation.

        Args:
            scratch: Name prefix for the parts of a big object, which are removed at the end; None
                to send it in one request.
        """
        size = self._payload.size
        if scratch is None or size <= PART:
            generation, _ = self._send(self._blob.name, (0, size))
            return generation
        spans = cut(size, max(PART, -(-size // MOST_PARTS)))
        names = [f"{scratch}{number:02d}" for number in range(len(spans))]
        with ThreadPoolExecutor(STREAMS) as pool:
            checksums = [checksum for _, checksum in pool.map(self._send, names, spans)]
            generation = self._compose(names, joined(checksums, spans))
            list(pool.map(self._discard, names))
        return generation

    def _send(self, name: str, span: tuple[int, int]) -> tuple[str, int]:
        """Send a span under a name; return (generation, checksum)."""
        body = _Body(Span(self._payload, *span))
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
            parts = [bucket.blob(name) for name in names]
            understood(lambda: self._blob.compose(parts, retry=None, timeout=LONG))
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


class _Body:
    """A span as a request's body, checksummed as it leaves."""

    def __init__(self, span: Span):
        self._span = span
        self.checksum = 0

    def __len__(self) -> int:
        return len(self._span)

    def __iter__(self) -> Iterator[bytes]:
        self.checksum = 0
        for chunk in self._span:
            self.checksum = crc32c.extend(self.checksum, chunk)
            yield chunk
