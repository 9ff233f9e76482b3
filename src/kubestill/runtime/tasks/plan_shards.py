"""Task of the component `plan-shards`: the list that a fan-out loops over."""

from __future__ import annotations

from kubestill.errors import InvalidInput, Problem

MAX_SHARDS = 256
"""Every shard adds nodes to a workflow, and workflows end at 1.5 MiB."""


def plan_shards(shards: int = 1) -> list[int]:
    """List the shard indices of a fan-out.

    Raises:
        InvalidInput: The count is out of range.
    """
    if not 1 <= shards <= MAX_SHARDS:
        raise InvalidInput([Problem("shards", shards, f"give 1 to {MAX_SHARDS}")])
    return list(range(shards))
