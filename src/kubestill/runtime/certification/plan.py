"""How many rows the solver is asked for: known before it starts, and kept within a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.generation.systems.solving import probe_inputs
from kubestill.runtime.generation.systems.system import System

if TYPE_CHECKING:
    from kubestill.runtime.certification.truth import Truth

LOOKS = 16
"""Points around each of the worst that the search looks at in a round."""
ROUNDS = 9
"""Rounds of the search for the worst point."""
CORNERS = 1024
"""Corners of the domain that it looks at, at most."""
_PROBED, _PROBED_FAST = 8, 256
"""Rows that are timed, and rows of a fast solver."""
_FAST = 2.0
"""Seconds that those may take."""
_SIDE = 72
"""Points along each side of a picture."""
_LINES = 4
_SEARCHED = 1e-3
"""Share of what a certificate takes without a budget from which on the search gets part of it."""
_PATIENCE = 60.0
"""Seconds of solving that timing may take, and that pictures may take."""
_TIMING = 2.0
"""Seconds of solving that are enough to time a fast solver."""


@dataclass(frozen=True, kw_only=True)
class SolvePlan:
    """How many rows are solved for each purpose, at most."""

    seconds: float
    """For one row, as measured."""
    probed: int
    """Rows solved to measure that."""
    labels: int
    """Rows of the dataset that are solved again, twice."""
    reference: int
    """Rows of them that the reference solver solves."""
    domain: int
    """Points of a finite domain."""
    missing: int
    """Points that a grid lacks, to see whether the solver fails on them."""
    samples: int
    hunts: int
    """Worst points around which the search looks."""
    corners: int
    batch: int
    """Rows at a time at which solver and surrogate are timed."""
    repeats: int
    """How often each batch is timed."""
    side: int
    """Points along each side of a picture."""
    cut: bool
    """Whether inputs on which the solver raises are left out."""

    @property
    def counts(self) -> dict[str, int]:
        """Solved rows by purpose, those of the reference solver left out."""
        timed = self.batch + 1 if self.batch > 1 else 1
        counts = {
            "the probe": self.probed,
            "labels": 2 * self.labels,
            "all points": self.domain,
            "missing points of the grid": self.missing,
            "random points": self.samples,
            "the search for the worst": self.hunts * LOOKS * ROUNDS + self.corners,
            "timing": timed * (self.repeats + 1),
            "pictures": self.side**2 + _LINES * (2 * self.side + 16) + 8,
        }
        return {name: count for name, count in counts.items() if count}

    @property
    def total(self) -> int:
        """Solved rows."""
        return sum(self.counts.values())

    @property
    def said(self) -> str:
        """What will be solved and how long that takes, in a sentence."""
        parts = ", ".join(f"{count:,} for {name}" for name, count in self.counts.items())
        hours = self.total * self.seconds / 3600
        time_taken = f"{hours:.1f} hours" if hours >= 0.1 else f"{3600 * hours:.0f} s"
        said = f"at most {self.total:,} rows are solved ({parts}), which takes {time_taken}"
        if self.reference:
            said += f"; the reference solver solves {self.reference:,} as well"
        if self.cut:
            said += "; where it raises, rows are solved again one by one"
        return f"{said}; `solves` sets a budget"


def finite_points(system: System | None, settings: CertificateSettings) -> dict[str, int] | None:
    """Return the grid of a domain that is finite and small enough to answer at every point."""
    rows = system.domain.grid_rows if system and settings.assurance != "sampled" else None
    if system is None or rows is None or rows > settings.enumerate_rows:
        return None
    return system.domain.points(rows=rows)


def plan_solves(
    truth: Truth,
    rows: int,
    settings: CertificateSettings,
    *,
    points: int | None,
    missing: int = 0,
) -> SolvePlan:
    """Time the solver on a few rows, and plan what it is asked for.

    Args:
        truth: The system and its surrogate.
        rows: Of the dataset.
        settings: What was asked for, and `solves`.
        points: Of a finite domain that is enumerated; None for any other.
        missing: Points that a grid lacks.

    Raises:
        InvalidInput: The budget is too small for what was asked for.
    """
    rows_probed, seconds = 0, 0.0
    for count in (_PROBED, _PROBED_FAST):
        inputs = probe_inputs(truth.system.domain, count)
        # Timed the second time: the first may load or compile something.
        truth.probe(inputs)
        seconds = truth.probe(inputs) / count
        rows_probed += 2 * count
        # A fast solver spends most of a small batch on anything but its rows.
        if seconds * _PROBED_FAST > _FAST:
            break
    return plan_rows(
        truth.system,
        seconds,
        rows,
        settings,
        probed=rows_probed,
        points=points,
        missing=missing,
    )


def plan_rows(
    system: System,
    seconds: float,
    rows: int,
    settings: CertificateSettings,
    *,
    probed: int = 2 * _PROBED,
    points: int | None,
    missing: int = 0,
) -> SolvePlan:
    """Plan what a solver is asked for that takes so many seconds for a row.

    Args:
        system: The system.
        seconds: For one row.
        rows: As for `plan_solves`, and so are all that follow but one.
        settings: ″
        probed: Rows that were solved to measure it.
        points: ″
        missing: ″

    Raises:
        InvalidInput: As for `plan_solves`.
    """
    batch = int(min(settings.batch, max(_PATIENCE / 4 / seconds, 1)))
    labels = min(settings.resolve_rows, rows)
    sampled = points is None and settings.samples > 0
    hunts = settings.hunts if sampled else 0
    full = SolvePlan(
        seconds=seconds,
        probed=probed,
        labels=labels,
        reference=min(settings.reference_rows, labels) if system.reference else 0,
        domain=points or 0,
        missing=missing,
        samples=settings.samples if sampled else 0,
        hunts=hunts,
        corners=min(2 ** min(system.domain.width, 62), CORNERS) if hunts else 0,
        batch=batch,
        repeats=int(np.clip(_TIMING / (seconds * batch), 3, 30)),
        side=int(np.clip((_PATIENCE / seconds) ** 0.5, 8, _SIDE)),
        cut=settings.on_failure == "leave-out",
    )
    plan, share = full, 1.0
    while settings.solves and plan.total > settings.solves:
        share *= 0.9
        plan = replace(
            full,
            labels=min(full.labels, max(16, int(full.labels * share))),
            reference=min(full.reference, max(16, int(full.reference * share))),
            samples=min(full.samples, max(64, int(full.samples * share))),
            # A budget for samples alone would say nothing of where they missed the worst.
            hunts=max(int(full.hunts * share), min(full.hunts, int(share > _SEARCHED))),
            corners=max(int(full.corners * share), min(full.corners, int(share > _SEARCHED))),
            # Timing and pictures give way first: no verdict rests on them.
            batch=max(1, int(full.batch * share**2)),
            repeats=3,
            side=max(8, int(full.side * share)),
        )
        if share < 1e-4 and plan.total > settings.solves:
            remedy = f"{plan.total:,} are the fewest: {plan.counts}; raise it, or set it to 0"
            raise InvalidInput([Problem("settings.solves", settings.solves, remedy)])
    return plan
