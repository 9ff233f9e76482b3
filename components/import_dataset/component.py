"""Import a table into a pipeline."""

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

    Column kinds and the task are inferred from the data and can be overridden. The split depends
    only on the data and the seed, so a retry or a second run gives the same three datasets.

    Args:
        source: File, glob or folder of Parquet or CSV, local, gs:// or s3://; or `digits`.
        target: Column to predict; may be empty for `digits`.
        task: `regression`, `binary`, `multiclass`, or `auto` to infer it from the target.
        features: Columns to learn from; empty uses all but the target.
        kinds: Overrides by column: `numeric`, `boolean`, `categorical` or `tensor`.
        validation_fraction: Share of the rows, in [0, 1).
        holdout_fraction: Share of the rows, in [0, 1).
        require_holdout: Refuse a hold-out share of 0, for pipelines whose later steps need it.
        seed: Seeds the split.

    Returns:
        dataset: The training rows.
        validation: Rows for early stopping and for choosing between checkpoints.
        holdout: Rows that only the final evaluation sees.
        dataset_uri: Location of the training rows.
    """
    return call_step("import_dataset", locals())
