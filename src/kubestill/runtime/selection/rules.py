"""The named rules that choose one milestone of a training, each with a written reason.

Only milestones can be chosen: a recovery checkpoint's step depends on the clock, and so would the
chosen model. Cost is training examples seen, never seconds. Of equals, the cheaper one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.curves.noise import settled_noise
from kubestill.runtime.selection.request import (
    COMPARING,
    Evidence,
    Milestone,
    Request,
    check_request,
    metric_of,
)

LEAST_POINTS = 6
"""Values of a metric below which its scatter does not tell one standard error."""

M = TypeVar("M", bound=Milestone)


@dataclass(frozen=True, kw_only=True)
class Choice(Generic[M]):
    """The chosen milestone and why."""

    entry: M
    reason: str
    rule: str
    metric: str
    """What was compared; empty where the rule compares nothing."""
    candidates: tuple[M, ...]
    """Everything that could have been chosen, in order of step."""
    front: tuple[M, ...]
    """Candidates than which none is both cheaper and better, cheapest first; empty where the rule
    compares nothing."""


@dataclass(frozen=True, kw_only=True)
class _Field(Generic[M]):
    """The candidates in order of step, and how to compare them."""

    candidates: Sequence[M]
    metric: str
    sign: int
    request: Request
    evidence: Evidence

    def loss(self, entry: M) -> float:
        """Return the metric so that smaller is better."""
        return self.sign * entry.metrics[self.metric]

    @property
    def ranked(self) -> list[M]:
        """The candidates, best first."""
        return sorted(self.candidates, key=lambda e: (self.loss(e), e.examples))

    @property
    def front(self) -> list[M]:
        """The candidates that nothing cheaper equals, cheapest first."""
        front: list[M] = []
        for entry in sorted(self.candidates, key=lambda e: (e.examples, self.loss(e))):
            if not front or self.loss(entry) < self.loss(front[-1]):
                front.append(entry)
        return front

    def told(self, entry: M) -> str:
        return f"step {entry.step:,} with {self.metric} {entry.metrics[self.metric]:.4g}"


def select(entries: Sequence[M], request: Request, evidence: Evidence) -> Choice[M]:
    """Choose one milestone.

    Args:
        entries: The training's checkpoints, of any kind.
        request: Which rule, and its parameters.
        evidence: What else is known of the training.

    Raises:
        InvalidInput: Everything wrong with the request, at once; or nothing can be chosen.
    """
    recorded = {name for e in entries if e.kind == "milestone" for name in e.metrics}
    check_request(request, evidence, entries, recorded)
    milestones = sorted((e for e in entries if e.kind == "milestone"), key=lambda e: e.step)
    metric = metric_of(request, evidence, recorded) if request.rule in COMPARING else ""
    field = _Field(
        candidates=[entry for entry in milestones if not metric or metric in entry.metrics],
        metric=metric,
        sign=-1 if metric and request.way(metric) == "max" else 1,
        request=request,
        evidence=evidence,
    )
    chosen, reason = _RULES[request.rule](field)
    return Choice(
        entry=chosen,
        reason=reason,
        rule=request.rule,
        metric=metric,
        candidates=tuple(field.candidates),
        front=tuple(field.front) if metric else (),
    )


def _best(field: _Field[M]) -> tuple[M, str]:
    best, *others = field.ranked
    reason = f"{field.told(best)} is the best of {_milestones(field.candidates)}"
    return best, f"{reason}; next is {field.told(others[0])}" if others else reason


def _last(field: _Field[M]) -> tuple[M, str]:
    last = field.candidates[-1]
    return last, f"step {last.step:,} is the last of {_milestones(field.candidates)}"


def _step(field: _Field[M]) -> tuple[M, str]:
    chosen = next(entry for entry in field.candidates if entry.step == field.request.step)
    return chosen, f"step {chosen.step:,} was asked for by number"


def _earliest_within(field: _Field[M]) -> tuple[M, str]:
    best = field.ranked[0]
    margin, margin_told = _margin(field, best)
    within = [entry for entry in field.candidates if field.loss(entry) <= field.loss(best) + margin]
    chosen = min(within, key=lambda entry: (entry.examples, field.loss(entry)))
    told = f"{margin_told} of the best ({field.told(best)})"
    if chosen.step == best.step:
        return (
            chosen,
            f"{field.told(chosen)} is the best, and nothing cheaper is within {margin_told}",
        )
    return chosen, (
        f"{field.told(chosen)} is the cheapest within {told}: {_cost(chosen, best)} "
        f"({len(within)} of {_milestones(field.candidates)} lie within)"
    )


def _margin(field: _Field[M], best: M) -> tuple[float, str]:
    """Return how much may be lost, in units of the metric, and how to say that."""
    tolerance = field.request.tolerance
    if tolerance:
        return tolerance * abs(field.loss(best)), f"{100 * tolerance:.3g}%"
    if best.step in field.evidence.errors:
        error = field.evidence.errors[best.step]
        return error, f"one standard error ({error:.3g}, by resampling the rows)"
    history = [field.sign * value for value in field.evidence.history(field.metric)]
    if len(history) < LEAST_POINTS:
        remedy = (
            f"one standard error cannot be measured from {len(history)} validations; give a "
            "tolerance such as 0.01, or a dataset to score on again"
        )
        raise InvalidInput([Problem("tolerance", tolerance, remedy)])
    error = settled_noise(history)
    return (
        error,
        f"one standard error ({error:.3g}, from the scatter of {len(history)} validations)",
    )


def _before_overfitting(field: _Field[M]) -> tuple[M, str]:
    phases = field.evidence.phases
    end = phases.boundaries.detail
    last = field.candidates[-1]
    if end is None:
        return last, f"step {last.step:,} is the last milestone, as {phases.why}"
    before = [entry for entry in field.candidates if entry.step <= end]
    if not before:
        remedy = (
            f"{phases.why}, and the first milestone kept is step {field.candidates[0].step}: "
            "keep more of them (settings.checkpoints.keep_every), or choose by another rule"
        )
        raise InvalidInput([Problem("rule", field.request.rule, remedy)])
    chosen = before[-1]
    return (
        chosen,
        f"step {chosen.step:,} is the last milestone before overfitting ({phases.why})",
    )


def _pareto(field: _Field[M]) -> tuple[M, str]:
    """Choose the knee: the point of the front farthest from the line between its ends.

    Both axes are scaled to the front's own range (Satopää et al. 2011, "kneedle").
    """
    front = field.front
    cheapest, best = front[0], front[-1]
    told = f"{len(front)} of {_milestones(field.candidates)} are on the front"
    cost = best.examples - cheapest.examples
    gain = field.loss(cheapest) - field.loss(best)

    def bulge(entry: M) -> float:
        gained = (field.loss(cheapest) - field.loss(entry)) / gain
        return gained - (entry.examples - cheapest.examples) / cost

    knee = max(front[1:-1], key=bulge, default=None)
    if knee is None or bulge(knee) <= 0:
        return best, f"{field.told(best)}: the best, as returns never diminish; {told}"
    share = (field.loss(cheapest) - field.loss(knee)) / gain
    return knee, (
        f"{field.told(knee)} is the knee of {field.metric} against cost: {share:.0%} of what the "
        f"front gains, {_cost(knee, best)}; {told}"
    )


_RULES: dict[str, Callable[[_Field[Any]], tuple[Any, str]]] = {
    "best": _best,
    "last": _last,
    "step": _step,
    "earliest-within": _earliest_within,
    "before-overfitting": _before_overfitting,
    "pareto": _pareto,
}


def _milestones(candidates: Sequence[Milestone]) -> str:
    return "1 milestone" if len(candidates) == 1 else f"{len(candidates)} milestones"


def _cost(chosen: Milestone, best: Milestone) -> str:
    share = chosen.examples / best.examples
    return f"{chosen.examples:,} examples, {share:.0%} of what the best one cost"
