"""Task of the component `plan-shards`: the list that a fan-out loops over."""

from __future__ import annotations

from typing import Any

from kubestill.errors import Problems

MAX_SHARDS = 256
"""Every shard adds nodes to a workflow, and workflows end at 1.5 MiB."""


def plan_shards(
    shards: int = 1,
    method: str = "",
    rows: int = 0,
    settings: dict[str, Any] = {},  # noqa: B006
) -> list[int]:
    """List the shard indices of a fan-out.

    Args:
        shards: How many.
        method: What each shard will tell generate-synthetic; checked here unless empty.
        rows: ″
        settings: ″

    Raises:
        InvalidInput: Everything that generating would refuse, long before it is asked to.
    """
    problems = Problems()
    if not 1 <= shards <= MAX_SHARDS:
        problems.add("shards", shards, f"give 1 to {MAX_SHARDS}")
    if method:
        # Only here: a plan without it starts in a fraction of the time.
        from kubestill.runtime.synthetic.request import parse_request

        asked = {"method": method, "rows": rows, "settings": settings}
        with problems.collect():
            parse_request(asked, has_original=True)
    problems.raise_if_any()
    return list(range(shards))
