"""What a champion is remembered by: the scores of the day it was promoted, and its rows' profile.

Written with every decision on a challenger, kept in the registry with the champion, read back when
the champion is judged again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from kubestill.errors import CorruptData
from kubestill.runtime.base.values import StrictValue
from kubestill.runtime.evaluation.expected import Calibration
from kubestill.runtime.evaluation.labels import Skill
from kubestill.runtime.evaluation.profile import Profile
from kubestill.runtime.evaluation.slices import Cut
from kubestill.runtime.metrics.catalog import Metric
from kubestill.runtime.metrics.intervals import (
    CARRIERS,
    EVENTS,
    Measured,
    Spread,
    by_group,
    events,
)
from kubestill.runtime.metrics.outcome import Ints, Outcome

FORMAT = "kubestill/record/1"


class Mark(StrictValue):
    """One score with its sampling noise."""

    value: float
    error: float
    """Standard error."""
    rows: int
    skew: float = 0.0
    """Skewness of its noise; older versions did not measure it."""
    groups: int = 0
    """Independent groups of rows; 0 where older versions took each row for one."""

    @property
    def third(self) -> float:
        """Third moment of its noise."""
        return self.skew * self.error**3


class GoldenMark(StrictValue):
    """A champion's score on the fixed set."""

    fingerprint: str
    """Fingerprint of the fixed set: scores on another one are not comparable."""
    value: float
    best: float
    """The best that any champion of this line has reached: what must not be forgotten, so that
    many small steps down are seen as the long one that they are."""


class Record(StrictValue):
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
    calibration: Calibration | None = None
    """How its probabilities came true; older versions did not keep that."""
    flops: int = 0
    """Operations that one row takes; 0 where older versions did not keep that."""


def read_record(form: Mapping[str, Any], source: str) -> Record | None:
    """Return the record that a decision holds; None where `form` is empty.

    Raises:
        CorruptData: There is one that cannot be read.
    """
    if not form:
        return None
    try:
        return Record.model_validate(form)
    except ValidationError as error:
        raise CorruptData(f"{source}: the champion's record cannot be read: {error}") from error


def marks_of(scores: Measured, name: str, metrics: Mapping[str, Metric]) -> dict[str, Mark]:
    """Return a model's scores whose noise is known."""
    found = {key: mark_of(scores, name, metric) for key, metric in metrics.items()}
    return {key: mark for key, mark in found.items() if mark is not None}


def mark_of(scores: Measured, name: str, metric: Metric) -> Mark | None:
    """Return one of a model's scores; None where it or its noise is not known."""
    value = scores.points[name][metric.name]
    if not math.isfinite(value) or not metric.has_error or scores.missing(name, metric):
        return None
    spread = scores.spread(name, metric)
    return Mark(
        value=value,
        error=spread.error,
        rows=scores.outcomes[name].rows,
        skew=spread.skew,
        groups=spread.groups,
    )


def bias_of(outcome: Outcome, groups: Ints | None = None) -> Mark | None:
    """Return how far the stated probability of a class is from its frequency, at the worst class.

    None for a regression, where answers are not finite, and where too few rows are of rarer classes
    to tell.
    """
    if outcome.task == "regression" or not outcome.finite.all():
        return None
    gaps = outcome.probabilities
    gaps[np.arange(outcome.rows), outcome.targets] -= 1
    means = np.average(gaps, axis=0, weights=outcome.weights)
    worst = int(np.abs(means).argmax())
    sign = math.copysign(1, means[worst])
    moved = sign * outcome.shares * (gaps[:, worst] - means[worst])
    spread = Spread.of(by_group(moved, groups))
    if events(outcome, groups) < EVENTS or spread.carriers < CARRIERS:
        return None
    return Mark(
        value=float(abs(means[worst])),
        error=spread.error,
        rows=outcome.rows,
        skew=spread.skew,
        groups=spread.groups,
    )
