"""Google Cloud Storage: small objects through its client library, bulk through `gcs_transfer`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from kubestill.errors import Conflict, NotFound
from kubestill.runtime.stores.base import ABSENT, Content, Entry, check_key
from kubestill.runtime.stores.files import temporary_beside, translated
from kubestill.runtime.stores.gcs_client import TIMEOUT, Connection, connect
from kubestill.runtime.stores.gcs_errors import is_transient, translate
from kubestill.runtime.stores.gcs_transfer import (
    Buffers,
    Download,
    File,
    Source,
    Upload,
    read_object,
)
from kubestill.runtime.stores.retry import retrying

T = TypeVar("T")

SMALL = 8_000_000
"""Bytes up to which an object goes in one request of the client library."""

_PARTS = ".parts.tmp/"
_ABANDONED = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a store and its cells share: a bucket, a prefix, and how patient to be."""

    bucket: str
    prefix: str
    """Empty, or with a trailing slash."""
    deadline: float

    @property
    def uri(self) -> str:
        return f"gs://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def connection(self) -> Connection:
        return connect(self.uri)

    def blob(self, key: str) -> Any:
        return self.connection.client.bucket(self.bucket).blob(self.prefix + check_key(key))

    def run(
        self,
        action: str,
        key: str,
        operation: Callable[[], T],
        *,
        progress: Callable[[], object] = lambda: None,
    ) -> T:
        """Call `operation` patiently; `action` is what its permission is called, like `create`."""
        what = f"{self.uri}/{key}".rstrip("/")
        try:
            return retrying(
                operation,
                transient=is_transient,
                deadline=self.deadline,
                what=f"{action} {what}",
                progress=progress,
            )
        except Exception as error:
            if (ours := translate(error, self.bucket, what, action)) is None:
                raise
            raise ours from error

    def read(self, key: str) -> tuple[bytes | None, str]:
        name = self.prefix + check_key(key)
        read = partial(read_object, self.connection, self.bucket, name)
        try:
            return self.run("get", key, read)
        except NotFound:
            return None, ABSENT

    def write(self, key: str, content: bytes, *, expect: str | None) -> str:
        """Write a small object, only over generation `expect` where that is given."""
        blob = self.blob(key)
        try:
            self.run(
                "create",
                key,
                lambda: blob.upload_from_string(
                    content,
                    content_type="application/octet-stream",
                    if_generation_match=None if expect is None else int(expect),
                    checksum="crc32c",
                    retry=None,
                    timeout=TIMEOUT,
                ),
            )
            return str(blob.generation)
        except Conflict:
            # It may be our own success: a write that was done, its answer lost, then tried again.
            current, version = self.read(key)
            if current != content:
                raise
            return version


