"""Task of the component `plan-shards`: list the shards that a fan-out loops over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kubestill.errors import InvalidInput, Problem, Problems

if TYPE_CHECKING:
    from kubestill.runtime.generation.request import Request
    from kubestill.runtime.generation.systems.system import System

MAX_SHARDS = 128
"""Every shard adds nodes to a workflow, and a workflow has room for about 160 of them."""
PROBED = 8
"""Rows that a system solves here."""


def plan_shards(
    shards: int = 1,
    method: str = "",
    rows: int = 0,
    settings: dict[str, Any] = {},  # noqa: B006
    system: str = "",
    system_args: dict[str, Any] = {},  # noqa: B006
) -> list[int]:
    """List the shard indices of a fan-out, after its system has solved a few rows.

    The component documents the parameters.

    Raises:
        InvalidInput: Everything that generating would refuse, before any shard starts.
    """
    problems = Problems()
    if not 1 <= shards <= MAX_SHARDS:
        problems.add("shards", shards, f"give 1 to {MAX_SHARDS}")
    request = numerical = None
    if method or system:
        # Only here: a plan without it starts in a fraction of the time.
        from kubestill.runtime.generation.request import parse_request

        asked = {"method": method or "auto", "rows": rows, "settings": settings}
        asked |= {"system": system, "system_args": system_args} if system else {}
        with problems.collect():
            request, numerical = parse_request(asked, has_original=not system)
    problems.raise_if_any()
    if request and numerical and request.method != "adaptive" and request.rows:
        _probe(request, numerical, shards)
    return list(range(shards))


def _probe(request: Request, system: System, shards: int) -> None:
    """Solve the first rows twice: whether it works, how long it takes, and that nothing is random.

    Raises:
        InvalidInput: The system fails, or gives other bits for the same inputs.
    """
    import numpy as np

    from kubestill.runtime.generation.covering import Covering, labelled
    from kubestill.runtime.reports.numbers import duration

    count = min(PROBED, request.rows)
    rows = Covering(system, request.method, request.settings, rows=request.rows, seed=request.seed)
    inputs = rows.inputs(0, count)
    first = labelled(system, inputs)[system.output.name]
    # Timed the second time: the first may load or compile something.
    began = time.perf_counter()
    second = labelled(system, inputs)[system.output.name]
    seconds = time.perf_counter() - began
    if not all(np.array_equal(*both) for both in zip(first, second, strict=True)):
        remedy = "gave the same inputs other labels the second time; take its randomness out"
        raise InvalidInput([Problem("system", system.name, remedy)])
    whole = duration(seconds / count * request.rows / shards)
    print(
        f"{count} rows solved in {duration(seconds)}; at that rate each of {shards} shards with "
        f"{request.rows / shards:,.0f} rows takes {whole} at most",
        flush=True,
    )
