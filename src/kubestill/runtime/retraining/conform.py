"""Rows as they come into the form that the registry agreed on, and what did not fit."""

# pyarrow and pandas come without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubestill.errors import counted
from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.schema import MAX_TEXT, Column, Schema, sort_labels
from kubestill.runtime.datasets.text import text_strings


@dataclass
class Drift:
    """The differences between rows and the agreed schema; empty where there are none."""

    new: dict[str, str] = field(default_factory=dict[str, str])
    """Unknown columns, with their types: left out."""
    missing: Counter[str] = field(default_factory=Counter[str])
    """Known columns that are not there, with the number of rows: empty."""
    retyped: dict[str, str] = field(default_factory=dict[str, str])
    """Columns of another type: read as the agreed one where that works."""
    unreadable: Counter[str] = field(default_factory=Counter[str])
    """Values that could not be read as the agreed type, or are infinite, by column: empty."""
    labels: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """Labels of features that were never seen."""
    classes: Counter[str] = field(default_factory=Counter[str])
    """Classes of the target that the model cannot know, with the number of rows: left out."""

    def told(self) -> list[str]:
        """Return one sentence for each column."""
        lines = [f"column {n!r} ({kind}) is new and was left out" for n, kind in self.new.items()]
        for name, rows in self.missing.items():
            lines.append(f"column {name!r} is missing in {counted(rows, 'row')}, where it is empty")
        for name, what in self.retyped.items():
            lines.append(f"column {name!r} changed its type: {what}")
        for name, count in self.unreadable.items():
            lines.append(
                f"column {name!r}: {counted(count, 'value')} that cannot be read, left empty"
            )
        for name, labels in self.labels.items():
            lines.append(f"column {name!r} has labels never seen: {_shown(sorted(labels))}")
        for label, rows in self.classes.items():
            lines.append(
                f"class {label!r} of the target is not one the model knows: {counted(rows, 'row')} "
                "left out (a new class takes a new registry)"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "new": self.new,
            "missing": dict(self.missing),
            "retyped": self.retyped,
            "unreadable": dict(self.unreadable),
            "labels": {name: sorted(labels) for name, labels in self.labels.items()},
            "classes": dict(self.classes),
        }


def conform(table: pa.Table, schema: Schema, drift: Drift) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Return the columns of `schema`, and which rows [n] have a target that can be used.

    Args:
        table: Rows as a file gave them.
        schema: What was agreed on.
        drift: Takes what does not fit.
    """
    there, agreed = set(table.column_names), set(schema.names)
    for given in table.schema:
        if given.name not in agreed:
            drift.new[given.name] = str(given.type)
    usable = np.ones(table.num_rows, bool)
    arrays: list[pa.Array] = []
    for column in schema.columns:
        if column.name not in there:
            if column.role != "ignored" and table.num_rows:
                drift.missing[column.name] += table.num_rows
            array = pa.nulls(table.num_rows, _type(column))
        else:
            array = _read(table.column(column.name), column, drift)
        if column.role == "target":
            usable &= _present(array)
            array, unknown = _known_classes(array, column, drift)
            usable &= ~unknown
        arrays.append(array)
    return pa.Table.from_arrays(arrays, names=list(schema.names)), usable


def widened(schema: Schema, drift: Drift) -> Schema:
    """Return the schema with the new labels of its features behind the old ones."""
    columns = tuple(
        replace(
            column,
            categories=(*(column.categories or ()), *sort_labels(drift.labels[column.name])),
        )
        if column.name in drift.labels
        else column
        for column in schema.columns
    )
    return Schema(columns=columns, task=schema.task)


def _read(values: pa.ChunkedArray, column: Column, drift: Drift) -> pa.Array:
    try:
        if column.kind == "numeric":
            return _numbers(values, column, drift)
        if column.kind == "boolean":
            return read.flags(values)
        if column.kind == "tensor":
            read.tensors(values, column.shape)
            return values.combine_chunks()
        if column.kind == "text":
            return _texts(text_strings(values), column, drift)
        labels = read.label_strings(values)
    except (pa.ArrowException, ValueError):
        return _forced(values, column, drift)
    if column.categories is not None and column.role == "feature":
        unseen = set(labels.unique().to_pylist()) - {None, *column.categories}
        if unseen:
            drift.labels.setdefault(column.name, set()).update(unseen)
    return labels


def _numbers(values: pa.ChunkedArray, column: Column, drift: Drift) -> pa.Array:
    numbers = read.floats(values, np.float64)
    # What float32 cannot hold would be infinite where models read it.
    infinite = np.abs(numbers - column.offset) > np.finfo(np.float32).max
    if column.role != "ignored" and infinite.any():
        drift.unreadable[column.name] += int(infinite.sum())
        numbers = np.where(infinite, np.nan, numbers)
    return pa.array(numbers)


def _texts(texts: pa.Array, column: Column, drift: Drift) -> pa.Array:
    """Empty what is too large to be a text."""
    large = pc.fill_null(pc.greater(pc.binary_length(texts), MAX_TEXT), False)
    count = pc.sum(large).as_py()
    if not count:
        return texts
    drift.unreadable[column.name] += count
    return pc.if_else(large, None, texts)


def _forced(values: pa.ChunkedArray, column: Column, drift: Drift) -> pa.Array:
    """Read a column of another type as well as it can be; what cannot is empty."""
    drift.retyped[column.name] = f"{values.type}, where {column.kind} was agreed on"
    texts = pd.Series(values.to_pylist(), dtype=object)
    filled = texts.notna()
    if column.kind == "numeric":
        found = pd.to_numeric(texts, errors="coerce").astype(float)
        array = pa.array(found, pa.float64(), from_pandas=True)
    elif column.kind == "boolean":
        words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        found = texts.map(lambda text: words.get(str(text).strip().lower()))
        array = pa.array(found, pa.bool_(), from_pandas=True)
    elif column.kind in ("categorical", "text"):
        found = texts.map(str)
        array = pa.array(found.where(filled), pa.string(), from_pandas=True)
    else:
        array = pa.nulls(len(values), _type(column))
    lost = int(filled.sum()) - int(_present(array).sum())
    if lost:
        drift.unreadable[column.name] += lost
    return array


def _known_classes(
    array: pa.Array, column: Column, drift: Drift
) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Empty the labels that are no class of the target; tell where they were [n]."""
    if column.categories is None:
        return array, np.zeros(len(array), bool)
    codes = read.label_codes(array, column.categories)
    unknown = codes == read.UNSEEN
    if unknown.any():
        labels = array.filter(pa.array(unknown)).to_pylist()
        drift.classes.update(str(label) for label in labels)
        array = pc.if_else(pa.array(unknown), pa.scalar(None, pa.string()), array)
    return array, unknown


def _present(array: pa.Array) -> NDArray[np.bool_]:
    if pa.types.is_floating(array.type):
        return ~np.isnan(read.floats(array, np.float64))
    return array.is_valid().to_numpy(zero_copy_only=False)


def _type(column: Column) -> pa.DataType:
    if column.kind == "numeric":
        return pa.float64()
    if column.kind == "boolean":
        return pa.bool_()
    if column.kind == "tensor":
        return pa.list_(pa.float32(), column.width)
    return pa.string()


def _shown(labels: list[str]) -> str:
    return ", ".join(map(repr, labels[:5])) + (f" and {len(labels) - 5} more" if labels[5:] else "")
