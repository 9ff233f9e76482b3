"""What `gs://`, `s3://` and `minio://` have in common: one store over any service of objects.

A `Service` says how a vendor's client does a thing, once. The store adds patience and our errors,
and trusts no single answer that would change what a caller does next: gateways repeat requests and
make up answers. "Not there" counts once it is said twice; a refused condition counts once a look
at the object confirms it, and it may turn out to be our own success.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from kubestill.errors import Conflict, NotFound, StoreError
from kubestill.runtime.base import LARGEST
from kubestill.runtime.stores.base import ABSENT, Content, Entry, check_key, check_size, probe
from kubestill.runtime.stores.files import temporary_beside, translated
from kubestill.runtime.stores.retry import retrying
from kubestill.runtime.stores.transfer import Buffers, File, Garbled, Patience, Payload

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
        """Return whether the same request may well succeed a little later."""
        ...

    def is_refusal(self, error: Exception) -> bool:
        """Return whether it says that a condition of the request does not hold."""
        ...

    def translate(self, error: Exception, what: str, action: str) -> StoreError | None:
        """Return the error of ours that the vendor's means; None for any other error.

        Args:
            error: What was raised.
            what: The URI that was asked for.
            action: `get`, `create`, `list` or `delete`.
        """
        ...

    def read(self, key: str, most: int | None) -> tuple[bytes, str]:
        """Return (content, version) of a small object; of more than `most` bytes, one more."""
        ...

    def write(self, key: str, content: bytes, *, expect: str | None) -> str:
        """Write a small object, only over version `expect` where that is given."""
        ...

    def send(self, key: str, payload: Payload, patiently: Patience) -> str:
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

    def get(self, key: str, *, most: int | None = LARGEST) -> bytes:
        """Return the whole object; see `Store.get`."""
        content, _ = self.read(key, most)
        if content is None:
            raise NotFound(f"{self.uri} has no object {key!r}")
        return check_size(content, most, f"{self.uri}/{key}")

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
        patiently = self._patience("delete", key)
        with suppress(NotFound):
            _said_twice(lambda: patiently(lambda: self._service.delete(key)))

    def upload(self, path: str, key: str) -> Entry:
        """Copy a local file; see `Store.upload`."""
        with translated(os.path.dirname(path), path), File(path) as payload:
            return self._send(key, payload)

    def download(self, key: str, path: str) -> None:
        """Copy the object to a local file; see `Store.download`."""
        check_key(key)
        target = os.path.abspath(path)
        patiently = self._patience("get", key, conditional=True)
        with translated(os.path.dirname(target), target), temporary_beside(target) as (name, fd):
            _said_twice(lambda: self._service.receive(key, fd, patiently))
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

    def read(self, key: str, most: int | None = LARGEST) -> tuple[bytes | None, str]:
        """Return (content, version) of a small object; (None, `ABSENT`) where there is none.

        Of more than `most` bytes, the first of them and one more.
        """
        check_key(key)
        patiently = self._patience("get", key)
        try:
            return _said_twice(lambda: patiently(lambda: self._service.read(key, most)))
        except NotFound:
            return None, ABSENT

    def write(self, key: str, content: bytes, *, expect: str | None) -> str:
        """Write a small object, only over version `expect` where that is given."""
        check_key(key)

        def write() -> str:
            try:
                return self._service.write(key, content, expect=expect)
            except Exception as error:
                if expect is None or not self._service.is_refusal(error):
                    raise
                current, version = self.read(key, len(content))
                if current == content:
                    # Our own success: the write was done, its answer lost, and it was repeated.
                    return version
                if version == expect:
                    raise Garbled(f"{key} was refused at the expected version") from error
                raise

        return self._patience("create", key, conditional=expect is not None)(write)

    def _send(self, key: str, payload: Payload) -> Entry:
        if payload.size <= SMALL:
            version = self.write(key, payload.read(0, payload.size), expect=None)
        else:
            check_key(key)
            version = self._service.send(key, payload, self._patience("create", key))
        return Entry(key=key, size=payload.size, version=version)

    def _patience(self, action: str, key: str, *, conditional: bool = False) -> Patience:
        """Return what repeats and translates.

        Args:
            action: What its permission is called.
            key: The object.
            conditional: Whether the requests have conditions. Where they have none, the answer that
                one does not hold is wrong, and worth another try.
        """
        what = f"{self.uri}/{key}".rstrip("/")
        return partial(self._run, action, what, conditional)

    def _run(
        self,
        action: str,
        what: str,
        conditional: bool,
        operation: Callable[[], T],
        *,
        progress: Callable[[], object] = lambda: None,
    ) -> T:
        def transient(error: Exception) -> bool:
            if self._service.is_transient(error):
                return True
            return not conditional and self._service.is_refusal(error)

        try:
            return retrying(
                operation,
                transient=transient,
                deadline=self._deadline,
                what=f"{action} {what}",
                progress=progress,
            )
        except Exception as error:
            if (ours := self._service.translate(error, what, action)) is None:
                raise
            raise ours from error


def _said_twice(operation: Callable[[], T]) -> T:
    """Do something again that found no object, or another version of it in the middle of a read."""
    try:
        return operation()
    except (NotFound, Conflict):
        return operation()


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
