"""Every metric that is measured anywhere, and which ones each task uses: the only place that knows.

A new metric is one entry of `METRICS`, and its name in `TASKS` where a task uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kubestill.errors import InvalidInput, Problem, nearest
from kubestill.runtime.metrics import formulas
from kubestill.runtime.metrics.formulas import RowStatistics, rowwise
from kubestill.runtime.metrics.outcome import Floats, Ints, Outcome

Direction = Literal["min", "max"]

CHUNK_ROWS = 16_384
"""Rows whose columns are in memory at a time."""

_ANY = float("inf")


@dataclass(frozen=True, kw_only=True)
class Link:
    """A scale on which the noise of a score does not depend on the score, as far as possible."""

    to: Callable[[float], float] = float
    back: Callable[[float], float] = float
    slope: Callable[[float], float] = lambda value: 1.0
    """Derivative of `to`."""
    skewed: bool = True
    """Whether noise is skewed on it as much as the influences of the rows are."""


LINEAR = Link()
SQUARE = Link(
    to=lambda value: value**2, back=lambda x: max(0.0, x) ** 0.5, slope=lambda value: 2 * value
)
"""Of roots: their squares are the means."""
LOGIT = Link(
    to=lambda value: math.log(value / (1 - value)),
    back=lambda x: 1 / (1 + math.exp(-x)),
    slope=lambda value: 1 / (value * (1 - value)),
    skewed=False,
)
REST = Link(
    to=lambda value: math.log(1 - value),
    back=lambda x: 1 - math.exp(x),
    slope=lambda value: -1 / (1 - value),
    skewed=False,
)
"""Of what is 1 less a ratio of variances."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of a model on labelled rows."""

    name: str
    title: str
    """How a person writes it."""
    direction: Direction
    """Whether the smallest or the largest value is best."""
    unit: Literal["number", "share"] = "number"
    """`share`: people read it in percent."""
    bounds: tuple[float, float] = (0, _ANY)
    """The values it can take at all."""
    proportion: bool = False
    """Whether it counts rows that are right or wrong, so that its interval is Wilson's."""
    link: Link = LINEAR
    """The scale of its interval."""
    statistics: Callable[[Outcome], RowStatistics] | None = None
    """Outcome → function of [n] row indices → [n, C] columns; None where it is no function of means
    (a maximum, or ranks), or no evaluation measures it."""
    value: Callable[[Floats], Floats] = formulas.first
    """[..., C] means of those columns → [...] scores."""
    exact: Callable[[Outcome], float] | None = None
    """The point estimate, where it is not `value` of the means of those columns."""
    own_influences: Callable[[Outcome], Floats] | None = None
    """Outcome → [N] influences, where they are not those of the columns."""
    range: Callable[[Outcome, Ints | None, float], tuple[float, float]] | None = None
    """Outcome, [N] groups and confidence → bounds, where influences give no interval."""

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.direction == "max" else -1

    @property
    def has_error(self) -> bool:
        """Whether rows have an influence on it, so that its noise and differences are known."""
        return self.statistics is not None or self.own_influences is not None

    @property
    def decides(self) -> bool:
        """Whether an improvement in it has an interval, so that a decision can rest on it."""
        return self.has_error and self.range is None

    def shortfall(self, value: float) -> float:
        """Return how far `value` is from perfect; from zero where nothing is perfect.

        The part of R² or of an accuracy that is left to gain, and the whole of an error: a share of
        it means the same in any metric.
        """
        perfect = self.bounds[self.direction == "max"]
        return abs(value - perfect) if np.isfinite(perfect) else abs(value)

    def mean(self, outcome: Outcome) -> Floats:
        """Return the [C] means of the columns over all rows, by their weights."""
        assert self.statistics is not None
        columns, weights = self.statistics(outcome), outcome.weights
        total = np.float64(0)
        for rows in _chunks(outcome.rows):
            chunk = columns(rows)
            total = total + (chunk.sum(axis=0) if weights is None else weights[rows] @ chunk)
        return np.asarray(total) / (outcome.rows if weights is None else weights.sum())

    def influences(self, outcome: Outcome) -> Floats:
        """Return how much each row moves the score: [N] with mean zero, in its unit.

        The derivative of the score by the means of the columns, times how far each row's columns
        are from them (Hampel 1974), times its weight.
        """
        if self.own_influences is not None:
            return self.own_influences(outcome)
        assert self.statistics is not None
        columns, means, shares = self.statistics(outcome), self.mean(outcome), outcome.shares
        chunks = [columns(rows) for rows in _chunks(outcome.rows)]
        pieces = [shares[rows] for rows in _chunks(outcome.rows)]
        pairs = list(zip(pieces, chunks, strict=True))
        widths = np.sqrt(
            sum(piece @ np.square(chunk - means) for piece, chunk in pairs) / outcome.rows
        )
        steps = np.diag(1e-4 * widths)
        with np.errstate(invalid="ignore"):
            rise = self.value(means + steps) - self.value(means - steps)
        slopes = np.divide(rise, 2e-4 * widths, out=np.zeros_like(widths), where=widths > 0)
        return np.concatenate([piece * ((chunk - means) @ slopes) for piece, chunk in pairs])


