"""Test whether the labels have anything to do with the rows.

A champion that decays still knows something, and where it knows nothing any more, the columns
themselves still tell something about the label. Labels that were shuffled, joined to the wrong rows
or inverted on their way leave neither.
"""

# pandas and scipy come without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr

from kubestill.runtime.base.values import StrictValue
from kubestill.runtime.evaluation.fitness import Shift
from kubestill.runtime.evaluation.profile import FEW, is_number
from kubestill.runtime.evaluation.significance import adjusted, independence
from kubestill.runtime.metrics.outcome import Floats, Outcome

EXPECTED = 4.0
"""Standard errors at which the champion's skill should show before its absence means anything."""
CHANCE = 2.5
"""Standard errors that no skill at all reaches by chance in fewer than 1 of 100 windows."""
KEPT = 0.1
"""Share of its skill below which a champion knows nothing any more."""
ASSOCIATED = 1e-3
"""Adjusted p-value of a column's association with the label that counts as one."""
SAMPLE = 20_000
"""Rows that associations are tested on: enough to see any that matters."""


class Skill(StrictValue):
    """Measure how much a model's answers reveal about the labels.

    The covariance of answers and labels, summed over outputs. For log-probabilities it is the
    information, in nats a row, that is lost when the labels are shuffled among the rows.
    """

    mean: float
    spread: float
    """Standard deviation of one row's contribution."""
    rows: int

    @property
    def z(self) -> float:
        """Standard errors above zero: about a standard normal where there is no skill."""
        return self.at(self.rows)

    def at(self, rows: int) -> float:
        """Return the `z` that this skill would show on so many rows."""
        return self.mean / self.spread * math.sqrt(rows) if self.spread > 0 else 0.0


def skill(outcome: Outcome) -> Skill:
    """Measure the skill of a model on labelled rows."""
    kept = outcome.take(outcome.finite)
    answers = kept.predictions
    if kept.task == "regression":
        truth = np.asarray(kept.targets, np.float64)
    else:
        truth = np.eye(answers.shape[1])[kept.targets]
    if len(answers) < 2:
        return Skill(mean=0.0, spread=0.0, rows=len(answers))
    each = ((answers - answers.mean(axis=0)) * (truth - truth.mean(axis=0))).sum(axis=1)
    return Skill(mean=float(each.mean()), spread=float(each.std(ddof=1)), rows=len(each))


def check_labels(
    outcome: Outcome,
    record: Skill | None,
    values: Mapping[str, pd.Series],
    target: str,
    *,
    whole: bool = True,
) -> tuple[Shift, ...]:
    """Return what is wrong with the labels as a whole; empty where nothing is.

    Args:
        outcome: The champion's, on the rows in question.
        record: Its skill when it was promoted.
        values: Column → [N] values of the same rows, the target among them.
        target: The target's name.
        whole: Whether these are all rows of a window. In a part of one in which labels do have
            something to do with rows they may have less: there, only that they are wrong counts.
    """
    if record is None:
        return ()
    now = skill(outcome)
    expected = record.at(now.rows)
    # What is left by chance alone may look like a share of a small skill.
    if expected < EXPECTED or now.z > max(CHANCE, KEPT * expected):
        return ()
    if now.z < -max(CHANCE, KEPT * expected):
        statement = (
            f"{target}: the champion's answers point the wrong way (skill {now.mean:.3g}, "
            f"{record.mean:.3g} at its promotion): labels inverted or swapped?"
        )
        p_value = float(ndtr(now.z))
    elif whole and not informative(values, target):
        statement = (
            f"{target}: labels have nothing to do with the rows, neither with what the champion "
            f"says (skill {now.mean:.2g}, {record.mean:.2g} at its promotion) nor with any "
            "column: shuffled, or joined to the wrong rows?"
        )
        p_value = float(ndtr(now.z - expected))
    else:
        return ()
    size = 1 - now.mean / record.mean
    return (Shift(kind="labels", column=target, statement=statement, p_value=p_value, size=size),)


def informative(values: Mapping[str, pd.Series], target: str) -> bool:
    """Return whether any single column is associated with the target."""
    labels = values[target]
    known = np.flatnonzero(labels.notna())[:SAMPLE]
    labels = labels.iloc[known]
    p_values = [
        p
        for name, column in values.items()
        if name != target and (p := _association(column.iloc[known], labels)) is not None
    ]
    if not p_values:
        return False
    return bool(np.min(adjusted(p_values)) <= ASSOCIATED)


def _association(column: pd.Series, labels: pd.Series) -> float | None:
    """Return the p-value of independence: rank correlation, rank sums, or a table of counts."""
    known = np.flatnonzero(column.notna().to_numpy() & labels.notna().to_numpy())
    column, labels = column.iloc[known], labels.iloc[known]
    if column.nunique() < 2 or labels.nunique() < 2:
        return None
    numbers, quantity = _many(column), _many(labels)
    if numbers and quantity:
        from scipy import stats  # takes a second to import

        return float(stats.spearmanr(column.to_numpy(), labels.to_numpy()).pvalue)
    if numbers or quantity:
        measured, groups = (column, labels) if numbers else (labels, column)
        return _rank_sums(measured, groups)
    table = pd.crosstab(column.astype(str), labels.astype(str)).to_numpy(np.float64)
    # Where fewer than five rows would be expected the test is too bold: such values are left out.
    rarest = table.sum(axis=0).min() / table.sum()
    table = table[table.sum(axis=1) * rarest >= 5]
    if len(table) < 2 or (table.sum(axis=0) == 0).any():
        return None
    return independence(table)


def _rank_sums(measured: pd.Series, groups: pd.Series) -> float | None:
    from scipy import stats

    parts: Sequence[Floats] = [
        part.to_numpy(np.float64)
        for _, part in measured.groupby(groups.astype(str).to_numpy())
        if len(part) >= 5
    ]
    return float(stats.kruskal(*parts).pvalue) if len(parts) > 1 else None


def _many(values: pd.Series) -> bool:
    return is_number(values) and values.nunique() > FEW
