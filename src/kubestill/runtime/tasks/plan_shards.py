"""The `plan-shards` component: the list that a fan-out loops over."""

from __future__ import annotations

from kubestill.errors import Problems

BLOCK_ROWS = 8192
"""Rows of one block, which no shard cuts through."""
MAX_SHARDS = 256
"""Bounded, because every shard is a node of the workflow, and workflows end at 1.5 MiB."""


def plan_shards(rows: int, shards: int = 1) -> tuple[list[int], int]:
    """List the shard indices of a fan-out over `rows` rows.

    Returns:
        The indices, and how many there are: `shards`, but never more than there are blocks.

    Raises:
        InvalidInput: A count is out of range.
    """
    problems = Problems()
    if rows < 1:
        problems.add("rows", rows, "give at least 1")
    if not 1 <= shards <= MAX_SHARDS:
        problems.add("shards", shards, f"give 1 to {MAX_SHARDS}")
    problems.raise_if_any()
    blocks = -(-rows // BLOCK_ROWS)
    count = min(shards, blocks)
    return list(range(count)), count
