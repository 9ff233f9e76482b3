"""Say which shards a fan-out loops over."""

from kfp import dsl

from kubestill.components._image import IMAGE


# kfp.local loops over a step's only output and over no named one (2.17.0).
@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_shards(
    shards: int = 1,
    method: str = "",
    rows: int = 0,
    settings: dict = {},  # noqa: B006
) -> list[int]:
    """List the shard indices of a fan-out, for `dsl.ParallelFor`.

    A loop needs its list before it starts, and a pipeline parameter holds only the count. Where the
    shards wait for a long training, what they will tell `generate-synthetic` can be checked here,
    before it.

    Args:
        shards: How many tasks to spread the work over, 1 to 256.
        method: Of `generate-synthetic` from a dataset; empty checks none of these.
        rows: Its rows.
        settings: Its settings: docs/settings.md lists them.

    Returns:
        Output: 0 to shards - 1.
    """
    from kubestill.runtime.tasks.plan_shards import plan_shards as run

    return run(shards=shards, method=method, rows=rows, settings=settings)
