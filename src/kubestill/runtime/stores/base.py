"""The storage protocol: a few verbs and one cell that every store offers.

A store is rooted at a URI. Keys are '/'-separated strings below it, never `pathlib.Path`, which
would turn `gs://bucket` into `gs:/bucket`. Everything a store raises is a
`kubestill.errors.StoreError`, but for a key that can never work, which is `InvalidInput`, and an
object that is larger than its reader takes, which is `CorruptData`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from kubestill.errors import CorruptData, InvalidInput, Problem
from kubestill.runtime.base import LARGEST

Content: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes; a `memoryview` is written without a copy."""

ABSENT = "0"
"""The version of a cell that was never written: what the first `swap` expects."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored object."""

    key: str
    size: int
    """Bytes."""
    version: str
    """Changes whenever the content does: a GCS generation; a local file's size, mtime, inode."""


class Cell(Protocol):
    """One small object that is only ever replaced by compare-and-swap."""

    def read(self) -> tuple[bytes | None, str]:
        """Return (content, version); (None, `ABSENT`) where nothing was ever written.

        Of content that is larger than a record can be, only the beginning comes, one byte more than
        that: no reader takes it for a whole one, and it can still be replaced.

        Raises:
            StoreError: The store did not answer.
        """
        ...

    def swap(self, content: bytes, *, expect: str) -> str:
        """Replace version `expect` by `content` and return the new version.

        The content must be unique to this writer and commit (attempt id and sequence inside): after
        an answer was lost, a store tells its own success from somebody else's by comparing bytes.
        Swapping the same content for the same version again therefore succeeds as long as it is
        still current.

        Raises:
            Conflict: Another writer swapped first; nothing was changed. It is a conflict, too,
                where an answer was lost and others have built upon this very content since: read
                again, the current content tells.
        """
        ...


class Store(Protocol):
    """Objects below one root URI."""

    @property
    def uri(self) -> str:
        """The root, without a trailing slash."""
        ...

    def get(self, key: str, *, most: int | None = LARGEST) -> bytes:
        """Return the whole object.

        Args:
            key: Where, below the root.
            most: Bytes that it may have, by default those of a record: more are never in memory.
                None for any number.

        Raises:
            NotFound: There is none.
            CorruptData: It is larger.
        """
        ...

    def put(self, key: str, content: Content, *, create: bool = False) -> Entry:
        """Write the whole object, atomically and durably.

        Args:
            key: Where, below the root.
            content: What.
            create: Fail where an object exists already, instead of replacing it. Meant for small
                objects whose content is unique to the writer.

        Raises:
            Conflict: `create` was asked for and an object of other content is there.
        """
        ...

    def put_parts(self, key: str, parts: Sequence[Content]) -> Entry:
        """Write the concatenation of many buffers as one object, without joining them in memory.

        The buffers are read, possibly by several threads, until this returns.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every object whose key starts with `prefix`, in key order."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is fine."""
        ...

    def upload(self, path: str, key: str) -> Entry:
        """Copy a local file of any size to `key`, durably, in parallel where that helps."""
        ...

    def download(self, key: str, path: str) -> None:
        """Copy the object to a local file, which appears whole or not at all.

        Raises:
            NotFound: There is none.
        """
        ...

    def local_path(self, key: str) -> str | None:
        """Return the path of the object's own file, for mapping; None where it is not a file."""
        ...

    def cell(self, key: str) -> Cell:
        """Return the compare-and-swap cell at `key`."""
        ...

    def check_writable(self) -> None:
        """Prove, before expensive work, that objects can be created, read, listed and deleted.

        Raises:
            PermissionDenied: Naming the root and the missing permission.
            StoreUnavailable: The store did not answer.
        """
        ...


_RESERVED = re.compile(r"\.tmp$|\.\d{10}$")


def check_key(key: str) -> str:
    """Return `key` if every store can hold it.

    Raises:
        InvalidInput: It is empty, has empty or dotted segments, or ends like a store's own files
        do.
    """
    segments = key.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or "\0" in key:
        remedy = "a key is names joined by '/', without empty, '.' or '..' names"
        raise InvalidInput([Problem("key", key, remedy)])
    if _RESERVED.search(key):
        remedy = "names that end in '.tmp' or '.<ten digits>' are the store's own; choose another"
        raise InvalidInput([Problem("key", key, remedy)])
    return key


def check_size(content: bytes, most: int | None, what: str) -> bytes:
    """Return the content, read up to one byte more than it may have.

    Raises:
        CorruptData: It has that byte.
    """
    if most is not None and len(content) > most:
        raise CorruptData(f"{what} is larger than {most} bytes")
    return content


def probe(store: Store) -> None:
    """Create, read, list and delete an object that nobody else has."""
    key = f".kubestill-probe-{uuid.uuid4().hex}"
    store.put(key, b"probe", create=True)
    store.get(key)
    next(store.list(key))
    store.delete(key)
