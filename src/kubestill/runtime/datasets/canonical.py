"""The one form in which rows are stored, cut into blocks and fingerprinted.

Numbers and tensors are float32 (exact ones, and numbers kept as given, float64) with NaN for
missing, images uint8; truth values, labels and text are nullable, labels a dictionary in the
schema's order. Tensors of two dimensions and more are Arrow's FixedShapeTensor, so that other
readers of Parquet see their shape. The same rows always give the same bytes, whatever types, part
sizes or compression they came in.
"""

# pyarrow comes without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubestill.errors import Problems, nearest_of
from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.text import check_texts, text_strings

if TYPE_CHECKING:
    import pandas as pd

BLOCK_ROWS = 8192
"""Rows of a block: the unit of digests, of sharding and of labelling."""
_LABELS = pa.dictionary(pa.int32(), pa.string())


def storage_schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow types in which these columns are stored."""
    return pa.schema([_storage_field(column) for column in columns])


def canonical_table(
    data: pa.Table | pd.DataFrame,
    schema: Schema,
    *,
    unlabelled: bool = False,
    stored: Collection[str] = (),
) -> pa.Table:
    """Check rows against a schema and return them in canonical form.

    Args:
        data: Rows with exactly the columns of the schema, in any order and of any type that can be
            read as the column's kind.
        schema: What the columns mean.
        unlabelled: Rows may lack a target although there are no soft outputs yet.
        stored: Columns as a dataset gave them, which are in this form and not checked again.

    Raises:
        InvalidInput: Missing, duplicate or unknown columns, values that do not fit the column's
            kind, labels outside its categories, infinite numbers, missing targets where they are
            needed; all problems together.
    """
    problems = Problems()
    names = list(data.column_names if isinstance(data, pa.Table) else data.columns)
    _check_names([str(name) for name in names], schema, problems)
    problems.raise_if_any()
    table = read.arrow_table(data)
    arrays: list[pa.Array | pa.ChunkedArray] = []
    labelled = schema.soft is None and not unlabelled
    for column in schema.columns:
        if column.name in stored:
            arrays.append(table.column(column.name))
            continue
        try:
            array = _canonical_array(table.column(column.name), column)
        except (pa.ArrowException, ValueError) as error:
            problems.add(f"column {column.name!r}", str(table.column(column.name).type), str(error))
            continue
        _check_values(array, column, labelled, problems)
        arrays.append(array)
    problems.raise_if_any()
    return pa.Table.from_arrays(arrays, schema=storage_schema(schema.columns))


def stored_table(table: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """Return what Parquet gave back in canonical form: dictionaries in the schema's order."""
    arrays: list[pa.ChunkedArray | pa.Array] = []
    for column in columns:
        values = table.column(column.name)
        if column.categories is not None:
            values = _dictionary(values, column)
        elif len(column.shape) > 1 and values.type != _storage_field(column).type:
            # Fields were flat lists in earlier versions.
            values = _canonical_array(values, column)
        arrays.append(values)
    return pa.Table.from_arrays(arrays, schema=storage_schema(columns))


def unlabelled_rows(table: pa.Table, schema: Schema) -> int:
    """Return how many rows of a canonical table have no target, or lack a part of it."""
    target = schema.target
    if target is None:
        return 0
    values = table.column(target.name)
    if target.kind == "tensor":
        return int(np.isnan(read.tensors(values, target.shape, target.float_type)).any(1).sum())
    if target.kind == "numeric":
        return int(np.isnan(read.floats(values, target.float_type)).sum())
    return values.null_count


def block_digest(block: pa.Table, schema: Schema) -> str:
    """Return the SHA-256 of one canonical block's values."""
    digest = hashlib.sha256(str(block.num_rows).encode())
    for column in schema.columns:
        values = block.column(column.name)
        if column.kind == "numeric":
            digest.update(_bytes(read.floats(values, column.float_type)))
        elif column.kind == "tensor":
            digest.update(_bytes(read.tensors(values, column.shape, column.stored_type)))
        elif column.kind == "boolean":
            marks = pc.fill_null(pc.cast(values, pa.int8()), -1)
            digest.update(_bytes(marks.to_numpy()))
        elif column.categories is not None:
            codes = values.combine_chunks().indices
            digest.update(_bytes(pc.fill_null(codes, read.MISSING).to_numpy()))
        else:
            texts: list[str | None] = values.to_pylist()
            encoded = [None if text is None else text.encode() for text in texts]
            lengths = [-1 if text is None else len(text) for text in encoded]
            digest.update(_bytes(np.array(lengths, np.int32)))
            digest.update(b"".join(text for text in encoded if text))
    return digest.hexdigest()


