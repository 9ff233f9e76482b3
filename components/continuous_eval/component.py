"""Evaluate a model on data it has not seen."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def continuous_eval(
    dataset: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    record: dsl.Output[dsl.Artifact],
    model: dsl.Input[dsl.Model] = None,
    baseline: dsl.Input[dsl.Model] = None,
    teacher: dsl.Input[dsl.Model] = None,
    golden: dsl.Input[dsl.Dataset] = None,
    unlabelled: dsl.Input[dsl.Dataset] = None,
    thresholds: dict = {},
    slices: list = [],
    registry: str = "",
    run_id: str = "",
    step: str = "",
    settings: dict = {},
) -> NamedTuple("Outputs", [("decision", str), ("reason", str)]):
    """Score a model with confidence intervals, compare it with others, and decide.

    With a registry, the champion is compared with the record of its own promotion, the rows are
    checked for being fit to judge by, and the evaluation is added to the history.

    Args:
        dataset: Labelled rows that no model has been trained on. With a registry, rows without a
            target column tell what to expect of the champion.
        model: The model to judge; defaults to the registry's champion.
        baseline: The model to beat, compared row by row on the same data; defaults to the
            registry's champion.
        teacher: The model that the judged one imitates.
        golden: A fixed second dataset on which the model must not get worse.
        unlabelled: Rows whose labels are late: what to expect of a classifier there is reported.
        thresholds: Limits by metric that decide between pass and fail.
        slices: Columns by whose values the scores are broken down.
        registry: Folder of champions and history, local, gs:// or s3://; empty uses none.
        run_id: Id of the pipeline run, for the history.
        step: Name of this evaluation in the history: `judge` or `challenge`; empty infers it from
            the model that is judged.
        settings: Further options, listed in docs/settings.md.

    Returns:
        metrics: Scalars of the model.
        report: Scores, record, drift, history, calibration and cost, as an HTML page.
        summary: The same in short, as Markdown.
        record: The decision, bound to digests, and all scores, as JSON: an input of promote-model.
        decision: One word for the pipeline to branch on.
        reason: The decision explained in a sentence.
    """
    return call_step("continuous_eval", locals())
