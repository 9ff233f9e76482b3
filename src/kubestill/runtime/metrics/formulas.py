"""The formulas of the scores: a mean of per-row columns, followed by a short expression.

Accuracy is the mean of one column; macro F1 is 2 tp / (predicted + actual) over two columns a
class. What a row adds to the means is therefore all of its influence on a score.
`tests/unit/metrics` holds every formula against scikit-learn's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kubestill.runtime.metrics.outcome import Floats, Ints, Outcome

RowStatistics = Callable[[Ints], Floats]
"""[n] row indices → [n, C] columns. A function: the columns of a million rows may not fit in
memory."""

CALIBRATION_BINS = 15
"""Equal-width bins of the expected calibration error (Guo et al. 2017)."""


def losses(outcome: Outcome) -> Floats:
    """Return the [N] loss of each row: negative log-likelihood (nats), or squared error over T."""
    if outcome.task == "regression":
        return np.square(_errors(outcome)).mean(axis=1)
    return -outcome.predictions[np.arange(outcome.rows), outcome.targets]


def rowwise(columns: Callable[[Outcome], Floats]) -> Callable[[Outcome], RowStatistics]:
    """Turn [N, C] columns in which each row stands for itself into statistics of any rows."""
    return lambda outcome: lambda rows: columns(outcome.take(rows))


def first(means: Floats) -> Floats:
    """Return the only mean there is."""
    return means[..., 0]


def log_loss(outcome: Outcome) -> Floats:
    """[N, 1]: negative log-likelihood, nats."""
    return losses(outcome)[:, None]


def misses(outcome: Outcome) -> Floats:
    """[N, 1]: 1 where the most probable class is another than the right one."""
    return 1.0 - hits(outcome)


def hits(outcome: Outcome) -> Floats:
    """[N, 1]: 1 where the most probable class is the right one."""
    return (outcome.labels == outcome.targets).astype(np.float64)[:, None]


def brier(outcome: Outcome) -> Floats:
    """[N, 1]: squared error of the probability of the second class."""
    return np.square(outcome.probabilities[:, 1] - outcome.targets)[:, None]


def calibration_gaps(outcome: Outcome) -> Floats:
    """[N, bins]: confidence minus hit, in the column of the row's confidence bin."""
    confidence, hit = confidences(outcome)
    gaps = np.zeros((outcome.rows, CALIBRATION_BINS))
    gaps[np.arange(outcome.rows), bin_of(confidence)] = confidence - hit
    return gaps


def confidences(outcome: Outcome) -> tuple[Floats, Floats]:
    """Return [N] stated probability and [N] whether it came true.

    A binary task states the probability of its second class, a multiclass one that of the most
    probable class.
    """
    probabilities = outcome.probabilities
    if outcome.task == "binary":
        return probabilities[:, 1], outcome.targets.astype(np.float64)
    return probabilities.max(axis=1), (outcome.labels == outcome.targets).astype(np.float64)


