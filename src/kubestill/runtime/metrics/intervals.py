"""How sure scores and their differences are: intervals from the influence of each row.

A score is a smooth function of means by row, so each row moves it by a known amount, its influence.
Their variance gives the standard error, and their skewness corrects the interval where few rows
carry the score, as few positives do a log loss (Hall 1992, "On the removal of skewness by
transformation"). Two models are compared by the differences of their influences, row by row. Rows
of one group, such as a customer, move together: their influences are added first (Obuchowski
1997). Shares of right answers have Wilson's interval, and their differences that of Agresti & Min
2005, which know that models which err alike on these rows need not do so on others.

Where too few rows carry a score there is no interval: `bench/bench_truth.py` measures that those
which are given cover what they say. They speak of these models on rows like these; they do not say
what another training seed would give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import counted
from kubestill.runtime.metrics.catalog import METRICS, Metric, metrics_of, point
from kubestill.runtime.metrics.outcome import Floats, Ints, Outcome

EVENTS = 10
"""Rows outside of the most frequent class, or groups that have such rows, below which scores of a
classification have no interval."""

CARRIERS = 2
"""Rows that must carry a difference: the number of rows over the kurtosis of their influences. It
is about the number of events where events carry it, and N / 3 for normal noise."""

LEAST_GROUPS = 40
"""Groups below which the noise between them is not known well enough."""

PAIRED = 0.5
"""Part of the skewness that is corrected for in a difference of two models. Where they differ in
events of one kind all of it is real; where they differ at random none is, and few events look as if
it were. With half of it both cover."""

FEW = 5
"""Rows that are right, or wrong, below which the interval of a share is the exact one."""


@dataclass(frozen=True)
class Interval:
    """A value and the range that its sampling noise covers; NaN bounds where none is known."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def known(self) -> bool:
        """Whether value and bounds are all numbers."""
        return bool(np.isfinite([self.value, self.low, self.high]).all())


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is known of [G] influences when they are gone; their mean is zero."""

    groups: int
    second: float
    """Sum of squares."""
    third: float
    """Sum of cubes, over `second` to the power of 1.5: powers of tiny influences underflow."""
    fourth: float
    """Sum of fourth powers, over the square of `second`."""

    @classmethod
    def of(cls, influence: Floats) -> Moments:
        """Add them up."""
        second = float(np.square(influence).sum())
        if second == 0:
            return cls(groups=len(influence), second=0.0, third=0.0, fourth=0.0)
        unit = influence / math.sqrt(second)
        third, fourth = float((unit**3).sum()), float((unit**4).sum())
        return cls(groups=len(influence), second=second, third=third, fourth=fourth)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Sampling noise of a score or a difference."""

    error: float
    """Standard error."""
    skew: float
    """Skewness of the score itself: that of one group over the root of their number."""
    carriers: float
    """Rows or groups that carry it."""
    groups: int

    @classmethod
    def of(cls, influence: Floats, *, skewness: float = 1.0) -> Spread:
        """Measure the spread from the [G] influences of independent groups.

        Args:
            influence: With mean zero.
            skewness: Part of the skewness that is corrected for.
        """
        return cls.together([Moments.of(influence)], skewness=skewness)

    @classmethod
    def together(cls, parts: Sequence[Moments], *, skewness: float = 1.0) -> Spread:
        """Measure the spread of the mean over several sets of groups from the moments of each."""
        groups = sum(part.groups for part in parts)
        second = sum(part.second for part in parts)
        if groups < 2 or second == 0:
            return cls(error=0.0, skew=0.0, carriers=math.inf, groups=groups)
        shares = [part.second / second for part in parts]
        third = sum(part.third * share**1.5 for part, share in zip(parts, shares, strict=True))
        fourth = sum(part.fourth * share**2 for part, share in zip(parts, shares, strict=True))
        return cls(
            error=math.sqrt(second / (groups * (groups - 1))),
            skew=skewness * third,
            carriers=1 / fourth,
            groups=groups,
        )

    def above(self, excess: float) -> float:
        """Return the p-value of a score that exceeds a limit by `excess`, by chance alone."""
        from scipy.special import stdtr

        if not self.error:
            return float(excess <= 0)
        t, skew = excess / self.error, self.skew
        straight = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
        return float(stdtr(self._freedom(skew), -straight))

    def _freedom(self, skew: float) -> float:
        """Return the degrees of freedom of the standard error, by its own noise (Satterthwaite).

        The part of that noise which goes with the score's is what removing its skewness takes care
        of: a few events make both large. G - 1 for normal noise.
        """
        excess = 1 / self.carriers - 1 / self.groups - skew**2
        return min(self.groups - 1, 2 / excess) if excess > 0 else self.groups - 1

    def range(self, value: float, confidence: float, *, skewed: bool = True) -> tuple[float, float]:
        """Return the two-sided interval about `value`."""
        from scipy.special import stdtrit  # the module takes a while to import: few steps need it

        if not self.error:
            return value, value
        skew = self.skew if skewed else 0.0
        reach = float(stdtrit(self._freedom(skew), (1 + confidence) / 2))
        ends = (unskewed(reach, skew), unskewed(-reach, skew))
        return value - self.error * ends[0], value - self.error * ends[1]


