"""Choose the smallest of several models that is as good as a reference, and say on what evidence.

A model is *within tolerance* where the interval of its difference to the reference lies wholly
above what may be lost: a test of non-inferiority. Every candidate is one chance to be wrong, so the
intervals are widened by their number (Bonferroni), and a choice among many is not one of chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from kubestill.errors import InvalidInput, Problem, counted
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.evaluation.cost import RunningCost, running_costs
from kubestill.runtime.evaluation.evaluate import evaluate, groups_of
from kubestill.runtime.evaluation.settings import check_metric
from kubestill.runtime.metrics.catalog import METRICS, Metric
from kubestill.runtime.metrics.intervals import Interval, Measured, measure
from kubestill.runtime.models.predict import Predictor

Standing = Literal["within", "unproven", "outside", "reference"]
"""Whether a candidate is within tolerance: with evidence, open, or ruled out with evidence."""

_TOLD_BY: dict[Task, str] = {"regression": "rmse", "binary": "auc", "multiclass": "accuracy"}
"""The metric by default. An accuracy says nothing of a binary task whose positives are rare."""


@dataclass(frozen=True, kw_only=True)
class FrontierEntry:
    """One model: what it scores, and what that costs."""

    name: str
    standing: Standing
    score: Interval
    gain: Interval
    """How much better it is than the reference, by the widened interval; zero for the reference."""
    cost: RunningCost
    on_front: bool
    """Whether no other candidate is both smaller and better."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Several models by size, and which of them was chosen."""

    entries: tuple[FrontierEntry, ...]
    """The candidates from the smallest to the largest, then the reference if it is none of them."""
    reference: str
    chosen: str
    metric: Metric
    tolerance: float
    """What may be lost, in the metric's own unit."""
    confidence: float
    """Of the intervals of the differences, after widening."""
    rows: int
    """Labelled rows that the scores are from."""
    reason: str

    @property
    def choice(self) -> FrontierEntry:
        """The chosen model."""
        return next(one for one in self.entries if one.name == self.chosen)

    @property
    def verdict(self) -> Standing:
        """Standing of the chosen model."""
        return self.choice.standing

    @property
    def candidates(self) -> tuple[FrontierEntry, ...]:
        """Those that could be chosen."""
        return tuple(one for one in self.entries if one.standing != "reference")


def find_frontier(
    candidates: Mapping[str, Predictor],
    reference: Predictor | None,
    rows: Dataset,
    *,
    reference_name: str = "teacher",
    metric: str = "",
    tolerance: float = 0.02,
    confidence: float = 0.95,
) -> Frontier:
    """Score and time every model, and choose the smallest that is within tolerance.

    Where none is, the best one is chosen, and the verdict says so.

    Args:
        candidates: By name, at least one; all of one task.
        reference: What they are compared with; None takes the best of them.
        rows: Labelled rows that none of them has learned from.
        reference_name: Name of the reference.
        metric: Metric that is compared; empty takes accuracy, AUC or RMSE, by the task.
        tolerance: Share of the reference's score that may be lost.
        confidence: Of all statements together.

    Raises:
        InvalidInput: A model does not fit the rows, or the metric cannot be compared.
    """
    task = cast("Task", next(iter(candidates.values())).spec.task)
    check_metric(metric, task, field="metric")
    known = METRICS[metric or _TOLD_BY[task]]
    models = dict(candidates) | ({reference_name: reference} if reference else {})
    found = {name: evaluate(model, rows) for name, model in models.items()}
    labelled = next(iter(found.values())).rows
    scores = measure(
        {name: one.outcome for name, one in found.items()},
        confidence=confidence,
        groups=groups_of(rows, labelled),
    )
    if all(not one.outcome.finite.all() for one in found.values()):
        remedy = "every model answers some of its rows with NaN or infinity: nothing to compare"
        raise InvalidInput([Problem("dataset", rows.root, remedy)])
    return choose_smallest(
        scores,
        running_costs(models),
        list(candidates),
        reference_name if reference else "",
        metric=known,
        tolerance=tolerance,
    )


