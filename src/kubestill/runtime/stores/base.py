"""The storage protocol: the four verbs and one cell that every store offers.

A store is rooted at a URI. Keys are '/'-separated strings below it, never `pathlib.Path`, which would
turn `gs://bucket` into `gs:/bucket`. Everything a store raises is a `kubestill.errors.StoreError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored object."""

    key: str
    size: int
    """Bytes."""
    version: str
    """Changes whenever the content does: a GCS generation, or size and mtime of a local file."""


class Cell(Protocol):
    """One small object that is only ever replaced by compare-and-swap."""

    def read(self) -> tuple[bytes | None, str]:
        """Return (content, version); content is None where nothing was ever written.

        Raises:
            StoreError: The store did not answer.
        """
        ...

    def swap(self, content: bytes, *, expect: str) -> str:
        """Replace version `expect` by `content` and return the new version.

        The content must be unique to this writer and commit (attempt id and sequence inside): after an
        answer was lost, a store tells its own success from somebody else's by comparing bytes.

        Raises:
            Conflict: Another writer swapped first; nothing was changed.
        """
        ...


class Store(Protocol):
    """Objects below one root URI."""

    uri: str
    """The root, without a trailing slash."""

    def get(self, key: str) -> bytes:
        """Return the whole object.

        Raises:
            NotFound: There is none.
        """
        ...

    def put(self, key: str, content: bytes, *, create: bool = False) -> Entry:
        """Write the whole object, atomically and durably.

        Args:
            key: Where, below the root.
            content: What.
            create: Fail where an object exists already, instead of replacing it.

        Raises:
            Conflict: `create` was asked for and somebody else's object is there.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every object whose key starts with `prefix`, in key order."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is fine."""
        ...

    def upload(self, path: str, key: str) -> Entry:
        """Copy a local file of any size to `key`, durably; parallel and resumable where that helps."""
        ...

    def download(self, key: str, path: str) -> None:
        """Copy the object to a local file, which appears whole or not at all.

        Raises:
            NotFound: There is none.
        """
        ...

    def cell(self, key: str) -> Cell:
        """Return the compare-and-swap cell at `key`."""
        ...

    def check_writable(self) -> None:
        """Prove before any expensive work that objects can be created, read, listed and deleted here.

        Raises:
            PermissionDenied: Naming the root and the missing permission.
            StoreUnavailable: The store did not answer.
        """
        ...
