"""Everything an evaluation found out: what the report draws, and what goes into `scores`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kubestill.runtime.base.artifacts import clean
from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.evaluation.comparison import McNemar
from kubestill.runtime.evaluation.cost import RunningCost
from kubestill.runtime.evaluation.decay import Decay
from kubestill.runtime.evaluation.decision import Decision
from kubestill.runtime.evaluation.evaluate import Evaluation
from kubestill.runtime.evaluation.expected import Expectation
from kubestill.runtime.evaluation.fitness import Shift
from kubestill.runtime.evaluation.record import Record
from kubestill.runtime.evaluation.slices import Slice
from kubestill.runtime.metrics.catalog import Metric, metrics_of
from kubestill.runtime.metrics.intervals import Interval, Measured
from kubestill.runtime.retraining.history import Gain
from kubestill.runtime.training.record import TrainingRecord

Role = Literal["model", "baseline", "teacher"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One of the compared models."""

    role: Role
    name: str
    """Its name in the report: "student", "champion", ..."""
    evaluation: Evaluation
    cost: RunningCost
    training: TrainingRecord | None
    """The record of its training run; None where the export has none."""


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """The dataset that the models were scored on."""

    rows: int
    labelled: int
    """Rows with a label, which alone are scored."""
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The judged model, what it was held against, and what came out."""

    task: Task
    classes: Sequence[str]
    subjects: Mapping[Role, Subject]
    scores: Measured
    """By subject name."""
    metric: Metric
    """What the decision was taken on."""
    decision: Decision
    dataset: ScoredRows
    settings: Mapping[str, Any]
    slices: Sequence[Slice] = ()
    golden: Measured | None = None
    shifts: Sequence[Shift] = ()
    """How the rows differ from those the champion was promoted on."""
    decay: Sequence[Decay] = ()
    """The champion's scores against the record of its promotion."""
    record: Record | None = None
    """What the judged model is to be remembered by, where a registry may remember it."""
    expected: Expectation | None = None
    """What is expected of rows whose labels are late; None where there are none."""
    gain: Gain | None = None
    """Of a challenger, where later windows may add to it."""
    agreement: float = float("nan")
    """Of model and teacher: share of equal classes, or R² of its values by the teacher's."""
    mcnemar: McNemar | None = None
    """Model against baseline."""
    images: Any = None
    """[N, H, W] of the scored rows, where a row is one picture."""
    references: Mapping[str, str] = field(default_factory=dict[str, str])
    """Digests that the decision is bound to."""

    @property
    def model(self) -> Subject:
        """The judged model."""
        return self.subjects["model"]

    @property
    def baseline(self) -> Subject | None:
        """What the model would replace, or its control."""
        return self.subjects.get("baseline")

    @property
    def teacher(self) -> Subject | None:
        """What the model was distilled from."""
        return self.subjects.get("teacher")

    def improvement(self, metric: Metric) -> Interval | None:
        """Return how much better the model is than the baseline; None without one."""
        if self.baseline is None:
            return None
        return self.scores.improvement(self.model.name, self.baseline.name, metric)

    def recovered_gap(self, metric: Metric) -> Interval | None:
        """Return the share of the teacher's lead over the baseline that the model regains."""
        if self.baseline is None or self.teacher is None or not metric.has_error:
            return None
        names = (self.model.name, self.baseline.name, self.teacher.name)
        return self.scores.recovered_gap(*names, metric)

    def to_scores(self) -> dict[str, Any]:
        """Return all numbers as JSON; what is not finite becomes null."""
        metrics = metrics_of(self.task)
        return clean(
            {
                "format": "kubestill/scores/1",
                "decision": self.decision.verdict,
                "reasons": list(self.decision.reasons),
                "task": self.task,
                "metric": self.metric.name,
                "confidence": self.scores.confidence,
                "dataset": asdict(self.dataset),
                "models": {
                    role: {
                        "name": subject.name,
                        "metrics": {
                            name: asdict(self.scores.interval(subject.name, name))
                            for name in metrics
                        },
                        "cost": _cost(subject.cost),
                    }
                    for role, subject in self.subjects.items()
                },
                "improvement": {
                    name: _optional(self.improvement(metric)) for name, metric in metrics.items()
                },
                "recovered_gap": {
                    name: _optional(self.recovered_gap(metric)) for name, metric in metrics.items()
                },
                "agreement": self.agreement,
                "mcnemar": asdict(self.mcnemar) if self.mcnemar else None,
                "slices": [asdict(part) for part in self.slices],
                "golden": dict(self.golden.points) if self.golden else None,
                "shifts": [asdict(shift) for shift in self.shifts],
                "decay": [
                    {
                        "metric": one.metric.name,
                        "part": one.part,
                        "p_value": one.p_value,
                        "before": one.before.value,
                        "now": one.now.value,
                        "evident": one.evident,
                    }
                    for one in self.decay
                ],
                "expected": {
                    name: asdict(score)
                    for name, score in (self.expected.scores.items() if self.expected else ())
                },
                "references": dict(self.references),
            }
        )


def _cost(cost: RunningCost) -> dict[str, Any]:
    return {
        "parameters": cost.parameters,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "latency_seconds": dict(cost.latency),
    }


def _optional(interval: Interval | None) -> dict[str, float] | None:
    return asdict(interval) if interval else None
