"""Distil a large teacher into a small student, with the same student on hard labels as control."""

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
    ignore: list = [],
    kinds: dict = {},
    import_settings: dict = {},
    validation_fraction: float = 0.15,
    holdout_fraction: float = 0.2,
    teacher: str = "",
    teacher_options: dict = {},
    teacher_network: str = "mlp",
    teacher_args: dict = {"hidden": [512, 512]},
    teacher_rows: int = 16384,
    teacher_steps: int = 1500,
    teacher_learning_rate: float = 0.001,
    teacher_settings: dict = {},
    teacher_cross_fit: int = 0,
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
    """Distil a large teacher into a small student and score both on real rows neither has seen.

    The teacher learns from the real rows and slightly perturbed copies of them. A fan-out generates
    synthetic rows and labels them with the teacher, and the student learns from those. A control,
    the same network trained for as many steps, learns the hard labels of the real rows: the
    student's lead over it is what distillation gains. Before training starts, teacher and student
    each have to overfit one small batch, which takes seconds.

    Args:
        dataset: File, glob or folder of Parquet or CSV, local, gs:// or s3://; or `digits`.
        target: Column to predict; may be empty for `digits`.
        task: `regression`, `binary`, `multiclass`, or `auto` to infer it from the target.
        features: Columns to learn from; empty uses all but the target.
        ignore: Columns to keep and not to learn from, in place of a list of all others.
        kinds: Overrides by column: `numeric`, `boolean`, `categorical`, `tensor` or `text`.
        import_settings: How the files are read, where detection gets it wrong.
        validation_fraction: Share of the rows for early stopping and selection.
        holdout_fraction: Share of the rows that only the evaluation sees.
        teacher: A model that you have, in place of one that is trained: its file or folder, local,
            gs:// or s3:// (LightGBM, XGBoost, ONNX, skops, Hugging Face), the import path of a
            class, or an address. Rows that carry a teacher's answers need none.
        teacher_options: What that file does not say, such as `{"classes": ["no", "yes"]}`.
        teacher_network: `mlp`, or an import path such as `my_pkg.nets:Net`.
        teacher_args: Keyword arguments of the network.
        teacher_rows: Perturbed copies of real rows, with their labels, added for the teacher.
        teacher_steps: Optimizer steps of the teacher.
        teacher_learning_rate: Peak learning rate of the teacher.
        teacher_settings: Further settings of the teacher's training run.
        teacher_cross_fit: Folds of further teachers, so that each real row is labelled by one that
            has not seen it; 0 for none, 5 where real rows are few.
        method: How synthetic rows are made: `jitter` suits images, `munge` and `mixup` tables;
            `files` takes rows that you have without a label, such as texts, from files.
        rows: Synthetic rows in total; the real rows are added to them.
        shards: Tasks that generate and label in parallel.
        synthetic_settings: Options of the method.
        student_network: Network of student and control, given like the teacher's.
        student_args: Keyword arguments of the network.
        student_steps: Optimizer steps of student and control.
        student_learning_rate: Peak learning rate of student and control.
        student_settings: Further settings of both training runs.
        temperature: Softens teacher and student before they are compared.
        hard_weight: Share of the hard-label loss on rows that have a label, 0 to 1.
        batch_size: Rows per step, in all three training runs.
        thresholds: Limits by metric that decide whether the student passes.
        slices: Columns by whose values the scores are broken down.
        gate: Options of the check before training; see overfit-batch.
        strict: Stop if that check does not pass.
        seed: Seeds the split, the synthetic rows and the training runs.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        checkpoint_uri: Root of the checkpoints, local, gs:// or s3://.
        image: Image of the small steps.
        gpu_image: Image of the steps with a device: training, labelling and gates.
        cpu: CPUs that each step with a device requests.
        memory: Memory that each step with a device requests, which is also its limit.
        accelerator: Resource name of the accelerator in Kubernetes.
        accelerators: Number of accelerators for each such step; empty means CPUs only.
        node_selector: Labels of the nodes that such steps run on.
        tolerations: Taints that such steps tolerate, such as those of spot nodes.
    """
    step = Tasks(locals())
    data = step(import_dataset, "import_", source=dataset, require_holdout=True)
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
        teacher_uri=teacher,
    )
    large = step(
        train_teacher,
        prefix="teacher_",
        teacher_uri=teacher,
        dataset=augmented.outputs["dataset"],
        validation=data.outputs["validation"],
        network_args=teacher_args,
        experiment="teacher",
        if_labelled="skip",
    ).after(sound)

    # Each shard is one step: the rows that it generates are labelled where they are made.
    shard_loop = dsl.ParallelFor(
        sound.outputs["shard_indices"], name="shards", parallelism=parallelism()
    )
    with group(shard_loop) as shard:
        labelled = step(
            label_with_teacher,
            model=large.outputs["model"],
            dataset=data.outputs["dataset"],
            shard=shard,
        )
    gathered = step(gather_shards, uris=dsl.Collected(labelled.outputs["dataset_uri"]))

    student = step(
        train_student,
        prefix="student_",
        dataset=gathered.outputs["dataset"],
        validation=data.outputs["validation"],
        teacher=large.outputs["model"],
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
        teacher=large.outputs["model"],
        dataset=data.outputs["holdout"],
    )
