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
    on_failure: str = "stop",
    network: str = "",
    network_args: dict = {},  # noqa: B006
    steps: int = 0,
    batch_size: int = 128,
    learning_rate: float = 0.001,
    student_settings: dict = {},  # noqa: B006
    assurance: str = "auto",
    tolerance: float = 0.0,
    statistic: str = "max",
    samples: int = 20_000,
    exceptions: bool = False,
    certificate_settings: dict = {},  # noqa: B006
    gate: dict = {},  # noqa: B006
) -> list[int]:
    """List the shard indices of a fan-out, and solve a few rows before it starts.

    A loop needs its list before it starts, and a pipeline parameter holds only the count. The
    parameters of the shards' `generate-synthetic` are checked here, before any shard runs. A system
    solves its first 8 rows twice: this shows whether it works, whether equal inputs get equal
    labels, and how long a shard will take. With a `network`, the parameters of the steps that learn
    from these rows are checked on them as well, so that no typo is refused hours later.

    Args:
        shards: Number of tasks to spread the work over, 1 to 128.
        method: Method of `generate-synthetic`; if this and `system` are empty, nothing is checked.
        rows: Rows of `generate-synthetic`.
        settings: Its settings, listed in docs/settings.md.
        system: Its system; empty if the rows are generated from a dataset.
        system_args: Arguments of the system.
        on_failure: Whether the shards `stop` or `leave-out` inputs on which the system fails.
        network: Network of train-student in mode `overfit`; empty checks none of what follows.
        network_args: Keyword arguments of that network.
        steps: Its optimizer steps.
        batch_size: Its rows per step.
        learning_rate: Its peak learning rate.
        student_settings: Further settings of the training run.
        assurance: Assurance of certify-surrogate.
        tolerance: Its tolerance.
        statistic: Its statistic.
        samples: Its random points.
        exceptions: Whether it stores exceptions.
        certificate_settings: Its further settings.
        gate: Options of overfit-batch.

    Returns:
        Output: 0 to shards - 1.
    """
    return call_step("plan_shards", locals())