def _chunks(rows: int) -> list[Ints]:
    starts = range(0, rows, CHUNK_ROWS)
    return [np.arange(start, min(start + CHUNK_ROWS, rows)) for start in starts]


TRAIN_LOSS = "train_loss"
"""What a milestone calls the loss of the steps before it."""

_ALL = (
    Metric(name="max_error", title="largest error", direction="min", exact=formulas.largest),
    Metric(
        name="error_rate",
        title="error rate",
        direction="min",
        unit="share",
        bounds=(0, 1),
        proportion=True,
        statistics=rowwise(formulas.misses),
    ),
    Metric(
        name="rmse",
        title="RMSE",
        direction="min",
        statistics=rowwise(formulas.squared),
        value=formulas.root,
        link=SQUARE,
    ),
    Metric(name="mae", title="MAE", direction="min", statistics=rowwise(formulas.absolute)),
    Metric(
        name="r2",
        title="R²",
        direction="max",
        bounds=(-_ANY, 1),
        statistics=formulas.variance_terms,
        value=formulas.explained,
        link=REST,
    ),
    Metric(
        name="accuracy",
        title="accuracy",
        direction="max",
        unit="share",
        bounds=(0, 1),
        proportion=True,
        statistics=rowwise(formulas.hits),
    ),
    Metric(
        name="log_loss",
        title="log loss",
        direction="min",
        statistics=rowwise(formulas.log_loss),
    ),
    Metric(
        name="auc",
        title="AUC",
        direction="max",
        bounds=(0, 1),
        exact=formulas.auc,
        own_influences=formulas.auc_influences,
        link=LOGIT,
    ),
    Metric(
        name="brier",
        title="Brier score",
        direction="min",
        bounds=(0, 1),
        statistics=rowwise(formulas.brier),
    ),
    Metric(
        name="ece",
        title="calibration error",
        direction="min",
        bounds=(0, 1),
        statistics=rowwise(formulas.calibration_gaps),
        value=formulas.sum_of_absolutes,
        exact=formulas.calibration_error,
        range=formulas.calibration_range,
    ),
    Metric(
        name="macro_f1",
        title="macro F1",
        direction="max",
        unit="share",
        bounds=(0, 1),
        statistics=rowwise(formulas.f1_counts),
        value=formulas.macro_f1,
        link=LOGIT,
    ),
    Metric(
        name="mean_error",
        title="mean error",
        direction="min",
        statistics=rowwise(formulas.absolute),
    ),
    Metric(name="loss", title="loss", direction="min"),
    Metric(name=TRAIN_LOSS, title="training loss", direction="min"),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""By name, the most telling first."""

BIAS = Metric(name="bias", title="calibration bias", direction="min", bounds=(0, 1))
"""How far stated probabilities are off on average, at the worst class. It alone shows a champion
that has become wrong in a month that is easier than the one it was promoted in. No score to decide
on or to choose by, so it is not among `METRICS`."""

_HEADLINES = ("max_error", "error_rate", "accuracy", "r2", "rmse", "log_loss", "loss")


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """Which metrics one task uses, by name."""

    scored: tuple[str, ...]
    """What an evaluation scores; people read the first one off first."""
    primary: str
    """A proper score, the most powerful one: decides, stops early and chooses by default."""
    validated: tuple[str, ...]
    """What training follows on validation rows."""
    enumerated: tuple[str, ...]
    """What training follows where its rows are the whole domain; the first by default."""
    watched: tuple[str, ...]
    """What a champion is watched by: a proper score, and one that does not move when only the mix
    of labels does."""


TASKS: Mapping[str, TaskMetrics] = {
    "regression": TaskMetrics(
        scored=("rmse", "mae", "r2", "max_error"),
        primary="rmse",
        validated=("rmse", "mae", "r2"),
        enumerated=("max_error", "mean_error", "rmse"),
        watched=("rmse", "r2"),
    ),
    "binary": TaskMetrics(
        scored=("accuracy", "log_loss", "auc", "brier", "ece"),
        primary="log_loss",
        validated=("log_loss", "accuracy"),
        enumerated=("error_rate", "log_loss"),
        watched=("log_loss", "auc"),
    ),
    "multiclass": TaskMetrics(
        scored=("accuracy", "log_loss", "macro_f1", "ece"),
        primary="log_loss",
        validated=("log_loss", "accuracy"),
        enumerated=("error_rate", "log_loss"),
        watched=("log_loss", "accuracy"),
    ),
}

_SPLITS = ("validation", "valid", "val", "train", "test", "eval", "golden", "fresh", "holdout")


def metrics_of(task: str) -> dict[str, Metric]:
    """Return the metrics that an evaluation of this task scores, the most telling first."""
    return {name: METRICS[name] for name in TASKS[task].scored}


def find_metric(name: str) -> Metric:
    """Return the metric of a name as people write it.

    Case, `-`, and a leading split name (`val_loss`, `validation/accuracy`) make no difference.

    Raises:
        InvalidInput: There is none; the remedy lists the nearest ones.
    """
    bare = name.strip().lower().replace("-", "_").replace("/", "_").replace(".", "_")
    if bare not in METRICS:
        for split in _SPLITS:
            bare = bare.removeprefix(f"{split}_")
    if bare not in METRICS:
        remedy = "is not a known metric, so whether lower or higher is better is open; "
        raise InvalidInput([Problem("metric", name, remedy + nearest(bare, METRICS))])
    return METRICS[bare]


def direction(name: str) -> Direction:
    """Return whether the smallest or the largest value of a metric is best.

    Raises:
        InvalidInput: There is no such metric; the remedy lists the nearest ones.
    """
    return find_metric(name).direction


def resolve_direction(
    name: str, mode: Literal["auto", "min", "max"], *, field: str = "mode"
) -> Direction:
    """Return the direction of a metric; `mode` decides only where the catalog does not know it.

    Args:
        name: Of the metric.
        mode: What the user set; `auto` leaves it to the catalog.
        field: The setting that `mode` comes from, for the message.

    Raises:
        InvalidInput: The metric is not known and `mode` is `auto`, or `mode` contradicts what is
            known: it would choose or keep the worst.
    """
    if mode == "auto":
        return direction(name)
    try:
        known = direction(name)
    except InvalidInput:
        return mode
    if known != mode:
        best = "smallest" if known == "min" else "largest"
        remedy = f"contradicts {name}, whose {best} value is the best; use 'auto', or '{known}'"
        raise InvalidInput([Problem(field, mode, remedy)])
    return known


def headline_metric(names: Collection[str]) -> Metric | None:
    """Return which of these metrics a sentence should quote; None where there is none to quote."""
    return next((METRICS[name] for name in _HEADLINES if name in names), None)


def score(outcome: Outcome) -> dict[str, float]:
    """Return every metric of the outcome's task; NaN where an answer was not finite."""
    return {name: point(metric, outcome) for name, metric in metrics_of(outcome.task).items()}


def point(metric: Metric, outcome: Outcome) -> float:
    """Return one metric of the whole outcome."""
    if not outcome.rows or not outcome.finite.all():
        return float("nan")
    if metric.exact is not None:
        return metric.exact(outcome)
    return float(metric.value(metric.mean(outcome)))
