"""Record how far a proof came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kubestill.runtime.base.rounding import at_most


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A bound on |network - reference| over a whole domain, and what it rests on.

    `lower` <= the largest error <= `upper`, whatever the status.
    """

    status: Literal["proven", "refuted", "unfinished"]
    """`proven`: `upper` is within the tolerance, or, where none was given, within the gap of
    `lower`. `refuted`: a point with a larger error was found (`at`). `unfinished`: neither, within
    the seconds and boxes that were allowed."""
    upper: float
    """No point of the domain has a larger error: in the output's unit, the worst of the outputs.
    Infinite where a box of the domain could not be bounded at all."""
    lower: float
    """Largest error found at a point, by the deployed network and the solver themselves."""
    at: dict[str, Any]
    """That point, by name of the input."""
    output: int
    """Which output is wrong by `lower` there; 0 where there is one."""
    tolerance: float | None
    """What was to be proven; None asks for the smallest bound that can be had."""
    done: float
    """Share of the domain on which the error is proven small enough, 0 to 1."""
    boxes: int
    """Boxes that were bounded."""
    solves: int
    """Points at which the reference was solved, to check its enclosure and to find errors."""
    seconds: float
    """How long it took."""
    assumptions: tuple[str, ...]
    """What the bound rests on, one sentence each."""
    conditional: bool
    """Whether it rests on a promise of the user's (`lipschitz`) that nothing here checks."""

    @property
    def reason(self) -> str:
        """What was found, in one sentence."""
        match self.status:
            case "proven":
                return f"No point of the domain has an error above {at_most(self.upper, 4)}."
            case "refuted":
                return f"The error at {self.at} is {self.lower:.4g}, above {self.tolerance:g}."
            case "unfinished":
                return (
                    f"After {self.boxes:,} boxes and {self.seconds:.0f} s the bound is "
                    f"{at_most(self.upper, 4)}, the largest error found {self.lower:.4g}, and "
                    f"{100 * self.done:.1f}% of the domain is done."
                )
