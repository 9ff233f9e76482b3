"""Choose among students of several sizes."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def choose_student(
    uris: list[str],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    record: dsl.Output[dsl.Artifact],
    teacher: dsl.Input[dsl.Model] = None,
    metric: str = "",
    tolerance: float = 0.02,
    confidence: float = 0.95,
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str), ("network_args", dict)]):
    """Choose the smallest student whose score is within tolerance of its teacher's.

    Every student is scored on the same rows and compared with the teacher row by row. One is within
    tolerance where the whole interval of the difference is above what may be lost, widened by the
    number of students, so that the choice is not one of chance. If none is, the best is chosen, and
    the verdict says so.

    Args:
        uris: The students: the `model_uri` of each train-student.
        dataset: Labelled rows that none of them has learned from: validation rows, so that the
            hold-out rows still judge the one that is chosen.
        teacher: What they are compared with; if not connected, the best of them.
        metric: Metric that is compared; empty uses accuracy, AUC for two classes, or RMSE.
        tolerance: Share of the teacher's score that may be lost.
        confidence: Confidence of all statements together.

    Returns:
        model: The chosen student.
        metrics: Its score, its difference to the teacher, its size and its latency.
        report: Scores against size and latency with the frontier, as an HTML page.
        summary: The same in short, as Markdown.
        record: The same as JSON.
        verdict: `within`, `unproven` (too few rows to show it) or `outside`.
        reason: Why this one, in sentences.
        network_args: Arguments of its network, for a control of the same size.
    """
    return call_step("choose_student", locals())
