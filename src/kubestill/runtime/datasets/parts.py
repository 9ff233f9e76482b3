"""Reading the Parquet parts of a dataset, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kubestill.errors import CorruptData, NotFound
from kubestill.runtime.datasets.shelf import Shelf
from kubestill.runtime.stores import open_store

__all__ = ["Part", "absolute", "file_digest", "is_remote", "local_path", "part_jobs", "workers"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file of a dataset."""

    path: str
    """Relative to the dataset's root, or an absolute URI where an index points elsewhere."""
    rows: int
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the file."""


def workers() -> int:
    """Return how many threads decoding can use: the cores this process may run on, at most 8."""
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


def local_path(root: str, part: Part) -> str:
    """Return a local file with the part's content; a remote part is downloaded once and kept.

    Raises:
        CorruptData: The file is missing or has another size than the manifest says, or a download
            does not match its digest.
    """
    uri = absolute(root, part.path)
    if is_remote(uri):
        return str(
            Shelf.default().entry(f"part-{part.sha256}", partial(_download, uri, part)) / "part"
        )
    try:
        size = os.path.getsize(uri)
    except FileNotFoundError as error:
        raise CorruptData(f"{uri} is missing although the dataset's manifest lists it") from error
    if size != part.bytes:
        raise CorruptData(f"{uri} has {size} bytes where the dataset's manifest says {part.bytes}")
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
