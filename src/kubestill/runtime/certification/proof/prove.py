"""Branch and bound over the domain: split the boxes whose bound is worst until it is good enough."""

from __future__ import annotations

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.certification.proof.record import Proof
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.models.predict import Predictor

__all__ = ["prove"]


def prove(
    predictor: Predictor,
    reference: System | Predictor,
    domain: Domain | None = None,
    *,
    tolerance: float | None = None,
    seconds: float = 600.0,
    boxes: int = 10_000_000,
    gap: float = 0.25,
) -> Proof:
    """Bound |network - reference| over a whole domain.

    Args:
        predictor: The network, on the CPU.
        reference: The system that it stands for, which needs an enclosure; or another network, such
            as its teacher.
        domain: Where; None takes the system's own. Its continuous inputs are split into boxes, all
            levels of the discrete ones are enumerated.
        tolerance: Stop as soon as no point can have a larger error, or one has. None goes on until
            the bound is within `gap` of the largest error found.
        seconds: Budget of time.
        boxes: Budget of boxes.
        gap: With no tolerance: how far above the largest error found the bound may stay, as a share
            of it.

    Raises:
        InvalidInput: Tolerance 0; an unbounded input, a field or class outputs; a layer that has no
            bounds, or weights that are not finite; a system with no enclosure, or with one that
            does not contain its own solutions.
    """
    raise InvalidInput([Problem("assurance", "proven", "not available yet; ask for 'sampled'")])
