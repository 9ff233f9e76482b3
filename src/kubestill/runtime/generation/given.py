"""Rows that people have without a label, in place of rows that are made."""

# pyarrow comes without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from pydantic import Field

from kubestill.errors import InvalidInput, Problem, Problems, counted, nearest_of, renaming
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.canonical import canonical_table, storage_schema
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.sources import open_source


class FilesSettings(Settings):
    """Where the rows are."""

    source: str = Field(min_length=1)
    """File, glob or folder of Parquet or CSV, local, gs:// or s3://, with the columns that the
    dataset learns from. No target is needed, and none is read."""


class Given:
    """The first rows of some files, as rows of a schema without a label."""

    solving = None
    keeps_label = False

    def __init__(self, settings: FilesSettings, schema: Schema, *, most: int):
        """Read them.

        Args:
            settings: Where they are.
            schema: Of the dataset that they are added to.
            most: Rows; what is beyond is not read.

        Raises:
            InvalidInput: There are no such files, they lack columns that are learned from, or hold
                values that are none of a column's kind; all that is wrong with one of these.
        """
        self.schema = schema
        self.width = sum(column.width for column in schema.columns)
        kinds = {c.name: c.kind for c in schema.features if c.kind != "tensor"}
        with renaming("settings.{}".format):
            opened = open_source(settings.source, kinds=kinds)
        there, problems = opened.types, Problems()
        near = nearest_of(list(there))
        for column in schema.features:
            if column.name not in there:
                remedy = f"is learned from, and these files lack it; {near(column.name)}"
                problems.add("settings.source", column.name, remedy)
        problems.raise_if_any()
        unseen: Counter[str] = Counter()
        pieces, held = [storage_schema(schema.columns).empty_table()], 0
        self.beyond = False
        """Whether the files hold more rows."""
        for piece in opened.scan([name for name in schema.names if name in there]):
            self.beyond = held + piece.num_rows > most
            pieces.append(_conformed(piece.slice(0, most - held), schema, unseen))
            held += pieces[-1].num_rows
            if self.beyond:
                break
        self._table = pa.concat_tables(pieces)
        said = "the first " * self.beyond + counted(held, "row")
        print(f"{said} without a label from {settings.source}", flush=True)
        for name, count in unseen.items():
            print(
                f"WARNING: {counted(count, 'label')} of {name!r} that the dataset does not have "
                "count as missing",
                flush=True,
            )

    def __len__(self) -> int:
        return self._table.num_rows

    def make(self, start: int, stop: int) -> pa.Table:
        """Return rows `start` to `stop`."""
        return self._table.slice(start, stop - start)


def _conformed(table: pa.Table, schema: Schema, unseen: Counter[str]) -> pa.Table:
    """Return rows of the schema, without target; what nobody learns from may be missing."""
    arrays: list[pa.Array | pa.ChunkedArray] = []
    for column, stored in zip(schema.columns, storage_schema(schema.columns), strict=True):
        if column.role == "weight" and column.name not in table.column_names:
            arrays.append(pa.array(np.ones(table.num_rows, column.float_type)))
        elif column.role == "target" or column.name not in table.column_names:
            arrays.append(_missing(table.num_rows, column, stored.type))
        elif column.role == "feature" and column.categories is not None:
            arrays.append(_known(table.column(column.name), column, unseen))
        else:
            arrays.append(table.column(column.name))
    whole = pa.Table.from_arrays(arrays, names=list(schema.names))
    return canonical_table(whole, schema, unlabelled=True)


def _missing(rows: int, column: Column, kind: pa.DataType) -> pa.Array:
    if column.kind != "tensor":
        return pa.nulls(rows, kind)
    flat = pa.array(np.full(rows * column.width, np.nan, np.float32))
    return pa.FixedSizeListArray.from_arrays(flat, column.width)


def _known(values: pa.ChunkedArray, column: Column, unseen: Counter[str]) -> pa.Array:
    """Return labels without those that the column does not have, which are counted."""
    try:
        codes = read.label_codes(values, column.categories or ())
    except ValueError as error:
        remedy = f"{error}; give them as text"
        raise InvalidInput([Problem("settings.source", column.name, remedy)]) from error
    strange = codes == read.UNSEEN
    if strange.any():
        unseen[column.name] += int(strange.sum())
    indices = pa.array(codes, mask=strange | (codes == read.MISSING))
    return pa.DictionaryArray.from_arrays(indices, pa.array(column.categories, pa.string()))
