"""The same scores on parts of the rows: one column's values, or the quarters of a numeric one.

How a column was cut is kept in the champion's record, and later rows are cut the same way: a
quarter of other rows would be another slice, and its score no sign of decay.
"""

# scipy comes without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from kubestill.errors import Problems, nearest
from kubestill.runtime.base.values import StrictValue
from kubestill.runtime.datasets.schema import Schema, sort_labels
from kubestill.runtime.evaluation.profile import is_number
from kubestill.runtime.evaluation.significance import adjusted
from kubestill.runtime.metrics.catalog import score
from kubestill.runtime.metrics.formulas import losses
from kubestill.runtime.metrics.intervals import CARRIERS, EVENTS, PAIRED, Spread, by_group, events
from kubestill.runtime.metrics.outcome import Ints, Outcome

Masks = Mapping[str, npt.NDArray[np.bool_]]

LARGEST = 12
"""Values of a column shown on their own, by rows; the rest is pooled as 'other'."""


class Cut(StrictValue):
    """The parts into which one column is cut."""

    edges: tuple[float, ...] = ()
    """Ascending inner edges, of a column of many numbers; a part takes in its upper edge."""
    values: tuple[str, ...] = ()
    """Values that are parts of their own, of any other column; the rest is pooled as `other`."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The rows where a column takes one value, and every model's scores on them."""

    column: str
    value: str
    rows: int
    scores: Mapping[str, Mapping[str, float]]
    """Model → metric → score."""


def check_slices(slices: Sequence[str], schema: Schema) -> None:
    """Check that every slice names a column with values to slice by.

    Raises:
        InvalidInput: Unknown columns (nearest names offered), repeated ones, tensors.
    """
    problems = Problems()
    columns = {column.name: column for column in schema.columns}
    for index, name in enumerate(slices):
        field = f"slices[{index}]"
        if name not in columns:
            problems.add(field, name, f"no column of this name; {nearest(str(name), columns)}")
        elif columns[name].kind in ("tensor", "text"):
            what = "a tensor" if columns[name].kind == "tensor" else "text"
            problems.add(field, name, f"{what} has no values to slice by; name a plain column")
        elif name in slices[:index]:
            problems.add(field, name, "named twice; give it once")
    problems.raise_if_any()


def slice_scores(column: str, parts: Masks, outcomes: Mapping[str, Outcome]) -> tuple[Slice, ...]:
    """Score every model on each part of one column.

    Args:
        column: Its name.
        parts: Value → mask [N].
        outcomes: Model → outcome of the N rows.
    """
    found: list[Slice] = []
    for value, mask in parts.items():
        scores = {name: score(outcome.take(mask)) for name, outcome in outcomes.items()}
        found.append(Slice(column=column, value=value, rows=int(mask.sum()), scores=scores))
    return tuple(found)


def cut_of(values: pd.Series) -> Cut:
    """Cut a column into quarters where it has many different numbers, else by its values."""
    if is_number(values) and values.nunique() > LARGEST:
        return Cut(edges=_quarters(values.dropna().to_numpy(np.float64)))
    common = values.astype("string").value_counts().index[:LARGEST]
    return Cut(values=tuple(sort_labels({str(value) for value in common})))


def parts_of(values: pd.Series, cut: Cut) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the parts of a column that have rows: value → mask [N]."""
    missing = np.asarray(values.isna())
    if cut.edges:
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        places = np.searchsorted(np.asarray(cut.edges), numbers, side="left")
        names = _names(cut.edges)
        masks = {name: (places == place) & ~missing for place, name in enumerate(names)}
    else:
        text = values.astype("string").to_numpy(object, na_value="")
        masks = {value: (text == value) & ~missing for value in cut.values}
        rest = ~np.isin(text, cut.values) & ~missing
        masks["other"] = masks.get("other", np.zeros(len(rest), bool)) | rest
    masks["missing"] = masks.get("missing", np.zeros(len(missing), bool)) | missing
    return {value: mask for value, mask in masks.items() if mask.any()}


def worse_slices(
    parts: Masks,
    model: Outcome,
    baseline: Outcome,
    *,
    alpha: float,
    tolerance: float,
    min_rows: int,
    groups: Ints | None = None,
) -> tuple[str, ...]:
    """Return the slices on which a model errs more than what it would replace, row by row.

    A paired one-sided test of the losses for each slice, against "worse by no more than the
    tolerance", as `metrics.intervals` does it; adjusted for the number of slices (Benjamini &
    Hochberg 1995). Slices with too few rows, or events, say nothing.

    Args:
        parts: Slice, such as `carrier = UA` → mask [N].
        model: The challenger.
        baseline: What it would replace, on the same rows.
        alpha: Largest adjusted p-value that counts as evidence.
        tolerance: How much worse is tolerated, as a share of the baseline's mean loss there.
        min_rows: Slices with fewer rows say nothing.
        groups: [N] group of each row; None where each is its own.
    """
    mine, theirs = losses(model), losses(baseline)
    tested: list[tuple[str, float, float, float]] = []
    for name, mask in parts.items():
        if mask.sum() < max(2, min_rows):
            continue
        part, excess = model.take(mask), mine[mask] - theirs[mask]
        usual = float(np.average(theirs[mask], weights=part.weights))
        mean = float(np.average(excess, weights=part.weights))
        held = None if groups is None else np.unique(groups[mask], return_inverse=True)[1]
        spread = Spread.of(by_group(part.shares * (excess - mean), held), skewness=PAIRED)
        if events(part, held) < EVENTS or spread.carriers < CARRIERS:
            continue
        p_value = spread.above(mean - tolerance * usual)
        tested.append((name, p_value, mean, usual))
    if not tested:
        return ()
    p_values = adjusted([p_value for _, p_value, _, _ in tested])
    return tuple(
        f"Worse on {name}: the mean loss rises by {excess:.3g} from {usual:.3g} (p = {p:.2g})."
        for (name, _, excess, usual), p in zip(tested, p_values, strict=True)
        if p <= alpha
    )


def _quarters(numbers: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return the quartiles, rounded to the fewest digits that keep them apart."""
    exact = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75]))
    rounded = ({float(f"{edge:.{digits}g}") for edge in exact} for digits in (3, 4, 5, 6, 8, 17))
    return tuple(sorted(next(edges for edges in rounded if len(edges) == len(exact))))


def _names(edges: Sequence[float]) -> list[str]:
    shown = [f"{edge:.17g}" if float(f"{edge:g}") != edge else f"{edge:g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in zip(shown, shown[1:], strict=False)]
    return [f"up to {shown[0]}", *between, f"over {shown[-1]}"]
