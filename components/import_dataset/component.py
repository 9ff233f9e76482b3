"""Bring a table into a pipeline."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def import_dataset(
    source: str,
    dataset: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.Dataset],
    holdout: dsl.Output[dsl.Dataset],
    target: str = "",
    task: str = "auto",
    features: list = [],
    kinds: dict = {},
    validation_fraction: float = 0.15,
    holdout_fraction: float = 0.2,
    require_holdout: bool = False,
    seed: int = 0,
) -> NamedTuple("Outputs", [("dataset_uri", str)]):
    """Read a Parquet or CSV table and split it into training, validation and hold-out rows.

    Column kinds and the task are inferred from the data and can be overridden. The split follows
    the seed alone, so a retry or a second run gives the same three datasets.

    Args:
        source: File, glob or folder of Parquet or CSV, local, gs:// or s3://; or `digits`.
        target: Column to predict; may stay empty for `digits`.
        task: `regression`, `binary`, `multiclass`, or `auto` to infer it from the target.
        features: Columns to learn from; empty takes all but the target.
        kinds: Overrides by column: `numeric`, `boolean`, `categorical` or `tensor`.
        validation_fraction: Share of the rows, 0 to below 1.
        holdout_fraction: Share of the rows, 0 to below 1.
        require_holdout: Refuse a share of 0: something later judges by these rows.
        seed: Of the split.

    Returns:
        dataset: The training rows.
        validation: Rows for early stopping and for the choice between checkpoints.
        holdout: Rows that only the final evaluation sees.
        dataset_uri: Where the training rows lie.
    """
    return call_step("import_dataset", locals())
