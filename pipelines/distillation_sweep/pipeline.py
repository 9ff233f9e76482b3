"""Distil one teacher into students of several sizes, and keep the smallest that is as good."""

from kfp import dsl

from kubestill.components import (
    check_distillation,
    choose_student,
    continuous_eval,
    generate_synthetic,
    import_dataset,
    label_with_teacher,
    train_student,
    train_teacher,
)
from kubestill.components._image import IMAGE
from kubestill.pipelines._policy import Tasks, group, parallelism


@dsl.pipeline(name="distillation-sweep")
def distillation_sweep(
    dataset: str = "digits",
    target: str = "",
    task: str = "auto",
    features: list = [],
    ignore: list = [],
    kinds: dict = {},
    import_settings: dict = {},
    validation_fraction: float = 0.25,
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
    synthetic_settings: dict = {},
    student_network: str = "mlp",
    student_sizes: list[dict] = [{"hidden": [32]}, {"hidden": [90]}, {"hidden": [250]}],
    student_steps: int = 3000,
    student_learning_rate: float = 0.004,
    student_settings: dict = {},
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    batch_size: int = 128,
    metric: str = "",
    tolerance: float = 0.02,
    confidence: float = 0.95,
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
    """Distil one teacher into students of several sizes, and keep the smallest that is as good.

    Teacher and labelled rows are made once; a fan-out trains one student for each size. All are
    compared with the teacher on the validation rows, and the smallest whose whole interval is
    within tolerance is chosen. The hold-out rows, which took no part in that, then judge it beside
    the teacher. `distillation` with the chosen size adds the control on hard labels.

    Args:
        dataset: File, glob or folder of Parquet or CSV, local, gs:// or s3://; or `digits`.
        target: Column to predict; may be empty for `digits`.
        task: `regression`, `binary`, `multiclass`, or `auto` to infer it from the target.
        features: Columns to learn from; empty uses all but the target.
        ignore: Columns to keep and not to learn from, in place of a list of all others.
        kinds: Overrides by column: `numeric`, `boolean`, `categorical`, `tensor` or `text`.
        import_settings: How the files are read, where detection gets it wrong.
        validation_fraction: Share of the rows for early stopping and for the choice.
        holdout_fraction: Share of the rows that only the evaluation sees.
        teacher: A model that you have, in place of one that is trained; see `distillation`.
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
        synthetic_settings: Options of the method.
        student_network: Network of the students.
        student_sizes: Keyword arguments of the network, for each student.
        student_steps: Optimizer steps of each student.
        student_learning_rate: Peak learning rate of each student.
        student_settings: Further settings of each student's training run.
        temperature: Softens teacher and student before they are compared.
        hard_weight: Share of the hard-label loss on rows that have a label, 0 to 1.
        batch_size: Rows per step, in all training runs.
        metric: Metric that the choice compares; empty uses accuracy, AUC for two classes, or RMSE.
        tolerance: Share of the teacher's score that the chosen student may lose.
        confidence: Confidence of all statements of the choice together.
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

    # One task, not a fan-out of shards, and no control: with either, three sizes would not fit into
    # the run that Kubeflow's list of tasks can show.
    labelled = step(
        label_with_teacher, model=large.outputs["model"], dataset=data.outputs["dataset"]
    )

    size_loop = dsl.ParallelFor(student_sizes, name="sizes", parallelism=parallelism())
    with group(size_loop) as size:
        student = step(
            train_student,
            prefix="student_",
            dataset=labelled.outputs["labelled"],
            validation=data.outputs["validation"],
            teacher=large.outputs["model"],
            mode="distil",
            network_args=size,
            experiment="student",
            leave=["tolerance"],
        )
    chosen = step(
        choose_student,
        uris=dsl.Collected(student.outputs["model_uri"]),
        teacher=large.outputs["model"],
        dataset=data.outputs["validation"],
    )
    step(
        continuous_eval,
        model=chosen.outputs["model"],
        teacher=large.outputs["model"],
        dataset=data.outputs["holdout"],
    )
