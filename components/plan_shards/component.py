"""Say which shards a fan-out loops over."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_shards(
    rows: int,
    shards: int = 1,
) -> NamedTuple("Outputs", [("indices", list[int]), ("shards", int)]):
    """List the shard indices of a fan-out, for `dsl.ParallelFor`.

    A loop needs its list before it starts, and a pipeline parameter holds only the count. Shards
    are cut on blocks of 8,192 rows, so there are never more of them than blocks.

    Args:
        rows: Rows that the fan-out will make in total.
        shards: How many tasks to spread them over, 1 to 256.

    Returns:
        indices: 0 to shards - 1.
        shards: How many shards there are, at most the number of blocks.
    """
    from kubestill.runtime.tasks.plan_shards import plan_shards as run

    return run(rows=rows, shards=shards)
