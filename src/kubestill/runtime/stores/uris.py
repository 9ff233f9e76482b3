"""From a URI string to a store, and the few shortcuts that need nothing but a URI."""

from __future__ import annotations

import os
from urllib.parse import unquote

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.stores.base import Store
from kubestill.runtime.stores.local import LocalStore
from kubestill.runtime.stores.memory import MemoryStore

DEADLINE = 120.0
"""Seconds for which one operation goes on retrying what usually passes."""

_SUPPORTED = (
    "supported: a local path, file:///path, gs://bucket/prefix, s3://bucket/prefix, "
    "minio://bucket/prefix, memory://name (tests)"
)


def open_store(uri: str, *, deadline: float = DEADLINE) -> Store:
    """Return the store rooted at `uri`; nothing is read or created yet.

    Args:
        uri: A local path, `file:///path`, `gs://bucket/prefix`, `s3://bucket/prefix`,
            `minio://bucket/prefix`, or `memory://name` for tests.
        deadline: Seconds for which one operation retries transient failures before it gives up. For
            a file that goes up or down in parts: seconds without progress of a part.

    Raises:
        InvalidInput: The URI is empty, its scheme is unknown, or a package for it is missing.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri:
            raise InvalidInput([Problem("uri", uri, f"is empty; {_SUPPORTED}")])
        return LocalStore(uri)
    root, _, prefix = rest.rstrip("/").partition("/")
    if scheme == "file" and rest.startswith("/"):
        return LocalStore(unquote(rest))
    # The vendors' libraries take half a second to import: only those who need one pay.
    if scheme == "gs" and root:
        from kubestill.runtime.stores.cloud import CloudStore
        from kubestill.runtime.stores.gcs import GcsService

        return CloudStore(GcsService(root, prefix), deadline=deadline)
    if scheme in ("s3", "minio") and root:
        from kubestill.runtime.stores.cloud import CloudStore

        try:
            from kubestill.runtime.stores.s3 import S3Service
        except ModuleNotFoundError as error:
            remedy = f"needs {error.name}: pip install 'kubestill[s3]'"
            raise InvalidInput([Problem("uri", uri, remedy)]) from error
        return CloudStore(S3Service(scheme, root, prefix), deadline=deadline)
    if scheme == "memory" and root:
        return MemoryStore(root, prefix)
    raise InvalidInput([Problem("uri", uri, _SUPPORTED)])


def split_uri(uri: str) -> tuple[str, str]:
    """Cut the last name off: `gs://b/a/c.json` gives (`gs://b/a`, `c.json`).

    Raises:
        InvalidInput: There is no name below a root.
    """
    scheme, separator, rest = uri.rstrip("/").rpartition("://")
    folder, slash, name = rest.rpartition("/")
    if not name or (separator and not folder and scheme != "file"):
        raise InvalidInput([Problem("uri", uri, "names no object below a bucket or folder")])
    if not separator:
        return folder or ("/" if slash else "."), name
    return scheme + separator + (folder or "/"), name


def join_uri(uri: str, key: str) -> str:
    """Return the URI of `key` below `uri`; an absolute `key` (a path or URI) stays what it is."""
    if "://" in key or key.startswith("/"):
        return key
    return f"{uri.rstrip('/')}/{key}"


def read_any(uri: str) -> bytes:
    """Return the whole object at a URI.

    Raises:
        NotFound: There is none.
        InvalidInput: The URI cannot be one.
    """
    folder, name = split_uri(uri)
    return open_store(folder).get(name)


def fetch(uri: str, folder: str) -> str:
    """Return a local path that holds the object at `uri`: a copy in `folder`, or the very file.

    Raises:
        NotFound: There is none.
        InvalidInput: The URI cannot be one.
    """
    parent, name = split_uri(uri)
    store = open_store(parent)
    path = store.local_path(name)
    if path is None:
        path = os.path.join(folder, name)
        store.download(name, path)
    return path
