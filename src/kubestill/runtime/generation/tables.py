"""Convert a dataset's tables to the arrays that generators work on, and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.generation.frame import Codes, Frame, Originals, Tensor


def originals_of(table: pa.Table, schema: Schema) -> Originals:
    """Return the features of a canonical table but its text, which nothing here can vary."""
    kinds = {kind: [c for c in schema.features if c.kind == kind] for kind in ("numeric", "tensor")}
    coded = [c for c in schema.features if c.kind in ("boolean", "categorical")]
    rows = table.num_rows
    numeric = np.empty((rows, len(kinds["numeric"])))
    for place, column in enumerate(kinds["numeric"]):
        numeric[:, place] = read.floats(table.column(column.name), column.float_type)
    codes = np.empty((rows, len(coded)), np.int64)
    for place, column in enumerate(coded):
        codes[:, place] = _codes(table.column(column.name), column)
    tensors = [
        Tensor(values=read.tensors(table.column(column.name), column.shape), shape=column.shape)
        for column in kinds["tensor"]
    ]
    return Originals(numeric=numeric, codes=codes, tensors=tuple(tensors))


def table_of(frame: Frame, source: pa.Table, schema: Schema, *, keeps_label: bool) -> pa.Table:
    """Return generated rows as a table of `schema`.

    Args:
        frame: The features, in the order of the schema within each kind.
        source: The original that each row was made from, in the same order: ignored columns and
            text are copied from it, and so is the target where the label survives.
        schema: What the columns mean.
        keeps_label: Whether it does; else the target is null.
    """
    numeric, codes, tensors = iter(frame.numeric.T), iter(frame.codes.T), iter(frame.tensors)
    arrays: list[pa.Array | pa.ChunkedArray] = []
    for column in schema.columns:
        original = source.column(column.name)
        if column.role == "target" and not keeps_label:
            arrays.append(pa.nulls(len(frame), original.type))
        elif column.role != "feature" or column.kind == "text":
            arrays.append(original)
        elif column.kind == "numeric":
            arrays.append(pa.array(next(numeric).astype(column.float_type)))
        elif column.kind == "tensor":
            flat = pa.array(next(tensors).values.reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, column.width))
        else:
            arrays.append(_decoded(next(codes), column))
    return pa.Table.from_arrays(arrays, names=list(schema.names))


def _codes(values: pa.ChunkedArray, column: Column) -> Codes:
    if column.kind == "boolean":
        return read.label_codes(values, ("false", "true")).astype(np.int64)
    return read.label_codes(values, column.categories or ()).astype(np.int64)


def _decoded(codes: Codes, column: Column) -> pa.Array:
    missing = codes == read.MISSING
    if column.kind == "boolean":
        return pa.array(codes == 1, mask=missing)
    indices = pa.array(codes.astype(np.int32), mask=missing)
    return pa.DictionaryArray.from_arrays(indices, pa.array(column.categories, pa.string()))
