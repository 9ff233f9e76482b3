"""One pass over a user's table: which labels, shapes and gaps its columns have."""

# pyarrow comes without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubestill.errors import Problems, counted
from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.text import oversized, text_strings

MAX_LABELS = 50_000
"""More distinct labels than this are an identifier, not a category."""

_WORDS = r"(?:[0-9A-Za-z]|[^\x00-\x7F])+"
_WHOLE = 2.0**53
"""Whole numbers up to it are exact in float64."""
NOTICED, REFUSED = 1e-4, 1e-2
"""Shares of its range by which float32 may move a column's numbers: above the first it is said,
above the second a target is refused."""


@dataclass
class Finding:
    """What a pass over one column found."""

    name: str
    type: pa.DataType
    kind: str
    """A schema kind; "temporal" can be kept but not learned from, "" cannot be stored."""
    rows: int = 0
    missing: int = 0
    infinite: int = 0
    whole: bool = True
    """Every number is a whole one."""
    labels: set[str] = field(default_factory=set[str])
    """Distinct labels, up to `MAX_LABELS` and one batch more."""
    longest: int = 0
    """Bytes of the longest text."""
    large: tuple[int, int] | None = None
    """Row and bytes of the first text that is too large."""
    words: list[NDArray[np.int32]] = field(default_factory=list[NDArray[np.int32]])
    """Words of each text, -1 where missing, in pieces."""
    shape: tuple[int, ...] = ()
    low: float = math.inf
    """Smallest number, in float32 where nothing more exact was looked at."""
    high: float = -math.inf
    rounded: Rounding = field(default_factory=lambda: Rounding())
    """What storing it as float32 loses, where that may matter."""
    relative: Rounding | None = None
    """What storing it less `offset` loses; None where that was not looked at."""
    beyond: Rounding = field(default_factory=lambda: Rounding(into="float64"))
    """What whole numbers beyond 2^53 lose in float64, from which both others start."""
    inexact: bool = False
    """Whether float32 changes a number at all; looked at where that is asked for."""
    pixels: bool = False
    """Whether these are images, decoded to bytes."""
    trouble: str = ""
    """Why the values cannot be read as the kind."""

    @property
    def offset(self) -> float:
        """What its numbers are stored less of in float32; 0 where that would gain nothing."""
        return self.middle if self.relative and self.relative.better(self.rounded) else 0.0

    @property
    def middle(self) -> float:
        """The middle of its range; 0 where it has no number."""
        return self.low + (self.high - self.low) / 2 if self.high >= self.low else 0.0

    @property
    def left(self) -> Rounding:
        """What is lost after all."""
        found = self.relative if self.relative and self.offset else self.rounded
        return self.beyond if self.beyond.largest > found.largest else found

    @property
    def unlearnable(self) -> bool:
        """Whether float32 loses so much that a model could only learn the steps."""
        left = self.left
        return left.share(self.low, self.high) > REFUSED or (
            left.merged > 0 and not self.high > self.low
        )

    @property
    def loss(self) -> str:
        """What storing it as float32 loses, in words; "" where that is next to nothing."""
        return self.left.said(self.low, self.high)


@dataclass
class Rounding:
    """What numbers lose on their way into float32."""

    into: str = "float32"
    largest: float = 0.0
    """Largest difference between a number and its stored form."""
    merged: int = 0
    """Different numbers that became equal, counted in pieces of the table."""
    alike: tuple[float, float] | None = None
    """Two of them."""

    def look(self, exact: NDArray[np.float64], offset: float = 0.0) -> None:
        """Take in finite numbers, of which there are some, that are stored less `offset`."""
        stored = read.centred(exact, offset)
        moved = float(np.abs((exact - offset) - stored).max())
        self.largest = max(self.largest, moved)
        if not moved:
            return
        distinct = np.unique(exact)
        same = np.flatnonzero(np.diff(read.centred(distinct, offset)) == 0)
        self.merged += len(same)
        if len(same) and not self.alike:
            self.alike = float(distinct[same[0]]), float(distinct[same[0] + 1])

    def better(self, other: Rounding) -> bool:
        """Return whether this loses at most half of what `other` does."""
        return self.largest <= other.largest / 2 and self.merged <= other.merged

    def share(self, low: float, high: float) -> float:
        """Return the share of the column's range by which a number may be moved."""
        return self.largest / (high - low) if high > low else 0.0

    def said(self, low: float, high: float) -> str:
        """Return it in words; "" where it is next to nothing."""
        share = self.share(low, high)
        if share <= NOTICED and not self.merged:
            return ""
        said = f"{self.into} moves numbers by up to {self.largest:.3g}"
        if share > NOTICED:
            said += f", {share:.2%} of the column's range"
        if self.merged:
            verb = "becomes equal to another" if self.merged == 1 else "become equal to others"
            said += f"; {counted(self.merged, 'different number')} {verb}"
        if self.alike:
            first, second = self.alike
            # Whole numbers beyond 2^53 are compared digit by digit.
            form = ".17g" if isinstance(first, float) else "d"
            said += f", as {first:{form}} and {second:{form}}"
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
    return "temporal" if types.is_temporal(kind) else ""


