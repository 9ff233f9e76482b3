"""Finding and opening a user's own table: Parquet or CSV; a file, a glob or a folder; here or `gs://`."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Collection
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from kubestill.errors import CorruptData, Problems, nearest
from kubestill.runtime.datasets.builtin import BUILTIN
from kubestill.runtime.datasets.extent import check_extent
from kubestill.runtime.datasets.parts import absolute, is_remote
from kubestill.runtime.datasets.shelf import Shelf
from kubestill.runtime.stores import Entry, open_store

__all__ = ["Opened", "file_ending", "open_source", "try_source"]

_PARQUET = (".parquet", ".pq")
_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_KNOWN = ", ".join(_PARQUET + _CSV)
_WILD = "*?["
_CSV_BLOCK_BYTES = 16 << 20
"""Arrow reads a CSV in such blocks, each of which costs time for every column."""


class Opened(NamedTuple):
    """What can be read of a source."""

    rows: pads.Dataset
    """Without the doubled columns, which cannot be told apart."""
    doubled: tuple[str, ...] = ()
    """Names of columns that are there more than once."""


def open_source(source: str) -> pads.Dataset:
    """Open a table for scanning: Parquet streams from its files, CSV is read into memory.

    Args:
        source: Path or URI of a file, a folder (its Parquet and CSV files, sorted by name; hidden
            ones and those that start with `_` are left out) or a glob.

    Raises:
        InvalidInput: Nothing there, unknown file types, unreadable or truncated files, files whose
            columns contradict each other, duplicate column names; all problems together.
    """
    problems = Problems()
    opened = try_source(source, problems)
    problems.raise_if_any()
    assert opened
    return opened.rows


def try_source(source: str, problems: Problems) -> Opened | None:
    """Do what `open_source` does, but note what is wrong; None where that leaves no columns."""
    before = len(problems)
    files = _find(source, problems)
    endings = {name for name in map(file_ending, files) if name}
    if endings & set(_PARQUET) and endings & set(_CSV):
        problems.add(
            "source", source, f"mixes {', '.join(sorted(endings))}; give one type at a time"
        )
    if len(problems) > before:
        return None
    if endings <= set(_PARQUET):
        return _open_parquet(files, problems)
    return _open_csv(files, problems)


def _find(source: str, problems: Problems) -> list[str]:
    """Return local files, in name order; remote ones are downloaded to the shelf."""
    if not source:
        problems.add("source", source, "give a path, glob, folder, URI, or the built-in 'digits'")
        return []
    files = _find_remote(source) if is_remote(source) else _find_local(source)
    if not files:
        what = "matches" if any(mark in source for mark in _WILD) else "is"
        built_in = "" if os.sep in source else f"; built-in: {nearest(source, BUILTIN)}"
        remedy = f"{what} no file; check the path (known types: {_KNOWN}){built_in}"
        problems.add("source", source, remedy)
    for file in files:
        if not file_ending(file):
            problems.add("source", file, f"is of an unknown file type; known: {_KNOWN}")
    return files


def _find_local(source: str) -> list[str]:
    path = absolute(source, "").rstrip("/")
    if os.path.isdir(path):
        names = (name for name in sorted(os.listdir(path)) if _is_data(name))
        return [os.path.join(path, name) for name in names]
    if os.path.exists(path):
        return [path]
    return sorted(found for found in glob.glob(path, recursive=True) if os.path.isfile(found))


def _find_remote(source: str) -> list[str]:
    scheme, _, rest = source.partition("://")
    bucket, _, pattern = rest.partition("/")
    store = open_store(f"{scheme}://{bucket}")
    wild = [pattern.find(mark) for mark in _WILD if mark in pattern]
    prefix = pattern[: min(wild)] if wild else pattern
    entries = list(store.list(prefix))
    if wild:
        kept = [entry for entry in entries if fnmatchcase(entry.key, pattern)]
    else:
        kept = [entry for entry in entries if entry.key == pattern]
        below = [entry for entry in entries if entry.key.startswith(pattern.rstrip("/") + "/")]
        kept = kept or [e for e in below if _is_data(e.key.rpartition("/")[2])]
    shelf = Shelf.default()

    def download(entry: Entry, folder: Path) -> None:
        store.download(entry.key, str(folder / f"rows{file_ending(entry.key)}"))

    files: list[str] = []
    for entry in kept:
        text = f"{scheme}://{bucket}/{entry.key}@{entry.version}"
        name = f"source-{hashlib.sha256(text.encode()).hexdigest()[:40]}"
        if file_ending(entry.key):
            files.append(
                str(shelf.entry(name, partial(download, entry)) / f"rows{file_ending(entry.key)}")
            )
        else:
            files.append(f"{scheme}://{bucket}/{entry.key}")
    return files


def _is_data(name: str) -> bool:
    return bool(file_ending(name)) and not name.startswith((".", "_"))


def file_ending(name: str) -> str:
    """Return the known ending of a data file's name, such as `.csv.gz`; "" for any other."""
    lower = name.lower()
    return next((end for end in (*_CSV, *_PARQUET) if lower.endswith(end)), "")


