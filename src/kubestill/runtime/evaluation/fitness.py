"""Test whether rows are fit to judge and to learn from, or something is wrong with the data.

A model that meets a changed world should learn from it; one that meets broken data must not. So
rows are compared with the profile of those the champion has learned from. What has an innocent
explanation (other values than before) is *drift*: it is reported, and the scores decide. What has
none is *unfit* and stops everything: a column in another unit, mostly missing or far outside
anything seen; a class that no longer occurs; labels that have nothing to do with the rows, or say
the opposite.

Every finding needs evidence and size. Evidence is a test whose p-values are adjusted over all
columns (Benjamini & Hochberg 1995); size is what matters in practice: with enough rows everything
differs from everything.
"""

# pandas and scipy come without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from kubestill.errors import counted
from kubestill.runtime.evaluation.profile import Floats, Profile, Sketch, histogram, sketch
from kubestill.runtime.evaluation.significance import adjusted, independence
from kubestill.runtime.evaluation.units import change_of_unit

Kind = Literal["unit", "missing", "range", "class", "labels", "drift"]

STABILITY = 0.25
"""Population stability index from which credit scoring calls a column significantly shifted."""
MISSING_RISE = 0.2
"""Rise of the missing share, in absolute terms, that no process explains by itself."""
CLASS_LEFT = 0.05
"""A class is gone when it has less than this share of its former frequency."""
FAR = 3.0
"""Spreads (largest minus smallest reference value) beyond which a value is far outside."""
FAR_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Shift:
    """One way in which rows differ from those a model was promoted on."""

    kind: Kind
    column: str
    statement: str
    """A sentence that names the column, what it was and what it is."""
    p_value: float
    """Adjusted for all comparisons made."""
    size: float
    """Of the difference, in the unit of its kind: a stability index, or a change of share."""

    @property
    def unfit(self) -> bool:
        """Whether rows like these must neither judge nor teach."""
        return self.kind != "drift"


def compare_rows(
    reference: Profile,
    values: Mapping[str, pd.Series],
    *,
    target: str,
    alpha: float,
    ignore: Sequence[str] = (),
    before: Callable[[], Mapping[str, pd.Series]] | None = None,
) -> tuple[Shift, ...]:
    """Compare rows with the profile of earlier ones; the gravest findings first.

    Args:
        reference: Of the rows that the model in production has learned from.
        values: Column → [N] values in order of time, as `profile.columns_of` gives them.
        target: Name of the target among them.
        alpha: Largest adjusted p-value that counts as evidence.
        ignore: Columns that are not looked at.
        before: Gives the same of the sound rows right before these; None where nobody has them.
    """
    found: list[Shift] = []
    earlier: Mapping[str, pd.Series] | None = None
    for name, column in values.items():
        known = reference.target if name == target else reference.columns.get(name)
        if known is None or name in ignore or not known.present:
            continue
        found += _missing(name, known, column)
        found += _classes(name, known, column) if name == target else _far(name, known, column)
        moved = _distribution(name, known, column)
        if name != target and any(shift.size >= STABILITY for shift in moved):
            if before and earlier is None:
                earlier = before()
            last = earlier.get(name) if earlier else None
            if change := change_of_unit(known, column, last):
                said = f"{name}: {change}"
                moved = [replace(shift, kind="unit", statement=said) for shift in moved]
        found += moved
    p_values = adjusted([shift.p_value for shift in found])
    kept = [
        replace(shift, p_value=float(p))
        for shift, p in zip(found, p_values, strict=True)
        if p <= alpha and shift.size >= _LEAST[shift.kind]
    ]
    # A column that is in another unit has drifted and left its range, too; it is reported once.
    for kind, weaker in (
        ("unit", ("range", "drift")),
        ("range", ("drift",)),
        ("class", ("drift",)),
        ("missing", ("drift",)),
    ):
        explained = {shift.column for shift in kept if shift.kind == kind}
        kept = [s for s in kept if not (s.column in explained and s.kind in weaker)]
    return tuple(sorted(kept, key=lambda shift: (not shift.unfit, -shift.size)))


_LEAST: dict[Kind, float] = {
    "unit": STABILITY,
    "missing": MISSING_RISE,
    "range": FAR_SHARE,
    "class": 0.0,
    "labels": 0.0,
    "drift": STABILITY,
}


