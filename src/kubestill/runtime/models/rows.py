"""Read rows in the form in which an application holds them, and answer in the same form.

Values that Python holds, and tables of a few rows, are read value by value: setting up Arrow or
pandas takes longer than a small network. Both ways give the same bits.
"""

from __future__ import annotations

import contextlib
import numbers
import re
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem, Problems, nearest_of
from kubestill.runtime.datasets.columns import centred
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Column
from kubestill.runtime.datasets.text import text_rows

if TYPE_CHECKING:
    import pandas as pd

    from kubestill.runtime.models.encoder import Encoder

FEW_ROWS = 16
"""A table of so many is read value by value."""

_EXACT = 1 << 53
"""Whole numbers up to it are exact in float64."""

Raw: TypeAlias = NDArray[np.float32]
Form: TypeAlias = Literal["row", "rows", "columns", "series", "table", "frame"]


class RowReader:
    """Reads rows of any form into the raw matrix of one model.

    | given | a row is |
    | --- | --- |
    | dict of values | the only one; a dict of lists or arrays holds columns |
    | list of dicts | one of them |
    | pandas Series | the only one, columns by its index |
    | numpy array | a line of `columns`, in their order |
    | DataFrame, Arrow table | as usual |
    """

    def __init__(self, layout: RawLayout):
        self.layout = layout
        self.columns = tuple(column.name for column in layout.features)
        """Names of the columns, in the order in which an array holds them."""
        self._scalars = [
            (column.name, _value_reader(column))
            for column in layout.features
            if column.kind not in ("tensor", "text")
        ]
        self._scalars_at = [layout.slices[name].start for name, _ in self._scalars]
        self._wide = [c for c in layout.features if c.kind in ("tensor", "text")]
        self._tensors = [column for column in self._wide if column.kind == "tensor"]

    def read(self, given: Any) -> tuple[Raw, Form]:
        """Return the raw matrix [N, R], and the form in which to answer.

        Raises:
            InvalidInput: Columns are missing, or hold what cannot be read as their kind; all are
                listed. Or this is no form of rows.
        """
        if isinstance(given, Mapping):
            row = cast(Mapping[str, Any], given)
            return (self._columns(row), "columns") if self._holds_columns(row) else self._row(row)
        if isinstance(given, list | tuple) and all(
            isinstance(row, Mapping) for row in cast(Sequence[Any], given)
        ):
            return self._values(cast(Sequence[Mapping[str, Any]], given)), "rows"
        if isinstance(given, np.ndarray):
            return self._array(cast("NDArray[Any]", given)), "frame"
        if isinstance(given, pa.RecordBatch):
            return decode_features(pa.Table.from_batches([given]), self.layout), "table"
        if isinstance(given, pa.Table):
            return decode_features(given, self.layout), "table"
        # Whoever hands over something of pandas has imported it.
        pandas: Any = sys.modules.get("pandas")
        unknown: Any = given
        if pandas is not None and isinstance(unknown, pandas.DataFrame):
            return self._frame(unknown), "frame"
        if pandas is not None and isinstance(unknown, pandas.Series):
            series = cast("pd.Series", unknown)
            return self._values([dict(zip(series.index, series.tolist(), strict=True))]), "series"
        raise InvalidInput(
            [
                Problem(
                    "rows",
                    type(given).__qualname__,
                    "is no form of rows; give a dict, a list of dicts, a Series, a DataFrame, an "
                    f"Arrow table, or an array of the columns {_listed(self.columns)}",
                )
            ]
        )

    def _row(self, row: Mapping[str, Any]) -> tuple[Raw, Form]:
        return self._values([row]), "row"

    def _values(self, rows: Sequence[Mapping[str, Any]]) -> Raw:
        """Read rows value by value."""
        scalars = self._scalars
        try:
            found = _floats([[read(row[name]) for name, read in scalars] for row in rows])
            if rows and not self._wide:
                return found
            raw = np.empty((len(rows), self.layout.width), np.float32)
            for column in self._wide:
                place = self.layout.slices[column.name]
                raw[:, place] = _wide([row[column.name] for row in rows], column)
        except (KeyError, TypeError, ValueError):
            raise self._explain(rows) from None
        if rows and scalars:
            raw[:, self._scalars_at] = found
        return raw

    def _explain(self, rows: Sequence[Mapping[str, Any]]) -> InvalidInput:
        """Return all that is wrong with rows."""
        problems = Problems()
        wide = {column.name: column for column in self._wide}
        readers = dict(self._scalars)
        for name in self.columns:
            lacking = next((row for row in rows if name not in row), None)
            if lacking is not None:
                near = nearest_of([str(key) for key in lacking])(name)
                problems.add("columns", name, f"feature is missing; {near}")
                continue
            for row in rows:
                try:
                    if name in wide:
                        _wide([row[name]], wide[name])
                    else:
                        readers[name](row[name])
                except (TypeError, ValueError) as error:
                    problems.add(f"column {name!r}", row[name], str(error))
                    break
        return InvalidInput(problems)

    def _holds_columns(self, given: Mapping[str, Any]) -> bool:
        """Tell columns from the values of a row by the first feature that is there."""
        for name, _ in self._scalars:
            if name in given:
                return _is_list(given[name])
        for column in self._wide:
            if column.name in given:
                value = given[column.name]
                if column.kind == "text":
                    return _is_list(value)
                try:
                    shape = np.shape(value)
                except ValueError:  # lists of unequal lengths: no tensor, as the reader will say
                    return False
                return len(shape) > 1 and shape != column.shape
        return False

    def _columns(self, columns: Mapping[str, Any]) -> Raw:
        if not self._wide:
            # Whatever is unusual goes the long way, which also says what is wrong.
            with contextlib.suppress(KeyError, TypeError, ValueError):
                found = [[read(v) for v in _list(columns[name])] for name, read in self._scalars]
                return np.ascontiguousarray(_floats(found).T)
        names = [name for name in self.columns if name in columns]
        lengths = {name: len(columns[name]) for name in names if _is_list(columns[name])}
        if len(lengths) < len(names) or len(set(lengths.values())) > 1:
            told = {name: lengths.get(name, "a value") for name in names[:10]}
            remedy = "are of different lengths; give a list of one length for each column"
            raise InvalidInput([Problem("columns", told, remedy)])
        values = [_plain_list(columns[name]) for name in names]
        return self._values(
            [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        )

    def _array(self, given: NDArray[Any]) -> Raw:
        features = self.layout.features
        if len(features) == 1 and features[0].kind == "tensor":
            shape = features[0].shape
            if given.shape[1:] != shape and given.shape != shape:
                remedy = f"the model reads [N, {', '.join(map(str, shape))}]"
                raise InvalidInput([Problem("rows", list(given.shape), remedy)])
            return centred(given, features[0].offset).reshape(-1, self.layout.width)
        rows = given.reshape(-1, len(features)) if given.ndim == 1 and self._fits(given) else given
        if self._tensors or rows.ndim != 2 or rows.shape[1] != len(features):
            remedy = (
                "tensors and other columns do not fit into one array; give a dict of columns"
                if self._tensors
                else f"one column each for {_listed(self.columns)}, in this order"
            )
            raise InvalidInput([Problem("rows", f"an array {list(given.shape)}", remedy)])
        if len(rows) > FEW_ROWS and rows.dtype.kind in "biuf":
            held = [pa.array(rows[:, place]) for place in range(rows.shape[1])]
            return decode_features(pa.Table.from_arrays(held, list(self.columns)), self.layout)
        return self._values([dict(zip(self.columns, row, strict=True)) for row in rows.tolist()])

    def _fits(self, given: NDArray[Any]) -> bool:
        return len(self.columns) in (1, len(given))

    def _frame(self, frame: pd.DataFrame) -> Raw:
        if 0 < len(frame) <= FEW_ROWS and not self._tensors:
            # Whatever is unusual goes the long way, which also says what is wrong.
            try:
                chosen = frame if tuple(frame.columns) == self.columns else frame[[*self.columns]]
                if chosen.shape[1] == len(self.columns):
                    lists = chosen.to_numpy(dtype=object).tolist()
                    if self._wide:
                        return self._values(
                            [dict(zip(self.columns, row, strict=True)) for row in lists]
                        )
                    read = [reader for _, reader in self._scalars]
                    return _floats(
                        [
                            [one(value) for one, value in zip(read, row, strict=True)]
                            for row in lists
                        ]
                    )
            except (KeyError, TypeError, ValueError):
                pass
        return decode_features(frame, self.layout)


class FewRows:
    """Encodes a few raw rows of a few numbers on the CPU, bit for bit as the encoder does.

    Every operation of torch or numpy takes microseconds to start, which for a few rows is all that
    it takes. Python's floats are float64, and a sum or product of two float32 that is computed in
    float64 and then rounded to float32 is that of float32 (Figueroa 1995).
    """

    def __init__(self, encoder: Encoder):
        def held(name: str) -> list[float]:
            buffer = getattr(encoder, name)
            return [] if buffer is None else buffer.tolist()

        self.most = 4 if encoder.raw_width <= 64 else 0
        """Rows up to which this is faster than the encoder."""
        scaled_at, code_at = held("scaled_at"), held("code_at")
        # code + 1 is (code - -1) * 1: codes pass with what is scaled.
        self._scaled = len(scaled_at)
        means = held("mean")[: self._scaled] + [-1.0] * len(code_at)
        scales = held("scale")[: self._scaled] + [1.0] * len(code_at)
        self._affine = list(zip(map(int, scaled_at + code_at), means, scales, strict=True))
        self._indicators = [int(place) for place in held("indicator_at")]
        self._hot = list(zip(map(int, held("hot_at")), held("hot_code"), strict=True))

    def __call__(self, raw: Raw) -> list[list[float]]:
        """Return the features [N, F] of raw [N, R], each a float32."""
        return [self._encode(row) for row in raw.tolist()]

    def _encode(self, row: list[float]) -> list[float]:
        # An array rounds to float32; beyond its range it holds infinity, as torch does.
        less = array("f", [row[place] - mean for place, mean, _ in self._affine])
        scaled = array(
            "f", [x * scale for x, (_, _, scale) in zip(less, self._affine, strict=True)]
        )
        # Only of what is finite the difference to itself is 0.
        values = [x if x - x == 0.0 else 0.0 for x in scaled]
        missing = [float(row[place] - row[place] != 0.0) for place in self._indicators]
        hot = [float(row[place] == code) for place, code in self._hot]
        return [*values[: self._scaled], *missing, *hot, *values[self._scaled :]]


def _floats(rows: list[list[float]]) -> Raw:
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as Arrow casts it
        return np.array(rows, np.float32)


def numeric_labels(categories: Sequence[str]) -> dict[float, int]:
    """Return the code of each label that a number is read as, by that number."""
    found: dict[float, int] = {}
    for code, label in enumerate(categories):
        if _NUMBER.fullmatch(label):
            number = float(label)
            # A whole number is read as "1": "1.0" can only be text.
            if _WHOLE.fullmatch(label) or not number.is_integer() or abs(number) > _EXACT:
                found.setdefault(number, code)
    return found


def are_numbers(categories: Sequence[str]) -> bool:
    """Tell whether float64 holds every one of these labels."""
    found = numeric_labels(categories)
    return len(found) == len(categories) and all(abs(number) <= _EXACT for number in found)


_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def _value_reader(column: Column) -> Callable[[Any], float]:
    """Return what turns a value of a scalar column into its raw number; raises ValueError."""
    if column.kind == "numeric" and column.offset:
        return lambda value: _number(value) - column.offset
    if column.kind == "numeric":
        return _number
    if column.kind == "boolean":
        return _flag
    codes: dict[Any, float] = {label: float(k) for k, label in enumerate(column.categories or ())}
    by_number = numeric_labels(column.categories or ())

    def code(value: Any) -> float:
        if type(value) is str:
            return codes.get(value, _UNSEEN)
        value = _plain(value)
        if value is None:
            return _NAN
        if value is True or value is False:
            return codes.get("true" if value else "false", _UNSEEN)
        if isinstance(value, str):
            return codes.get(value, _UNSEEN)
        if isinstance(value, int) and abs(value) > _EXACT:
            return codes.get(str(value), _UNSEEN)
        if isinstance(value, int | float):
            return float(by_number.get(float(value), _UNSEEN))
        raise ValueError(f"holds {type(value).__name__}, not labels")

    return code


_UNSEEN = -1.0
"""Raw code of a label that no training row had."""
_NAN = float("nan")


def _number(value: Any) -> float:
    if type(value) is float:
        return value
    value = _plain(value)
    if value is None:
        return _NAN
    if isinstance(value, int) and abs(value) > _EXACT:
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError("holds a whole number of more than 64 bits")
        # At once: by way of float64 it would be rounded twice.
        return float(np.asarray(value).astype(np.float32))
    if isinstance(value, int | float):
        return float(value)
    raise ValueError(f"holds {type(value).__name__}, not numbers")


def _flag(value: Any) -> float:
    value = _plain(value)
    if value is None:
        return _NAN
    if isinstance(value, int | float) and value in (0, 1):
        return float(value)
    raise ValueError(f"holds {type(value).__name__}, not truth values")


def _plain(value: Any) -> Any:
    """Return a value as Python's own, None where it is missing."""
    if value is None or type(value) in (int, bool, str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if type(value).__name__ in ("NAType", "NaTType"):  # of pandas, which need not be there
        return None
    if isinstance(value, numbers.Number) and not isinstance(value, int | complex):
        value = float(cast(Any, value))
        return None if value != value else value
    return value


def _wide(values: Sequence[Any], column: Column) -> NDArray[np.float32]:
    """Read tensors or texts [n, width]; all NaN where missing."""
    if column.text is None:
        return np.array([_tensor(value, column) for value in values]).reshape(-1, column.width)
    plain = [_plain(value) for value in values]
    for value in plain:
        if not isinstance(value, str | None):
            raise ValueError(f"holds {type(value).__name__}, not text")
    return text_rows(pa.array(plain, pa.string()), column.text)


def _tensor(value: Any, column: Column) -> NDArray[np.float32]:
    """Read one tensor, in its shape or flat; all NaN where missing."""
    if _plain(value) is None:
        return np.full(column.width, np.nan, np.float32)
    try:
        found = np.asarray(value, column.float_type)
    except (TypeError, ValueError) as error:
        raise ValueError(f"holds no numbers of the shape {list(column.shape)}") from error
    if found.size != column.width or (found.ndim > 1 and found.shape != column.shape):
        raise ValueError(
            f"holds the shape {list(found.shape)} where {list(column.shape)} is expected"
        )
    return centred(found, column.offset).reshape(-1)


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes | Mapping)


def _list(values: Any) -> list[Any]:
    if type(values) is not list:
        raise TypeError
    return cast(list[Any], values)


def _plain_list(values: Any) -> Sequence[Any]:
    return values.tolist() if hasattr(values, "tolist") else values


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:30])
    return shown if len(names) <= 30 else f"{shown} and {len(names) - 30} more"
