"""Points that a certificate compares whatever the surrogate is: shards solve them before it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import counted
from kubestill.runtime.base.random import uniforms
from kubestill.runtime.certification.plan import finite_points, plan_rows
from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.kept import Keep
from kubestill.runtime.generation.systems.solving import Solving
from kubestill.runtime.generation.systems.system import System

_STREAM = 1001
"""Of the random numbers: no covering of a domain uses it."""
_CHUNK = 4096


def random_points(domain: Domain, start: int, stop: int, *, seed: int) -> NDArray[np.float64]:
    """Return independent random points `start` to `stop` as unit numbers: [n, width]."""
    return uniforms(seed, _STREAM, start, stop, width=domain.width)


def solve_ahead(
    system: System,
    settings: CertificateSettings,
    keep: Keep,
    *,
    rows: int,
    shard: int,
    shards: int,
) -> str:
    """Solve one shard's part of these points, and keep them where `certify` will look them up.

    They are all points of a finite domain, or the random points of any other. What follows from the
    surrogate or has to be solved anew is left to `certify`.

    Args:
        system: A slow one, whose rows are kept.
        settings: Of the certificate.
        keep: Has opened the rows that are kept.
        rows: Of the dataset, all shards together.
        shard: Counted from 0.
        shards: How many there are.

    Returns:
        How many points were solved and how many had been before, in a sentence.

    Raises:
        InvalidInput: The solver fails on a point and must not, or the budget is too small.
    """
    finite, domain = finite_points(system, settings), system.domain
    total = math.prod(finite.values()) if finite else None
    plan = plan_rows(system, keep.seconds, rows, settings, points=total)
    solving = Solving(system, settings.on_failure)
    solving.reuse(keep)
    total = total or plan.samples
    for start in range(shard, total, shards * _CHUNK):
        places = np.arange(start, min(start + shards * _CHUNK, total), shards)
        if finite:
            inputs = domain.grid(places, finite)
        else:
            unit = random_points(domain, start, int(places[-1]) + 1, seed=settings.seed)
            inputs = domain.at(unit[::shards])
        solving(inputs)
    before = f"; {solving.reused:,} more had been solved before" if solving.reused else ""
    return f"{counted(solving.solved, 'point')} solved for the certificate{before}"
