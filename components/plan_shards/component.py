"""List the shards that a fan-out loops over."""

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

    A loop needs its list before it starts, and a pipeline parameter holds only the count. The
    parameters of the shards' `generate-synthetic` are checked here, before any shard runs. A system
    solves its first 8 rows twice: this shows whether it works, whether equal inputs get equal
    labels, and how long a shard will take.

    Args:
        shards: Number of tasks to spread the work over, 1 to 128.
        method: Method of `generate-synthetic`; if this and `system` are empty, nothing is checked.
        rows: Rows of `generate-synthetic`.
        settings: Its settings, listed in docs/settings.md.
        system: Its system; empty if the rows are generated from a dataset.
        system_args: Arguments of the system.

    Returns:
        Output: 0 to shards - 1.
    """
    return call_step("plan_shards", locals())
