"""CSV as people write it: encodings, delimiters, line breaks in quotes, numbers with separators.

Arrow reads the bytes and infers types. What it takes for text is looked at again here: a column of
`1,234` or with a single `?` holds numbers. Nothing is guessed in silence; `Notes` takes all of it.
"""

# pyarrow and pandas come without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from kubestill.errors import Problems, counted
from kubestill.runtime.datasets.files import GZIP, DataFile, file_ending
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.reading import (
    NULL_WORDS,
    PLAIN,
    Numerals,
    is_text,
    replaced,
    without_words,
)

_BLOCK_BYTES = 16 << 20
"""Arrow reads a CSV in such blocks, each of which costs time for every column."""
_MUCH, _DENSEST = 64 << 20, 100
"""Bytes that any packed file may unpack to, and each byte of a larger one: a megabyte may hold one
gigabyte of line breaks."""
_SAMPLE_BYTES = 1 << 16
_SAMPLE_ROWS = 100
_DELIMITERS = ",;\t|"
_FALLBACK = "cp1252"
"""Latin-1 with quotation marks and the euro where Latin-1 has control characters."""
_NOT_IN_FALLBACK = re.compile(b"[\x81\x8d\x8f\x90\x9d]")
_ODD_WORDS = frozenset(
    [
        "?",
        "-",
        "--",
        "---",
        ".",
        "..",
        "*",
        "none",
        "missing",
        "unknown",
        "nil",
        "undefined",
        "n.a.",
    ]
)
"""In a column of numbers these stand for a missing one, in lower case."""
_NUMERALS = (
    PLAIN,
    Numerals(".", ","),
    Numerals(",", "."),
    Numerals(".", " "),
    Numerals(",", " "),
    Numerals(".", "'"),
    Numerals(",", "'"),
)
_LEADING_ZERO = re.compile(r"0\d+")
_LIKE_A_NUMBER = r"^\s*[+-]?[.,]?\d[\d.,' \x{a0}\x{202f}]*([eE][+-]?\d+)?\s*$"
_LIKE_A_DATE = r"^\d{1,2}[./-]\d{1,2}[./-]\d{2,4}$"
_NEAR = 10
"""Distinct words that are no numbers, up to which a column is said to be nearly one of numbers."""
_LOOKED_AT = 1000
"""Distinct texts that decide whether a column is worth a look for numbers."""


@dataclass
class Notes:
    """What was detected while reading."""

    told: list[str] = field(default_factory=list[str])
    """About files."""
    doubled: dict[str, None] = field(default_factory=dict[str, None])
    """Names of columns that are there more than once."""
    columns: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """About columns."""
    words: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    """Words that were read as missing, by column, with the number of rows."""
    parts: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """The files of a table in order, each with its rows."""

    def tell(self, told: str) -> None:
        """Note something about a file, once."""
        if told not in self.told:
            self.told.append(told)

    def place(self, row: int) -> str:
        """Return where a row of the table is: its number in its file, from 1."""
        for name, rows in self.parts:
            if row < rows:
                return f"row {row + 1} of {name}"
            row -= rows
        return f"row {row + 1}"

    def of(self, column: str, told: str) -> None:
        """Note something about a column, once."""
        known = self.columns.setdefault(column, [])
        if told not in known:
            known.append(told)