def _open_parquet(files: list[str], problems: Problems) -> Opened | None:
    schemas: list[pa.Schema] = []
    for file in files:
        try:
            with pa.memory_map(file) as source:
                metadata = pq.read_metadata(source)
                schema = metadata.schema.to_arrow_schema()
                check_extent(source, metadata, set(schema.names), name=os.path.basename(file))
            schemas.append(schema)
        except CorruptData as error:
            problems.add("source", file, f"is refused: {error}")
        except (pa.ArrowException, OSError) as error:
            remedy = f"cannot be read as Parquet (cut off, or not Parquet): {error}"
            problems.add("source", file, remedy)
    doubled = _doubled(schemas, problems)
    if len(schemas) < len(files):
        return None
    schema = _unify([_single(schema, doubled) for schema in schemas], problems)
    if schema is None:
        return None
    return Opened(pads.dataset(files, schema=schema, format="parquet"), doubled)


def _open_csv(files: list[str], problems: Problems) -> Opened | None:
    tables: list[pa.Table] = []
    blocks = pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES)
    options = pacsv.ConvertOptions(strings_can_be_null=True)
    for file in files:
        tabbed = pacsv.ParseOptions(delimiter="\t" if ".tsv" in file_ending(file) else ",")
        try:
            tables.append(
                pacsv.read_csv(
                    file, read_options=blocks, parse_options=tabbed, convert_options=options
                )
            )
        except (pa.ArrowException, OSError) as error:
            problems.add("source", file, f"cannot be read as CSV with a header line: {error}")
    doubled = _doubled([table.schema for table in tables], problems)
    if len(tables) < len(files):
        return None
    tables = [table.select(_single(table.schema, doubled).names) for table in tables]
    if _unify([table.schema for table in tables], problems) is None:
        return None
    return Opened(pads.dataset(pa.concat_tables(tables, promote_options="permissive")), doubled)


def _doubled(schemas: list[pa.Schema], problems: Problems) -> tuple[str, ...]:
    names = dict.fromkeys(name for schema in schemas for name in _twice(schema.names))
    for name in names:
        problems.add("columns", name, "is there more than once; rename or drop the others")
    return tuple(names)


def _single(schema: pa.Schema, doubled: Collection[str]) -> pa.Schema:
    fields = [field for field in schema if field.name not in doubled]
    return pa.schema(fields, metadata=schema.metadata)


def _unify(schemas: list[pa.Schema], problems: Problems) -> pa.Schema | None:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowException, TypeError) as error:
        problems.add(
            "source", f"{len(schemas)} files", f"their columns contradict each other: {error}"
        )
    return None


def _twice(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