def unskewed(reach: float, skew: float) -> float:
    """Return where Hall's transformation of a t statistic with this skewness is `reach`."""
    if abs(skew) < 1e-6:
        return reach
    return 3 / skew * (math.cbrt(1 + skew * (reach - skew / 6)) - 1)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Scores of several models on the same rows, and how sure they are."""

    outcomes: Mapping[str, Outcome]
    points: Mapping[str, Mapping[str, float]]
    """Model → metric → score."""
    confidence: float
    groups: Ints | None = None
    """[N] group of each row, from 0; None where each row stands for itself."""
    _influences: dict[tuple[str, str], Floats] = field(
        default_factory=dict[tuple[str, str], Floats], init=False, repr=False, compare=False
    )

    def interval(self, model: str, metric: str, confidence: float | None = None) -> Interval:
        """Return a model's score with its interval."""
        value, known = self.points[model][metric], METRICS[metric]
        confidence = confidence or self.confidence
        if not math.isfinite(value):
            return Interval(value)
        if known.proportion:
            return Interval(value, *self._share(model, known, value, confidence))
        if self.missing(model, known) or not known.has_error:
            return Interval(value)
        if known.range is not None:
            return Interval(value, *known.range(self.outcomes[model], self.groups, confidence))
        spread = self.spread(model, known)
        # An error of rounding alone is none: a score at its bound has no slope.
        if (not spread.error or value in known.bounds) and not known.link.skewed:
            # Perfect on these rows, as is a share of right answers whose rows are the events.
            rows = events(self.outcomes[model], self.groups)
            return Interval(value, *_share_of(value, rows, confidence))
        slope = known.link.slope(value)
        moved = Spread(
            error=abs(slope) * spread.error,
            skew=math.copysign(1, slope) * spread.skew,
            carriers=spread.carriers,
            groups=spread.groups,
        )
        ends = moved.range(known.link.to(value), confidence, skewed=known.link.skewed)
        low, high = sorted(known.link.back(end) for end in ends)
        return Interval(value, max(low, known.bounds[0]), min(high, known.bounds[1]))

    def improvement(
        self, model: str, other: str, metric: Metric, confidence: float | None = None
    ) -> Interval:
        """Return how much better `model` is than `other`: positive is better in any metric."""
        mine, theirs = (self.points[name][metric.name] for name in (model, other))
        # Equal scores differ by rounding: by 2e-16, which is no gain.
        value = 0.0 if math.isclose(mine, theirs, rel_tol=1e-12) else metric.sign * (mine - theirs)
        confidence = confidence or self.confidence
        if not math.isfinite(value) or self.missing(model, metric, other):
            return Interval(value)
        if not metric.decides:
            return Interval(value)
        difference = self.difference(model, other, metric)
        if metric.proportion:
            return Interval(
                value, *self._agresti_min(model, other, metric, difference, value, confidence)
            )
        spread = Spread.of(difference, skewness=PAIRED)
        return Interval(value, *spread.range(value, confidence, skewed=metric.link.skewed))

    def difference(self, model: str, other: str, metric: Metric) -> Floats:
        """Return the [G] influences of the groups on how much better `model` is than `other`."""
        return metric.sign * (self._influence(model, metric) - self._influence(other, metric))

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
        mine, low, high = (self._influence(name, metric) for name in (student, control, teacher))
        # The delta method: d (a / b) = (da - a / b db) / b.
        ratio = metric.sign * (mine - low - value * (high - low)) / lead.value
        return Interval(value, *Spread.of(ratio).range(value, self.confidence))

    def spread(self, model: str, metric: Metric) -> Spread:
        """Return the sampling noise of a model's score."""
        return Spread.of(self._influence(model, metric))

    def missing(self, model: str, metric: Metric, other: str = "") -> str:
        """Return in a sentence why the rows give a score no interval; empty where they do.

        Args:
            model: Whose score.
            metric: Which.
            other: Where the difference to this model is asked for.
        """
        if metric.proportion or not metric.has_error:
            return ""
        what = "row" if self.groups is None else "group"
        there = events(self.outcomes[model], self.groups)
        if there < EVENTS:
            return (
                f"{metric.title}: {counted(int(there), what)} outside of the most frequent class, "
                f"and at least {EVENTS} are needed; {EVENTS - int(there)} more."
            )
        moved = self._influence(model, metric)
        spread = Spread.of(moved - self._influence(other, metric) if other else moved)
        if self.groups is not None and spread.groups < LEAST_GROUPS:
            return (
                f"{metric.title}: {counted(spread.groups, what)}, and at least {LEAST_GROUPS} are "
                f"needed; {LEAST_GROUPS - spread.groups} more."
            )
        if other and spread.carriers < CARRIERS:
            return (
                f"{metric.title}: the difference rests on about "
                f"{counted(round(spread.carriers), what)}, and at least {CARRIERS} are needed."
            )
        return ""

    def _influence(self, model: str, metric: Metric) -> Floats:
        """Return the [G] influences of the groups on a score, in its unit."""
        key = model, metric.name
        if key not in self._influences:
            self._influences[key] = influences(self.outcomes[model], metric, self.groups)
        return self._influences[key]

    def _share(
        self, model: str, metric: Metric, value: float, confidence: float
    ) -> tuple[float, float]:
        rows = self.outcomes[model].rows
        if self.groups is None and self.outcomes[model].weights is None:
            return _share_of(value, rows, confidence)
        spread = self.spread(model, metric)
        # So many independent rows would scatter as much (Korn & Graubard 1998); where all rows
        # are alike nothing tells, and a group counts as one.
        alone = value * (1 - value)
        rows = min(rows, alone / spread.error**2) if spread.error else spread.groups
        return _share_of(value, rows, confidence)

    def _agresti_min(
        self,
        model: str,
        other: str,
        metric: Metric,
        difference: Floats,
        value: float,
        confidence: float,
    ) -> tuple[float, float]:
        """Return the interval of a difference of paired shares: half a row more of each kind.

        Args:
            model: One of the two.
            other: The other.
            metric: The share.
            difference: [G] influences on it.
            value: The difference.
            confidence: Two-sided.
        """
        from scipy.special import ndtri

        assert metric.statistics is not None
        mine, theirs = self.outcomes[model], self.outcomes[other]
        every = np.arange(mine.rows)
        # 1 or -1 where one of the two is right alone, 0 where they err alike.
        hits = (metric.statistics(mine)(every) - metric.statistics(theirs)(every))[:, 0]
        square = float(np.average(np.square(hits), weights=mine.weights))
        rows: float = len(hits)
        if self.groups is not None or mine.weights is not None:
            error = Spread.of(difference).error
            # As in `_share`: so many independent rows would scatter as much.
            rows = min(rows, (square - value**2) / error**2) if error else len(difference)
        mean = value * rows / (rows + 2)
        error = math.sqrt(((square * rows + 1) / (rows + 2) - mean**2) / (rows + 2))
        reach = float(ndtri((1 + confidence) / 2)) * error
        return max(-1.0, min(mean - reach, value)), min(1.0, max(mean + reach, value))


