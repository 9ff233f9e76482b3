"""The same scores on parts of the rows: one column's values, or the quarters of a numeric one."""

# scipy comes without types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from kubestill.errors import Problems, nearest
from kubestill.runtime.data.schema import Schema, sort_labels
from kubestill.runtime.evaluation.metrics import losses, score
from kubestill.runtime.evaluation.outcome import Outcome

__all__ = ["Slice", "check_slices", "parts_of", "slice_scores", "worse_slices"]

LARGEST = 12
"""Values of a column shown on their own, by rows; the rest is pooled as 'other'."""


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
        elif columns[name].kind == "tensor":
            problems.add(field, name, "a tensor has no values to slice by; name a plain column")
        elif name in slices[:index]:
            problems.add(field, name, "named twice; give it once")
    problems.raise_if_any()


def slice_scores(
    column: str, values: pd.Series, outcomes: Mapping[str, Outcome]
) -> tuple[Slice, ...]:
    """Score every model on each part of one column.

    Args:
        column: Its name.
        values: [N] its values, in the order of the outcomes' rows.
        outcomes: Model → outcome.
    """
    found: list[Slice] = []
    for value, mask in parts_of(values).items():
        scores = {name: score(outcome.take(mask)) for name, outcome in outcomes.items()}
        found.append(Slice(column=column, value=value, rows=int(mask.sum()), scores=scores))
    return tuple(found)


def parts_of(values: pd.Series) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the parts of a column that have rows: value → mask [N]."""
    labels = _labels(values)
    masks = {str(value): np.asarray(labels == value) for value in labels.cat.categories}
    return {value: mask for value, mask in masks.items() if mask.any()}


def worse_slices(
    parts: Mapping[str, npt.NDArray[np.bool_]],
    model: Outcome,
    baseline: Outcome,
    *,
    alpha: float,
    tolerance: float,
    min_rows: int,
) -> tuple[str, ...]:
    """Say on which slices a model errs more than what it would replace, row by row.

    A paired one-sided t-test of the losses for each slice, against "worse by no more than the
    tolerance"; adjusted for the number of slices (Benjamini & Hochberg 1995).

    Args:
        parts: Slice, such as `carrier = UA` → mask [N].
        model: The challenger.
        baseline: What it would replace, on the same rows.
        alpha: Largest adjusted p-value that counts as evidence.
        tolerance: How much worse is tolerated, as a share of the baseline's mean loss there.
        min_rows: Slices with fewer rows say nothing.
    """
    mine, theirs = losses(model), losses(baseline)
    tested: list[tuple[str, float, float, float]] = []
    for name, mask in parts.items():
        if mask.sum() < max(2, min_rows):
            continue
        usual = float(theirs[mask].mean())
        excess = mine[mask] - theirs[mask]
        if np.ptp(excess) == 0:
            p_value = float(excess[0] <= tolerance * usual)
        else:
            test = stats.ttest_1samp(excess, tolerance * usual, alternative="greater")
            p_value = float(test.pvalue)
        tested.append((name, p_value, float(excess.mean()), usual))
    if not tested:
        return ()
    adjusted = stats.false_discovery_control([p_value for _, p_value, _, _ in tested])
    return tuple(
        f"Worse on {name}: the mean loss rises by {excess:.3g} from {usual:.3g} (p = {p:.2g})."
        for (name, _, excess, usual), p in zip(tested, adjusted, strict=True)
        if p <= alpha
    )


def _labels(values: pd.Series) -> pd.Series:
    """Return [N] categories: quarters of a numeric column with many values, else the values."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numeric and values.nunique() > LARGEST:
        quarters = pd.Series(pd.qcut(values, 4, duplicates="drop", precision=3))
        names = [f"{part.left:g} to {part.right:g}" for part in quarters.cat.categories]
        return _with_missing(quarters.cat.rename_categories(names))
    text = values.astype("string")
    common = text.value_counts().index[:LARGEST]
    pooled = text.where(text.isin(common) | text.isna(), "other")
    order = list(sort_labels(set(common)))
    if (pooled == "other").any() and "other" not in order:
        order.append("other")
    return _with_missing(pd.Series(pd.Categorical(pooled, categories=order)))


def _with_missing(labels: pd.Series) -> pd.Series:
    if not labels.isna().any():
        return labels
    return labels.cat.add_categories("missing").fillna("missing")
