"""Train the large model."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_teacher(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    ledger: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    validation: dsl.Input[dsl.Dataset] = None,
    network: str = "mlp",
    network_args: dict = {},
    epochs: float = 20.0,
    steps: int = 0,
    batch_size: int = 128,
    optimizer: str = "AdamW",
    learning_rate: float = 0.001,
    schedule: str = "CosineAnnealingLR",
    seed: int = 0,
    device: str = "auto",
    checkpoint_uri: str = "",
    experiment: str = "",
    resume: str = "auto",
    settings: dict = {},
    teacher_uri: str = "",
    teacher_options: dict = {},
    if_labelled: str = "train",
    cross_fit: int = 0,
) -> NamedTuple("Outputs", [("model_uri", str)]):
    """Train a large, accurate model on real labels, or bring in the teacher that you have.

    All parameters are checked before any data is read, and all problems are reported together. A
    retried or re-submitted training run resumes from its last checkpoint and, on the same kind of
    machine, produces a bit-identical model.

    Args:
        dataset: Labelled rows to learn from.
        validation: Rows for early stopping and for choosing between checkpoints.
        network: `mlp`, or the import path of a class or factory such as `my_pkg.nets:Net`.
        network_args: Keyword arguments of the network, such as `{"hidden": [128, 128]}`.
        epochs: Passes over the dataset.
        steps: Optimizer steps; overrides `epochs` when above 0.
        batch_size: Rows per step.
        optimizer: Class name in `torch.optim`.
        learning_rate: Peak learning rate.
        schedule: Class name in `torch.optim.lr_scheduler`, or `constant`.
        seed: Seeds the initial weights, the order of the rows and dropout.
        device: `auto`, `cpu`, `cuda` or `cuda:1`; requesting a GPU that is missing is an error.
        checkpoint_uri: Root of the checkpoints, local, gs:// or s3://; empty keeps them beside the
            ledger.
        experiment: Folder below that root; empty uses `teacher`.
        resume: `auto` continues from an earlier attempt, `never` starts anew, `must` fails if there
            is nothing to resume.
        settings: All other settings of a training run, listed in docs/settings.md.
        teacher_uri: A model to bring in instead of training one, as `import-model` does: its file
            or folder, local, gs:// or s3://, or an import path. There is no ledger then.
        teacher_options: What that model's file does not say; the parameters and settings of
            `import-model` in one dict.
        if_labelled: Where rows carry a teacher's answers already: `train` a model on their labels
            all the same, or `skip` it. `model` is no model then: `label-with-teacher` hands the
            rows on, and `continuous-eval` does without a teacher.
        cross_fit: Folds: as many further teachers, each fitted without one part of the rows, answer
            for the rows that they have not seen when `label-with-teacher` labels them. Rows of one
            group stay together. 0 fits none; the exported model learns from all rows either way.

    Returns:
        model: The exported model: weights, and a spec that includes its feature encoding.
        ledger: Every checkpoint of the training run: step, metrics, size, digests, URI.
        metrics: Scalars of the exported model.
        report: Learning curves, checkpoints, settings and cost, as an HTML page.
        summary: The same in short, as Markdown.
        model_uri: Location of the exported model.
    """
    return call_step("train_teacher", locals())
