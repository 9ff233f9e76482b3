"""Google Cloud Storage: small objects through its client library, bulk through `gcs_transfer`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote

from kubestill.errors import NotFound, StoreError
from kubestill.runtime.stores import crc32c
from kubestill.runtime.stores.base import Entry
from kubestill.runtime.stores.gcs_client import Connection, connect
from kubestill.runtime.stores.gcs_errors import (
    checked,
    is_refusal,
    is_transient,
    translate,
    understood,
)
from kubestill.runtime.stores.gcs_transfer import Upload
from kubestill.runtime.stores.transfer import (
    CHUNK,
    TIMEOUT,
    Garbled,
    Patience,
    Payload,
    read_up_to,
    receive,
)

_PARTS = ".parts.tmp/"
_ABANDONED = timedelta(days=1)
_AS_STORED = {"Accept-Encoding": "gzip"}
"""Otherwise the service unpacks what is stored compressed, and no checksum or range fits."""


class GcsService:
    """Objects below `gs://bucket/prefix`, with the credentials of the environment.

    Where STORAGE_EMULATOR_HOST is set, requests go there, anonymously.
    """

    def __init__(self, bucket: str, prefix: str = "", *, composite: bool | None = None):
        """Describe the place; nothing is sent yet.

        Args:
            bucket: The bucket's name.
            prefix: Where in it; '/'-separated, without a slash at either end.
            composite: Upload big objects as parts that are then composed into one. True is faster
                on the real service; an emulator copies the parts, slower than it takes one request.
                By default, therefore, only where STORAGE_EMULATOR_HOST is not set.
        """
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._composite = composite

    @property
    def uri(self) -> str:
        """The root, without a trailing slash."""
        return f"gs://{self._bucket}/{self._prefix}".rstrip("/")

    def is_transient(self, error: Exception) -> bool:
        """See `Service.is_transient`."""
        return is_transient(error)

    def is_refusal(self, error: Exception) -> bool:
        """See `Service.is_refusal`."""
        return is_refusal(error)

    def translate(self, error: Exception, what: str, action: str) -> StoreError | None:
        """See `Service.translate`."""
        return translate(error, self._bucket, what, action)

    def read(self, key: str, most: int | None) -> tuple[bytes, str]:
        """Return (content, generation); see `Service.read`.

        Not by the client library: it never closes the connection on which it heard that there is
        none.
        """
        connection = self._connection
        with connection.session.get(
            _address(connection, self._bucket, self._prefix + key),
            params={"alt": "media"},
            headers=_AS_STORED,
            stream=True,
            timeout=TIMEOUT,
        ) as response:
            raw = checked(response).raw
            content = read_up_to(lambda size: raw.read(size, decode_content=False), most)
        found = response.headers.get("X-Goog-Hash", "").split(",")
        checksum = dict(item.strip().partition("=")[::2] for item in found).get("crc32c")
        generation = response.headers.get("X-Goog-Generation")
        if checksum is None or generation is None:
            raise Garbled(f"{key} arrived without its checksum and generation")
        whole = most is None or len(content) <= most
        if whole and crc32c.from_base64(checksum) != crc32c.extend(0, content):
            raise Garbled(f"{key} arrived with another checksum")
        return content, generation

    def write(self, key: str, content: bytes, *, expect: str | None) -> str:
        """See `Service.write`."""
        blob = self._blob(key)
        blob.upload_from_string(
            content,
            content_type="application/octet-stream",
            if_generation_match=None if expect is None else int(expect),
            checksum="crc32c",
            retry=None,
            timeout=TIMEOUT,
        )
        return str(blob.generation)

    def send(self, key: str, payload: Payload, patiently: Patience) -> str:
        """See `Service.send`."""
        composite = self._composite
        if composite is None:
            composite = not os.environ.get("STORAGE_EMULATOR_HOST")
        scratch = f"{self._prefix}{_PARTS}{uuid.uuid4().hex}/" if composite else None
        return Upload(self._connection, self._blob(key), payload, patiently).run(scratch)

    def receive(self, key: str, fd: int, patiently: Patience) -> None:
        """See `Service.receive`."""
        blob = self._blob(key)

        def described() -> tuple[int, str]:
            blob.reload(retry=None, timeout=TIMEOUT)
            return int(blob.size), blob.crc32c

        size, checksum = patiently(lambda: understood(described))
        receive(
            partial(_chunks, self._connection, blob),
            fd,
            size=size,
            checksum=crc32c.from_base64(checksum),
            what=blob.name,
            patiently=patiently,
        )

    def pages(self, prefix: str, patiently: Patience) -> Iterator[Sequence[Entry]]:
        """See `Service.pages`."""
        for blobs in self._pages(prefix, patiently):
            entries = (
                Entry(
                    key=blob.name.removeprefix(self._prefix),
                    size=blob.size,
                    version=str(blob.generation),
                )
                for blob in blobs
            )
            yield [entry for entry in entries if not entry.key.startswith(_PARTS)]

    def delete(self, key: str) -> None:
        """See `Service.delete`."""
        self._blob(key).delete(retry=None, timeout=TIMEOUT)

    def sweep(self, patiently: Patience) -> None:
        """See `Service.sweep`."""
        for blobs in self._pages(_PARTS, patiently):
            for blob in blobs:
                if datetime.now(UTC) - blob.updated > _ABANDONED:
                    with suppress(NotFound):
                        patiently(partial(blob.delete, retry=None, timeout=TIMEOUT))

    @property
    def _connection(self) -> Connection:
        return connect(self.uri)

    def _blob(self, key: str) -> Any:
        return self._connection.client.bucket(self._bucket).blob(self._prefix + key)

    def _pages(self, prefix: str, patiently: Patience) -> Iterator[Sequence[Any]]:
        token: str | None = None
        while True:
            blobs, token = patiently(partial(self._page, prefix, token))
            yield blobs
            if not token:
                return

    def _page(self, prefix: str, token: str | None) -> tuple[Sequence[Any], str | None]:
        listing = self._connection.client.list_blobs(
            self._bucket,
            prefix=self._prefix + prefix,
            page_token=token,
            fields="items(name,size,generation,updated),nextPageToken",
            retry=None,
            timeout=TIMEOUT,
        )
        page = understood(lambda: next(listing.pages, ()))
        return tuple(page), listing.next_page_token


def _chunks(connection: Connection, blob: Any, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes of a span as they come."""
    # The generation keeps spans of two versions of an object from being mixed.
    params = {"alt": "media", "generation": str(blob.generation)}
    headers = {"Range": f"bytes={start}-{end - 1}", **_AS_STORED}
    with connection.session.get(
        _address(connection, blob.bucket.name, blob.name),
        params=params,
        headers=headers,
        stream=True,
        timeout=TIMEOUT,
    ) as response:
        raw, left = checked(response).raw, end - start
        while chunk := raw.read(min(CHUNK, left), decode_content=False):
            left -= len(chunk)
            yield chunk


def _address(connection: Connection, bucket: str, name: str) -> str:
    return f"{connection.host}/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
