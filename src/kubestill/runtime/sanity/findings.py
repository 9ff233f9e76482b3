"""What the gate found, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kubestill.runtime.sanity.floor import Floor

Status = Literal["ok", "fail", "undetermined", "note", "skipped"]

LEARNED = "the batch is learned"
"""The check that all is about."""

CODES: dict[str, str] = {
    "labels-constant": "every row has the same label",
    "features-constant": "every row has the same features",
    "features-scale": "the features are not normalised",
    "target-scale": "the target's scale is wrong",
    "loss": "the loss does not match the task",
    "reduction": "the loss is not a mean over the rows",
    "frozen": "parameters are frozen",
    "detached": "parameters are cut off from the loss",
    "dead": "gradients are dead",
    "exploding": "gradients explode",
    "softmax": "the network applies the softmax or sigmoid that the loss applies",
    "bounded": "the network cannot put out the values that are wanted",
    "rows-mixed": "a row's answer depends on the other rows of its batch",
    "train-eval": "the network answers differently once training is over",
    "learning-rate": "the learning rate does not work",
    "too-small": "the network is too small",
    "network": "this network does not learn where a plain one does",
    "stuck": "no network learns this batch",
    "budget": "there was not enough time to tell",
    "misaligned": "labels belong to other rows",
    "undetermined": "nothing can be learned about unseen rows",
}
"""Every diagnosis and what it means."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question and its answer."""

    name: str
    """What was asked."""
    status: Status
    said: str
    """What was seen, in a sentence."""
    code: str = ""
    """A key of `CODES`, where the answer is not fine."""
    remedy: str = ""


@dataclass(kw_only=True)
class Trace:
    """One trial at memorising a batch."""

    name: str
    rows: int
    steps: list[int] = field(default_factory=list[int])
    excess: list[float] = field(default_factory=list[float])
    """Of the loss over its floor, 1 for the best constant answer: at each of `steps`."""
    reached: int | None = None
    """The step at which it was near enough to the floor."""
    ended: Literal["reached", "steps", "time", "diverged"] = "steps"
    seconds: float = 0.0
    final_train_loss: float = 0.0
    """As the step itself gave it, in training mode."""

    @property
    def best(self) -> float:
        """The smallest excess; infinite where there is none."""
        return min(self.excess, default=float("inf"))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well labels can be predicted on rows that were never seen."""

    skill: float
    """Share of the labels that the features explain."""
    sigmas: float
    """How sure it is that they explain any, in standard errors."""
    shift: int | None = None
    """By how many rows the labels are moved, where they fit the features better there."""
    skill_moved: float | None = None
    """Share that the features explain of the labels moved by `shift`."""


@dataclass(kw_only=True)
class GateFindings:
    """The gate's whole answer."""

    rows: int
    """Of the batch."""
    loss: str
    """Name of the loss."""
    checks: list[Check] = field(default_factory=list[Check])
    traces: list[Trace] = field(default_factory=list[Trace])
    learned: Trace | None = None
    """The trial that the verdict rests on; None where none succeeded."""
    floor: Floor | None = None
    """What the batch's loss can be reduced to; None where nothing was memorised."""
    steps: int = 0
    """How many steps one trial had."""
    excess: float = 0.0
    """How near to the floor is near enough."""
    held_out: HeldOut | None = None
    """None where that was not asked."""
    seconds: float = 0.0
    """For all of it."""

    @property
    def facts(self) -> dict[str, Any]:
        """All figures by name: only those that were found."""
        found: dict[str, Any] = {"rows": self.rows, "loss": self.loss}
        if self.floor:
            found |= {"floor": self.floor.value, "baseline": self.floor.baseline}
            found |= {"conflicts": self.floor.conflicts, "steps": self.steps, "excess": self.excess}
        if self.held_out:
            asked = asdict(self.held_out)
            found |= {name: value for name, value in asked.items() if value is not None}
        return found | {"seconds": self.seconds}

    @property
    def verdict(self) -> str:
        """`fail` where anything failed, else `undetermined` where something was not determined."""
        found = {check.status for check in self.checks}
        return next((word for word in ("fail", "undetermined") if word in found), "pass")

    @property
    def diagnoses(self) -> list[Check]:
        """The checks behind the verdict; empty where it passed."""
        return [check for check in self.checks if check.status == self.verdict]

    @property
    def reason(self) -> str:
        """The verdict in sentences."""
        if self.verdict != "pass":
            return " ".join(f"{c.code}: {c.said} {c.remedy}".rstrip() for c in self.diagnoses)
        assert self.learned
        said = next(check.said for check in self.checks if check.name == LEARNED)
        return f"A batch of {self.learned.rows} rows is learned. {said}"

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "format": "kubestill/overfit-batch/1",
            "verdict": self.verdict,
            "reason": self.reason,
            "checks": [asdict(check) for check in self.checks],
            "traces": [asdict(trace) for trace in self.traces],
            "facts": self.facts,
        }
