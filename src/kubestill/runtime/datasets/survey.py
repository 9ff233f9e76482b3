"""One pass over a user's table: which labels, shapes and gaps its columns have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import Problems, counted
from kubestill.runtime.datasets import columns as read

__all__ = ["MAX_LABELS", "Finding", "guess", "report", "survey"]

MAX_LABELS = 50_000
"""More distinct labels than this are an identifier, not a category."""

NOTICED, REFUSED = 1e-4, 1e-2
"""Shares of its range by which float32 may move a column's numbers: above the first it is said,
above the second a target is refused."""


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
    low: float = math.inf
    """Smallest number, as stored."""
    high: float = -math.inf
    rounding: float = 0.0
    """Largest difference between a number and its stored form, where that may matter."""
    merged: int = 0
    """Different numbers that became equal, counted in pieces of the table."""
    alike: tuple[float, float] | None = None
    """Two of them."""
    trouble: str = ""
    """Why the values cannot be read as the kind."""

    @property
    def lost(self) -> float:
        """Share of the column's range by which storing it as float32 may move a number."""
        return self.rounding / (self.high - self.low) if self.high > self.low else 0.0

    @property
    def unlearnable(self) -> bool:
        """Whether storing it as float32 loses so much that a model could only learn the steps."""
        return self.lost > REFUSED or (self.merged > 0 and self.high == self.low)

    @property
    def loss(self) -> str:
        """What storing it as float32 loses, in words; "" where that is next to nothing."""
        if self.lost <= NOTICED and not self.merged:
            return ""
        said = f"float32 moves numbers by up to {self.rounding:.3g}"
        if self.lost > NOTICED:
            said += f", {self.lost:.2%} of the column's range"
        if self.merged:
            verb = "becomes equal to another" if self.merged == 1 else "become equal to others"
            said += f"; {counted(self.merged, 'different number')} {verb}"
        if self.alike:
            said += f", as {self.alike[0]:.17g} and {self.alike[1]:.17g}"
        return said


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
    if isinstance(kind, pa.FixedShapeTensorType):
        return "tensor" if guess(kind.value_type) in ("numeric", "boolean") else ""
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
        finite = np.isfinite(numbers)
        found.whole = found.whole and not np.any(numbers[finite] % 1)
        _look_for_loss(values, numbers, finite, found)
    elif found.kind == "boolean":
        read.flags(values)
    elif found.kind == "tensor":
        found.shape = found.shape or _first_shape(values)
        if found.shape:
            numbers = read.tensors(values, found.shape)
            present = numbers[values.is_valid().to_numpy()]
            found.missing += int(np.isnan(present).any(1).sum())
            found.infinite += int(np.isinf(present).sum())
    if (found.kind == "categorical" or counted) and found.kind != "tensor":
        if len(found.labels) <= MAX_LABELS:
            distinct = read.label_strings(values.unique()).to_pylist()
            found.labels.update(label for label in distinct if label is not None)


def _look_for_loss(
    values: pa.ChunkedArray,
    numbers: NDArray[np.float32],
    finite: NDArray[np.bool_],
    found: Finding,
) -> None:
    """Note what storing numbers as float32 loses, where they lie close together and far from 0."""
    stored = numbers[finite]
    if not len(stored):
        return
    low, high = float(stored.min()), float(stored.max())
    found.low, found.high = min(found.low, low), max(found.high, high)
    step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    # Nearly every column ends here, for the price of two reductions.
    near = step / 2 > NOTICED * (high - low)
    whole = step > 1 and not pa.types.is_floating(values.type)
    if values.type == pa.float32() or not (near or whole):
        return
    exact = read.floats(values, np.float64)[finite]
    moved = float(np.abs(exact - stored).max())
    found.rounding = max(found.rounding, moved)
    if not moved:
        return
    distinct = np.unique(exact)
    same = np.flatnonzero(np.diff(distinct.astype(np.float32)) == 0)
    found.merged += len(same)
    if len(same) and not found.alike:
        found.alike = float(distinct[same[0]]), float(distinct[same[0] + 1])


def _first_shape(values: pa.ChunkedArray) -> tuple[int, ...]:
    if isinstance(values.type, pa.FixedShapeTensorType):
        return read.tensor_shape(values.type)
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


def report(
    found: Finding,
    problems: Problems,
    *,
    target: bool,
    words: Mapping[str, int] | None = None,
    unlabelled: bool = False,
) -> None:
    """Add what makes the column unusable to `problems`.

    Args:
        found: The column.
        problems: Takes what is wrong with it.
        target: It is the column to predict.
        words: Text that was read as missing, with the number of rows.
        unlabelled: Rows may lack a target, because a teacher has answered them.
    """
    field_name = f"target {found.name!r}" if target else f"column {found.name!r}"
    if found.trouble:
        problems.add(field_name, str(found.type), found.trouble)
    elif not found.kind:
        problems.add(field_name, str(found.type), "is of a type that cannot be used; leave it out")
    if found.infinite:
        remedy = "clip them or drop the rows (float32 holds up to 3.4e38)"
        problems.add(field_name, f"{found.infinite} infinite values", remedy)
    if target and found.missing and not unlabelled:
        said = [
            f"{word!r} in {counted(rows, 'row')}" for word, rows in (words or {}).items() if word
        ]
        remedy = "drop these rows"
        if said:
            told = ", ".join(said)
            remedy += f"; or settings={{'null_words': []}} keeps {told} as text"
        problems.add(field_name, f"{found.missing} missing or NaN values", remedy)
    if not target and found.kind == "categorical" and len(found.labels) > MAX_LABELS:
        remedy = (
            f"more than {MAX_LABELS:,} labels look like an identifier; leave it out of features"
        )
        problems.add(field_name, f"{len(found.labels):,} labels", remedy)
    if found.kind == "tensor" and not found.trouble and 0 in (found.shape or (0,)):
        problems.add(field_name, str(found.type), "holds no value from which to learn its shape")
