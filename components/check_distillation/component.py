"""Check in seconds whether a distillation can work at all."""

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
    teacher_uri: str = "",
    teacher_options: dict = {},
    teacher_network: str = "mlp",
    teacher_args: dict = {},
    teacher_steps: int = 1500,
    teacher_learning_rate: float = 0.001,
    teacher_settings: dict = {},
    student_network: str = "mlp",
    student_args: dict = {},
    student_sizes: list[dict] = [{}],
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
    """Overfit one small batch with the teacher and one with the student, before training either.

    Each is checked as `overfit-batch` checks one training run, on its own rows and settings. The
    parameters of the later steps are checked as well, so that nothing is refused hours later: how
    synthetic rows are made, and which thresholds and slices the evaluation uses. The output
    `shard_indices` lists the shards for `dsl.ParallelFor`.

    Args:
        dataset: Real rows; the student's rows are generated from them.
        augmented: Rows that the teacher learns from; defaults to the real ones.
        validation: Validation rows of both.
        teacher_uri: Model that train-teacher brings in; it is loaded and tried on a few rows here,
            and only the student is trained.
        teacher_options: What that model's file does not say.
        teacher_network: Network of train-teacher.
        teacher_args: Keyword arguments of that network.
        teacher_steps: Optimizer steps of the teacher.
        teacher_learning_rate: Peak learning rate of the teacher.
        teacher_settings: Further settings of the teacher's training run.
        student_network: Network of train-student.
        student_args: Keyword arguments of that network.
        student_sizes: Arguments that replace some of `student_args`, for each student of a sweep;
            every one of them is checked.
        student_steps: Optimizer steps of the student.
        student_learning_rate: Peak learning rate of the student.
        student_settings: Further settings of the student's training run.
        temperature: Softens teacher and student before they are compared.
        hard_weight: Share of the hard-label loss.
        batch_size: Rows per step, for both.
        seed: Seeds the initial weights and the order of the rows.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        method: Method of label-with-teacher.
        rows: Synthetic rows in total.
        shards: Tasks that generate and label in parallel, 1 to 128.
        synthetic_settings: Options of the method.
        thresholds: Thresholds of continuous-eval.
        slices: Slices of continuous-eval.
        strict: Fail unless the verdict is `pass`.
        gate: Options of both checks, listed in docs/settings.md.

    Returns:
        metrics: Floor, excess, steps to the floor and skill, of teacher and student.
        report: Learning curves of every attempt and the result of every check, as an HTML page.
        summary: The same in short, as Markdown.
        findings: The same as JSON, under `teacher` and `student`.
        verdict: `pass`, `fail` or `undetermined`: the worse of the two.
        reason: The diagnosis in sentences.
        shard_indices: 0 to shards - 1.
    """
    return call_step("check_distillation", locals())