def bin_of(confidence: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the [N] calibration bin of each [N] probability."""
    return np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def sum_of_absolutes(means: Floats) -> Floats:
    """Return the sum of the sizes of the bins' mean gaps."""
    return np.abs(means).sum(axis=-1)


@dataclass(frozen=True)
class Reliability:
    """The mean squared calibration error over bins, without the bias that noise gives it."""

    square: float
    """Unbiased, and so negative half of the time where there is no error."""
    noise: float
    """What noise alone adds to the plain estimate."""
    floor: float
    """Its variance where there is no error."""
    slope: float
    """What each unit of squared error adds to its variance."""

    @classmethod
    def of(cls, outcome: Outcome, groups: Ints | None = None) -> Reliability:
        """Estimate it from products of gaps of different rows, or groups (Kumar et al. 2019)."""
        confidence, hit = confidences(outcome)
        counted = outcome.counts
        bins, gaps = bin_of(confidence), confidence - hit
        group = np.arange(outcome.rows) if groups is None else groups
        cells, cell = np.unique(bins * (int(group.max()) + 1) + group, return_inverse=True)
        place = cells // (int(group.max()) + 1)

        def by_bin(each: Floats) -> Floats:
            return np.bincount(place, each, minlength=CALIBRATION_BINS).astype(np.float64)

        total = np.bincount(cell, counted * gaps).astype(np.float64)
        rows = np.bincount(cell, counted).astype(np.float64)
        sums, counts = by_bin(total), by_bin(rows)
        pairs = np.square(counts) - by_bin(np.square(rows))
        known = pairs > 0
        sums, counts, pairs = sums[known], counts[known], pairs[known]
        square = (np.square(sums) - by_bin(np.square(total))[known]) / pairs
        mean = np.zeros(CALIBRATION_BINS)
        mean[known] = sums / counts
        noise = by_bin(np.square(total - rows * mean[place]))[known] / np.square(counts)
        # Of calibrated rows it is known; few rows that happen to err alike say too little.
        chance = np.square(counted) * confidence * (1 - confidence)
        least = np.bincount(bins, chance, minlength=CALIBRATION_BINS)
        noise = np.maximum(noise, least[known] / np.square(counts))
        weights = counts / counted.sum()
        size = float((weights * np.square(mean[known])).sum())
        tilt = 4 * float((np.square(weights * mean[known]) * noise).sum())
        return cls(
            square=float((weights * square).sum()),
            noise=float((weights * noise).sum()),
            floor=2 * float(np.square(weights * noise).sum()),
            slope=tilt / size if size else 0.0,
        )


def calibration_error(outcome: Outcome) -> float:
    """Return the root of the debiased mean squared calibration error; 0 where noise explains it."""
    return math.sqrt(max(0.0, Reliability.of(outcome).square))


def calibration_range(
    outcome: Outcome, groups: Ints | None, confidence: float
) -> tuple[float, float]:
    """Return the calibration errors that the rows do not contradict: from 0 where none may be.

    Those whose squares are within so many of the estimate's standard errors *there*, for the noise
    of a square grows with it; upwards as many as a sum of squares has at this confidence where
    there is no error (a chi-square with its mean and variance, Satterthwaite).
    """
    from scipy.special import chdtri, ndtri

    found = Reliability.of(outcome, groups)
    if not found.floor:
        return math.sqrt(max(0.0, found.square)), math.sqrt(max(0.0, found.square))
    freedom = 2 * found.noise**2 / found.floor
    up = (float(chdtri(freedom, (1 - confidence) / 2)) - freedom) / math.sqrt(2 * freedom)
    ends: list[float] = []
    for reach, side in ((up, -1), (float(ndtri((1 + confidence) / 2)), 1)):
        # (square - x)² = reach² (floor + slope x), solved for x.
        middle = found.square + reach**2 * found.slope / 2
        wide = middle**2 - found.square**2 + reach**2 * found.floor
        ends.append(math.sqrt(max(0.0, middle + side * math.sqrt(max(0.0, wide)))))
    return ends[0], min(1.0, ends[1])


def f1_counts(outcome: Outcome) -> Floats:
    """[N, 2K]: true positives of each class, then predicted plus actual."""
    rows, classes = np.arange(outcome.rows), outcome.predictions.shape[1]
    hits = np.zeros((outcome.rows, classes))
    either = np.zeros((outcome.rows, classes))
    hits[rows, outcome.targets] = outcome.labels == outcome.targets
    either[rows, outcome.targets] += 1
    either[rows, outcome.labels] += 1
    return np.concatenate([hits, either], axis=1)


def macro_f1(means: Floats) -> Floats:
    """Average over the classes that occur among targets or predictions, as scikit-learn does."""
    hits, either = np.split(means, 2, axis=-1)
    present = either > 0
    f1 = np.divide(2 * hits, either, out=np.zeros_like(hits), where=present)
    return f1.sum(axis=-1) / present.sum(axis=-1)


def auc(outcome: Outcome) -> float:
    """Return P(score of a positive > score of a negative), ties counting half.

    NaN where only one class occurs.
    """
    positive = outcome.targets == 1
    if not 0 < positive.sum() < outcome.rows:
        return float("nan")
    return float(np.average(placements(outcome)[positive], weights=_weights(outcome, positive)))


def placements(outcome: Outcome) -> Floats:
    """Return the [N] share of the other class's rows that each row is ordered right with.

    DeLong et al. 1988: their means over either class are the AUC.
    """
    margin = outcome.predictions[:, 1] - outcome.predictions[:, 0]
    positive = outcome.targets == 1
    placed = np.empty(outcome.rows)
    for mine, sign in ((positive, 1), (~positive, -1)):
        order = np.argsort(sign * margin[~mine])
        others = (sign * margin[~mine])[order]
        below = np.arange(len(others) + 1, dtype=np.float64)
        if outcome.weights is not None:
            below[1:] = np.cumsum(outcome.weights[~mine][order])
        ends = [np.searchsorted(others, sign * margin[mine], side) for side in ("left", "right")]
        placed[mine] = (below[ends[0]] + below[ends[1]]) / 2 / max(1e-300, below[-1])
    return placed


def auc_influences(outcome: Outcome) -> Floats:
    """Return how much each of [N] rows moves the AUC: its placement, weighed by its class."""
    placed, positive, shares = placements(outcome), outcome.targets == 1, outcome.shares
    middle = np.average(placed[positive], weights=_weights(outcome, positive))
    held = float((shares * positive).mean())
    return shares * (placed - middle) / np.where(positive, held, 1 - held)


def _weights(outcome: Outcome, rows: npt.NDArray[np.bool_]) -> Floats | None:
    return None if outcome.weights is None else outcome.weights[rows]


def _errors(outcome: Outcome) -> Floats:
    return outcome.predictions - outcome.targets


def squared(outcome: Outcome) -> Floats:
    """[N, 1]: squared error, the mean over a row's outputs."""
    return np.square(_errors(outcome)).mean(axis=1, keepdims=True)


def root(means: Floats) -> Floats:
    """Return the root of the only mean."""
    return np.sqrt(means[..., 0])


def absolute(outcome: Outcome) -> Floats:
    """[N, 1]: absolute error, the mean over a row's outputs."""
    return np.abs(_errors(outcome)).mean(axis=1, keepdims=True)


def variance_terms(outcome: Outcome) -> RowStatistics:
    """[N, 2 + T]: squared error, squared centred target, the T centred targets."""
    middle = np.average(outcome.targets, axis=0, weights=outcome.weights)

    def terms(rows: Ints) -> Floats:
        centred = outcome.targets[rows] - middle
        error = outcome.predictions[rows] - outcome.targets[rows]
        pooled = [np.square(one).sum(axis=1, keepdims=True) for one in (error, centred)]
        return np.concatenate([*pooled, centred], axis=1)

    return terms


def explained(means: Floats) -> Floats:
    """1 - residual / total variance, pooled over outputs so that a constant one does no harm."""
    total = means[..., 1] - np.square(means[..., 2:]).sum(axis=-1)
    residual = np.divide(means[..., 0], total, out=np.full_like(total, np.nan), where=total > 0)
    return 1 - residual


def largest(outcome: Outcome) -> float:
    """Return the largest absolute error of any output of any row."""
    return float(np.abs(_errors(outcome)).max())