def read_csvs(
    files: Sequence[DataFile],
    reading: Reading,
    kinds: Mapping[str, str],
    problems: Problems,
    notes: Notes,
) -> list[pa.Table]:
    """Read the files into memory; text that the user says nothing about becomes numbers if it can.

    Args:
        files: CSV files.
        reading: The user's options.
        kinds: Kind by column. What is categorical or text stays as it is.
        problems: Takes what cannot be read; the files that can be are returned.
        notes: Takes what was detected.
    """
    texts = {name for name, kind in kinds.items() if kind in ("categorical", "boolean", "text")}
    texts |= set(reading.date_formats)
    sources: list[_Source] = []
    for file in files:
        try:
            sources.append(_Source(file, reading, notes))
        except OSError as error:
            problems.add("source", file.name, f"cannot be read: {error}")
    tables = [_read(source, texts, problems) for source in sources]
    mixed = _mixed([table for table in tables if table is not None]) - texts
    for at, table in enumerate(tables):
        if table is not None and mixed.intersection(table.column_names):
            tables[at] = _read(sources[at], texts | mixed, problems)
    read = [table for table in tables if table is not None]
    if len(read) < len(files):
        return read
    read = [_without_words(table, reading, notes) for table in read]
    numbers = _Numbers(reading, texts, notes)
    numbers.look_at(read, {source.delimiter for source in sources}, problems)
    if numbers.decimal == "," and not reading.decimal:
        # Beside decimal commas, `1.234` in a column that Arrow took for numbers may be 1234.
        points = {f.name for table in read for f in table.schema if pa.types.is_floating(f.type)}
        again = [_read(source, texts | mixed | points, problems) for source in sources]
        read = [_without_words(table, reading, notes) for table in again if table is not None]
        numbers.look_at(read, {source.delimiter for source in sources}, problems)
    read = [numbers.applied(table) for table in read]
    for source, table in zip(sources, read, strict=True):
        source.tell_leading_zeros(table.schema)
    return read