def survey(
    tables: Iterable[pa.Table],
    findings: dict[str, Finding],
    counted: Iterable[str] = (),
    exact: Iterable[str] = (),
) -> None:
    """Fill `findings` from every table.

    Args:
        tables: All rows, in pieces.
        findings: The columns to look at, by name.
        counted: Columns whose distinct values are wanted as labels even if they are numbers.
        exact: Columns of which it is wanted whether float32 changes a number at all.
    """
    also, strictly = set(counted), set(exact)
    for table in tables:
        for found in findings.values():
            if found.trouble:
                continue
            try:
                values = table.column(found.name)
                _look(values, found, found.name in also, found.name in strictly)
            except (pa.ArrowException, ValueError) as error:
                found.trouble = str(error)


def survey_offsets(tables: Iterable[pa.Table], findings: Iterable[Finding]) -> None:
    """Measure what columns lose that are stored less the middle of their range."""
    found = list(findings)
    for one in found:
        one.relative = Rounding()
    for table in tables:
        for one in found:
            exact = _exact(table.column(one.name), one)
            assert one.relative is not None
            exact = exact[np.isfinite(exact)]
            if len(exact):
                one.relative.look(exact, one.middle)


def _look(values: pa.ChunkedArray, found: Finding, counted: bool, strictly: bool) -> None:
    found.rows += len(values)
    found.missing += values.null_count
    if found.kind == "text":
        _look_at_text(text_strings(values), found)
        return
    if found.kind == "numeric":
        numbers = read.floats(values)
        found.missing += int(np.isnan(numbers).sum()) - values.null_count
        found.infinite += int(np.isinf(numbers).sum())
        finite = np.isfinite(numbers)
        found.whole = found.whole and not np.any(numbers[finite] % 1)
        _look_for_loss(values, numbers[finite], found, strictly)
    elif found.kind == "boolean":
        read.flags(values)
    elif found.kind == "tensor":
        found.shape = found.shape or _first_shape(values)
        if found.shape:
            numbers = read.tensors(values, found.shape)
            present = numbers[values.is_valid().to_numpy()]
            found.missing += int(np.isnan(present).any(1).sum())
            found.infinite += int(np.isinf(present).sum())
            _look_for_loss(values, present[np.isfinite(present)], found, strictly)
    if (found.kind == "categorical" or counted) and found.kind != "tensor":
        if len(found.labels) <= MAX_LABELS:
            distinct = read.label_strings(values.unique()).to_pylist()
            found.labels.update(label for label in distinct if label is not None)


def _look_at_text(texts: pa.Array, found: Finding) -> None:
    before = found.rows - len(texts)
    if found.large is None and (large := oversized(texts)):
        found.large = before + large[0], large[1]
    found.longest = max(found.longest, pc.max(pc.binary_length(texts)).as_py() or 0)
    counts = pc.count_substring_regex(texts, _WORDS)
    found.words.append(pc.fill_null(counts, -1).to_numpy().astype(np.int32))


def _look_for_loss(
    values: pa.ChunkedArray, stored: NDArray[np.float32], found: Finding, strictly: bool
) -> None:
    """Note what storing numbers as float32 loses, where they lie close together and far from 0."""
    if not len(stored):
        return
    low, high = float(stored.min()), float(stored.max())
    kind = values.type
    while isinstance(kind, pa.FixedShapeTensorType) or read.is_list(kind):
        kind = kind.value_type
    step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    # Nearly every column ends here, for the price of two reductions.
    near = step / 2 > NOTICED * (high - low)
    whole = step > 1 and not pa.types.is_floating(kind)
    wanted = near or whole or (strictly and not found.inexact)
    if wanted and kind not in (pa.float32(), pa.float16()):
        if pa.types.is_integer(kind) and found.kind == "numeric" and max(-low, high) > _WHOLE:
            _look_beyond(values, found.beyond)
        exact = _exact(values, found)
        exact = exact[np.isfinite(exact)]
        low, high = float(exact.min()), float(exact.max())
        found.inexact = found.inexact or bool((exact != exact.astype(np.float32)).any())
        if near or whole:
            found.rounded.look(exact)
    found.low, found.high = min(found.low, low), max(found.high, high)


def _look_beyond(values: pa.ChunkedArray, beyond: Rounding) -> None:
    whole = np.unique(values.drop_null().to_numpy())
    stored = whole.astype(np.float64)
    same = np.flatnonzero(np.diff(stored) == 0)
    if len(same):
        step = float(np.spacing(np.abs(stored).max()))
        beyond.largest = max(beyond.largest, step / 2)
        beyond.merged += len(same)
        beyond.alike = beyond.alike or (int(whole[same[0]]), int(whole[same[0] + 1]))


def _exact(values: pa.ChunkedArray, found: Finding) -> NDArray[np.float64]:
    if found.kind == "tensor":
        return read.tensors(values, found.shape, np.float64).reshape(-1)
    return read.floats(values, np.float64)


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
            f"more than {MAX_LABELS:,} labels look like an identifier; leave it out of features, "
            f"or use kinds={{{found.name!r}: 'text'}} if it is text to read"
        )
        problems.add(field_name, f"{len(found.labels):,} labels", remedy)
    if found.kind == "tensor" and not found.trouble and 0 in (found.shape or (0,)):
        problems.add(field_name, str(found.type), "holds no value from which to learn its shape")
