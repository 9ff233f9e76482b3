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
) -> NamedTuple("Outputs", [("model_uri", str)]):
    """Train a large, accurate model on real labels.

    Everything that can be wrong with the parameters is reported at once, before any data is read. A
    retried or re-submitted training resumes from its last checkpoint and ends with the same bits.

    Args:
        dataset: Labelled rows to learn from.
        validation: Rows for early stopping and for choosing between checkpoints.
        network: `mlp`, or the import path of a class or factory such as `my_pkg.nets:Net`.
        network_args: Its keyword arguments, such as `{"hidden": [128, 128]}`.
        epochs: Passes over the dataset.
        steps: Optimizer steps; overrides `epochs` when above 0.
        batch_size: Rows a step.
        optimizer: Class name in `torch.optim`.
        learning_rate: Peak learning rate.
        schedule: Class name in `torch.optim.lr_scheduler`, or `constant`.
        seed: Of the initial weights, the order of the rows and dropout.
        device: `auto`, `cpu`, `cuda` or `cuda:1`; a GPU that is asked for and missing is an
            error.
        checkpoint_uri: Root of the checkpoints, local, gs:// or s3://; empty keeps them beside the
            ledger.
        experiment: Folder below that root; empty takes the component's name.
        resume: `auto` goes on where an earlier attempt stopped, `never` starts anew, `must`
            fails without one.
        settings: Everything else a training can be told: docs/settings.md lists it.

    Returns:
        model: The exported model: weights, and a spec with its feature encoding.
        ledger: Every checkpoint of the training: step, metrics, size, digests, URI.
        metrics: Scalars of the exported model.
        report: Learning curves, checkpoints, settings and cost, as a page.
        summary: The same in short.
        model_uri: Where the exported model lies.
    """
    return call_step("train_teacher", locals())
