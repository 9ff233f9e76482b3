"""Collect the rows that arrived since the last run."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def collect_fresh(
    source: str,
    timestamp: str,
    target: str,
    registry: str,
    run_id: str,
    dataset: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.Dataset],
    holdout: dsl.Output[dsl.Dataset],
    fresh: dsl.Output[dsl.Dataset],
    replay: dsl.Output[dsl.Dataset],
    unlabelled: dsl.Output[dsl.Dataset],
    whole: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
    as_of: str = "",
    since: str = "",
    label_delay_hours: float = 0.0,
    task: str = "auto",
    features: list = [],
    kinds: dict = {},
    keys: list = [],
    golden_source: str = "",
    min_rows: int = 200,
    judge_fraction: float = 0.3,
    validation_fraction: float = 0.15,
    replay_rows: int = 0,
    rebuild_after: int = 3,
    lease_hours: float = 12.0,
    seed: int = 0,
    settings: dict = {},
) -> NamedTuple("Outputs", [("status", str), ("reason", str), ("method", str)]):
    """Collect labelled rows that no run has taken yet: the window of this run.

    The registry reserves the window until the run ends. Its rows count as taken only if the run
    succeeds; after a failure the next run takes them. A retry gets the same window.

    Args:
        source: Parquet or CSV: a file, a folder with all below it (`date=2013-04-01/` becomes a
            column), or a glob such as `gs://bucket/flights/**/*.parquet`.
        timestamp: Column with the time of each row.
        target: Column to predict.
        registry: Folder that all runs share, local, gs:// or s3://.
        run_id: Id of the pipeline run: `dsl.PIPELINE_JOB_ID_PLACEHOLDER`.
        as_of: Take rows from before this date or time, to replay history; empty means now.
        since: Never take rows from before this date or time.
        label_delay_hours: Time that labels take to arrive: newer rows are left to the next run.
        task: `regression`, `binary`, `multiclass`, or `auto` to infer it from the target.
        features: Columns to learn from; empty uses all but target and timestamp.
        kinds: Overrides by column: `numeric`, `boolean`, `categorical`, `tensor` or `text`.
        keys: Columns that identify a row; empty uses all columns, and how often a file has the row.
        golden_source: Parquet or CSV of rows on which a challenger must not get worse; copied into
            the registry once. Empty uses the rows that judged the first champion.
        min_rows: With fewer fresh rows, all of them wait for the next run.
        judge_fraction: Share of the rows that judge, which no judged model learns from, in (0, 1).
        validation_fraction: Share of the rows for early stopping and selection, in [0, 1).
        replay_rows: How many rows that champions learned from to pass on as `replay`.
        rebuild_after: Challengers that may lose, after a promotion, before the next one is to be
            trained from scratch; 0 never does that.
        lease_hours: Time after which a run that holds its window is presumed dead.
        seed: Seeds the validation split and the sample of older rows.
        settings: `timezone` of times without one, `timestamp_format` of those not in ISO 8601, and
            how files are read, as in `import-dataset`.

    Returns:
        dataset: Rows to learn from: of this window, and of earlier windows not yet learned from;
            for a rebuild, of all of them.
        validation: A share of them, for early stopping and for choosing between checkpoints.
        holdout: Rows that judge the challenger.
        fresh: The whole window: the rows that judge the champion, which has seen none of them.
        replay: A sample of the rows that champions learned from.
        unlabelled: Rows whose labels are late, which say what to expect of the champion.
        whole: Rows that a model which proved better learns from before it is promoted: those of
            `dataset`, `validation` and `holdout`, and the registry's own golden rows.
        summary: What was found, file by file.
        status: `ready`; `bootstrap` if there is no champion; `waiting` if there are too few rows;
            `late` if there are, but enough whose labels are late; `busy` while another run is at
            work.
        reason: The status explained in a sentence.
        method: How a challenger is to be made: `fine-tune`, or `rebuild` for training one from
            scratch.
    """
    return call_step("collect_fresh", locals())
