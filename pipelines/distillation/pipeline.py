"""Distil a large teacher into a small student, beside the same student on hard labels."""

from kfp import dsl

from kubestill.components import (
    check_distillation,
    continuous_eval,
    gather_shards,
    generate_synthetic,
    import_dataset,
    label_with_teacher,
    select_checkpoint,
    train_student,
    train_teacher,
)
from kubestill.components._image import IMAGE
from kubestill.pipelines._policy import Tasks, group, parallelism


@dsl.pipeline(name="distillation")
def distillation(
    dataset: str = "digits",
    target: str = "",
    task: str = "auto",
    features: list = [],
    kinds: dict = {},
    validation_fraction: float = 0.15,
    holdout_fraction: float = 0.2,
    teacher_network: str = "mlp",
    teacher_args: dict = {"hidden": [512, 512]},
    teacher_rows: int = 16384,
    teacher_steps: int = 1500,
    teacher_learning_rate: float = 0.001,
    teacher_settings: dict = {},
    method: str = "jitter",
    rows: int = 32768,
    shards: int = 2,
    synthetic_settings: dict = {},
    student_network: str = "mlp",
    student_args: dict = {"hidden": [250]},
    student_steps: int = 3000,
    student_learning_rate: float = 0.004,
    student_settings: dict = {},
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    batch_size: int = 128,
    thresholds: dict = {},
    slices: list = [],
    gate: dict = {},
    strict: bool = True,
    seed: int = 0,
    device: str = "auto",
    checkpoint_uri: str = "",
    image: str = IMAGE,
    gpu_image: str = IMAGE,
    cpu: str = "2",
    memory: str = "4Gi",
    accelerator: str = "nvidia.com/gpu",
    accelerators: str = "",
    node_selector: dict = {},
    tolerations: list = [],
):
    """Distil a large teacher into a small student and score both on real rows nobody trained on.

    The teacher learns the real rows and slightly disturbed copies of them. Synthetic rows are
    generated and labelled by the teacher in a fan-out, and the student learns from those. A
    control, the same network with equally many steps, learns the real rows' hard labels: what the
    student gains over it is what all of this is worth. Before any of it, teacher and student each
    have to overfit one small batch, which takes seconds.

    Args:
        dataset: File, glob or folder of Parquet or CSV, local, gs:// or s3://; or `digits`.
        target: Column to predict; may stay empty for `digits`.
        task: `regression`, `binary`, `multiclass`, or `auto` to infer it from the target.
        features: Columns to learn from; empty takes all but the target.
        kinds: Overrides by column: `numeric`, `boolean`, `categorical` or `tensor`.
        validation_fraction: Share of the rows that early stopping and selection see.
        holdout_fraction: Share of the rows that only the evaluation sees.
        teacher_network: `mlp`, or an import path such as `my_pkg.nets:Net`.
        teacher_args: Its keyword arguments.
        teacher_rows: Disturbed copies of real rows, labels kept, that the teacher learns as well.
        teacher_steps: Optimizer steps of the teacher.
        teacher_learning_rate: Peak learning rate of the teacher.
        teacher_settings: Further settings of the teacher's training.
        method: How synthetic rows are made: `jitter` suits images, `munge` and `mixup` tables.
        rows: Synthetic rows in total; the real ones are added to them.
        shards: Tasks that generate and label side by side.
        synthetic_settings: Options of the method.
        student_network: As for the teacher.
        student_args: Its keyword arguments.
        student_steps: Optimizer steps of the student, and of the control.
        student_learning_rate: Peak learning rate of the student, and of the control.
        student_settings: Further settings of both trainings.
        temperature: Softens teacher and student before they are compared.
        hard_weight: Share of the hard-label loss on rows that have a label, 0 to 1.
        batch_size: Rows a step, in all three trainings.
        thresholds: Limits by metric that decide whether the student passes.
        slices: Columns by whose values the scores are broken down.
        gate: Options of the check before the training; see overfit-batch.
        strict: Stop where that check does not pass.
        seed: Of the split, the synthetic rows and the trainings.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        checkpoint_uri: Root of the checkpoints, local, gs:// or s3://.
        image: Image of the small steps.
        gpu_image: Image of the steps that have a device: training, labelling and gates.
        cpu: Processors that each of those asks for.
        memory: Memory that each of those asks for and may use.
        accelerator: Kubernetes' name of the accelerator.
        accelerators: How many of them each such step gets; empty is none: CPUs only.
        node_selector: Labels of the nodes that such steps run on.
        tolerations: Taints that such steps put up with, such as those of spot nodes.
    """
    step = Tasks(locals())
    data = step(import_dataset, source=dataset, require_holdout=True)
    augmented = step(
        generate_synthetic,
        name="augment",
        original=data.outputs["dataset"],
        method="jitter",
        rows=teacher_rows,
        leave=["shards"],
    )
    sound = step(
        check_distillation,
        dataset=data.outputs["dataset"],
        augmented=augmented.outputs["dataset"],
        validation=data.outputs["validation"],
    )
    teacher = step(
        train_teacher,
        prefix="teacher_",
        dataset=augmented.outputs["dataset"],
        validation=data.outputs["validation"],
        network_args=teacher_args,
        experiment="teacher",
    ).after(sound)

    # Each shard is one step: the rows that it generates are labelled where they are made.
    shard_loop = dsl.ParallelFor(
        sound.outputs["shard_indices"], name="shards", parallelism=parallelism()
    )
    with group(shard_loop) as shard:
        labelled = step(
            label_with_teacher,
            model=teacher.outputs["model"],
            dataset=data.outputs["dataset"],
            shard=shard,
        )
    gathered = step(gather_shards, uris=dsl.Collected(labelled.outputs["dataset_uri"]))

    student = step(
        train_student,
        prefix="student_",
        dataset=gathered.outputs["dataset"],
        validation=data.outputs["validation"],
        mode="distil",
        network_args=student_args,
        experiment="student",
    )
    control = step(
        train_student,
        prefix="student_",
        name="train-control",
        dataset=data.outputs["dataset"],
        validation=data.outputs["validation"],
        mode="hard",
        network_args=student_args,
        experiment="control",
        leave=["temperature", "hard_weight"],
    )

    chosen = step(select_checkpoint, ledger=student.outputs["ledger"])
    step(
        continuous_eval,
        model=chosen.outputs["model"],
        baseline=control.outputs["model"],
        teacher=teacher.outputs["model"],
        dataset=data.outputs["holdout"],
    )
