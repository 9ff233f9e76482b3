"""The certificate as plain values, and the sentence at its head."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["CODES", "Certificate", "Condition"]

CODES: dict[str, str] = {
    "stochastic": "the solver gives other answers to the same inputs",
    "noisy": "the labels are not what the solver gives",
    "inaccurate": "solver and reference solver disagree",
    "conflicts": "equal inputs have unlike labels",
    "holes": "the dataset has holes",
    "extrapolated": "the domain reaches further than the dataset",
    "outside": "the dataset has rows outside of the domain",
    "incomplete": "the dataset is not all there is, and no system tells of the rest",
    "error": "the surrogate errs by more than the tolerance",
}
"""Every reason to refuse."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One thing that has to hold, and whether it was shown to."""

    name: str
    status: Literal["shown", "failed", "not shown"]
    said: str
    """What was seen."""
    code: str = ""
    """A key of `CODES` where it failed."""
    remedy: str = ""


@dataclass(kw_only=True)
class Certificate:
    """What is certified, of which model, for which domain; JSON through and through."""

    conditions: list[Condition] = field(default_factory=list[Condition])
    errors: dict[str, Any] = field(default_factory=dict[str, Any])
    """`data`, `off_grid`, `hunted`: statistics in the output's unit."""
    worst: dict[str, Any] = field(default_factory=dict[str, Any])
    """The worst point: inputs, solution, surrogate, error, and who found it."""
    size: dict[str, Any] = field(default_factory=dict[str, Any])
    speed: dict[str, Any] = field(default_factory=dict[str, Any])
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    """Digests of model and dataset, system, domain, settings. `model` is the digest that artifacts
    and registry name the model by, `weights` that of its weights alone; an older certificate holds
    only the latter, under `model`."""

    @property
    def failed(self) -> list[Condition]:
        """What does not hold."""
        return [condition for condition in self.conditions if condition.status == "failed"]

    @property
    def verdict(self) -> str:
        """`certified` or `refused`."""
        return "refused" if self.failed else "certified"

    @property
    def reason(self) -> str:
        """The verdict in sentences."""
        if self.failed:
            return " ".join(f"{c.code}: {c.said} {c.remedy}".rstrip() for c in self.failed)
        return self.conditions[-1].said

    def to_json(self) -> dict[str, Any]:
        """Return the content of `certificate.json`."""
        return {
            "format": "kubestill/certificate/1",
            "verdict": self.verdict,
            "reason": self.reason,
            "conditions": [asdict(condition) for condition in self.conditions],
            "errors": self.errors,
            "worst": self.worst,
            "size": self.size,
            "speed": self.speed,
            "about": self.about,
        }