def fingerprint(schema: Schema, rows: int, blocks: Sequence[str]) -> str:
    """Return the SHA-256 of schema, row count and ordered block digests."""
    text = json.dumps(
        {"schema": schema.digest, "rows": rows, "blocks": list(blocks)}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _storage_field(column: Column) -> pa.Field:
    if column.kind == "numeric":
        return pa.field(column.name, pa.from_numpy_dtype(column.float_type), nullable=False)
    if len(column.shape) > 1:
        kind = read.field_type(column.shape, column.stored_type)
        return pa.field(column.name, kind, nullable=False)
    if column.kind == "tensor":
        element = pa.field("element", pa.from_numpy_dtype(column.stored_type), nullable=False)
        return pa.field(column.name, pa.list_(element, column.width), nullable=False)
    if column.kind == "boolean":
        return pa.field(column.name, pa.bool_())
    if column.categories is None:
        return pa.field(column.name, pa.string())
    return pa.field(column.name, _LABELS)


def _canonical_array(values: pa.ChunkedArray, column: Column) -> pa.Array:
    if column.kind == "numeric":
        return pa.array(_one_nan(read.floats(values, column.float_type)))
    if column.kind == "tensor":
        if column.pixels:
            rows = _pixels(values, column)
        else:
            rows = _one_nan(read.tensors(values, column.shape, column.float_type))
        flat = pa.array(rows.reshape(-1))
        if len(column.shape) > 1:
            return read.field_array(flat, column.shape)
        return pa.FixedSizeListArray.from_arrays(flat, type=_storage_field(column).type)
    if column.kind == "boolean":
        return read.flags(values)
    if column.kind == "text":
        return check_texts(text_strings(values))
    if column.categories is None:
        return read.label_strings(values)
    return _dictionary(values, column)


def _pixels(values: pa.ChunkedArray, column: Column) -> NDArray[np.uint8]:
    """Return images as bytes [n, width].

    Raises:
        ValueError: A value is no byte, or missing; the message is the remedy.
    """
    kind = values.type
    while isinstance(kind, pa.FixedShapeTensorType) or read.is_list(kind):
        kind = kind.value_type
    if kind == pa.uint8() and not values.null_count:
        return read.tensors(values, column.shape, np.uint8)
    rows = read.tensors(values, column.shape)
    whole = (rows >= 0) & (rows <= 255) & (rows % 1 == 0)
    if not whole.all():
        raise ValueError(
            f"holds images with {rows[~whole][0]:g} among their numbers, and its images are whole "
            "ones from 0 to 255; scale and round them, and drop rows without one"
        )
    return rows.astype(np.uint8)


def _dictionary(values: pa.ChunkedArray, column: Column) -> pa.Array:
    categories = pa.array(column.categories or (), pa.string())
    joined = values.combine_chunks()
    if joined.type == _LABELS and joined.dictionary.equals(categories):
        return joined
    if not pa.types.is_dictionary(joined.type):
        labels = read.label_strings(joined)
        places = pc.index_in(labels, value_set=categories)
        if places.null_count == labels.null_count:
            return pa.DictionaryArray.from_arrays(places, categories)
    codes = read.label_codes(joined, column.categories or ())
    if np.any(codes == read.UNSEEN):
        labels = set(read.label_strings(values.unique()).to_pylist())
        shown = ", ".join(map(repr, sorted(labels - {None, *(column.categories or ())})[:5]))
        raise ValueError(f"holds labels outside its categories: {shown}")
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes == read.MISSING), categories)


def _one_nan(values: NDArray[Any]) -> NDArray[Any]:
    """Give every NaN the same bits, so that equal rows have equal digests."""
    missing = np.isnan(values)
    return np.where(missing, values.dtype.type(np.nan), values) if missing.any() else values


def _bytes(values: NDArray[Any]) -> memoryview:
    return memoryview(np.ascontiguousarray(values).data).cast("B")


def _check_names(names: list[str], schema: Schema, problems: Problems) -> None:
    known, given = set(schema.names), set(names)
    for name, count in Counter(names).items():
        if count > 1:
            problems.add("columns", name, "is there more than once; rename or drop the others")
    near_given, near_known = nearest_of(names), nearest_of(schema.names)
    for name in schema.names:
        if name not in given:
            problems.add("columns", name, "is missing; " + near_given(name))
    for name in names:
        if name not in known:
            problems.add("columns", name, "is not in the schema; " + near_known(name))


def _check_values(array: pa.Array, column: Column, labelled: bool, problems: Problems) -> None:
    field = f"column {column.name!r}"
    if column.pixels:
        missing = 0
    elif not column.as_given and column.kind in ("numeric", "tensor"):
        stored = array.storage if isinstance(array, pa.ExtensionArray) else array
        numbers = (stored.flatten() if column.kind == "tensor" else stored).to_numpy()
        infinite = int(np.isinf(read.centred(numbers, column.offset)).sum())
        if infinite:
            remedy = (
                "cannot be learned from, nor be more than float32 holds (3.4e38); clip or drop them"
            )
            problems.add(field, f"{infinite} infinite values", remedy)
        missing = int(np.isnan(numbers).sum())
        negative = int((numbers < 0).sum()) if column.role == "weight" else 0
        if negative:
            remedy = "a row counts for 0 rows or more; clip them, or drop the rows"
            problems.add(f"weight {column.name!r}", f"{negative} negative values", remedy)
    else:
        missing = array.null_count
    if missing and column.role == "weight":
        remedy = "every row needs a weight; 1 is that of an ordinary row"
        problems.add(f"weight {column.name!r}", f"{missing} missing or NaN values", remedy)
    if missing and column.role == "soft":
        problems.add(field, f"{missing} missing values", "soft outputs must be there for every row")
    if missing and column.role == "target" and labelled:
        remedy = "drop these rows; only rows with soft outputs may lack a target"
        problems.add(f"target {column.name!r}", f"{missing} missing or NaN values", remedy)
