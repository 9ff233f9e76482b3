"""What `gs://`, `s3://` and `minio://` have in common: one store over any service of objects.

A `Service` says how a vendor's client does a thing, once; the store adds patience, our errors, and
the recognition of its own success behind a refused condition.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from kubestill.errors import Conflict, NotFound, StoreError
from kubestill.runtime.stores.base import ABSENT, Content, Entry, check_key, probe
from kubestill.runtime.stores.files import temporary_beside, translated
from kubestill.runtime.stores.retry import retrying
from kubestill.runtime.stores.transfer import Buffers, File, Patience, Source

T = TypeVar("T")

SMALL = 8_000_000
"""Bytes up to which an object goes in one request, from memory."""


class Service(Protocol):
    """Objects below one root of a vendor's service; raises what the vendor's client raises."""

    @property
    def uri(self) -> str:
        """The root, without a trailing slash."""
        ...

    def is_transient(self, error: Exception) -> bool:
        """Whether the same request may well succeed a little later."""
        ...

    def translate(self, error: Exception, what: str, action: str) -> StoreError | None:
        """Return the error of ours that the vendor's means; None for any other error.

        Args:
            error: What was raised.
            what: The URI that was asked for.
            action: `get`, `create`, `list` or `delete`.
        """
        ...

    def read(self, key: str) -> tuple[bytes, str]:
        """Return (content, version) of a small object."""
        ...

    def write(self, key: str, content: bytes, *, expect: str | None) -> str:
        """Write a small object, only over version `expect` where that is given."""
        ...

    def send(self, key: str, source: Source, patiently: Patience) -> str:
        """Write an object of any size and return its version."""
        ...

    def receive(self, key: str, fd: int, patiently: Patience) -> None:
        """Fill an open file with an object of any size."""
        ...

    def pages(self, prefix: str, patiently: Patience) -> Iterator[Sequence[Entry]]:
        """Yield the objects whose keys start with `prefix`, in key order, page by page."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object that may not be there."""
        ...

    def sweep(self, patiently: Patience) -> None:
        """Remove what uploads left behind that died long ago."""
        ...


class CloudStore:
    """A service of objects as a store."""

    def __init__(self, service: Service, *, deadline: float):
        """Describe the store; nothing is sent yet.

        Args:
            service: Where the objects are.
            deadline: Seconds for which an operation retries transient failures.
        """
        self._service = service
        self._deadline = deadline

    @property
    def uri(self) -> str:
        """The root, without a trailing slash."""
        return self._service.uri

    def get(self, key: str) -> bytes:
        """Return the whole object; see `Store.get`."""
        content, _ = self.read(key)
        if content is None:
            raise NotFound(f"{self.uri} has no object {key!r}")
        return content

    def put(self, key: str, content: Content, *, create: bool = False) -> Entry:
        """Write the whole object; see `Store.put`."""
        if not create:
            return self.put_parts(key, [content])
        data = bytes(content)
        return Entry(key=key, size=len(data), version=self.write(key, data, expect=ABSENT))

    def put_parts(self, key: str, parts: Sequence[Content]) -> Entry:
        """Write the concatenation of the buffers; see `Store.put_parts`."""
        return self._send(key, Buffers(parts))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects below `prefix` in key order; see `Store.list`."""
        for page in self._service.pages(prefix, self._patience("list", "")):
            yield from page

    def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        check_key(key)
        with suppress(NotFound):
            self._patience("delete", key)(lambda: self._service.delete(key))

    def upload(self, path: str, key: str) -> Entry:
        """Copy a local file; see `Store.upload`."""
        with translated(os.path.dirname(path), path), File(path) as source:
            return self._send(key, source)

    def download(self, key: str, path: str) -> None:
        """Copy the object to a local file; see `Store.download`."""
        check_key(key)
        target = os.path.abspath(path)
        with translated(os.path.dirname(target), target), temporary_beside(target) as (name, fd):
            self._service.receive(key, fd, self._patience("get", key))
            os.replace(name, target)

    def local_path(self, key: str) -> str | None:
        """Return None: there are no files."""
        check_key(key)
        return None

    def cell(self, key: str) -> CloudCell:
        """Return the compare-and-swap cell at `key`."""
        return CloudCell(self, check_key(key))

    def check_writable(self) -> None:
        """Create, read, list and delete a probe, then sweep what uploads that died left behind."""
        probe(self)
        self._service.sweep(self._patience("delete", ""))

    def read(self, key: str) -> tuple[bytes | None, str]:
        """Return (content, version) of a small object; (None, `ABSENT`) where there is none."""
        check_key(key)
        try:
            return self._patience("get", key)(lambda: self._service.read(key))
        except NotFound:
            return None, ABSENT

    def write(self, key: str, content: bytes, *, expect: str | None) -> str:
        """Write a small object, only over version `expect` where that is given."""
        check_key(key)
        try:
            return self._patience("create", key)(
                lambda: self._service.write(key, content, expect=expect)
            )
        except Conflict:
            # It may be our own success: a write that was done, its answer lost, then tried again.
            current, version = self.read(key)
            if current != content:
                raise
            return version

    def _send(self, key: str, source: Source) -> Entry:
        if source.size <= SMALL:
            version = self.write(key, source.read(0, source.size), expect=None)
        else:
            check_key(key)
            version = self._service.send(key, source, self._patience("create", key))
        return Entry(key=key, size=source.size, version=version)

    def _patience(self, action: str, key: str) -> Patience:
        """Return what repeats and translates; `action` is what its permission is called."""
        return partial(self._run, action, f"{self.uri}/{key}".rstrip("/"))

    def _run(
        self,
        action: str,
        what: str,
        operation: Callable[[], T],
        *,
        progress: Callable[[], object] = lambda: None,
    ) -> T:
        try:
            return retrying(
                operation,
                transient=self._service.is_transient,
                deadline=self._deadline,
                what=f"{action} {what}",
                progress=progress,
            )
        except Exception as error:
            if (ours := self._service.translate(error, what, action)) is None:
                raise
            raise ours from error


class CloudCell:
    """One small object replaced only where its version is the expected one."""

    def __init__(self, store: CloudStore, key: str):
        self._store = store
        self._key = key

    def read(self) -> tuple[bytes | None, str]:
        """Return (content, version); see `Cell.read`."""
        return self._store.read(self._key)

    def swap(self, content: bytes, *, expect: str) -> str:
        """Replace version `expect`; see `Cell.swap`."""
        return self._store.write(self._key, content, expect=expect)