def _share_of(share: float, rows: float, confidence: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of `rows` independent rows, or Clopper & Pearson's.

    The exact one is taken where fewer than five rows are right, or wrong: Wilson's then misses in
    up to 9% of windows.
    """
    from scipy.special import betaincinv, ndtri

    hits, rest = share * rows, (1 - share) * rows
    if min(hits, rest) < FEW:
        tail = (1 - confidence) / 2
        low = float(betaincinv(hits, rest + 1, tail)) if hits > 0 else 0.0
        return low, float(betaincinv(hits + 1, rest, 1 - tail)) if rest > 0 else 1.0

    z = float(ndtri((1 + confidence) / 2))
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2) / (1 + z * z / rows)
    return max(0.0, min(middle - reach, share)), min(1.0, max(middle + reach, share))


def influences(outcome: Outcome, metric: Metric, groups: Ints | None = None) -> Floats:
    """Return how much each group moves a score: [G] with mean zero, in the unit of the score.

    Their standard deviation over the root of their number is the score's standard error.

    Args:
        outcome: [N] rows.
        metric: One that rows have an influence on.
        groups: [N] group of each row, from 0; None where each row is its own.
    """
    return by_group(metric.influences(outcome), groups)


def by_group(each: Floats, groups: Ints | None) -> Floats:
    """Add the [N] influences of rows to the [G] influences of their groups."""
    if groups is None:
        return each
    summed = np.bincount(groups, each).astype(np.float64)
    return np.asarray(summed * (len(summed) / len(each)), np.float64)


def events(outcome: Outcome, groups: Ints | None = None) -> float:
    """Count what is not of the most frequent class: rows, or groups that have such rows.

    Infinite for a regression, in which every row tells as much.
    """
    if outcome.task == "regression" or not outcome.rows:
        return math.inf if outcome.rows else 0
    rare = rarer(outcome)
    return int(rare.sum()) if groups is None else len(np.unique(groups[rare]))


def rarer(outcome: Outcome) -> NDArray[np.bool_]:
    """Return which rows of a classification, [N], are not of the most frequent class."""
    return outcome.targets != np.bincount(outcome.targets, outcome.weights).argmax()


def paired_error(first: Floats, second: Floats) -> float:
    """Return the standard error of the difference of two scores on the same rows.

    Args:
        first: [N] influences on the score of one model.
        second: [N] influences of the same rows on the score of the other.
    """
    return Spread.of(first - second).error


def measure(
    outcomes: Mapping[str, Outcome], *, confidence: float = 0.95, groups: Ints | None = None
) -> Measured:
    """Score every model on their common rows.

    Args:
        outcomes: Name → outcome; all of the same N rows in the same order.
        confidence: Of the two-sided intervals.
        groups: [N] group of each row, from 0, whose rows are not independent; None for none.
    """
    points = {
        name: {metric.name: point(metric, outcome) for metric in metrics_of(outcome.task).values()}
        for name, outcome in outcomes.items()
    }
    return Measured(outcomes=outcomes, points=points, confidence=confidence, groups=groups)