class GcsStore:
    """Objects below `gs://bucket/prefix`, with the credentials of the environment.

    Where STORAGE_EMULATOR_HOST is set, requests go there, anonymously.
    """

    def __init__(
        self, bucket: str, prefix: str = "", *, deadline: float, composite: bool | None = None
    ):
        """Describe the store; nothing is sent yet.

        Args:
            bucket: The bucket's name.
            prefix: Where in it; '/'-separated, without a slash at either end.
            deadline: Seconds for which an operation retries transient failures.
            composite: Upload big objects as parts that are then composed into one. True is faster
                on the real service; an emulator copies the parts, slower than it takes one request.
                By default, therefore, only where STORAGE_EMULATOR_HOST is not set.
        """
        self._place = _Place(
            bucket=bucket, prefix=f"{prefix}/" if prefix else "", deadline=deadline
        )
        self._composite = composite

    @property
    def uri(self) -> str:
        """The root, without a trailing slash."""
        return self._place.uri

    def get(self, key: str) -> bytes:
        """Return the whole object; see `Store.get`."""
        content, _ = self._place.read(key)
        if content is None:
            raise NotFound(f"{self.uri} has no object {key!r}")
        return content

    def put(self, key: str, content: Content, *, create: bool = False) -> Entry:
        """Write the whole object; see `Store.put`."""
        if not create:
            return self.put_parts(key, [content])
        data = bytes(content)
        version = self._place.write(key, data, expect=ABSENT)
        return Entry(key=key, size=len(data), version=version)

    def put_parts(self, key: str, parts: Sequence[Content]) -> Entry:
        """Write the concatenation of the buffers; see `Store.put_parts`."""
        return self._send(key, Buffers(parts))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects below `prefix` in key order; see `Store.list`."""
        for blob in self._blobs(prefix):
            key = blob.name.removeprefix(self._place.prefix)
            if not key.startswith(_PARTS):
                yield Entry(key=key, size=blob.size, version=str(blob.generation))

    def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        self._delete(self._place.blob(key), key)

    def upload(self, path: str, key: str) -> Entry:
        """Copy a local file; see `Store.upload`."""
        with translated(os.path.dirname(path), path), File(path) as source:
            return self._send(key, source)

    def download(self, key: str, path: str) -> None:
        """Copy the object to a local file; see `Store.download`."""
        target = os.path.abspath(path)
        blob = self._place.blob(key)
        try:
            self._place.run("get", key, lambda: blob.reload(retry=None, timeout=TIMEOUT))
        except NotFound:
            raise NotFound(f"{self.uri} has no object {key!r}") from None
        with translated(os.path.dirname(target), target), temporary_beside(target) as (name, fd):
            Download(self._place.connection, blob, fd, partial(self._place.run, "get", key)).run()
            os.replace(name, target)

    def local_path(self, key: str) -> str | None:
        """Return None: there are no files."""
        check_key(key)
        return None

    def cell(self, key: str) -> GcsCell:
        """Return the compare-and-swap cell at `key`."""
        return GcsCell(self._place, check_key(key))

    def check_writable(self) -> None:
        """Create, read, list and delete a probe, then sweep the parts of uploads that died."""
        key = f".kubestill-probe-{uuid.uuid4().hex}"
        self.put(key, b"probe", create=True)
        self.get(key)
        next(self.list(key))
        self.delete(key)
        for blob in self._blobs(_PARTS):
            if datetime.now(UTC) - blob.updated > _ABANDONED:
                self._delete(blob, blob.name)

    def _send(self, key: str, source: Source) -> Entry:
        place = self._place
        if source.size <= SMALL:
            version = place.write(key, source.read(0, source.size), expect=None)
            return Entry(key=key, size=source.size, version=version)
        composite = self._composite
        if composite is None:
            composite = not os.environ.get("STORAGE_EMULATOR_HOST")
        scratch = f"{place.prefix}{_PARTS}{uuid.uuid4().hex}/" if composite else None
        blob = place.blob(key)
        upload = Upload(place.connection, blob, source, partial(place.run, "create", key))
        return Entry(key=key, size=source.size, version=upload.run(scratch))

    def _blobs(self, prefix: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            blobs, token = self._place.run("list", "", partial(self._page, prefix, token))
            yield from blobs
            if not token:
                return

    def _page(self, prefix: str, token: str | None) -> tuple[Sequence[Any], str | None]:
        listing = self._place.connection.client.list_blobs(
            self._place.bucket,
            prefix=self._place.prefix + prefix,
            page_token=token,
            fields="items(name,size,generation,updated),nextPageToken",
            retry=None,
            timeout=TIMEOUT,
        )
        page = next(listing.pages, ())
        return tuple(page), listing.next_page_token

    def _delete(self, blob: Any, key: str) -> None:
        with suppress(NotFound):
            self._place.run("delete", key, lambda: blob.delete(retry=None, timeout=TIMEOUT))


class GcsCell:
    """One small object replaced only where its generation is the expected one."""

    def __init__(self, place: _Place, key: str):
        self._place = place
        self._key = key

    def read(self) -> tuple[bytes | None, str]:
        """Return (content, version); see `Cell.read`."""
        return self._place.read(self._key)

    def swap(self, content: bytes, *, expect: str) -> str:
        """Replace version `expect`; see `Cell.swap`."""
        return self._place.write(self._key, content, expect=expect)
