"""Judge a model on data it has not seen."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def continuous_eval(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    baseline: dsl.Input[dsl.Model] | None = None,
    teacher: dsl.Input[dsl.Model] | None = None,
    golden: dsl.Input[dsl.Dataset] | None = None,
    thresholds: dict = {},
    slices: list = [],
    registry: str = "",
    settings: dict = {},
) -> NamedTuple("Outputs", [("decision", str), ("reason", str)]):
    """Score a model with confidence intervals, compare it with others, and decide.

    Args:
        model: The model to judge.
        dataset: Labelled rows that no training has seen.
        baseline: The model to beat, compared row by row on the same data.
        teacher: The model that the judged one imitates.
        golden: A fixed second dataset that must not get worse.
        thresholds: Limits by metric that decide between pass and fail.
        slices: Columns by whose values the scores are broken down.
        registry: Folder of the evaluation history, local or gs://; empty keeps none.
        settings: Further options; unknown names are refused.

    Returns:
        metrics: Scalars of the model.
        report: Scores, calibration, agreement and cost, as a page.
        summary: The same in short.
        decision: One word for the pipeline to branch on.
        reason: The sentence behind it.
    """
    from kubestill.runtime.tasks.continuous_eval import continuous_eval as run

    return run(
        model=model,
        dataset=dataset,
        metrics=metrics,
        report=report,
        summary=summary,
        baseline=baseline,
        teacher=teacher,
        golden=golden,
        thresholds=thresholds,
        slices=slices,
        registry=registry,
        settings=settings,
    )
