"""Define the criterion of a selection and the evidence it looks at; check that the two agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from kubestill.errors import Problems, counted, nearest
from kubestill.runtime.curves.phases import Phases, detect_phases
from kubestill.runtime.metrics.catalog import METRICS, TRAIN_LOSS, Direction, resolve_direction
from kubestill.runtime.metrics.outcome import Floats
from kubestill.runtime.training.record import Curves

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
class Criterion:
    """What the user asked for."""

    rule: str = "best"
    metric: str = ""
    """What to compare; empty takes the training run's own."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Which way the metric is better; `auto` knows every metric that is measured here."""
    tolerance: float = 0.0
    """For `earliest-within`: share of the best value that may be lost; 0 is one standard error of
    the difference to the best where candidates are scored again, else the scatter of the curve."""
    step: int | None = None
    """For `step`."""
    rescoring: bool = False
    """Whether candidates are scored again on another dataset."""

    @property
    def measures_error(self) -> bool:
        """Whether what may be lost is a standard error, measured on rows."""
        return self.rescoring and self.rule == "earliest-within" and not self.tolerance

    def way(self, metric: str) -> Direction:
        """Return which way `metric` is better."""
        return resolve_direction(metric, self.mode, field="settings.mode")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a training run besides the milestones it kept."""

    curves: Curves
    """One point a milestone, pruned ones included."""
    own_metric: str = ""
    """What the training run itself followed."""
    influences: Mapping[int, Floats] = field(default_factory=dict[int, Floats])
    """Step → [N] influences of the rows on its score, where candidates were scored again."""

    @property
    def phases(self) -> Phases:
        """Where the phases of the training run lie."""
        return detect_phases(self.curves.to_json(), metric=self.own_metric)

    def history(self, metric: str) -> dict[int, float]:
        """Return step → metric of every milestone there ever was, in order of step."""
        if metric == TRAIN_LOSS:
            found = {point.step: point.loss for point in self.curves.train}
        else:
            scored = [point for point in self.curves.validation if metric in point.scores]
            found = {point.step: point.scores[metric] for point in scored}
        return dict(sorted(found.items()))

    @property
    def steps(self) -> set[int]:
        """The steps of all milestones there ever were."""
        return {point.step for point in (*self.curves.train, *self.curves.validation)}


def metric_of(criterion: Criterion, evidence: Evidence, recorded: Collection[str]) -> str:
    """Return the metric to compare: the requested, else the training run's own, else the only one.

    Args:
        criterion: What the user asked for.
        evidence: What the training run followed.
        recorded: The metrics there are to compare.

    Raises:
        InvalidInput: There is none of that name, or nothing says which one.
    """
    only = next(iter(recorded)) if len(recorded) == 1 else ""
    own = evidence.own_metric if evidence.own_metric in recorded else ""
    metric = criterion.metric or own or only
    problems = Problems()
    if not recorded:
        remedy = "no milestone has any metric; train with a validation set, or use 'last' or 'step'"
        problems.add("rule", criterion.rule, remedy)
    elif not metric:
        remedy = "name the one to compare; recorded: " + ", ".join(sorted(recorded))
        problems.add("metric", metric, remedy)
    elif metric not in recorded:
        remedy = f"no milestone has it; recorded: {', '.join(sorted(recorded))}"
        problems.add("metric", metric, remedy)
    else:
        with problems.collect():
            criterion.way(metric)
        known = METRICS.get(metric)
        if criterion.measures_error and not (known and known.has_error):
            remedy = f"{metric} has no standard error; give a tolerance such as 0.01"
            problems.add("tolerance", criterion.tolerance, remedy)
    problems.raise_if_any()
    return metric


def check_criterion(
    criterion: Criterion,
    evidence: Evidence,
    entries: Sequence[Milestone],
    recorded: Collection[str],
) -> None:
    """Find everything wrong with a criterion before anything is read.

    Args:
        criterion: What the user asked for.
        evidence: What is known of the training run.
        entries: Checkpoints of any kind.
        recorded: The metrics there are, or will be after scoring again.

    Raises:
        InvalidInput: Every unknown name and contradiction, at once.
    """
    problems = Problems()
    with problems.collect():
        check_rule(criterion)
    milestones = [entry for entry in entries if entry.kind == "milestone"]
    if not milestones:
        count = len(entries)
        remedy = "has no milestone to choose; recovery checkpoints exist only to resume from"
        problems.add("ledger", f"{counted(count, 'checkpoint')}", remedy)
    elif criterion.rule in COMPARING or criterion.metric:
        with problems.collect():
            metric_of(criterion, evidence, recorded)
    if milestones and criterion.rule == "step" and criterion.step is not None:
        _check_step(criterion.step, entries, problems)
    problems.raise_if_any()


def check_rule(criterion: Criterion) -> None:
    """Find everything wrong with a criterion, whatever the training run was.

    Raises:
        InvalidInput: An unknown rule, a tolerance that is no share, and contradictions, at once.
    """
    problems = Problems()
    if not 0 <= criterion.tolerance < 1:
        remedy = "is not in [0, 1); give a share of the best value, or 0 for one standard error"
        problems.add("tolerance", criterion.tolerance, remedy)
    if criterion.rule not in RULES:
        problems.add("rule", criterion.rule, nearest(criterion.rule, RULES))
    else:
        _check_contradictions(criterion, problems)
    problems.raise_if_any()


def _check_contradictions(criterion: Criterion, problems: Problems) -> None:
    rule = criterion.rule
    if 0 < criterion.tolerance < 1 and rule != "earliest-within":
        remedy = f"rule '{rule}' has no tolerance; use 'earliest-within', or leave it 0"
        problems.add("tolerance", criterion.tolerance, remedy)
    if criterion.step is not None and rule != "step":
        remedy = f"rule '{rule}' chooses the step itself; use rule 'step', or leave it out"
        problems.add("settings.step", criterion.step, remedy)
    if criterion.step is None and rule == "step":
        problems.add("settings.step", None, "rule 'step' needs the step's number")
    if criterion.rescoring and rule not in COMPARING:
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
