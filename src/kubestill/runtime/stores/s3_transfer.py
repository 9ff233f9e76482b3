"""Objects on their way to S3: one request, or parts that the server joins."""

# botocore is not typed.
# pyright: basic

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from botocore.exceptions import ClientError

from kubestill.runtime.stores import crc32c
from kubestill.runtime.stores.s3_errors import code_of
from kubestill.runtime.stores.transfer import (
    PART,
    STREAMS,
    Garbled,
    Patience,
    Payload,
    Span,
    cut,
    joined,
)

MOST_PARTS = 10_000
CHECKSUM = "crc32c"
"""Name of the object's metadata that holds its CRC-32C, as S3 writes one. The server's own checksum
would not do: of an object in parts most servers know only that of the parts' checksums, and some
servers know none."""


class Upload:
    """One object on its way up."""

    def __init__(self, client: Any, place: dict[str, str], payload: Payload, patiently: Patience):
        """Describe the transfer; `place` holds Bucket and Key."""
        self._client = client
        self._place = place
        self._payload = payload
        self._patiently = patiently

    def run(self) -> str:
        """Send the object and return its ETag."""
        size = self._payload.size
        spans = cut(size, max(PART, -(-size // MOST_PARTS)))
        with ThreadPoolExecutor(STREAMS) as pool:
            # Each span is read twice, since its checksum goes ahead of it: that costs less than a
            # tenth of sending it.
            checksums = list(pool.map(self._checksum, spans))
            whole = joined(checksums, spans)
            if len(spans) <= 1:
                return self._patiently(lambda: self._put(whole))
            upload = self._patiently(lambda: self._create(whole))
            try:
                numbers = range(1, len(spans) + 1)
                parts = pool.map(lambda *part: self._send(upload, *part), numbers, spans, checksums)
                return self._complete(upload, list(parts), whole)
            except BaseException:
                # What cannot be removed now is swept by a later check_writable.
                with suppress(Exception):
                    self._client.abort_multipart_upload(**self._place, UploadId=upload)
                raise

    def _checksum(self, span: tuple[int, int]) -> int:
        crc = 0
        for chunk in Span(self._payload, *span):
            crc = crc32c.extend(crc, chunk)
        return crc

    def _put(self, checksum: int) -> str:
        body = _Body(Span(self._payload, 0, self._payload.size))
        answer = self._client.put_object(**self._place, **described(checksum), Body=body)
        return checked(answer, checksum)

    def _create(self, checksum: int) -> str:
        answer = self._client.create_multipart_upload(
            **self._place, **labelled(checksum), ChecksumAlgorithm="CRC32C"
        )
        if "UploadId" not in answer:
            raise Garbled("the server began an upload without a name")
        return answer["UploadId"]

    def _send(
        self, upload: str, number: int, span: tuple[int, int], checksum: int
    ) -> dict[str, Any]:
        part = {"PartNumber": number, "ChecksumCRC32C": crc32c.to_base64(checksum)}

        def send() -> str:
            body = _Body(Span(self._payload, *span))
            answer = self._client.upload_part(**self._place, UploadId=upload, **part, Body=body)
            return checked(answer, checksum)

        return {**part, "ETag": f'"{self._patiently(send)}"'}

    def _complete(self, upload: str, parts: list[dict[str, Any]], checksum: int) -> str:
        def complete() -> str:
            try:
                answer = self._client.complete_multipart_upload(
                    **self._place, UploadId=upload, MultipartUpload={"Parts": parts}
                )
            except ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise
                # It may be our own success, its answer lost: the object tells.
                answer = self._client.head_object(**self._place)
                if (answer["ContentLength"], checksum_of(answer)) != (self._payload.size, checksum):
                    raise
            return version_of(answer)

        return self._patiently(complete)


def labelled(checksum: int) -> dict[str, Any]:
    """Return what a request says about the object that it makes."""
    return {
        "ContentType": "application/octet-stream",
        "Metadata": {CHECKSUM: crc32c.to_base64(checksum)},
    }


def described(checksum: int) -> dict[str, Any]:
    """Return what a request says about an object that it brings whole."""
    return {**labelled(checksum), "ChecksumCRC32C": crc32c.to_base64(checksum)}


def checked(answer: dict[str, Any], checksum: int) -> str:
    """Return the ETag of what was sent, if the server saw the right bytes (or says nothing)."""
    seen = answer.get("ChecksumCRC32C")
    if seen is not None and crc32c.from_base64(seen) != checksum:
        raise Garbled("the server saw another checksum")
    return version_of(answer)


def version_of(answer: dict[str, Any]) -> str:
    """Return the ETag in an answer, without its quotes."""
    if not answer.get("ETag"):
        raise Garbled("the answer has no ETag")
    return answer["ETag"].strip('"')


def checksum_of(answer: dict[str, Any]) -> int | None:
    """Return the checksum of an object as we left it, or as the server knows it; None for none."""
    found = answer.get("Metadata", {}).get(CHECKSUM) or answer.get("ChecksumCRC32C")
    # `abc=-3` is the checksum of three parts' checksums.
    return crc32c.from_base64(found) if found and "-" not in found else None


class _Body:
    """A span as a request's body, for a library that wants a file."""

    def __init__(self, span: Span):
        self._span = span
        self._chunks = iter(span)

    def __len__(self) -> int:
        return len(self._span)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def read(self, size: int = -1) -> bytes:
        """Return the next chunk, whatever size is asked for: urllib3 would ask for 16 KiB."""
        return next(self._chunks, b"")

    def seek(self, offset: int) -> None:
        """Start again, where the server sends us to another of its addresses."""
        assert offset == 0
        self._chunks = iter(self._span)
