"""Expected scores while labels are late, from what a classifier says about rows without labels.

Probabilities that are right tell how often they will be wrong (confidence-based performance
estimation): the mean of the best one is the accuracy to come, and their entropy the log loss. So
the champion's are first corrected by what came true at its promotion, with one slope and an offset
for each class (Alexandari et al. 2020), and then believed. The band has two parts: the luck of
the labels, and the noise of that correction.

It follows rows that move as long as the label's chances given the champion's answer stay what they
were. Where those change (concept drift), or the rows move along something that matters and that the
champion does not see, it cannot know: only labels tell. A regression states no probabilities, and
has no such estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from kubestill.errors import counted
from kubestill.runtime.base.values import StrictValue
from kubestill.runtime.metrics.catalog import METRICS
from kubestill.runtime.metrics.intervals import EVENTS, Interval, events
from kubestill.runtime.metrics.outcome import Floats, Ints, Outcome

_PRIOR = 1 / 9
"""Precision of a normal prior about stated probabilities being right: it decides nothing but what
the rows say nothing about."""
_ITERATIONS = 50


class PastScore(Protocol):
    """A score at promotion."""

    @property
    def value(self) -> float:
        """The score."""
        ...

    @property
    def error(self) -> float:
        """Its standard error."""
        ...


class Calibration(StrictValue):
    """How a champion's probabilities came true: softmax(slope · log p + offsets)."""

    slope: float
    offsets: tuple[float, ...]
    """By class; 0 for the first."""
    covariance: tuple[tuple[float, ...], ...]
    """Of the slope and the offsets of all classes but the first."""
    inflation: float = 1.0
    """How many times the variance of the losses of independent rows theirs is, where rows have
    groups."""
    freedom: float
    """Degrees of freedom of its noise: rows or groups of rarer classes, less what was fitted."""
    rows: int

    def chances(self, predictions: Floats) -> Floats:
        """Return corrected probabilities [N, K] of log-probabilities [N, K]."""
        margin = self.slope * predictions + np.asarray(self.offsets)
        return np.exp(margin - np.logaddexp.reduce(margin, axis=1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What is expected of rows without labels."""

    rows: int
    scores: Mapping[str, Interval] = field(default_factory=dict[str, Interval])
    """`log_loss` and `accuracy`, each with its band; none where nothing can be expected."""
    before: Mapping[str, PastScore] = field(default_factory=dict[str, PastScore])
    """The same at the champion's promotion."""
    sentence: str
    """All of it in words, or why there is nothing to expect."""
    worse: str = ""
    """That the log loss is expected to have risen, with evidence; empty without it."""


def calibrate(outcome: Outcome, groups: Ints | None = None) -> Calibration | None:
    """Fit the correction to labelled rows; None for a regression, or where too few rows tell.

    Args:
        outcome: The champion's, on rows that it has not seen.
        groups: [N] group of each row; None where each is its own.
    """
    if outcome.task == "regression" or not outcome.finite.all():
        return None
    if events(outcome, groups) < EVENTS:
        return None
    stated, shares = _bounded(outcome.predictions), outcome.shares
    classes = stated.shape[1]
    hit = np.eye(classes)[outcome.targets]
    theta, nothing = np.zeros(classes), np.zeros(classes)
    theta[0] = nothing[0] = 1.0
    for _ in range(_ITERATIONS):
        found = _corrected(theta, stated)
        each = _gradients(found, stated, hit)
        slope = shares @ each - _PRIOR * (theta - nothing)
        curve = _curvature(found, stated, shares) + _PRIOR * np.eye(classes)
        step = np.linalg.solve(curve, slope)
        theta = theta + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    found = _corrected(theta, stated)
    inverse = np.linalg.inv(_curvature(found, stated, shares) + _PRIOR * np.eye(classes))
    inflation = 1.0
    if groups is not None or outcome.weights is not None:
        # What rows of a group, or of a large weight, add to the noise (White 1982).
        which = np.arange(outcome.rows) if groups is None else groups
        moved = shares[:, None] * _gradients(found, stated, hit)
        summed = np.stack([np.bincount(which, column) for column in moved.T], 1)
        inverse = inverse @ (summed.T @ summed) @ inverse
        inverse *= len(summed) / max(1, len(summed) - classes)
        rest = shares * ((found - hit) * stated).sum(1)
        together = np.square(np.bincount(which, rest)).sum()
        inflation = max(1.0, float(together / np.square(rest).sum())) if rest.any() else 1.0
    return Calibration(
        slope=float(theta[0]),
        offsets=(0.0, *map(float, theta[1:])),
        covariance=tuple(tuple(map(float, line)) for line in inverse),
        inflation=inflation,
        freedom=max(2.0, events(outcome, groups) - classes),
        rows=outcome.rows,
    )


def expect(
    predictions: Floats,
    calibration: Calibration,
    *,
    confidence: float,
    weights: Floats | None = None,
) -> dict[str, Interval]:
    """Return the scores to expect of rows without labels: `log_loss` and `accuracy`.

    Args:
        predictions: [N, K] finite log-probabilities that the champion states.
        calibration: How such probabilities came true.
        confidence: Of the band in which the scores are to lie.
        weights: [N] how many rows each row counts for; None where all count the same.
    """
    stated = _bounded(predictions)
    chances = calibration.chances(stated)
    counts = np.ones(len(stated)) if weights is None else weights
    shares = counts / counts.sum()
    best = np.eye(stated.shape[1])[predictions.argmax(axis=1)]
    found: dict[str, Interval] = {}
    for name, values, bounds in (
        ("log_loss", -stated, (0.0, math.inf)),
        ("accuracy", best, (0.0, 1.0)),
    ):
        mean = (chances * values).sum(1)
        apart = values - mean[:, None]
        spread, skew = (((chances * apart**power).sum(1)) for power in (2, 3))
        value = float(shares @ mean)
        # Derivatives of a mean under softmax(slope · log p + offsets) are covariances.
        tilt = shares @ (chances * stated * apart).sum(1)
        shift = shares @ (chances * apart)
        slope = np.concatenate([[tilt], shift[1:]])
        luck = calibration.inflation * float(shares**2 @ spread)
        error = math.sqrt(luck + float(slope @ np.asarray(calibration.covariance) @ slope))
        third = calibration.inflation**1.5 * float(shares**3 @ skew)
        low, high = _band(error, third, confidence, calibration.freedom)
        found[name] = Interval(value, max(bounds[0], value + low), min(bounds[1], value + high))
    return found


def describe(
    rows: int,
    scores: Mapping[str, Interval],
    before: Mapping[str, PastScore],
    *,
    confidence: float,
    tolerance: float,
) -> Expectation:
    """Put what is expected into words, and hold it against what was reached at promotion.

    Args:
        rows: How many have no label.
        scores: What is expected of them.
        before: What was reached at promotion, as far as that is known.
        confidence: Of the bands.
        tolerance: How much worse is no decay yet, as a share of the score at promotion.
    """
    from scipy.special import ndtri

    told = [
        f"{METRICS[name].title} {score.value:.4g} ({100 * confidence:.3g}% band {score.low:.4g} to "
        f"{score.high:.4g})" + (f", it was {before[name].value:.4g}" if name in before else "")
        for name, score in scores.items()
    ]
    worse, mark = "", before.get("log_loss")
    if mark is not None:
        found = scores["log_loss"]
        noise = float(ndtri((1 + confidence) / 2)) * mark.error
        certain = found.value - math.hypot(found.value - found.low, noise)
        if certain > mark.value + tolerance * abs(mark.value):
            worse = f"Its {METRICS['log_loss'].title} is expected to be higher: {told[0]}."
    sentence = f"Expected of {counted(rows, 'row')} whose labels are late: {'; '.join(told)}."
    return Expectation(
        rows=rows, scores=dict(scores), before=dict(before), sentence=sentence, worse=worse
    )


def _band(error: float, third: float, confidence: float, freedom: float) -> tuple[float, float]:
    """Return the quantiles of noise with this standard error and third moment (Cornish-Fisher)."""
    from scipy.special import stdtrit

    if not error:
        return 0.0, 0.0
    reach = float(stdtrit(freedom, (1 + confidence) / 2))
    bent = third / error**3 * (reach**2 - 1) / 6
    return error * min(0.0, bent - reach), error * max(0.0, bent + reach)


def _bounded(predictions: Floats) -> Floats:
    """Return log-probabilities that no row's chance of 1e-300 outweighs all others."""
    return np.maximum(predictions, -50.0)


def _corrected(theta: Floats, stated: Floats) -> Floats:
    margin = theta[0] * stated
    margin[:, 1:] += theta[1:]
    return np.exp(margin - np.logaddexp.reduce(margin, axis=1, keepdims=True))


def _gradients(found: Floats, stated: Floats, hit: Floats) -> Floats:
    """Return how each row's log-likelihood grows [N, 1 + (K - 1)]."""
    rest = hit - found
    return np.concatenate([(rest * stated).sum(1, keepdims=True), rest[:, 1:]], axis=1)


def _curvature(found: Floats, stated: Floats, shares: Floats) -> Floats:
    """Return the Fisher information of all rows [K, K]."""
    weighed = shares[:, None] * found
    apart = stated - (found * stated).sum(1, keepdims=True)
    classes = stated.shape[1]
    curve = np.empty((classes, classes))
    curve[0, 0] = (weighed * apart**2).sum()
    curve[0, 1:] = curve[1:, 0] = (weighed * apart).sum(0)[1:]
    curve[1:, 1:] = np.diag(weighed.sum(0)[1:]) - weighed[:, 1:].T @ found[:, 1:]
    return curve
