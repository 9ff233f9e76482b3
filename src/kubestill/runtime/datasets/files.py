"""The files of a user's table: where they are, of which format, and what their folders say."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from kubestill.errors import Problems, counted, nearest
from kubestill.runtime.datasets.builtin import BUILTIN
from kubestill.runtime.datasets.parts import absolute, is_remote
from kubestill.runtime.datasets.shelf import Shelf
from kubestill.runtime.stores import open_store

Format = Literal["csv", "parquet", "images", "idx"]

_PARQUET = (".parquet", ".pq")
_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_IMAGES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_IDX = tuple(f"idx{n}-ubyte{end}" for n in (1, 2, 3, 4) for end in ("", ".gz"))
_ENDINGS: dict[Format, tuple[str, ...]] = {
    "csv": _CSV,
    "parquet": _PARQUET,
    "images": _IMAGES,
    "idx": _IDX,
}
_KNOWN = ", ".join((*_PARQUET, *_CSV, *_IMAGES, "idx3-ubyte"))
_WILD = re.compile(r"[*?\[]")
_SAID = "{'format': 'csv'}"
_PARTITION = re.compile(r"([^/=]+)=([^/]*)")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_DATED = re.compile(r"^(year|month|day|hour|week)=|=\d{4}-?\d{2}(-?\d{2})?([T ].*)?$")
GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_FOREIGN = (b"ARROW1", b"PK\x03\x04", b"\x89HDF", b"Obj\x01", b"ORC", b"SQLite format 3")
"""How files of other formats begin: Arrow, Excel, HDF5, Avro, ORC, SQLite."""
_IMAGE = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|P[1-6]\s|"
    # AVIF, HEIC and JPEG 2000, which are not decoded: images that are refused, not other data.
    rb"....ftyp(avi[fs]|hei[cxmsfv]|mif1|msf1)|\0\0\0\x0cjP  ",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file of a table, on this machine."""

    path: str
    name: str
    """What messages call it: its address where it was downloaded, the path otherwise."""
    format: Format
    key: str = ""
    """Its place below the source: `cat/1.png` of a folder that has the folder `cat`."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """Columns that its folders name, as in `store=007/`; None where hive writes no value."""


def find_files(
    source: str,
    format: Literal["auto"] | Format,
    problems: Problems,
    tell: Callable[[str], None] = lambda told: None,
) -> list[DataFile]:
    """Return the files of a source in name order; remote ones are downloaded to the shelf.

    Args:
        source: Path or URI of a file, a folder with all below it, or a glob. Names that start with
            `.` or `_`, folders' included, are no data.
        format: `auto` goes by each file's ending, or its first bytes where it has no ending.
        problems: Takes what keeps the source from being read.
        tell: Takes what is left out.
    """
    if not source:
        problems.add("source", source, "give a path, glob, folder, URI, or the built-in 'digits'")
        return []
    found = _remote(source, format) if is_remote(source) else _local(source, format)
    if not found:
        what = "matches" if _WILD.search(source) else "is"
        built_in = "" if os.sep in source else f"; built-in: {nearest(source, BUILTIN)}"
        remedy = f"{what} no file; check the path (known types: {_KNOWN}){built_in}"
        problems.add("source", source, remedy)
    kinds = {format_of(name) for name, *_ in found}
    if format == "auto" and "images" in kinds and kinds & {"csv", "parquet"}:
        images = [entry for entry in found if format_of(entry[0]) == "images"]
        found = [entry for entry in found if format_of(entry[0]) != "images"]
        use = "settings={'format': 'images'} reads them instead"
        tell(f"{counted(len(images), 'image file')} beside tables left out; {use}")
    files: list[DataFile] = []
    for name, key, fetch in found:
        kind = format_of(name) if format == "auto" else format
        if not kind and "." in os.path.basename(name).strip("."):
            remedy = f"is of an unknown file type; known: {_KNOWN}; or say settings={_SAID}"
            problems.add("source", name, remedy)
            continue
        if kind := kind or _sniffed(fetch(), name, problems):
            partition = partition_of(key)
            files.append(
                DataFile(path=fetch(), name=name, format=kind, key=key, partition=partition)
            )
    if len({file.format for file in files}) > 1:
        endings = sorted({file_ending(file.name) or file.format for file in files})
        problems.add("source", source, f"mixes {', '.join(endings)}; give one type at a time")
    return files


def format_of(name: str) -> Format | None:
    """Return the format that a file's name says, None where it says none."""
    lower = name.lower()
    return next((kind for kind, ends in _ENDINGS.items() if lower.endswith(ends)), None)


def is_image(start: bytes) -> bool:
    """Tell whether a file that begins like this is an image of a known format."""
    return _IMAGE.match(start) is not None


