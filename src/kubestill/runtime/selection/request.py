"""What a selection is asked for, what it can look at, and whether the two fit together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from kubestill.errors import Problems, nearest
from kubestill.runtime.curves.phases import Phases, detect_phases
from kubestill.runtime.metrics.catalog import TRAIN_LOSS, Direction, direction

COMPARING = ("best", "earliest-within", "pareto")
"""Rules that compare a metric."""
RULES = ("before-overfitting", *COMPARING, "last", "step")
"""Every rule."""


class Milestone(Protocol):
    """What a rule reads of a ledger entry."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def examples(self) -> int:
        """Training examples seen: the cost."""
        ...

    @property
    def kind(self) -> str:
        """`milestone`, or `recovery`, which is never chosen."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Scores at this step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    rule: str = "best"
    metric: str = ""
    """What to compare; empty takes the training's own."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Which way the metric is better; `auto` knows the usual names."""
    tolerance: float = 0.0
    """For `earliest-within`: share of the best value that may be lost; 0 is one standard error."""
    step: int | None = None
    """For `step`."""
    rescoring: bool = False
    """Whether candidates are scored again on another dataset."""

    def way(self, metric: str) -> Direction:
        """Return which way `metric` is better."""
        return direction(metric) if self.mode == "auto" else self.mode


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a training besides the milestones it kept."""

    curves: Mapping[str, Sequence[Mapping[str, float]]]
    """`train` and `validation`, a point a milestone, pruned ones included (as `training.json`)."""
    own_metric: str = ""
    """What the training itself followed."""
    errors: Mapping[int, float] = field(default_factory=dict[int, float])
    """Standard error of the metric by step, where scoring again measured it."""

    @property
    def phases(self) -> Phases:
        """Where the training's phases lie."""
        return detect_phases(self.curves, metric=self.own_metric)

    def history(self, metric: str) -> list[float]:
        """Return the metric at every milestone there ever was, in order of step."""
        validated = [(p["step"], p[metric]) for p in self.curves["validation"] if metric in p]
        trained = [(p["step"], p["loss"]) for p in self.curves["train"]]
        points = trained if metric == TRAIN_LOSS else validated
        return [value for _, value in sorted(points)]


def metric_of(request: Request, evidence: Evidence, recorded: Collection[str]) -> str:
    """Return the metric to compare: the one asked for, else the training's own, else the only one.

    Args:
        request: What the user asked for.
        evidence: What the training followed.
        recorded: The metrics there are to compare.

    Raises:
        InvalidInput: There is none of that name, or nothing says which one.
    """
    only = next(iter(recorded)) if len(recorded) == 1 else ""
    own = evidence.own_metric if evidence.own_metric in recorded else ""
    metric = request.metric or own or only
    problems = Problems()
    if not recorded:
        remedy = "no milestone has any metric; train with a validation set, or use 'last' or 'step'"
        problems.add("rule", request.rule, remedy)
    elif not metric:
        remedy = "say which one to compare; recorded: " + ", ".join(sorted(recorded))
        problems.add("metric", metric, remedy)
    elif metric not in recorded:
        remedy = f"no milestone has it; recorded: {', '.join(sorted(recorded))}"
        problems.add("metric", metric, remedy)
    else:
        with problems.collect():
            request.way(metric)
    problems.raise_if_any()
    return metric


def check_request(
    request: Request, evidence: Evidence, entries: Sequence[Milestone], recorded: Collection[str]
) -> None:
    """Find everything wrong with a request before anything is read.

    Args:
        request: What the user asked for.
        evidence: What is known of the training.
        entries: The training's checkpoints, of any kind.
        recorded: The metrics there are, or will be after scoring again.

    Raises:
        InvalidInput: Every unknown name and contradiction, at once.
    """
    problems = Problems()
    with problems.collect():
        check_rule(request)
    milestones = [entry for entry in entries if entry.kind == "milestone"]
    if not milestones:
        count = len(entries)
        remedy = "has no milestone to choose; recovery checkpoints exist only to resume from"
        problems.add("ledger", f"{count} checkpoints", remedy)
    elif request.rule in COMPARING or request.metric:
        with problems.collect():
            metric_of(request, evidence, recorded)
    if milestones and request.rule == "step" and request.step is not None:
        _check_step(request.step, entries, problems)
    problems.raise_if_any()


def check_rule(request: Request) -> None:
    """Find everything wrong with a request whatever the training was.

    Raises:
        InvalidInput: An unknown rule, a tolerance that is no share, and contradictions, at once.
    """
    problems = Problems()
    if not 0 <= request.tolerance < 1:
        remedy = "use a share of the best value: 0 (one standard error) up to, not including, 1"
        problems.add("tolerance", request.tolerance, remedy)
    if request.rule not in RULES:
        problems.add("rule", request.rule, nearest(request.rule, RULES))
    else:
        _check_contradictions(request, problems)
    problems.raise_if_any()


def _check_contradictions(request: Request, problems: Problems) -> None:
    rule = request.rule
    if 0 < request.tolerance < 1 and rule != "earliest-within":
        remedy = f"rule '{rule}' has no tolerance; use 'earliest-within', or leave it 0"
        problems.add("tolerance", request.tolerance, remedy)
    if request.step is not None and rule != "step":
        remedy = f"rule '{rule}' chooses the step itself; use rule 'step', or leave it out"
        problems.add("settings.step", request.step, remedy)
    if request.step is None and rule == "step":
        problems.add("settings.step", None, "rule 'step' needs the step's number")
    if request.rescoring and rule not in COMPARING:
        remedy = f"rule '{rule}' compares no scores; disconnect it, or use {', '.join(COMPARING)}"
        problems.add("dataset", "connected", remedy)


def _check_step(step: int, entries: Sequence[Milestone], problems: Problems) -> None:
    kinds = {entry.kind for entry in entries if entry.step == step}
    if "milestone" in kinds:
        return
    steps = sorted(entry.step for entry in entries if entry.kind == "milestone")
    near = sorted(sorted(steps, key=lambda kept: abs(kept - step))[:3])
    remedy = (
        "there is a recovery checkpoint, which exists only to resume from"
        if kinds
        else ("no milestone was kept there")
    )
    problems.add("settings.step", step, f"{remedy}; nearest: {', '.join(map(str, near))}")
