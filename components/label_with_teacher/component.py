"""Let the teacher say what it thinks of each row."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def label_with_teacher(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    labelled: dsl.Output[dsl.Dataset],
    device: str = "auto",
    settings: dict = {},
) -> NamedTuple("Outputs", [("dataset_uri", str)]):
    """Add the teacher's soft outputs (class logits or predictions) to a dataset.

    Rows are labelled in fixed blocks of 8,192, so the labels do not depend on how the rows were cut
    into shards.

    Args:
        model: The teacher.
        dataset: Rows to label, usually one shard.
        device: `auto`, `cpu`, `cuda` or `cuda:1`; a GPU that is asked for and missing is an error.
        settings: There are none yet; any name is refused.

    Returns:
        labelled: The same rows with the soft outputs beside them.
        dataset_uri: Where the labelled rows lie.
    """
    from kubestill.runtime.tasks.label_with_teacher import label_with_teacher as run

    return run(
        model=model,
        dataset=dataset,
        labelled=labelled,
        device=device,
        settings=settings,
    )
