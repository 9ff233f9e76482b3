"""Let the teacher say what it thinks of each row."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def label_with_teacher(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    labelled: dsl.Output[dsl.Dataset],
    device: str = "auto",
    settings: dict = {},
    method: str = "",
    rows: int = 32768,
    shard: int = 0,
    shards: int = 1,
    seed: int = 0,
    synthetic_settings: dict = {},
) -> NamedTuple("Outputs", [("dataset_uri", str)]):
    """Add the teacher's soft outputs (class logits or predictions) to a dataset.

    Rows are labelled in fixed blocks of 8,192, so the labels do not depend on how the rows were cut
    into shards. Given a `method`, it first generates one shard of rows from the dataset, as
    `generate-synthetic` would, and labels those: one step instead of two, and rows that nobody else
    needs stay where they are made.

    Args:
        model: The teacher.
        dataset: Rows to label; or, with a `method`, the real rows to generate from.
        device: `auto`, `cpu`, `cuda` or `cuda:1`; a GPU that is asked for and missing is an error.
        settings: There are none yet; any name is refused.
        method: How to generate rows: `munge`, `mixup`, `jitter`, or the import path of a source of
            your own, `package.module:Name`; empty labels the rows of the dataset.
        rows: Generated rows over all shards together; the real ones come on top.
        shard: Index of this shard, from 0.
        shards: How many shards there are.
        seed: Of the random numbers that generating draws.
        synthetic_settings: Options of the method: docs/settings.md lists them.

    Returns:
        labelled: The rows with the soft outputs beside them.
        dataset_uri: Where the labelled rows lie.
    """
    return call_step("label_with_teacher", locals())
