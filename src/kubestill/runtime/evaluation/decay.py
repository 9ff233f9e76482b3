"""Test whether a champion has become worse than it was when it was promoted.

Each score is held against the record of its promotion. Both come from different rows, so that
second and third moments of their noise add up; the t statistic, freed of its skewness (Hall 1992),
is tested one-sided against the hypothesis "worse by no more than the tolerance". The p-values of
all scores and slices are adjusted together (Benjamini & Hochberg 1995): where nothing has changed,
the chance of any alarm stays at `alpha`, however many slices are looked at.

A schedule looks again and again. `EvaluationInputs.alpha` is therefore what a window of its length
may spend of the rate that is stated for a year.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kubestill.runtime.evaluation.record import Mark
from kubestill.runtime.evaluation.significance import adjusted
from kubestill.runtime.metrics.catalog import BIAS, Metric
from kubestill.runtime.metrics.intervals import Spread


@dataclass(frozen=True, kw_only=True)
class Decay:
    """One score now, and at promotion."""

    metric: Metric
    part: str
    """`all rows`, or a slice such as `carrier = UA`."""
    before: Mark
    now: Mark
    p_value: float
    """Of "worse by no more than the tolerance"; adjusted for all scores and slices looked at."""
    evident: bool

    @property
    def worse_by(self) -> float:
        """How much worse, in the metric's unit; negative where better."""
        return self.metric.sign * (self.before.value - self.now.value)

    @property
    def sentence(self) -> str:
        """What happened, in words."""
        where = "" if self.part == "all rows" else f" on {self.part}"
        verb = "worse" if self.worse_by > 0 else "better"
        sure = "beyond noise" if self.evident else "within noise or too little to matter"
        return (
            f"{self.metric.title}{where} is {self.now.value:.4g}, it was {self.before.value:.4g} "
            f"at promotion: {verb} by {abs(self.worse_by):.3g}, {sure} (p = {self.p_value:.2g})."
        )


def find_decay(
    pairs: Mapping[tuple[str, str], tuple[Mark, Mark]],
    metrics: Mapping[str, Metric],
    *,
    alpha: float,
    tolerance: float,
    max_bias: float,
    classes: int = 2,
) -> tuple[Decay, ...]:
    """Test every score against its record; the surest decay first.

    Args:
        pairs: (metric, part) → what it was and what it is.
        metrics: By name.
        alpha: Chance of any alarm where nothing has changed.
        tolerance: How much worse is no decay yet, as a share of the score at promotion.
        max_bias: The same for the calibration bias, which is small itself: in absolute terms.
        classes: Number of classes that the calibration bias is the worst of.
    """
    found: list[Decay] = []
    for (name, part), (before, now) in pairs.items():
        metric = metrics[name]
        error = math.hypot(before.error, now.error)
        if not all(map(math.isfinite, (before.value, now.value, error))):
            continue
        noise = Spread(
            error=error,
            skew=metric.sign * (before.third - now.third) / error**3 if error else 0.0,
            carriers=math.inf,
            groups=min(mark.groups or mark.rows for mark in (before, now)),
        )
        allowed = max_bias if metric is BIAS else tolerance * abs(before.value)
        worse = metric.sign * (before.value - now.value) - allowed
        p_value = noise.above(worse)
        if metric is BIAS:
            # It is the larger of the two directions, and at the worst of the classes.
            p_value = min(1.0, max(2, classes) * p_value)
        found.append(
            Decay(metric=metric, part=part, before=before, now=now, p_value=p_value, evident=False)
        )
    return _judged(found, alpha)


def _judged(found: Sequence[Decay], alpha: float) -> tuple[Decay, ...]:
    if not found:
        return ()
    p_values = adjusted([decay.p_value for decay in found])
    judged = [
        replace(decay, p_value=float(p), evident=bool(p <= alpha))
        for decay, p in zip(found, p_values, strict=True)
    ]
    return tuple(sorted(judged, key=lambda decay: decay.p_value))
