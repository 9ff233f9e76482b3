"""Say which shards a fan-out loops over."""

from kfp import dsl

from kubestill.components._image import IMAGE


# kfp.local loops over a step's only output and over no named one (2.17.0).
@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_shards(shards: int = 1) -> list[int]:
    """List the shard indices of a fan-out, for `dsl.ParallelFor`.

    A loop needs its list before it starts, and a pipeline parameter holds only the count.

    Args:
        shards: How many tasks to spread the work over, 1 to 256.

    Returns:
        Output: 0 to shards - 1.
    """
    from kubestill.runtime.tasks.plan_shards import plan_shards as run

    return run(shards=shards)
