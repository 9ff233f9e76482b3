"""Say which shards a fan-out loops over."""

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_shards(
    shards: int = 1,
    method: str = "",
    rows: int = 0,
    settings: dict = {},  # noqa: B006
    system: str = "",
    system_args: dict = {},  # noqa: B006
) -> list[int]:
    """List the shard indices of a fan-out, and solve a few rows before it starts.

    A loop needs its list before it starts, and a pipeline parameter holds only the count. What the
    shards will tell `generate-synthetic` is checked here, before any of them runs. Where a system
    labels the rows, it solves the first 8 of them twice: that shows whether it works, that it gives
    equal inputs equal labels, and how long a shard will take.

    Args:
        shards: How many tasks to spread the work over, 1 to 128.
        method: Of `generate-synthetic`; empty, and without a system, checks none of these.
        rows: Its rows.
        settings: Its settings: docs/settings.md lists them.
        system: Its system; empty for rows that are made of a dataset.
        system_args: The system's arguments.

    Returns:
        Output: 0 to shards - 1.
    """
    return call_step("plan_shards", locals())