def choose_smallest(
    scores: Measured,
    costs: Mapping[str, RunningCost],
    candidates: Sequence[str],
    reference: str,
    *,
    metric: Metric,
    tolerance: float,
) -> Frontier:
    """Choose the smallest candidate that is within tolerance of the reference, or the best one.

    Args:
        scores: Of candidates and reference; their confidence is that of all statements together.
        costs: Of the same.
        candidates: Names of those that can be chosen.
        reference: Name of what they are compared with; empty takes the best of them.
        metric: What is compared.
        tolerance: Share of the reference's score that may be lost.
    """

    def rank(name: str) -> float:
        value = scores.points[name][metric.name]
        return metric.sign * value if math.isfinite(value) else -math.inf

    def entry(name: str, standing: Standing, gain: Interval) -> FrontierEntry:
        smaller = [one for one in candidates if costs[one].bytes < costs[name].bytes]
        return FrontierEntry(
            name=name,
            standing=standing,
            score=scores.interval(name, metric.name),
            gain=gain,
            cost=costs[name],
            on_front=name in candidates
            and math.isfinite(rank(name))
            and all(rank(name) > rank(one) for one in smaller),
        )

    # Of equal ones the better: times are noise, and a retried step must choose alike.
    by_size = sorted(candidates, key=lambda name: (costs[name].bytes, -rank(name)))
    best = max(by_size, key=rank)
    against = reference or best
    allowed = tolerance * abs(scores.points[against][metric.name])
    confidence = 1 - (1 - scores.confidence) / len(candidates)
    entries: list[FrontierEntry] = []
    for name in by_size:
        gain = scores.improvement(name, against, metric, confidence)
        known_best = name == against and math.isfinite(allowed)
        standing = "within" if known_best else _standing(gain, allowed)
        entries.append(entry(name, standing, gain))
    within = [one.name for one in entries if one.standing == "within"]
    chosen = next(one for one in entries if one.name == (within[0] if within else best))
    if reference:
        entries.append(entry(reference, "reference", Interval(0.0, 0.0, 0.0)))
    rows = scores.outcomes[against].rows
    return Frontier(
        entries=tuple(entries),
        reference=against,
        chosen=chosen.name,
        metric=metric,
        tolerance=allowed,
        confidence=confidence,
        rows=rows,
        reason=_reason(chosen, against, metric, allowed, rows, scores),
    )


def _standing(gain: Interval, allowed: float) -> Standing:
    if gain.low >= -allowed:
        return "within"
    return "outside" if gain.high < -allowed else "unproven"


def _reason(
    chosen: FrontierEntry, against: str, metric: Metric, allowed: float, rows: int, scores: Measured
) -> str:
    """Return in sentences why this one."""
    on = f"on {counted(rows, 'row')}"
    if not math.isfinite(allowed):
        best = "best" if math.isfinite(chosen.score.value) else "smallest"
        return (
            f"{against} has no {metric.title} {on}, whose targets may be all alike or its answers "
            f"NaN or infinite, so nothing is shown of any; {chosen.name} is the {best}."
        )
    limit = f"within {allowed:.3g} of the {metric.title} of {against}"
    if chosen.name == against:
        return (
            f"{chosen.name} has the best {metric.title}, and no smaller one is shown to be "
            f"{limit} {on}."
        )
    if chosen.standing == "within":
        return f"{chosen.name} is the smallest that is {limit} {on}, with the whole interval."
    if chosen.standing == "outside":
        return (
            f"None is {limit} {on}: {chosen.name} is the best and is shown to lose more. Train "
            "larger ones or longer, or allow a larger tolerance."
        )
    missing = scores.missing(chosen.name, metric, against)
    return (
        f"{chosen.name} is the best, but {counted(rows, 'row')} cannot show that any is {limit}; "
        f"{missing or 'more rows narrow the interval.'}"
    )
