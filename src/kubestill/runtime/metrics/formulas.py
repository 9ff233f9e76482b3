"""The formulas of the scores: a mean of per-row columns, followed by a short expression.

Accuracy is the mean of one column; macro F1 is 2 tp / (predicted + actual) over two columns a
class. Resampling rows therefore only reweights the columns, and a bootstrap costs one matrix
product.
`tests/unit/metrics` holds every formula against scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kubestill.runtime.metrics.outcome import Floats, Ints, Outcome

RowStatistics = Callable[[Ints], Floats]
"""[n] row indices → [n, C] columns. A function: the columns of a million rows may not fit in
memory."""

CALIBRATION_BINS = 15
"""Equal-width bins of the expected calibration error (Guo et al. 2017)."""

RANK_BINS = 128
"""Score quantiles among which a resampled AUC is counted; the point estimate is exact."""


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
    """Return the expected calibration error from the mean gaps of the bins."""
    return np.abs(means).sum(axis=-1)


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


def rank_counts(outcome: Outcome) -> RowStatistics:
    """[N, 2 bins]: one-hot score bin of the negatives, then of the positives."""
    margin = outcome.predictions[:, 1] - outcome.predictions[:, 0]
    edges = np.unique(np.quantile(margin, np.linspace(0, 1, RANK_BINS + 1)[1:-1]))
    columns = np.searchsorted(edges, margin, side="left") + outcome.targets * RANK_BINS

    def counts(rows: Ints) -> Floats:
        found = np.zeros((len(rows), 2 * RANK_BINS))
        found[np.arange(len(rows)), columns[rows]] = 1
        return found

    return counts


def binned_auc(means: Floats) -> Floats:
    """P(score of a positive > score of a negative); ties within a bin count half."""
    negatives, positives = np.split(means, 2, axis=-1)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    pairs = negatives.sum(axis=-1) * positives.sum(axis=-1)
    won = (positives * below).sum(axis=-1)
    return np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0)


def exact_auc(outcome: Outcome) -> float:
    """Return the AUC without bins; NaN where only one class occurs."""
    if len(np.unique(outcome.targets)) < 2:
        return float("nan")
    from sklearn.metrics import roc_auc_score

    margin = outcome.predictions[:, 1] - outcome.predictions[:, 0]
    return float(roc_auc_score(outcome.targets, margin))


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
    middle = outcome.targets.mean(axis=0)

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
