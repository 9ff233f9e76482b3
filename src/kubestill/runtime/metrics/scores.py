"""The scores of each task, built so that a bootstrap over rows costs one matrix product.

A metric is a mean of per-row statistics followed by a small formula: accuracy is the mean of one
column, macro F1 the formula 2 tp / (predicted + actual) over two columns a class. Whoever
resamples rows therefore only reweights those columns; `tests/unit/evaluation` holds every formula
against scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.metrics.outcome import Floats, Ints, Outcome

RowStatistics = Callable[[Ints], Floats]

__all__ = ["METRICS", "PRIMARY", "Metric", "losses", "metrics_of", "score"]

CALIBRATION_BINS = 15
"""Equal-width bins of the expected calibration error (Guo et al. 2017)."""

RANK_BINS = 128
"""Score quantiles among which a resampled AUC is counted; the point estimate is exact."""


CHUNK_ROWS = 16_384
"""Rows whose columns are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of a model on labelled rows."""

    name: str
    title: str
    """How a person writes it."""
    better: Literal["higher", "lower"]
    bounds: tuple[float, float]
    """The values it can take at all."""
    statistics: Callable[[Outcome], RowStatistics] | None
    """Outcome → function of [n] row indices → [n, C] columns; None where resampling rows says
    nothing (a maximum). A function, because the columns of a million rows may not fit in memory."""
    value: Callable[[Floats], Floats]
    """[..., C] means of those columns → [...] scores."""
    exact: Callable[[Outcome], float] | None = None
    """The point estimate, where the columns only approximate it."""

    def sums(self, outcome: Outcome, order: Ints, groups: int) -> Floats:
        """Return the [groups, C] sums of the columns over equal runs of the [N] rows in `order`."""
        assert self.statistics is not None
        columns = self.statistics(outcome)
        starts = np.arange(groups + 1) * len(order) // groups
        step = max(1, CHUNK_ROWS * groups // max(1, len(order)))
        return np.concatenate(
            [
                np.add.reduceat(
                    columns(order[starts[first] : starts[min(first + step, groups)]]),
                    starts[first : min(first + step, groups)] - starts[first],
                    axis=0,
                )
                for first in range(0, groups, step)
            ]
        )

    def mean(self, outcome: Outcome) -> Floats:
        """Return the [C] means of the columns over all rows."""
        groups = -(-outcome.rows // CHUNK_ROWS)
        return self.sums(outcome, np.arange(outcome.rows), groups).sum(axis=0) / outcome.rows

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.better == "higher" else -1


def metrics_of(task: Task) -> dict[str, Metric]:
    """Return the metrics of a task by name, the most telling first."""
    return METRICS[task]


def score(outcome: Outcome) -> dict[str, float]:
    """Return every metric of the outcome's task; NaN where an answer was not finite."""
    return {metric.name: point(metric, outcome) for metric in metrics_of(outcome.task).values()}


def point(metric: Metric, outcome: Outcome) -> float:
    """Return one metric of the whole outcome."""
    if not outcome.rows or not outcome.finite.all():
        return float("nan")
    if metric.exact is not None:
        return metric.exact(outcome)
    return float(metric.value(metric.mean(outcome)))


def losses(outcome: Outcome) -> Floats:
    """Return the [N] loss of each row: negative log-likelihood (nats), or squared error over T."""
    if outcome.task == "regression":
        return np.square(_errors(outcome)).mean(axis=1)
    return -outcome.predictions[np.arange(outcome.rows), outcome.targets]


def _rowwise(columns: Callable[[Outcome], Floats]) -> Callable[[Outcome], RowStatistics]:
    """Turn [N, C] columns in which each row stands for itself into statistics of any rows."""
    return lambda outcome: lambda rows: columns(outcome.take(rows))


def _first(means: Floats) -> Floats:
    return means[..., 0]


def _log_loss(outcome: Outcome) -> Floats:
    return losses(outcome)[:, None]


def _accuracy(outcome: Outcome) -> Floats:
    return (outcome.labels == outcome.targets).astype(np.float64)[:, None]


def _brier(outcome: Outcome) -> Floats:
    return np.square(outcome.probabilities[:, 1] - outcome.targets)[:, None]


def _calibration_gaps(outcome: Outcome) -> Floats:
    """[N, bins]: confidence minus hit, in the column of the row's confidence bin."""
    confidence, hit = confidences(outcome)
    gaps = np.zeros((outcome.rows, CALIBRATION_BINS))
    gaps[np.arange(outcome.rows), bin_of(confidence)] = confidence - hit
    return gaps


def confidences(outcome: Outcome) -> tuple[Floats, Floats]:
    """Return [N] stated probability and [N] whether it came true.

    Binary tasks state the probability of the second class, multiclass ones that of their favourite.
    """
    probabilities = outcome.probabilities
    if outcome.task == "binary":
        return probabilities[:, 1], outcome.targets.astype(np.float64)
    return probabilities.max(axis=1), (outcome.labels == outcome.targets).astype(np.float64)


