"""Open a user's own table: Parquet, CSV or images; a file, glob or folder; here or in a bucket."""

# pyarrow comes without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from kubestill.errors import CorruptData, InvalidInput, Problem, Problems, counted
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.datasets.csvs import Notes, read_csvs
from kubestill.runtime.datasets.extent import check_extent
from kubestill.runtime.datasets.files import DataFile, find_files, is_date
from kubestill.runtime.datasets.images import Images, decode_columns, open_idx, open_images
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.promotion import conformed, unified, without_views
from kubestill.runtime.datasets.reading import Numerals, TextReader, is_text, replaced

_BATCH_ROWS = 1 << 16
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source whose rows can be read, as often as wanted."""

    rows: pads.Dataset
    """As they are stored, without `notes.doubled`, which cannot be distinguished."""
    readers: Mapping[str, TextReader] = field(default_factory=dict[str, TextReader])
    """What turns stored text into what the user said it is."""
    unlearned: Mapping[str, str] = field(default_factory=dict[str, str])
    """Columns that are no features unless the user names them, each with the reason."""
    images: Mapping[str, Images] = field(default_factory=dict[str, Images])
    """Columns whose values were decoded, in place of those in `rows`."""
    notes: Notes = field(default_factory=Notes)

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """The type of each column as it is read."""
        schema = self.rows.schema
        stored = dict(zip(schema.names, schema.types, strict=True))
        read = {name: reader.type(stored[name]) for name, reader in self.readers.items()}
        return stored | read | {name: images.type for name, images in self.images.items()}

    def scan(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows in pieces that are worth looking at.

        Of a wide CSV a batch holds a few rows only; every piece costs time for each of its columns.

        Raises:
            InvalidInput: A file is damaged, or holds values that the column's type cannot hold or
                that are not what the user said.
        """
        if any(name in self.images for name in columns):
            yield from self._scan_images(columns)
            return
        held: list[pa.RecordBatch] = []
        size = 0
        for batch in self.batches(list(columns)):
            held.append(batch)
            size += batch.nbytes
            if size >= _PIECE_BYTES:
                yield self._read(pa.Table.from_batches(held))
                held, size = [], 0
        if held:
            yield self._read(pa.Table.from_batches(held))

    def _scan_images(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows of columns with images among them."""
        stored = [name for name in columns if name not in self.images]
        images = {name: self.images[name] for name in columns if name in self.images}
        width = sum(found.pixels[:1].nbytes for found in images.values())
        rows = max(1, _PIECE_BYTES // width)
        start = 0
        # A batch without columns would not know its rows.
        for batch in self.batches(stored or self.rows.schema.names[:1], rows):
            table = self._read(pa.Table.from_batches([batch]))
            stop = start + batch.num_rows
            yield pa.table(
                {
                    name: images[name].between(start, stop)
                    if name in images
                    else table.column(name)
                    for name in columns
                }
            )
            start = stop

    def to_table(self) -> pa.Table:
        """Return all rows."""
        pieces = list(self.scan(self.rows.schema.names))
        if not pieces:
            return self._read(self.rows.schema.empty_table())
        table = pa.concat_tables(pieces, promote_options="permissive")
        return table.replace_schema_metadata(self.rows.schema.metadata)

    def _read(self, table: pa.Table) -> pa.Table:
        problems = Problems()
        changed: dict[int, pa.ChunkedArray] = {}
        for at, name in enumerate(table.column_names if self.readers else []):
            if name in self.readers:
                try:
                    changed[at] = self.readers[name].read(table.column(at))
                except (ValueError, pa.ArrowException) as error:
                    problems.add(f"column {name!r}", str(table.column(at).type), str(error))
        problems.raise_if_any()
        return replaced(table, changed)

    def batches(self, columns: list[str], rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the rows as they are stored, at most so many at a time.

        Raises:
            InvalidInput: As of `scan`.
        """
        for fragment in self.rows.get_fragments():
            try:
                for batch in fragment.to_batches(
                    schema=self.rows.schema, columns=columns, batch_size=rows
                ):
                    if batch.num_rows:
                        yield batch
            except (pa.ArrowException, OSError) as error:
                raise InvalidInput(_told(fragment, self.rows.schema, columns, error)) from error


def open_source(
    source: str, *, reading: Reading | None = None, kinds: Mapping[str, str] | None = None
) -> Opened:
    """Open a table: Parquet streams from its files, CSV is read into memory, images are decoded.

    Args:
        source: See `files.find_files`.
        reading: How the files are to be read.
        kinds: Kind by column, which text follows before it is parsed.

    Raises:
        InvalidInput: Nothing there, unknown file types, unreadable or truncated files, files whose
            columns contradict each other, duplicate column names; all problems together.
    """
    problems = Problems()
    opened = try_source(source, problems, reading=reading, kinds=kinds)
    problems.raise_if_any()
    assert opened
    return opened


def try_source(
    source: str,
    problems: Problems,
    *,
    reading: Reading | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Opened | None:
    """Do what `open_source` does, but note what is wrong; None where that leaves no columns."""
    before = len(problems)
    reading, kinds = reading or Reading(), kinds or {}
    notes = Notes()
    files = find_files(source, reading.format, problems, notes.tell)
    if len(problems) > before:
        return None
    kind = files[0].format
    if kind in ("images", "idx"):
        if kind == "images" or len(files) > 1:
            notes.tell(f"{counted(len(files), 'file')} are read as one table")
        open_pictures = open_images if kind == "images" else open_idx
        found = open_pictures(files, reading, problems, notes)
        if found is None:
            return None
        table, images = found
        unlearned = {"path": "names the file of an image"}
        return Opened(rows=pads.dataset(table), unlearned=unlearned, images=images, notes=notes)
    if len(files) > 1:
        notes.tell(f"{counted(len(files), 'file')} are read as one table")
    read = _open_parquet if kind == "parquet" else _open_csv
    rows = read(files, reading, kinds, problems, notes)
    for name in notes.doubled:
        problems.add("columns", name, "is there more than once; rename or drop the others")
    if rows is None:
        return None
    partitions = dict(item for file in reversed(files) for item in file.partition)
    dated = [n for n, value in partitions.items() if is_date(n, value) and n in rows.schema.names]
    unlearned = dict.fromkeys(dated, "names a date, which later rows never share")
    opened = Opened(
        rows=rows,
        readers=_readers(rows.schema, reading, kinds),
        unlearned=unlearned | _index(rows.schema),
        notes=notes,
    )
    return _with_images(opened, reading, problems)


def _with_images(opened: Opened, reading: Reading, problems: Problems) -> Opened | None:
    """Decode the columns of images; None where what is wrong with one was noted."""
    before = len(problems)
    images: dict[str, Images] = {}
    with problems.collect():
        images = decode_columns(opened.rows.schema, opened.batches, reading, problems, opened.notes)
    if len(problems) > before:
        return None
    return replace(opened, images=images) if images else opened


def opened_table(
    table: pa.Table, *, reading: Reading | None = None, kinds: Mapping[str, str] | None = None
) -> Opened:
    """Return a table in memory as `open_source` returns one from files."""
    if (plain := without_views(table.schema)) != table.schema:
        table = table.cast(plain)
    readers = _readers(table.schema, reading or Reading(), kinds or {})
    rows = pads.dataset(table)
    opened = Opened(rows=rows, readers=readers, unlearned=_index(table.schema))
    problems = Problems()
    opened = _with_images(opened, reading or Reading(), problems)
    problems.raise_if_any()
    assert opened
    return opened


def _readers(
    schema: pa.Schema, reading: Reading, kinds: Mapping[str, str]
) -> dict[str, TextReader]:
    """Return what has to be done to text, by column."""
    numerals = Numerals(reading.decimal or ".", reading.thousands.replace("none", ""))
    words = reading.null_words or ()
    said = {name for name, kind in kinds.items() if kind in ("numeric", "boolean")}
    readers: dict[str, TextReader] = {}
    for name in schema.names if words else [*said, *reading.date_formats]:
        at, dated = schema.get_field_index(name), reading.date_formats.get(name, "")
        if at >= 0 and (dated or (is_text(schema.field(at).type) and (name in said or words))):
            readers[name] = TextReader(
                kind=kinds.get(name, ""), numerals=numerals, null_words=words, date_format=dated
            )
    return readers


def _index(schema: pa.Schema) -> dict[str, str]:
    """Return the columns that pandas wrote as the index of its frame."""
    why = "is the index of a pandas DataFrame"
    names = ["Unnamed: 0"] if "Unnamed: 0" in schema.names else []
    try:
        written = (schema.metadata or {}).get(b"pandas", b"{}")
        told = parse_json(written, source="the schema", what="note of pandas").get("index_columns")
        names += [name for name in told or [] if isinstance(name, str)]
    except (CorruptData, TypeError):
        pass  # Whoever wrote this was not pandas.
    return {name: why for name in names if name in schema.names}


def _open_parquet(
    files: Sequence[DataFile],
    reading: Reading,
    kinds: Mapping[str, str],
    problems: Problems,
    notes: Notes,
) -> pads.Dataset | None:
    schemas: list[pa.Schema] = []
    for file in files:
        try:
            with pa.memory_map(file.path) as source:
                metadata = pq.read_metadata(source)
                schema = metadata.schema.to_arrow_schema()
                check_extent(source, metadata, set(schema.names), name=os.path.basename(file.name))
            schemas.append(schema)
            notes.parts.append((file.name, metadata.num_rows))
        except CorruptData as error:
            problems.add("source", file.name, f"is refused: {error}")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            remedy = f"cannot be read as Parquet (cut off, or not Parquet): {error}"
            problems.add("source", file.name, remedy)
    names = [name for schema in schemas for name, n in Counter(schema.names).items() if n > 1]
    notes.doubled |= dict.fromkeys(names)
    if len(schemas) < len(files):
        return None
    single = [pa.schema([f for f in s if f.name not in names], s.metadata) for s in schemas]
    added = [_added(file, schema) for file, schema in zip(files, single, strict=True)]
    whole = [_with_text(schema, new) for schema, new in zip(single, added, strict=True)]
    schema = unified(whole, [file.name for file in files], problems)
    if schema is None:
        return None
    local, form = LocalFileSystem(), pads.ParquetFileFormat()
    fragments = [
        form.make_fragment(file.path, local, partition_expression=_expression(new))
        for file, new in zip(files, added, strict=True)
    ]
    return pads.FileSystemDataset(fragments, schema, form, local)


def _open_csv(
    files: Sequence[DataFile],
    reading: Reading,
    kinds: Mapping[str, str],
    problems: Problems,
    notes: Notes,
) -> pads.Dataset | None:
    tables = read_csvs(files, reading, kinds, problems, notes)
    if len(tables) < len(files):
        return None
    for at, file in enumerate(files):
        rows = tables[at].num_rows
        notes.parts.append((file.name, rows))
        for name, value in _added(file, tables[at].schema).items():
            tables[at] = tables[at].append_column(name, pa.array([value] * rows, pa.string()))
    schema = unified([table.schema for table in tables], [file.name for file in files], problems)
    if schema is None:
        return None
    fitting: list[pa.Table] = []
    for file, table in zip(files, tables, strict=True):
        try:
            fitting.append(conformed(table, schema))
        except pa.ArrowException as error:
            remedy = f"does not fit the other files: {error}"
            problems.add("source", file.name, remedy)
    return pads.dataset(pa.concat_tables(fitting)) if len(fitting) == len(files) else None


def _added(file: DataFile, schema: pa.Schema) -> dict[str, str | None]:
    """Return the columns that a file's folders name and that it does not have itself."""
    there = set(schema.names)
    return {name: value for name, value in file.partition if name not in there}


def _with_text(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    for name in names:
        schema = schema.append(pa.field(name, pa.string()))
    return schema


def _expression(partition: Mapping[str, str | None]) -> pads.Expression | None:
    """Return what holds of every row of a file, which is how Arrow learns of its partition."""
    parts = [
        pads.field(name).is_null() if value is None else pads.field(name) == value
        for name, value in partition.items()
    ]
    return reduce(operator.and_, parts) if parts else None


def _told(
    fragment: pads.Fragment, schema: pa.Schema, columns: Collection[str], error: Exception
) -> list[Problem]:
    """Say what is wrong with a file: the columns whose values are lost, or that it is damaged."""
    file = getattr(fragment, "path", "table")
    found: list[Problem] = []
    for entry in fragment.physical_schema:
        if entry.name in columns and entry.type != schema.field(entry.name).type:
            try:
                for _ in fragment.to_batches(schema=schema, columns=[entry.name]):
                    pass
            except (pa.ArrowException, OSError) as lost:
                wanted = schema.field(entry.name).type
                remedy = f"{file} has {entry.type}, and {wanted} of the other files cannot hold "
                found.append(Problem(f"column {entry.name!r}", file, f"{remedy}it: {lost}"))
    return found or [Problem("source", file, f"is damaged: {error}")]
