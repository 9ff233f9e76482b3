"""Paired bootstrap over rows: every model is scored on the same resampled rows.

Efron & Tibshirani 1993, ch. 13 (percentile intervals). The rows are resampled, not the training,
so an interval speaks of these models on rows like these; it does not say what another training
seed would give.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from kubestill.runtime.metrics.catalog import METRICS, Metric, metrics_of, point
from kubestill.runtime.metrics.outcome import Floats, Ints, Outcome

__all__ = ["Bootstrap", "Interval", "bootstrap", "paired_error"]

GROUPS = 4096
"""Above this many rows, random groups of rows are resampled instead: same width, bounded cost."""

CHUNK = 128
"""Resamples drawn at a time; bounds memory."""


@dataclass(frozen=True)
class Interval:
    """A value and the range that its sampling noise covers; NaN bounds where none is defined."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def known(self) -> bool:
        """Whether value and bounds are all numbers."""
        return bool(np.isfinite([self.value, self.low, self.high]).all())


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Scores of several models on the same rows, and on every resampling of them."""

    outcomes: Mapping[str, Outcome]
    points: Mapping[str, Mapping[str, float]]
    """Model → metric → score on the rows themselves."""
    samples: Mapping[str, Mapping[str, Floats]]
    """Model → metric → [R] scores, paired across models; absent where resampling says nothing."""
    confidence: float

    def interval(self, model: str, metric: str, confidence: float | None = None) -> Interval:
        """Return a model's score with its interval."""
        value = self.points[model][metric]
        if METRICS[metric].proportion and np.isfinite(value):
            from scipy.stats import binomtest  # a second to import, and few steps need it

            # A perfect score resamples to itself, an interval of no width; Wilson's has one.
            outcome = self.outcomes[model]
            trial = binomtest(round(value * outcome.rows), outcome.rows)
            range_ = trial.proportion_ci(confidence or self.confidence, method="wilson")
            return Interval(value, float(range_.low), float(range_.high))
        return self._percentiles(value, self.samples[model].get(metric), confidence)

    def improvement(
        self, model: str, other: str, metric: Metric, confidence: float | None = None
    ) -> Interval:
        """Return how much better `model` is than `other`: positive is better in any metric."""
        value = metric.sign * (self.points[model][metric.name] - self.points[other][metric.name])
        if metric.name not in self.samples[model] or metric.name not in self.samples[other]:
            return Interval(value)
        mine, theirs = self.samples[model][metric.name], self.samples[other][metric.name]
        return self._percentiles(value, metric.sign * (mine - theirs), confidence)

    def recovered_gap(self, student: str, control: str, teacher: str, metric: Metric) -> Interval:
        """Return (student - control) / (teacher - control): 1 is all that the teacher adds.

        The bounds are NaN where the teacher's lead over the control is itself within noise, and
        the value too where there is no lead.
        """
        lead = self.improvement(teacher, control, metric)
        if not lead.value > 0:
            return Interval(float("nan"))
        value = self.improvement(student, control, metric).value / lead.value
        if not lead.low > 0:
            return Interval(value)
        scores = {name: self.samples[name][metric.name] for name in (student, control, teacher)}
        gain, whole = scores[student] - scores[control], scores[teacher] - scores[control]
        ratio = np.divide(gain, whole, out=np.full_like(gain, np.nan), where=whole != 0)
        return self._percentiles(value, ratio, None)

    def _percentiles(
        self, value: float, samples: Floats | None, confidence: float | None
    ) -> Interval:
        if samples is None or not np.isfinite(value):
            return Interval(value)
        tail = (1 - (confidence or self.confidence)) / 2
        low, high = np.nanquantile(samples, [tail, 1 - tail])
        # A resample's calibration error is biased upwards, and may miss its own point estimate.
        return Interval(value, min(float(low), value), max(float(high), value))


def paired_error(first: Floats, second: Floats) -> float:
    """Return the standard error of the difference of two scores on the same rows.

    Where a score is the mean of a loss by row, this is the standard deviation of the differences by
    row over the square root of their number; resampling gives it for any other score, too.

    Args:
        first: [R] scores of one model on resamplings of the rows.
        second: [R] scores of the other on the same resamplings: drawn by the same seed.
    """
    # A resample without a score, such as an AUC of one class, says nothing of the difference.
    return float(np.nanstd(first - second, ddof=1))


def bootstrap(
    outcomes: Mapping[str, Outcome],
    *,
    only: Collection[str] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Score every model on `resamples` random resamplings of their common rows.

    Args:
        outcomes: Name → outcome; all of the same rows in the same order.
        only: Metrics to resample; None resamples all of the task.
        resamples: How many; 2,000 settle a 95% bound to about a tenth of the interval's width.
        confidence: Of the two-sided intervals.
        seed: The same seed gives the same intervals.
    """
    points: dict[str, dict[str, float]] = {}
    columns: dict[str, dict[str, Floats]] = {}
    generator = np.random.Generator(np.random.Philox(seed))
    order = generator.permutation(next(iter(outcomes.values())).rows)
    groups = min(len(order), GROUPS)
    for name, outcome in outcomes.items():
        metrics = metrics_of(outcome.task).values()
        points[name] = {metric.name: point(metric, outcome) for metric in metrics}
        columns[name] = {
            metric.name: metric.sums(outcome, order, groups)
            for metric in metrics
            if (only is None or metric.name in only)
            and metric.statistics
            and np.isfinite(points[name][metric.name])
        }
    sizes = np.diff(np.arange(groups + 1) * len(order) // groups)[:, None]
    samples = _resample(outcomes, columns, sizes, resamples, generator)
    return Bootstrap(outcomes=outcomes, points=points, samples=samples, confidence=confidence)


def _resample(
    outcomes: Mapping[str, Outcome],
    columns: Mapping[str, Mapping[str, Floats]],
    sizes: Ints,
    resamples: int,
    generator: np.random.Generator,
) -> dict[str, dict[str, Floats]]:
    """Return model → metric → [R] scores; `sizes` [G, 1] counts the rows of each group."""
    groups = len(sizes)
    samples: dict[str, dict[str, list[Floats]]] = {
        name: {metric: [] for metric in own} for name, own in columns.items()
    }
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        drawn = generator.integers(0, groups, size=(count, groups))
        drawn += np.arange(count)[:, None] * groups
        weights = np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups)
        weights = weights.astype(np.float64)
        weights /= weights @ sizes
        for name, own in columns.items():
            for metric, statistics in own.items():
                samples[name][metric].append(METRICS[metric].value(weights @ statistics))
    return {
        name: {metric: np.concatenate(chunks) for metric, chunks in own.items()}
        for name, own in samples.items()
    }