def bin_of(confidence: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the [N] calibration bin of each [N] probability."""
    return np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def _sum_of_absolutes(means: Floats) -> Floats:
    return np.abs(means).sum(axis=-1)


def _f1_counts(outcome: Outcome) -> Floats:
    """[N, 2K]: true positives of each class, then predicted plus actual."""
    rows, classes = np.arange(outcome.rows), outcome.predictions.shape[1]
    hits = np.zeros((outcome.rows, classes))
    either = np.zeros((outcome.rows, classes))
    hits[rows, outcome.targets] = outcome.labels == outcome.targets
    either[rows, outcome.targets] += 1
    either[rows, outcome.labels] += 1
    return np.concatenate([hits, either], axis=1)


def _macro_f1(means: Floats) -> Floats:
    """Average over the classes that occur among targets or predictions, as scikit-learn does."""
    hits, either = np.split(means, 2, axis=-1)
    present = either > 0
    f1 = np.divide(2 * hits, either, out=np.zeros_like(hits), where=present)
    return f1.sum(axis=-1) / present.sum(axis=-1)


def _rank_counts(outcome: Outcome) -> RowStatistics:
    """[N, 2 bins]: one-hot score bin of the negatives, then of the positives."""
    margin = outcome.predictions[:, 1] - outcome.predictions[:, 0]
    edges = np.unique(np.quantile(margin, np.linspace(0, 1, RANK_BINS + 1)[1:-1]))
    columns = np.searchsorted(edges, margin, side="left") + outcome.targets * RANK_BINS

    def counts(rows: Ints) -> Floats:
        found = np.zeros((len(rows), 2 * RANK_BINS))
        found[np.arange(len(rows)), columns[rows]] = 1
        return found

    return counts


def _binned_auc(means: Floats) -> Floats:
    """P(score of a positive > score of a negative); ties within a bin count half."""
    negatives, positives = np.split(means, 2, axis=-1)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    pairs = negatives.sum(axis=-1) * positives.sum(axis=-1)
    won = (positives * below).sum(axis=-1)
    return np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0)


def _exact_auc(outcome: Outcome) -> float:
    if len(np.unique(outcome.targets)) < 2:
        return float("nan")
    from sklearn.metrics import roc_auc_score

    margin = outcome.predictions[:, 1] - outcome.predictions[:, 0]
    return float(roc_auc_score(outcome.targets, margin))


def _errors(outcome: Outcome) -> Floats:
    return outcome.predictions - outcome.targets


def _squared(outcome: Outcome) -> Floats:
    return np.square(_errors(outcome)).mean(axis=1, keepdims=True)


def _root(means: Floats) -> Floats:
    return np.sqrt(means[..., 0])


def _absolute(outcome: Outcome) -> Floats:
    return np.abs(_errors(outcome)).mean(axis=1, keepdims=True)


def _variance_terms(outcome: Outcome) -> RowStatistics:
    """[N, 2 + T]: squared error, squared centred target, the T centred targets."""
    middle = outcome.targets.mean(axis=0)

    def terms(rows: Ints) -> Floats:
        centred = outcome.targets[rows] - middle
        error = outcome.predictions[rows] - outcome.targets[rows]
        pooled = [np.square(one).sum(axis=1, keepdims=True) for one in (error, centred)]
        return np.concatenate([*pooled, centred], axis=1)

    return terms


def _explained(means: Floats) -> Floats:
    """1 - residual / total variance, pooled over outputs so that a constant one does no harm."""
    total = means[..., 1] - np.square(means[..., 2:]).sum(axis=-1)
    residual = np.divide(means[..., 0], total, out=np.full_like(total, np.nan), where=total > 0)
    return 1 - residual


def _largest(outcome: Outcome) -> float:
    return float(np.abs(_errors(outcome)).max())


_ANY = float("inf")
_LOG_LOSS = Metric(
    name="log_loss",
    title="log loss",
    better="lower",
    bounds=(0, _ANY),
    statistics=_rowwise(_log_loss),
    value=_first,
)
_ACCURACY = Metric(
    name="accuracy",
    title="accuracy",
    better="higher",
    bounds=(0, 1),
    statistics=_rowwise(_accuracy),
    value=_first,
)
_ECE = Metric(
    name="ece",
    title="calibration error",
    better="lower",
    bounds=(0, 1),
    statistics=_rowwise(_calibration_gaps),
    value=_sum_of_absolutes,
)
_MACRO_F1 = Metric(
    name="macro_f1",
    title="macro F1",
    better="higher",
    bounds=(0, 1),
    statistics=_rowwise(_f1_counts),
    value=_macro_f1,
)
_AUC = Metric(
    name="auc",
    title="AUC",
    better="higher",
    bounds=(0, 1),
    statistics=_rank_counts,
    value=_binned_auc,
    exact=_exact_auc,
)
_BRIER = Metric(
    name="brier",
    title="Brier score",
    better="lower",
    bounds=(0, 1),
    statistics=_rowwise(_brier),
    value=_first,
)
_RMSE = Metric(
    name="rmse",
    title="RMSE",
    better="lower",
    bounds=(0, _ANY),
    statistics=_rowwise(_squared),
    value=_root,
)
_MAE = Metric(
    name="mae",
    title="MAE",
    better="lower",
    bounds=(0, _ANY),
    statistics=_rowwise(_absolute),
    value=_first,
)
_R2 = Metric(
    name="r2",
    title="R²",
    better="higher",
    bounds=(-_ANY, 1),
    statistics=_variance_terms,
    value=_explained,
)
_MAX_ERROR = Metric(
    name="max_error",
    title="largest error",
    better="lower",
    bounds=(0, _ANY),
    statistics=None,
    value=_first,
    exact=_largest,
)


def _named(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS: dict[Task, dict[str, Metric]] = {
    "regression": _named(_RMSE, _MAE, _R2, _MAX_ERROR),
    "binary": _named(_ACCURACY, _LOG_LOSS, _AUC, _BRIER, _ECE),
    "multiclass": _named(_ACCURACY, _LOG_LOSS, _MACRO_F1, _ECE),
}

PRIMARY: dict[Task, str] = {"regression": "rmse", "binary": "log_loss", "multiclass": "log_loss"}
"""What a decision is taken on unless told otherwise: proper scores, the most powerful ones."""
