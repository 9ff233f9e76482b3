"""Reading the Parquet parts of a dataset, wherever they lie."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kubestill.errors import CorruptData, NotFound
from kubestill.runtime.base.values import Digest, Whole
from kubestill.runtime.datasets.extent import check_extent
from kubestill.runtime.datasets.shelf import Shelf
from kubestill.runtime.stores import open_store

_ADDRESS = re.compile(r"((?!file:)[a-z][a-z0-9]*)://([^/]+)/(.+)", re.DOTALL)
_MOUNTS = {"/gcs/": "gs", "/minio/": "minio", "/s3/": "s3"}
"""Where Kubeflow's launcher lays buckets out in a pod."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file of a dataset."""

    path: str
    """Relative to the dataset's root, or absolute where an index points elsewhere; `check_places`
    says where that may be."""
    rows: Whole
    bytes: Whole
    """Size of the file."""
    sha256: Digest
    """Of the file."""


def workers() -> int:
    """Return how many threads share out rows: the cores this process may run on, at most 8."""
    return min(8, len(os.sched_getaffinity(0)))


def is_remote(uri: str) -> bool:
    """Tell whether `uri` names a store other than the local disk."""
    return "://" in uri and not uri.startswith("file://")


def absolute(root: str, path: str) -> str:
    """Return the absolute URI of `path` below the dataset root `root`."""
    if is_remote(path) or path.startswith("/"):
        return path
    if is_remote(root):
        return f"{root.rstrip('/')}/{path}"
    return os.path.join(os.path.abspath(root.removeprefix("file://")), path)


def check_places(root: str, parts: Sequence[Part]) -> str:
    """Say what is wrong with where the parts of a dataset lie; empty where nothing is.

    Whoever can write a manifest could name any file of whoever reads it. So a part lies below the
    root; or, in an index, at an absolute address in the root's own store and bucket. What a pod
    sees of a bucket counts as that bucket. An index on a local disk may point into one bucket, or
    to other files of that disk, and not to both.
    """
    homes: set[tuple[str, str]] = set()
    for part in parts:
        match = _ADDRESS.fullmatch(part.path)
        scheme, bucket, key = match.groups() if match else ("", "", part.path.removeprefix("/"))
        names = key.split("/")
        if any(name in ("", ".", "..") for name in names) or "\0" in key or names[0][-1:] == ":":
            return f"the path of a part, {part.path[:200]!r}, leads nowhere below its root"
        if scheme or part.path.startswith("/"):
            homes.add((scheme, bucket))
    own = _home(root)
    if own[0] and homes - {own}:
        return f"a part lies outside of the dataset's own bucket, {own[0]}://{own[1]}"
    if len(homes) > 1:
        return "its parts lie in several stores or buckets"
    return ""


def _home(root: str) -> tuple[str, str]:
    """Return (scheme, bucket) of where a dataset lies; empty for a disk."""
    if is_remote(root):
        scheme, _, rest = root.partition("://")
        return scheme, rest.partition("/")[0]
    path = absolute(root, "")
    for mount, scheme in _MOUNTS.items():
        if path.startswith(mount):
            return scheme, path.removeprefix(mount).partition("/")[0]
    return "", ""


def local_path(root: str, part: Part) -> str:
    """Return a local file with the part's content; a remote part is downloaded once and kept.

    Raises:
        CorruptData: The file is missing, lies behind a link that leads out of its folder, or has
            another size than the manifest says, or a download does not match its digest.
    """
    uri = absolute(root, part.path)
    if is_remote(uri):
        return str(
            Shelf.default().entry(f"part-{part.sha256}", partial(_download, uri, part)) / "part"
        )
    top = os.path.dirname(uri) if part.path.startswith("/") else absolute(root, "")
    # Whatever a link leads to is not the dataset's to describe.
    found = os.path.realpath(uri)
    if os.path.commonpath([found, os.path.realpath(top)]) != os.path.realpath(top):
        raise CorruptData(f"{uri} is a link that leads out of its dataset; put the file there")
    try:
        size = os.path.getsize(uri)
    except OSError as error:
        raise CorruptData(f"{uri} is missing although the dataset's manifest lists it") from error
    if size != part.bytes:
        held = "another size" if part.path.startswith("/") else f"{size} bytes"
        raise CorruptData(f"{uri} has {held} where the dataset's manifest says {part.bytes}")
    return uri


def part_jobs(
    root: str, parts: Sequence[Part], columns: Sequence[str], *, verify: bool
) -> Iterator[tuple[int, Callable[[], pa.Table]]]:
    """Yield (first global row, job that reads one row group) in order, for `stream.ahead`.

    Args:
        root: Of the dataset.
        parts: Its parts.
        columns: Which columns.
        verify: Check every page against its checksum, which costs about as much as decoding it.
    """
    first = 0
    for part in parts:
        path = local_path(root, part)
        with _reading(path):
            # One mapping for all of a part's jobs: to map its pages anew costs a fifth of a job.
            source = pa.memory_map(path)
            metadata = pq.read_metadata(source)
            missing = set(columns) - set(metadata.schema.to_arrow_schema().names)
            check_extent(source, metadata, columns, name=path)
        if missing:
            raise CorruptData(f"{path} lacks columns of its dataset: {sorted(missing)!r:.200}")
        if metadata.num_rows != part.rows:
            raise CorruptData(f"{path} has {metadata.num_rows} rows, its manifest says {part.rows}")
        for group in range(metadata.num_row_groups):
            yield first, partial(_read_group, path, source, metadata, group, columns, verify)
            first += metadata.row_group(group).num_rows


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_group(
    path: str,
    source: pa.MemoryMappedFile,
    metadata: pq.FileMetaData,
    group: int,
    columns: Sequence[str],
    verify: bool,
) -> pa.Table:
    with _reading(path):
        file = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=verify)
        return file.read_row_group(group, columns=list(columns), use_threads=False)


def _download(uri: str, part: Part, folder: Path) -> None:
    parent, _, name = uri.rpartition("/")
    try:
        open_store(parent).download(name, str(folder / "part"))
    except NotFound as error:
        raise CorruptData(f"{uri} is missing although the dataset's manifest lists it") from error
    if file_digest(folder / "part") != part.sha256:
        raise CorruptData(f"{uri} does not match the digest in the dataset's manifest")


class _reading:
    """Turn Arrow's errors about a broken file into `CorruptData`."""

    def __init__(self, path: str):
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (pa.ArrowException, OSError)):
            raise CorruptData(f"{self._path} cannot be read as Parquet: {error}") from error