def file_ending(name: str) -> str:
    """Return the known ending of a data file's name, such as `.csv.gz`; "" for any other."""
    lower = name.lower()
    known = (end for ends in _ENDINGS.values() for end in ends)
    return next((end for end in known if lower.endswith(end)), "")


def partition_of(key: str) -> tuple[tuple[str, str | None], ...]:
    """Return the columns that the folders of `key` name, as in `store=007/day=1/part.parquet`."""
    found = [_PARTITION.fullmatch(folder) for folder in key.split("/")[:-1]]
    values = [(unquote(match[1]), unquote(match[2])) for match in found if match]
    return tuple((name, None if value == _NO_VALUE else value) for name, value in values)


def is_date(name: str, value: str | None) -> bool:
    """Tell whether a partition names a date, which later rows never share."""
    return _DATED.search(f"{name}={value}") is not None


_Found = tuple[str, str, Callable[[], str]]
"""Name in messages, place below the source, and what returns the path on this machine."""


def _local(source: str, format: str) -> list[_Found]:
    path = absolute(source, "").rstrip("/") or "/"
    if os.path.isdir(path):
        root, files = f"{path.rstrip('/')}/", _data(_below(path), format)
    elif os.path.exists(path):
        root, files = "", [path]
    else:
        root = _fixed(path)
        files = [file for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
        files = sorted(file.removeprefix(root) for file in files)
    return [
        (root + file, file if root else os.path.basename(file), partial(str, root + file))
        for file in files
    ]


def _below(folder: str) -> list[str]:
    found: list[str] = []
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if name[0] not in "._"]
        found += [os.path.relpath(os.path.join(place, name), folder) for name in names]
    return sorted(found)


def _data(keys: list[str], format: str) -> list[str]:
    """Return the keys that are no one's marks: those of known types, or else without an ending."""
    seen = [key for key in keys if not any(part[:1] in "._" for part in key.split("/"))]
    known = [key for key in seen if format_of(key)]
    # Notes lie beside images, and pictures of them beside tables.
    if format in ("images", "idx"):
        known = [key for key in known if format_of(key) == format]
    elif format != "auto":
        known = [key for key in known if format_of(key) not in ("images", "idx")]
    return known or [key for key in seen if "." not in os.path.basename(key)]


def _remote(source: str, format: str) -> list[_Found]:
    scheme, _, rest = source.partition("://")
    bucket, _, pattern = rest.partition("/")
    store = open_store(f"{scheme}://{bucket}")
    shelf = Shelf.default()
    entries = {entry.key: entry for entry in store.list(_WILD.split(pattern)[0])}
    if _WILD.search(pattern):
        root = _fixed(pattern)
        keys = [key.removeprefix(root) for key in entries if fnmatchcase(key, pattern)]
    elif pattern in entries:
        root, keys = f"{os.path.dirname(pattern)}/".lstrip("/"), [os.path.basename(pattern)]
    else:
        root = f"{pattern.rstrip('/')}/".lstrip("/")
        keys = _data([key.removeprefix(root) for key in entries if key.startswith(root)], format)

    def fetch(key: str) -> str:
        entry = entries[key]
        text = f"{scheme}://{bucket}/{key}@{entry.version}"
        name = f"source-{hashlib.sha256(text.encode()).hexdigest()[:40]}"
        rows = f"rows{file_ending(key)}"

        def download(folder: Path) -> None:
            store.download(key, str(folder / rows))

        return str(shelf.entry(name, download) / rows)

    return [(f"{scheme}://{bucket}/{root}{key}", key, partial(fetch, root + key)) for key in keys]


def _fixed(pattern: str) -> str:
    """Return the folders of a glob that come before its first wildcard, with the last slash."""
    before = _WILD.split(pattern)[0]
    return before[: before.rfind("/") + 1]


def _sniffed(path: str, name: str, problems: Problems) -> Format | None:
    """Tell the format of a file without an ending by how it begins."""
    with open(path, "rb") as file:
        start = file.read(4096)
    if start[:4] == b"PAR1":
        return "parquet"
    if b"\0" in start and is_image(start):
        return "images"
    if start[:2] == GZIP:
        # What is damaged keeps its zeros, and is refused for them.
        with suppress(EOFError, OSError, zlib.error), gzip.open(path) as unpacked:
            start = unpacked.read(4096)
    if start[:3] == b"\0\0\x08" and 1 <= start[3] <= 4:
        return "idx"
    if start.startswith(_FOREIGN) or (b"\0" in start and start[:2] not in _UTF16):
        problems.add("source", name, f"is neither Parquet nor text; known types: {_KNOWN}")
        return None
    return "csv"
