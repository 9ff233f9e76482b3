"""Find out in seconds whether a distillation can work at all."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check_distillation(
    dataset: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    findings: dsl.Output[dsl.Artifact],
    augmented: dsl.Input[dsl.Dataset] = None,
    validation: dsl.Input[dsl.Dataset] = None,
    teacher_network: str = "mlp",
    teacher_args: dict = {},
    teacher_steps: int = 1500,
    teacher_learning_rate: float = 0.001,
    teacher_settings: dict = {},
    student_network: str = "mlp",
    student_args: dict = {},
    student_steps: int = 3000,
    student_learning_rate: float = 0.001,
    student_settings: dict = {},
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "auto",
    method: str = "munge",
    rows: int = 32768,
    shards: int = 1,
    synthetic_settings: dict = {},
    thresholds: dict = {},
    slices: list = [],
    strict: bool = True,
    gate: dict = {},
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str), ("shard_indices", list[int])]):
    """Overfit one small batch with the teacher and one with the student, before either is trained.

    Each is checked as `overfit-batch` checks one training, on rows and with settings of its own.
    What the rest of the pipeline will be told is checked as well, so that nothing is refused hours
    later: how synthetic rows are made, and what the evaluation holds the student against. The
    shards that share the generating and labelling are listed for `dsl.ParallelFor`.

    Args:
        dataset: Real rows; the student's are made of them.
        augmented: Rows that the teacher learns; not connected, it learns the real ones.
        validation: Rows that both are followed on.
        teacher_network: As train-teacher will be told, and so are the four that follow.
        teacher_args: Its keyword arguments.
        teacher_steps: Its optimizer steps.
        teacher_learning_rate: Its peak learning rate.
        teacher_settings: Everything else that it is told.
        student_network: As train-student will be told, and so are all down to `device`.
        student_args: Its keyword arguments.
        student_steps: Its optimizer steps.
        student_learning_rate: Its peak learning rate.
        student_settings: Everything else that it is told.
        temperature: Softens teacher and student before they are compared.
        hard_weight: Share of the hard-label loss.
        batch_size: Rows a step, of both.
        seed: Of the initial weights and the order of the rows.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        method: As label-with-teacher will be told, and so are the three that follow.
        rows: Synthetic rows in total.
        shards: Tasks that generate and label side by side, 1 to 128.
        synthetic_settings: Options of the method.
        thresholds: As continuous-eval will be told.
        slices: Columns of the same.
        strict: Fail unless the verdict is `pass`.
        gate: Options of both checks: docs/settings.md lists them.

    Returns:
        metrics: Floor, excess, steps to the floor and skill of each.
        report: Learning curves of every attempt and every question asked, as a page.
        summary: The same in short.
        findings: The same as JSON, by `teacher` and `student`.
        verdict: `pass`, `fail` or `undetermined`: the worse of the two.
        reason: The diagnosis in sentences.
        shard_indices: 0 to shards - 1.
    """
    return call_step("check_distillation", locals())
