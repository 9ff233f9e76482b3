"""Choose one milestone of a training run by a named rule, with a written reason.

Only milestones can be chosen: a recovery checkpoint's step depends on the clock, and so would the
chosen model. Cost is training examples seen, never seconds. Of equals, the cheaper one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kubestill.errors import InvalidInput, Problem, counted
from kubestill.runtime.curves.noise import settled_noise
from kubestill.runtime.metrics.intervals import paired_error
from kubestill.runtime.selection.criterion import (
    COMPARING,
    Criterion,
    Evidence,
    Milestone,
    check_criterion,
    metric_of,
)

LEAST_POINTS = 6
"""Values of a metric below which its scatter cannot be measured."""

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
    kept: frozenset[int]
    """The steps of all milestones there are, candidates or not."""
    metric: str
    sign: int
    criterion: Criterion
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

    @property
    def recorded(self) -> dict[int, float]:
        """Step → metric of every milestone there ever was; only the kept ones are scored again."""
        if self.criterion.rescoring:
            return {}
        return self.evidence.history(self.metric)

    @property
    def pruned(self) -> list[int]:
        """The steps of milestones that were recorded and cannot be chosen any more, ascending."""
        return sorted(self.evidence.steps - self.kept)

    @property
    def size(self) -> str:
        """How many candidates there are, and of how many milestones they are what was kept."""
        count = len(self.candidates)
        if self.pruned:
            return f"the {counted(count, 'milestone')} kept of {count + len(self.pruned)}"
        return counted(count, "milestone")

    def describe(self, entry: M) -> str:
        """Name a candidate and its value."""
        return f"step {entry.step:,} with {self.metric} {entry.metrics[self.metric]:.4g}"


def select(entries: Sequence[M], criterion: Criterion, evidence: Evidence) -> Choice[M]:
    """Choose one milestone.

    Args:
        entries: Checkpoints of any kind.
        criterion: Which rule, and its parameters.
        evidence: What else is known of the training run.

    Raises:
        InvalidInput: Everything wrong with the criterion, at once; or nothing can be chosen.
    """
    recorded = {name for e in entries if e.kind == "milestone" for name in e.metrics}
    check_criterion(criterion, evidence, entries, recorded)
    milestones = sorted((e for e in entries if e.kind == "milestone"), key=lambda e: e.step)
    metric = metric_of(criterion, evidence, recorded) if criterion.rule in COMPARING else ""
    field = _Field(
        candidates=[entry for entry in milestones if not metric or metric in entry.metrics],
        kept=frozenset(entry.step for entry in milestones),
        metric=metric,
        sign=-1 if metric and criterion.way(metric) == "max" else 1,
        criterion=criterion,
        evidence=evidence,
    )
    chosen, reason = _RULES[criterion.rule](field)
    return Choice(
        entry=chosen,
        reason=reason,
        rule=criterion.rule,
        metric=metric,
        candidates=tuple(field.candidates),
        front=tuple(field.front) if metric else (),
    )


def _best(field: _Field[M]) -> tuple[M, str]:
    best, *others = field.ranked
    reason = f"{field.describe(best)} is the best of {field.size}"
    if others:
        reason += f"; next is {field.describe(others[0])}"
    gone = [step for step in field.pruned if step in field.recorded]
    if gone:
        better = min(gone, key=lambda step: field.sign * field.recorded[step])
        value = field.recorded[better]
        if field.sign * value < field.loss(best):
            reason += f"; step {better:,} with {value:.4g} was better, but was pruned or is damaged"
    return best, reason


def _last(field: _Field[M]) -> tuple[M, str]:
    last = field.candidates[-1]
    return last, f"step {last.step:,} is the last of {field.size}"


def _step(field: _Field[M]) -> tuple[M, str]:
    chosen = next(entry for entry in field.candidates if entry.step == field.criterion.step)
    return chosen, f"step {chosen.step:,} was asked for by number"


def _earliest_within(field: _Field[M]) -> tuple[M, str]:
    best = field.ranked[0]
    margin, named = _margin(field, best)
    within = [
        e for e in field.candidates if e is best or field.loss(e) - field.loss(best) <= margin(e)
    ]
    chosen = min(within, key=lambda entry: (entry.examples, field.loss(entry)))
    named = named(chosen if chosen is not best else None)
    if chosen is best:
        return best, (
            f"{field.describe(best)} is the best of {field.size}, and nothing cheaper is within "
            f"{named}"
        )
    return chosen, (
        f"{field.describe(chosen)} is the cheapest within {named} of the best "
        f"({field.describe(best)}): {_cost(chosen, best)} "
        f"({len(within)} of {field.size} lie within)"
    )


def _margin(field: _Field[M], best: M) -> tuple[Callable[[M], float], Callable[[M | None], str]]:
    """Return how much each candidate may lose against the best, and how to name that.

    Where rows were scored again, this is one standard error of the candidate's own difference to
    the best, row by row: two candidates that err on the same rows differ by far less than the
    scores of either would on other rows.
    """
    tolerance = field.criterion.tolerance
    if tolerance:
        allowed = tolerance * abs(field.loss(best))
        return lambda _: allowed, lambda _: f"{100 * tolerance:.3g}%"
    if moved := field.evidence.influences:

        def error(entry: M) -> float:
            return paired_error(moved[entry.step], moved[best.step])

        def name(entry: M | None) -> str:
            size = f" ({error(entry):.3g})" if entry else ""
            return f"one standard error{size} of the difference, row by row,"

        return error, name
    history = [field.sign * value for value in field.evidence.history(field.metric).values()]
    if len(history) < LEAST_POINTS:
        remedy = (
            f"insufficient: no rows were scored again, and {counted(len(history), 'validation')} "
            "cannot show how far the curve scatters; give a tolerance such as 0.01, or connect a "
            "dataset"
        )
        raise InvalidInput([Problem("tolerance", tolerance, remedy)])
    scatter = settled_noise(history)
    named = f"the scatter of the curve ({scatter:.3g}, from {counted(len(history), 'validation')})"
    return lambda _: scatter, lambda _: named


def _before_overfitting(field: _Field[M]) -> tuple[M, str]:
    phases = field.evidence.phases
    end = phases.boundaries.detail
    before = [entry for entry in field.candidates if end is None or entry.step <= end]
    if not before:
        remedy = (
            f"{phases.why}, and the first milestone kept is step {field.candidates[0].step}: "
            "keep more of them (settings.checkpoints.keep_every), or choose by another rule"
        )
        raise InvalidInput([Problem("rule", field.criterion.rule, remedy)])
    chosen = before[-1]
    gone = [step for step in field.pruned if step > chosen.step and (end is None or step <= end)]
    which = "the last milestone kept" if gone else "the last milestone"
    if end is None:
        return chosen, f"step {chosen.step:,} is {which}, as {phases.why}"
    between = counted(len(gone), "milestone")
    later = f"; {between} in between, to step {gone[-1]:,}, not kept" if gone else ""
    return chosen, f"step {chosen.step:,} is {which} before overfitting ({phases.why}{later})"


def _pareto(field: _Field[M]) -> tuple[M, str]:
    """Choose the knee: the point of the front farthest from the line between its ends.

    Both axes are scaled to the front's own range (Satopää et al. 2011, "kneedle").
    """
    front = field.front
    cheapest, best = front[0], front[-1]
    shown = f"{len(front)} of {field.size} are on the front"
    cost = best.examples - cheapest.examples
    gain = field.loss(cheapest) - field.loss(best)

    def bulge(entry: M) -> float:
        gained = (field.loss(cheapest) - field.loss(entry)) / gain
        return gained - (entry.examples - cheapest.examples) / cost

    knee = max(front[1:-1], key=bulge, default=None)
    if knee is None or bulge(knee) <= 0:
        return best, f"{field.describe(best)}: the best, as returns never diminish; {shown}"
    share = (field.loss(cheapest) - field.loss(knee)) / gain
    return knee, (
        f"{field.describe(knee)} is the knee of {field.metric} against cost: {share:.0%} of what "
        f"the front gains, {_cost(knee, best)}; {shown}"
    )


_RULES: dict[str, Callable[[_Field[Any]], tuple[Any, str]]] = {
    "best": _best,
    "last": _last,
    "step": _step,
    "earliest-within": _earliest_within,
    "before-overfitting": _before_overfitting,
    "pareto": _pareto,
}


def _cost(chosen: Milestone, best: Milestone) -> str:
    share = chosen.examples / best.examples
    return f"{counted(chosen.examples, 'example')}, {share:.0%} of what the best one cost"
