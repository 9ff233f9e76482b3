"""One pass over a user's table: which labels, shapes and gaps its columns have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from kubestill.errors import Problems
from kubestill.runtime.datasets import columns as read

__all__ = ["MAX_LABELS", "Finding", "guess", "report", "survey"]

MAX_LABELS = 50_000
"""More distinct labels than this are an identifier, not a category."""


@dataclass
class Finding:
    """What a pass over one column found."""

    name: str
    type: pa.DataType
    kind: str
    """A schema kind; "text" can be kept but not learned from, "" cannot be stored."""
    rows: int = 0
    missing: int = 0
    infinite: int = 0
    whole: bool = True
    """Every number is a whole one."""
    labels: set[str] = field(default_factory=set[str])
    """Distinct labels, up to `MAX_LABELS` and one batch more."""
    shape: tuple[int, ...] = ()
    trouble: str = ""
    """Why the values cannot be read as the kind."""


def guess(kind: pa.DataType) -> str:
    """Return the kind that a column of this type has unless the user says otherwise."""
    types = pa.types
    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "numeric"
    if types.is_null(kind):
        return "numeric"
    if types.is_dictionary(kind):
        return "categorical" if guess(kind.value_type) != "" else ""
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "categorical"
    if read.is_list(kind):
        inner = kind.value_type
        while read.is_list(inner):
            inner = inner.value_type
        return "tensor" if guess(inner) in ("numeric", "boolean") else ""
    return "text" if types.is_temporal(kind) else ""


def survey(
    tables: Iterable[pa.Table], findings: dict[str, Finding], counted: Iterable[str] = ()
) -> None:
    """Fill `findings` from every table.

    Args:
        tables: All rows, in pieces.
        findings: The columns to look at, by name.
        counted: Columns whose distinct values are wanted as labels even if they are numbers.
    """
    also = set(counted)
    for table in tables:
        for found in findings.values():
            if found.trouble:
                continue
            try:
                _look(table.column(found.name), found, found.name in also)
            except (pa.ArrowException, ValueError) as error:
                found.trouble = str(error)


def _look(values: pa.ChunkedArray, found: Finding, counted: bool) -> None:
    found.rows += len(values)
    found.missing += values.null_count
    if found.kind == "numeric":
        numbers = read.floats(values)
        found.missing += int(np.isnan(numbers).sum()) - values.null_count
        found.infinite += int(np.isinf(numbers).sum())
        found.whole = found.whole and not np.any(numbers[np.isfinite(numbers)] % 1)
    elif found.kind == "boolean":
        read.flags(values)
    elif found.kind == "tensor":
        found.shape = found.shape or _first_shape(values)
        if found.shape:
            numbers = read.tensors(values, int(np.prod(found.shape)))
            present = numbers[values.is_valid().to_numpy()]
            found.missing += int(np.isnan(present).any(1).sum())
            found.infinite += int(np.isinf(present).sum())
    if (found.kind == "categorical" or counted) and found.kind != "tensor":
        if len(found.labels) <= MAX_LABELS:
            distinct = read.label_strings(values.unique()).to_pylist()
            found.labels.update(label for label in distinct if label is not None)


def _first_shape(values: pa.ChunkedArray) -> tuple[int, ...]:
    for cell in _cells(values):
        shape: list[int] = []
        while isinstance(cell, list):
            shape.append(len(cell))
            cell = cell[0] if cell else None
        return tuple(shape)
    return ()


def _cells(values: pa.ChunkedArray) -> Iterator[list[object]]:
    for chunk in values.chunks:
        present = chunk.drop_null()
        if len(present):
            yield present[0].as_py()


def report(found: Finding, problems: Problems, *, target: bool) -> None:
    """Add what makes the column unusable to `problems`."""
    field_name = f"target {found.name!r}" if target else f"column {found.name!r}"
    if found.trouble:
        problems.add(field_name, str(found.type), found.trouble)
    elif not found.kind:
        problems.add(field_name, str(found.type), "is of a type that cannot be used; leave it out")
    if found.infinite:
        remedy = "clip them or drop the rows (float32 holds up to 3.4e38)"
        problems.add(field_name, f"{found.infinite} infinite values", remedy)
    if target and found.missing:
        problems.add(field_name, f"{found.missing} missing or NaN values", "drop these rows")
    if not target and found.kind == "categorical" and len(found.labels) > MAX_LABELS:
        remedy = (
            f"more than {MAX_LABELS:,} labels look like an identifier; leave it out of features"
        )
        problems.add(field_name, f"{len(found.labels):,} labels", remedy)
    if found.kind == "tensor" and not found.trouble and 0 in (found.shape or (0,)):
        problems.add(field_name, str(found.type), "holds no value from which to learn its shape")
