"""One column at a time: from whatever Arrow or pandas hands over to plain arrays.

Every function raises `ValueError` with a remedy as its message where the values cannot be read so.
"""

# pyarrow and pandas come without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubestill.errors import Problems

if TYPE_CHECKING:
    import pandas as pd

MISSING = -1
"""Code of a missing label."""
UNSEEN = -2
"""Code of a label that is not among the categories."""

Values: TypeAlias = "pa.ChunkedArray | pa.Array"


def arrow_table(data: pa.Table | pd.DataFrame) -> pa.Table:
    """Return `data` as an Arrow table; NaN of a DataFrame becomes null, arrays become lists.

    Raises:
        InvalidInput: Columns of a DataFrame hold values of different kinds; all are listed.
    """
    if isinstance(data, pa.Table):
        return data
    problems = Problems()
    arrays: list[pa.Array] = []
    for place, name in enumerate(data.columns):
        try:
            arrays.append(_arrow_array(data.iloc[:, place]))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            remedy = f"holds values of different kinds ({error}); give a column one kind of value"
            problems.add(f"column {str(name)!r}", str(data.dtypes.iloc[place]), remedy)
    problems.raise_if_any()
    return pa.Table.from_arrays(arrays, names=[str(name) for name in data.columns])


def pandas_frame(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a DataFrame; a cell of a FixedShapeTensor is an array of its shape.

    Arrow's own `to_pandas` gives flat cells.
    """
    frame = table.to_pandas()
    for name, kind in zip(table.schema.names, table.schema.types, strict=True):
        if isinstance(kind, pa.FixedShapeTensorType):
            shape = tensor_shape(kind)
            rows = tensors(table.column(name), shape, kind.value_type.to_pandas_dtype())
            frame[name] = list(rows.reshape(-1, *shape))
    return frame


def field_type(
    shape: Sequence[int], dtype: type[np.number[Any]] = np.float32
) -> pa.FixedShapeTensorType:
    """Return the Arrow type of fields of this shape."""
    return pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), list(shape))


def field_array(flat: pa.Array, shape: Sequence[int]) -> pa.Array:
    """Return numbers [n * width] as n fields: a FixedShapeTensor array."""
    stored = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
    kind = field_type(shape, flat.type.to_pandas_dtype())
    return pa.ExtensionArray.from_storage(kind, stored)


def tensor_shape(kind: pa.FixedShapeTensorType) -> tuple[int, ...]:
    """Return the shape of one value as its reader sees it: Arrow's own is that of its memory."""
    order = kind.permutation or range(len(kind.shape))
    return tuple(kind.shape[axis] for axis in order)


def nested_lists(values: pa.Array) -> pa.Array:
    """Return a FixedShapeTensor array as the nested lists that hold the same."""
    shape = tensor_shape(values.type)
    rows = tensors(values, shape, values.type.value_type.to_pandas_dtype())
    lists = pa.array(rows.reshape(-1))
    for size in reversed(shape[1:]):
        lists = pa.FixedSizeListArray.from_arrays(lists, size)
    missing = pc.invert(values.is_valid())
    return pa.FixedSizeListArray.from_arrays(lists, shape[0], mask=missing)


def is_list(kind: pa.DataType) -> bool:
    """Tell whether values of this type are lists, of fixed or variable length."""
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def floats(values: Values, dtype: type[np.number[Any]] = np.float32) -> NDArray[Any]:
    """Return numbers [n] as floats, NaN where missing; perhaps a read-only view of Arrow memory."""
    wanted = pa.from_numpy_dtype(np.dtype(dtype))
    values = _plain(values)
    if values.type != wanted:
        kind = values.type
        if not _is_number(kind):
            raise ValueError(
                f"holds {kind}, not numbers; say kinds={{...: 'categorical'}} or drop it"
            )
        values = pc.cast(values, wanted, safe=False)
    if isinstance(values, pa.ChunkedArray) and values.num_chunks == 1:
        values = values.chunk(0)
    if isinstance(values, pa.ChunkedArray):
        return values.to_numpy()
    return values.to_numpy(zero_copy_only=False)


def centred(numbers: NDArray[Any], offset: float) -> NDArray[np.float32]:
    """Return numbers less `offset` as float32: the difference is taken before it is rounded."""
    with np.errstate(over="ignore"):
        return (numbers - offset if offset else numbers).astype(np.float32, copy=False)


def flags(values: Values) -> pa.Array:
    """Return truth values [n] as Arrow booleans; numbers count when they are 0 and 1."""
    joined = _joined(_plain(values))
    if pa.types.is_boolean(joined.type):
        return joined
    if _is_number(joined.type):
        numbers = pc.cast(joined, pa.float64(), safe=False)
        known = pc.is_in(numbers, value_set=pa.array([0.0, 1.0, np.nan, None]))
        if pc.all(known).as_py() is not False:
            return pc.equal(pc.if_else(pc.is_nan(numbers), None, numbers), 1.0)
    raise ValueError(f"holds {joined.type}, not truth values")


def label_strings(values: Values) -> pa.Array:
    """Return labels [n] as text: whole numbers without a point, truth values `true` and `false`."""
    joined = _joined(values)
    kind = joined.type
    if pa.types.is_dictionary(kind):
        return pc.take(label_strings(joined.dictionary), joined.indices)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = pc.cast(joined, pa.float64(), safe=False)
        numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
        if pc.all(pc.equal(numbers, pc.floor(numbers))).as_py() is False:
            return pc.cast(numbers, pa.string())
        joined = pc.cast(numbers, pa.int64())
    if is_list(kind) or pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise ValueError(f"holds {kind}, not labels")
    return pc.cast(joined, pa.string())


def label_codes(values: Values, categories: Sequence[str]) -> NDArray[np.int32]:
    """Return each label's position in `categories` [n], `MISSING` or `UNSEEN`."""
    if isinstance(values, pa.ChunkedArray):
        chunks = [label_codes(chunk, categories) for chunk in values.chunks]
        return np.concatenate(chunks) if chunks else np.empty(0, np.int32)
    if pa.types.is_dictionary(values.type):
        if values.dictionary.equals(pa.array(categories, pa.string())):
            # As a dataset of the same categories holds them.
            codes = pc.fill_null(pc.cast(values.indices, pa.int32()), MISSING)
            return codes.to_numpy(zero_copy_only=False)
        known = {label: code for code, label in enumerate(categories)}
        labels = label_strings(values.dictionary).to_pylist()
        codes = [MISSING if label is None else known.get(label, UNSEEN) for label in labels]
        # The last place catches missing labels: their index is filled with -1.
        lookup = np.array([*codes, MISSING], np.int32)
        indices = pc.fill_null(pc.cast(values.indices, pa.int32()), -1)
        return lookup[indices.to_numpy(zero_copy_only=False)]
    labels = label_strings(values)
    found = pc.index_in(labels, value_set=pa.array(categories, pa.string()))
    if not found.null_count:
        return found.to_numpy()
    missing = labels.is_null().to_numpy(zero_copy_only=False)
    codes = pc.fill_null(found, UNSEEN).to_numpy()
    return np.where(missing, np.int32(MISSING), codes) if labels.null_count else codes


def tensors(
    values: Values, shape: Sequence[int], dtype: type[np.number[Any]] = np.float32
) -> NDArray[Any]:
    """Return tensors flattened to [n, width], all NaN where missing. May be a read-only view.

    Args:
        values: FixedShapeTensor, nested lists of this shape, or flat lists in C order.
        shape: Of one tensor.
        dtype: Of the numbers.
    """
    width = math.prod(shape)
    if isinstance(values, pa.ChunkedArray):
        if values.num_chunks != 1:
            parts = [tensors(chunk, shape, dtype) for chunk in values.chunks]
            return np.concatenate(parts) if parts else np.empty((0, width), dtype)
        values = values.chunk(0)
    kind, order = values.type, None
    if isinstance(kind, pa.FixedShapeTensorType):
        _check_shape(tensor_shape(kind), shape)
        order, values = kind.permutation, values.storage
    count = len(values)
    present = None
    if values.null_count:
        present = values.is_valid().to_numpy(zero_copy_only=False)
        values = values.drop_null()
    rows = len(values)
    found: list[int] = []
    while is_list(values.type):
        lengths = pc.unique(pc.list_value_length(values))
        if len(lengths) > 1:
            raise ValueError("holds lists of different lengths; a tensor column needs one shape")
        found += lengths.to_pylist()
        values = values.flatten()
    if len(values) != rows * width:
        held = len(values) // max(rows, 1)
        raise ValueError(f"holds {held} numbers a row where {width} are expected")
    if rows and not isinstance(kind, pa.FixedShapeTensorType):
        _check_shape(found, shape)
    flat = floats(values, dtype).reshape(rows, width)
    if order and list(order) != sorted(order):
        memory = flat.reshape(rows, *kind.shape)
        flat = memory.transpose(0, *(axis + 1 for axis in order)).reshape(rows, width)
    if present is None:
        return flat
    filled = np.full((count, width), np.nan if np.issubdtype(dtype, np.floating) else 0, dtype)
    filled[present] = flat
    return filled


def _check_shape(found: Sequence[int], shape: Sequence[int]) -> None:
    """Refuse the same numbers in another shape: [H, W] where [W, H] is expected."""
    if 1 not in (len(found), len(shape)) and list(found) != list(shape):
        raise ValueError(
            f"holds tensors of shape {list(found)} where {list(shape)} is expected; "
            "transpose or reshape them"
        )


def _arrow_array(series: pd.Series) -> pa.Array:
    if series.dtype == object:
        arrays = [cell for cell in series if isinstance(cell, np.ndarray)]
        shapes = {cell.shape for cell in arrays}
        if any(len(shape) > 1 for shape in shapes):
            if len(shapes) == 1 and len(arrays) == len(series):
                return pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(arrays))
            series = series.map(
                lambda cell: cell.tolist() if isinstance(cell, np.ndarray) else cell
            )
    array = pa.array(series, from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _joined(values: Values) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    return values


def _plain(values: Values) -> Values:
    """Return numbers or truth values that pandas keeps as categories as what they are."""
    if pa.types.is_dictionary(values.type) and _is_number(values.type.value_type):
        return pc.cast(values, values.type.value_type)
    return values


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )
