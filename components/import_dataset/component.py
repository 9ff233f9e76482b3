"""Import a table into a pipeline."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def import_dataset(
    dataset: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.Dataset],
    holdout: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    source: str = "",
    table: dsl.Input[dsl.Dataset] = None,
    target: str = "",
    task: str = "auto",
    features: list = [],
    ignore: list = [],
    kinds: dict = {},
    validation_fraction: float = 0.15,
    holdout_fraction: float = 0.2,
    require_holdout: bool = False,
    seed: int = 0,
    settings: dict = {},
) -> NamedTuple("Outputs", [("dataset_uri", str)]):
    """Read a table or images and split them into training, validation and hold-out rows.

    Column kinds and the task are inferred from the data and can be overridden; the report lists
    every column, what it is used for and what reading it changed. Rows of one entity stay together,
    and rows with times are split in their order. The split depends only on the data and the seed,
    so a retry or a second run gives the same three datasets.

    Args:
        source: File, glob or folder (with all below it) of Parquet or CSV, local, gs:// or s3://;
            or `digits`. Folders such as `store=007/` become a column. A folder of image files, or
            of IDX files, is read as a table with the columns `image` and `label`.
        table: Table that an earlier step wrote, in place of a source: a file or folder of Parquet
            or CSV, with or without an ending.
        target: Column to predict; may be empty for `digits`.
        task: `regression`, `binary`, `multiclass`, or `auto` to infer it from the target.
        features: Columns to learn from; empty uses all but the target.
        ignore: Columns to keep and not to learn from, in place of a list of all others.
        kinds: Overrides by column: `numeric`, `boolean`, `categorical`, `tensor` or `text`, which
            is read word by word. CSV follows them before it is parsed: a categorical `01234` stays
            as it is.
        validation_fraction: Share of the rows, in [0, 1).
        holdout_fraction: Share of the rows, in [0, 1).
        require_holdout: Refuse a hold-out share of 0, for pipelines whose later steps need it.
        seed: Seeds the split.
        settings: What columns are for besides learning (`roles`: `weight`, `group`, `time`,
            `soft`), and how files are read where detection gets it wrong; see docs/data.md.

    Returns:
        dataset: The training rows.
        validation: Rows for early stopping and for choosing between checkpoints.
        holdout: Rows that only the final evaluation sees.
        report: Every column: its kind and role, what was read, left out or merged, and why.
        summary: The same in brief.
        dataset_uri: Location of the training rows.
    """
    return call_step("import_dataset", locals())