class _Unpacked(gzip.GzipFile):
    """A packed file that is refused once it unpacks to far more than any table does."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._size = os.path.getsize(path)

    def read(self, size: int | None = -1) -> bytes:
        """Return so many bytes.

        Raises:
            OSError: The file is damaged, or unpacks to too much.
        """
        try:
            found = super().read(size)
        except (EOFError, zlib.error) as error:
            raise OSError(str(error)) from error
        most = max(_MUCH, _DENSEST * self._size)
        if self.tell() > most:
            remedy = "unpack it yourself if you trust it"
            raise OSError(f"{self._size:,} bytes unpack to more than {most:,}; {remedy}")
        return found


def open_unpacked(path: str) -> IO[bytes]:
    """Open a file, which may be packed by gzip; reading raises OSError where it is a bomb."""
    return cast("IO[bytes]", _Unpacked(path) if _is_packed(path) else open(path, "rb"))


def _is_packed(path: str) -> bool:
    with open(path, "rb") as content:
        return content.read(2) == GZIP


class _Source:
    """One file and how it is written."""

    def __init__(self, file: DataFile, reading: Reading, notes: Notes) -> None:
        self.file, self.notes = file, notes
        self.null_words = ["", *(NULL_WORDS if reading.null_words is None else reading.null_words)]
        self.decimal = reading.decimal or "."
        with self.open() as content:
            self._sample = content.read(_SAMPLE_BYTES)
        self.encoding = reading.encoding
        if not self.encoding and self._sample[:2] in (b"\xff\xfe", b"\xfe\xff"):
            self.use_encoding("utf-16")
        self.delimiter = reading.delimiter or self._detected()

    def open(self) -> IO[bytes]:
        """Return the content, unpacked."""
        return open_unpacked(self.file.path)

    def use_encoding(self, encoding: str) -> None:
        """Read the file in another encoding than UTF-8, and say so."""
        self.encoding = encoding
        another = "settings={'encoding': ...} names another"
        self.notes.tell(f"{self.file.name} is not UTF-8: read as {encoding}; {another}")

    def rows(self, delimiter: str) -> list[list[str]]:
        """Return the first rows, as this delimiter cuts them."""
        text = self._sample.decode(self.encoding or "utf-8-sig", "replace")
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = list(itertools.islice(lines, _SAMPLE_ROWS + 1))
        cut = len(self._sample) == _SAMPLE_BYTES or len(rows) > _SAMPLE_ROWS
        return [row for row in (rows[:-1] if cut and len(rows) > 1 else rows) if row]

    def tell_leading_zeros(self, schema: pa.Schema) -> None:
        """Name columns of whole numbers whose texts were more than that."""
        rows = self.rows(self.delimiter)
        whole = {field.name for field in schema if pa.types.is_integer(field.type)}
        for at, name in enumerate(rows[0] if rows else []):
            if name not in whole:
                continue
            cells = [row[at].strip() for row in rows[1:] if at < len(row)]
            found = next((cell for cell in cells if _LEADING_ZERO.fullmatch(cell)), None)
            if found:
                yes = f"kinds={{{name!r}: 'categorical'}} keeps it as text"
                self.notes.of(name, f"{found!r} is read as {int(found)}; {yes}")

    def _detected(self) -> str:
        usual = "\t" if ".tsv" in file_ending(self.file.name) else ","
        widths: dict[str, int] = {}
        for mark in _DELIMITERS:
            try:
                found = {len(row) for row in self.rows(mark)}
            except csv.Error:
                continue
            if len(found) == 1:
                widths[mark] = found.pop()
        if widths.get(usual, 0) > 1 or not widths or max(widths.values()) == 1:
            return usual
        best = max(widths, key=lambda mark: widths[mark])
        self.notes.tell(f"{self.file.name}: fields are separated by {best!r}")
        return best


def _read(source: _Source, texts: Collection[str], problems: Problems) -> pa.Table | None:
    """Read one file, as the fallback encoding where it is not UTF-8; None with a problem noted."""
    try:
        table = _parse(source, texts)
        names = table.column_names  # Raises where the header is not UTF-8.
        broken = any(map(pa.types.is_binary, table.schema.types))  # Some value is not.
        error: Exception = UnicodeError("it is not UTF-8")
        if not broken:
            return _named(table, names, source)
    except UnicodeError as raised:
        broken, error = True, raised
    except (pa.ArrowException, OSError) as raised:
        broken, error = "invalid UTF8" in str(raised), raised
    if broken and not source.encoding:
        if (where := _undecodable(source)) is None:
            source.use_encoding(_FALLBACK)
            return _read(source, texts, problems)
        known = f"UTF-8 and {_FALLBACK} do not know"
        error = ValueError(f"{where}, which {known}; say settings={{'encoding': ...}}")
    what = "CSV with a header line" + (f" in {source.encoding}" if source.encoding else "")
    problems.add("source", source.file.name, f"cannot be read as {what}: {error}")
    return None


def _named(table: pa.Table, names: Sequence[str], source: _Source) -> pa.Table:
    counts = Counter(names)
    source.notes.doubled |= {name: None for name in names if name and counts[name] > 1}
    kept = [at for at, name in enumerate(names) if name and counts[name] == 1]
    if "" in counts:
        place = next(at for at, name in enumerate(names) if not name) + 1
        source.notes.tell(
            f"{source.file.name}: column {place} has no name, as pandas writes its index: left out"
        )
    return table.select(kept)


def _parse(source: _Source, texts: Collection[str]) -> pa.Table:
    with _as_utf8(source) as path, pa.input_stream(path, compression=None) as content:
        return pacsv.read_csv(
            content,
            read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(
                # Without it, Arrow may cut a quoted text at the end of a block, without a word.
                delimiter=source.delimiter,
                newlines_in_values=True,
            ),
            convert_options=pacsv.ConvertOptions(
                strings_can_be_null=False,
                null_values=source.null_words,
                decimal_point=source.decimal,
                column_types=dict.fromkeys(texts, pa.string()),
            ),
        )


@contextmanager
def _as_utf8(source: _Source) -> Generator[str]:
    """Give the path of the content, unpacked and in UTF-8, which is a file of its own if need be.

    Arrow could read a Python file or decode by Python's codecs. But its threads then hold objects
    of Python, and a process that leaves after an error may wait for such a thread for ever.
    """
    if not _is_packed(source.file.path) and source.encoding in ("", "utf-8"):
        yield source.file.path
        return
    with tempfile.NamedTemporaryFile(prefix="kubestill-csv-") as plain:
        decode = codecs.getincrementaldecoder(source.encoding or "utf-8")().decode
        with source.open() as content:
            while block := content.read(_BLOCK_BYTES):
                plain.write(decode(block).encode() if source.encoding else block)
        plain.write(decode(b"", final=True).encode() if source.encoding else b"")
        plain.flush()
        yield plain.name


def _undecodable(source: _Source) -> str | None:
    """Say where a byte stands that the fallback does not know; None where there is none."""
    number = 1
    with source.open() as content:
        while piece := content.read(_SAMPLE_BYTES):
            found = _NOT_IN_FALLBACK.search(piece)
            number += piece.count(b"\n", 0, found.start() if found else None)
            if found:
                return f"line {number} has the byte {found[0].hex()}"
    return None


def _mixed(tables: Sequence[pa.Table]) -> set[str]:
    """Return the columns that are text in one file and something else in another."""
    if len(tables) < 2:
        return set()
    kinds: dict[str, set[bool]] = {}
    for table in tables:
        for entry in table.schema:
            if not pa.types.is_null(entry.type):
                kinds.setdefault(entry.name, set()).add(is_text(entry.type))
    return {name for name, found in kinds.items() if len(found) > 1}


def _without_words(table: pa.Table, reading: Reading, notes: Notes) -> pa.Table:
    """Return a table without the words that stand for missing values in its columns of text."""
    words = ("", *(NULL_WORDS if reading.null_words is None else reading.null_words))
    changed: dict[int, pa.ChunkedArray] = {}
    for at, entry in enumerate(table.schema):
        if is_text(entry.type):
            values, counts = without_words(table.column(at), words)
            if counts:
                changed[at] = values
                known = Counter(notes.words.get(entry.name, {})) + Counter(counts)
                notes.words[entry.name] = dict(known)
    return replaced(table, changed)


class _Numbers:
    """The columns of text that hold numbers, and how those are written."""

    def __init__(self, reading: Reading, texts: Collection[str], notes: Notes) -> None:
        self._reading, self._texts, self._notes = reading, texts, notes
        self._found: dict[str, dict[Numerals, tuple[str, ...]]] = {}
        self._commas: set[str] = set()
        """Columns in which a comma stands: points alone do not tell how a file is written."""
        self._chosen: dict[str, Numerals] = {}
        self.decimal: str = reading.decimal
        thousands = reading.thousands.replace("none", "") if reading.thousands else None
        self._allowed = [
            numerals
            for numerals in _NUMERALS
            if reading.decimal in ("", numerals.decimal) and thousands in (None, numerals.thousands)
        ]
        own = Numerals(reading.decimal or ".", thousands or "")
        if own not in self._allowed and own.decimal != own.thousands:
            self._allowed.append(own)

    def look_at(
        self, tables: Sequence[pa.Table], delimiters: Collection[str], problems: Problems
    ) -> None:
        """Find the columns and decide on how their numbers are written.

        Args:
            tables: All files' rows.
            delimiters: What separates the fields of the files.
            problems: Takes columns that may be read in two ways.
        """
        self._found = {}
        texts: dict[str, list[pa.Array]] = {}
        for table in tables:
            for at, entry in enumerate(table.schema):
                if is_text(entry.type) and entry.name not in self._texts:
                    texts.setdefault(entry.name, []).extend(table.column(at).chunks)
        for name, chunks in texts.items():
            if found := self._styles(name, pa.chunked_array(chunks, pa.string())):
                self._found[name] = found
        types = [kind for table in tables for kind in table.schema.types]
        self.decimal = self._settled(any(map(pa.types.is_floating, types)), delimiters)
        for name, found in self._found.items():
            fitting = [numerals for numerals in found if numerals.decimal == self.decimal]
            # Points are separators beside decimal commas where they all can be.
            usual = self.decimal != "," and PLAIN in found
            self._chosen[name] = PLAIN if usual else next(iter(fitting or found))
            if not self.decimal and _ambiguous(found):
                remedy = "its commas may be decimal or between thousands; say settings={'decimal': "
                problems.add(f"column {name!r}", "numbers with a comma", remedy + "','} or '.'")

    def applied(self, table: pa.Table) -> pa.Table:
        """Return the table with numbers in place of their texts."""
        changed: dict[int, pa.ChunkedArray] = {}
        for at, name in enumerate(table.column_names if self._found else []):
            if name not in self._found:
                continue
            numerals = self._chosen[name]
            texts, words = without_words(table.column(at), self._found[name][numerals])
            for word, count in words.items():
                self._notes.of(name, f"{word!r} is read as missing in {counted(count, 'row')}")
            changed[at] = numerals.parse(texts)
            first = pc.index(PLAIN.fits(texts), False).as_py() if numerals != PLAIN else -1
            if first >= 0:
                said = f"{texts[first].as_py()!r} is read as {changed[at][first].as_py():.12g}"
                self._notes.of(name, f"{said} ({numerals})")
        return replaced(table, changed)

    def _styles(self, name: str, values: pa.ChunkedArray) -> dict[Numerals, tuple[str, ...]]:
        """Return every way in which a column's texts are numbers, with the words that are none."""
        head = pc.unique(values.slice(0, 1 << 16)).drop_null().slice(0, _LOOKED_AT)
        if not len(head):
            return {}
        if pc.all(pc.match_substring_regex(head, _LIKE_A_DATE)).as_py():
            said = f"settings={{'date_formats': {{{name!r}: '%d.%m.%Y'}}}} reads dates"
            self._notes.of(name, f"{head[0].as_py()!r} is kept as text; {said}")
            return {}
        if pc.mean(pc.match_substring_regex(head, _LIKE_A_NUMBER)).as_py() < 0.5:
            return {}
        distinct = pc.unique(values).drop_null()
        if pc.any(pc.match_substring(distinct, ",")).as_py():
            self._commas.add(name)
        found: dict[Numerals, tuple[str, ...]] = {}
        near: list[str] = []
        for numerals in self._allowed:
            odd = distinct.filter(pc.invert(numerals.fits(distinct)))
            words = odd.slice(0, len(_ODD_WORDS) + 1).to_pylist()
            if not words or (
                self._reading.null_words is None
                and all(word.strip().lower() in _ODD_WORDS for word in words)
            ):
                found[numerals] = tuple(words)
            elif len(words) <= _NEAR and len(words) < len(distinct) / 10:
                near = words if not near or len(words) < len(near) else near
        if near and not found:
            shown = ", ".join(repr(word) for word in near[:3])
            remedy = f"settings={{'null_words': {near[:3]}}} reads it as missing"
            self._notes.of(name, f"text, for {shown} among its numbers is none; {remedy}")
        return found

    def _settled(self, points: bool, delimiters: Collection[str]) -> str:
        """Return the decimal separator that the columns agree on; "" where nothing tells."""
        if self._reading.decimal:
            return self._reading.decimal
        clear = [
            found
            for name, found in self._found.items()
            if name in self._commas and not _ambiguous(found)
        ]
        if any(all(numerals.decimal == "," for numerals in found) for found in clear):
            return ","
        if points or any(PLAIN not in found and Numerals(".", ",") in found for found in clear):
            return "."
        return "." if set(delimiters) == {","} else ""


def _ambiguous(found: Collection[Numerals]) -> bool:
    """Tell whether `1,234` of a column may be a thousand or a little more than one."""
    commas = any(numerals.decimal == "," for numerals in found)
    return Numerals(".", ",") in found and commas and PLAIN not in found
