"""The files that fresh rows come in: found, versioned, read one at a time."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from kubestill.errors import InvalidInput, Problem, Problems
from kubestill.runtime.datasets.files import file_ending, is_date, partition_of
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.shelf import Shelf
from kubestill.runtime.datasets.sources import open_source
from kubestill.runtime.stores import Store, join_uri, open_store

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file as it is now."""

    root: str
    """The store's URI that `key` is below."""
    key: str
    version: str
    """Another content has another one; see `Entry.version`."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """Columns that its folders name, as in `date=2013-04-01/`."""

    @property
    def uri(self) -> str:
        """Where it is."""
        return join_uri(self.root, self.key)


def find_files(source: str) -> list[SourceFile]:
    """List the Parquet and CSV files of a source, in name order.

    Args:
        source: A file, a folder with everything below it, or a glob (`**` crosses folders); local
            or `gs://`. Names that start with `.` or `_`, folders' included, are left out.

    Raises:
        InvalidInput: There is none: a mistyped path must not look like a quiet month.
        StoreError: The store did not answer.
    """
    root, pattern = _split(source)
    store = open_store(root)
    matches = re.compile(_regex(pattern)) if pattern else None
    found = [
        SourceFile(
            root=root, key=entry.key, version=entry.version, partition=partition_of(entry.key)
        )
        for entry in store.list(_WILD.split(pattern)[0])
        if _is_data(entry.key) and (matches is None or matches.fullmatch(entry.key))
    ]
    if not found:
        remedy = "matches no Parquet or CSV file; check the path (a folder is searched throughout)"
        raise InvalidInput([Problem("source", source, remedy)])
    return found


def versions(files: list[SourceFile]) -> dict[str, str]:
    """Return the current version of each file by URI; those that are gone are left out."""
    found: dict[str, str] = {}
    for root in {file.root for file in files}:
        keys = {file.key for file in files if file.root == root}
        for entry in open_store(root).list(os.path.commonprefix(sorted(keys))):
            if entry.key in keys:
                found[join_uri(root, entry.key)] = entry.version
    return found


def read_file(
    file: SourceFile,
    wanted: Collection[str] = (),
    *,
    kinds: Mapping[str, str] | None = None,
    reading: Reading | None = None,
) -> pa.Table:
    """Return a file's rows, with the columns that its folders name.

    Folders that name a date are no column, unless it is `wanted`: later rows never share it.

    Args:
        file: The file.
        wanted: Columns that the user names.
        kinds: Kind by column, which text follows before it is parsed.
        reading: How the file is to be read.

    Raises:
        InvalidInput: It cannot be read: cut off, or not of the type its name says.
    """
    path = _local(file, open_store(file.root))
    try:
        table = open_source(path, kinds=kinds, reading=reading).to_table()
    except (InvalidInput, pa.ArrowException, OSError) as error:
        problems = Problems()
        why = error.problems[0].remedy if isinstance(error, InvalidInput) else str(error)
        problems.add("source", file.uri, why)
        problems.raise_if_any()
        raise AssertionError from error
    for name, value in file.partition:
        if name not in table.column_names and (name in wanted or not is_date(name, value)):
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


def _local(file: SourceFile, store: Store) -> str:
    path = store.local_path(file.key)
    if path is not None:
        return path
    name = f"source-{hashlib.sha256(f'{file.uri}@{file.version}'.encode()).hexdigest()[:40]}"
    rows = f"rows{file_ending(file.key)}"

    def download(folder: Path) -> None:
        store.download(file.key, str(folder / rows))

    return str(Shelf.default().entry(name, download) / rows)


def _split(source: str) -> tuple[str, str]:
    """Cut a source into the URI of a folder without wildcards, and a pattern below it.

    The pattern is empty where everything below the folder is meant.
    """
    scheme, separator, rest = source.rpartition("://")
    segments = rest.split("/")
    fixed = next((i for i, part in enumerate(segments) if _WILD.search(part)), len(segments))
    if fixed == len(segments) and file_ending(source):
        fixed -= 1
    # A bucket is no folder that could be left out.
    fixed = max(fixed, 1) if separator and scheme != "file" else fixed
    folder = "/".join(segments[:fixed])
    root = scheme + separator + (folder or ("/" if rest.startswith("/") else "."))
    return root, "/".join(segments[fixed:])


def _regex(pattern: str) -> str:
    """Translate a glob: `*` and `?` stay within a folder, `**` does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern)
    meant = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        meant.get(part) or (part.replace("[!", "[^") if part[:1] == "[" else re.escape(part))
        for part in parts
    )


def _is_data(key: str) -> bool:
    return bool(file_ending(key)) and not any(part[:1] in "._" for part in key.split("/"))
