"""Label rows with the teacher's soft outputs."""

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

    Rows are labelled in fixed blocks of 8,192, so the labels do not depend on how the rows are cut
    into shards. Given a `method`, the step first generates one shard of rows from the dataset, as
    `generate-synthetic` does, and labels those: one step instead of two, and the unlabelled rows
    are never uploaded.

    Args:
        model: The teacher.
        dataset: Rows to label; with a `method`, the real rows to generate from.
        device: `auto`, `cpu`, `cuda` or `cuda:1`; `auto` and `cuda` use all GPUs of the pod.
            Requesting a GPU that is missing is an error.
        settings: Has no options yet; any name is refused.
        method: How to generate rows: `munge`, `mixup`, `jitter`, `files` to take rows without a
            label from files of yours (`synthetic_settings={"source": ...}`), or the import path of
            your own source, `package.module:Name`; empty labels the rows of the dataset.
        rows: Generated rows over all shards together; the real ones are added to them.
        shard: Index of this shard, from 0.
        shards: Number of shards.
        seed: Seeds the random numbers of the generated rows.
        synthetic_settings: Options of the method, listed in docs/settings.md.

    Returns:
        labelled: The rows together with the soft outputs.
        dataset_uri: Location of the labelled rows.
    """
    return call_step("label_with_teacher", locals())