def _missing(name: str, known: Sketch, column: pd.Series) -> list[Shift]:
    rows, missing = len(column), int(column.isna().sum())
    before, now = max(known.missing / known.rows, known.most_missing), missing / rows
    if now <= before:
        return []
    counts = [[known.missing, known.present], [missing, rows - missing]]
    p_value = _fisher(counts) if now - before >= MISSING_RISE else 1.0
    statement = f"{name}: {now:.0%} of the values are missing, {before:.0%} were."
    return [
        Shift(
            kind="missing",
            column=name,
            statement=statement,
            p_value=p_value,
            size=now - before,
        )
    ]


def _classes(name: str, known: Sketch, column: pd.Series) -> list[Shift]:
    """Return classes of the target that (nearly) stopped occurring; numbers have none."""
    labelled = column.dropna()
    now = sketch(labelled).counts
    found: list[Shift] = []
    for label, count in known.counts.items():
        share, left = count / known.present, now.get(label, 0)
        if left > CLASS_LEFT * share * len(labelled):
            continue
        if known.least.get(label, share) <= CLASS_LEFT * share:
            continue  # there are seasons without it
        # Not further up: the module takes a second to import, and few windows need it.
        from scipy.stats import binomtest

        test = binomtest(left, len(labelled), share, alternative="less")
        statement = (
            f"{name}: the class {label!r} is gone: {left:,} of {counted(len(labelled), 'row')}, "
            f"{share:.1%} had it."
        )
        found.append(
            Shift(
                kind="class",
                column=name,
                statement=statement,
                p_value=float(test.pvalue),
                size=share,
            )
        )
    return found


def _far(name: str, known: Sketch, column: pd.Series) -> list[Shift]:
    """Return whether values lie where none could be expected: an outlier feed, a mixed unit."""
    present = column.dropna()
    if not known.numeric or not len(present):
        return []
    low, high = known.quantiles[0], known.quantiles[-1]
    reach = FAR * (high - low)
    numbers = present.to_numpy(np.float64)
    outside = int(((numbers < low - reach) | (numbers > high + reach)).sum())
    counts = [[0, known.present], [outside, len(numbers) - outside]]
    share = outside / len(numbers)
    p_value = _fisher(counts) if share >= FAR_SHARE else 1.0
    statement = (
        f"{name}: {share:.0%} of the values lie far outside {low:g} to {high:g}, "
        "the range they had: mixed units, or a broken source?"
    )
    return [
        Shift(
            kind="range",
            column=name,
            statement=statement,
            p_value=p_value,
            size=share,
        )
    ]


def _fisher(table: Sequence[Sequence[int]]) -> float:
    """Return the p-value of Fisher's exact test of "the first row's share is no smaller"."""
    from scipy.stats import fisher_exact

    return float(fisher_exact(table, alternative="less").pvalue)


def _distribution(name: str, known: Sketch, column: pd.Series) -> list[Shift]:
    before, now = histogram(known, column)
    met = before + now > 0
    if met.sum() < 2 or not now.sum() or not before.sum():
        return []
    p_value = independence(np.stack([before[met], now[met]]))
    size = stability_index(before, now)
    statement = _moved(name, known, column, size)
    return [Shift(kind="drift", column=name, statement=statement, p_value=p_value, size=size)]


def _moved(name: str, known: Sketch, column: pd.Series, size: float) -> str:
    if known.numeric:
        grid = np.quantile(column.dropna().to_numpy(np.float64), [0.1, 0.5, 0.9])
        last = len(known.quantiles) - 1
        was = [known.quantiles[round(share * last)] for share in (0.1, 0.5, 0.9)]
        return (
            f"{name}: the middle 80% run from {grid[0]:.4g} to {grid[2]:.4g}, median "
            f"{grid[1]:.4g}; they ran from {was[0]:.4g} to {was[2]:.4g}, median {was[1]:.4g} "
            f"(stability index {size:.2f})."
        )
    before, now = histogram(known, column)
    before, now = before / before.sum(), now / now.sum()
    worst = int(np.abs(now - before).argmax())
    label = [*known.counts, "other values"][worst]
    return (
        f"{name}: {now[worst]:.1%} are {label!r}, {before[worst]:.1%} were "
        f"(stability index {size:.2f})."
    )


def stability_index(before: Floats, now: Floats) -> float:
    """Return the population stability index of two [B] histograms: 0.1 is little, 0.25 is much.

    The symmetric Kullback-Leibler divergence; half a row is added to each bin so that an empty one
    is no infinity.
    """
    first = (before + 0.5) / (before + 0.5).sum()
    second = (now + 0.5) / (now + 0.5).sum()
    return float(((second - first) * np.log(second / first)).sum())
