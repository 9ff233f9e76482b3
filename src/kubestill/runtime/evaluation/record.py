"""What a champion is remembered by: the scores of the day it was promoted, and its rows' profile.

Written with every decision on a challenger, kept in the registry with the champion, read back when
the champion is judged again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from kubestill.errors import CorruptData
from kubestill.runtime.evaluation.labels import Skill
from kubestill.runtime.evaluation.profile import Profile
from kubestill.runtime.evaluation.slices import Cut
from kubestill.runtime.metrics.catalog import Metric
from kubestill.runtime.metrics.formulas import losses
from kubestill.runtime.metrics.intervals import Measured
from kubestill.runtime.metrics.outcome import Outcome

__all__ = [
    "FORMAT",
    "GoldenMark",
    "Mark",
    "Record",
    "bias_of",
    "mark_of",
    "marks_of",
    "read_record",
]

FORMAT = "kubestill/record/1"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Mark(_Value):
    """One score with its sampling noise."""

    value: float
    error: float
    """Standard error."""
    rows: int


class GoldenMark(_Value):
    """A champion's score on the fixed set."""

    fingerprint: str
    """Fingerprint of the fixed set: scores on another one are not comparable."""
    value: float
    best: float
    """The best that any champion of this line has reached: what must not be forgotten, so that
    many small steps down are seen as the long one that they are."""


class Record(_Value):
    """A champion's scores at its promotion."""

    format: Literal["kubestill/record/1"] = FORMAT
    metric: str
    """What the decision was taken on."""
    metrics: dict[str, Mark] = {}
    slices: dict[str, Mark] = {}
    """Mean loss a row by slice, such as `carrier = UA`."""
    cuts: dict[str, Cut] = {}
    """How those slices were cut, by column."""
    golden: GoldenMark | None = None
    bias: Mark | None = None
    """How far stated probabilities were off on average."""
    skill: Skill | None = None
    profile: Profile | None = None


def read_record(form: Mapping[str, Any], source: str) -> Record | None:
    """Return the record inside a decision; None where it holds none.

    Raises:
        CorruptData: There is one that cannot be read.
    """
    if not form.get("record"):
        return None
    try:
        return Record.model_validate(form["record"])
    except ValidationError as error:
        raise CorruptData(f"{source}: the champion's record cannot be read: {error}") from error


def marks_of(scores: Measured, name: str, metrics: Mapping[str, Metric]) -> dict[str, Mark]:
    """Return a model's scores that resampling gave a standard error, where they are finite."""
    marks: dict[str, Mark] = {}
    rows = scores.outcomes[name].rows
    for key, metric in metrics.items():
        value = scores.points[name][key]
        if math.isfinite(value) and metric.has_error and not scores.missing(name, metric):
            marks[key] = Mark(value=value, error=scores.spread(name, metric).error, rows=rows)
    return marks


def mark_of(outcome: Outcome) -> Mark | None:
    """Return the primary score, log loss or RMSE; None where it or its error is not known."""
    each = losses(outcome)
    if len(each) < 2 or not np.isfinite(each).all():
        return None
    value, error = float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each)))
    if outcome.task == "regression":
        # The delta method: d sqrt(v) = dv / (2 sqrt(v)).
        value = math.sqrt(value)
        error = error / (2 * value) if value else 0.0
    return Mark(value=value, error=error, rows=len(each))


def bias_of(outcome: Outcome) -> Mark | None:
    """Return how far the stated probability of a class is from its frequency, at the worst class.

    None for a regression, and where answers are not finite.
    """
    if outcome.task == "regression" or outcome.rows < 2 or not outcome.finite.all():
        return None
    gaps = outcome.probabilities
    gaps[np.arange(outcome.rows), outcome.targets] -= 1
    means = gaps.mean(axis=0)
    worst = int(np.abs(means).argmax())
    error = float(gaps[:, worst].std(ddof=1) / math.sqrt(outcome.rows))
    return Mark(value=float(abs(means[worst])), error=error, rows=outcome.rows)
