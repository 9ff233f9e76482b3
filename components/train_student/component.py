"""Train the small model."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_student(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    ledger: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    validation: dsl.Input[dsl.Dataset] = None,
    teacher: dsl.Input[dsl.Model] = None,
    mode: str = "distil",
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    tolerance: float = 0.0,
    statistic: str = "max",
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
    """Train a small model on a teacher's soft outputs, or on hard labels as the control.

    For classification the loss is that of Hinton et al. 2015: the cross-entropy between softened
    outputs, times the squared temperature, plus the hard-label loss. A retried or re-submitted
    training run resumes from its last checkpoint and, on the same kind of machine, produces a
    bit-identical model.

    Args:
        dataset: Rows to learn from: with soft outputs for `distil`, with labels otherwise.
        validation: Rows for early stopping and for choosing between checkpoints; not used by
            `overfit`.
        teacher: The model that labelled the rows, for `settings.imitate` and `settings.augment`,
            which need it in each step; not used otherwise.
        mode: `distil` imitates the teacher, `hard` learns the labels alone, `overfit` interpolates
            noise-free labels: it uses no regularisation, measures the error on every row, and stops
            at `tolerance`, at convergence or at the end of its budget.
        temperature: Softens teacher and student before they are compared; above 0.
        hard_weight: Share of the hard-label loss on rows that have a label, 0 to 1.
        tolerance: For `overfit`: the tolerance of certify-surrogate. Training stops at half of it,
            because the error between the rows is larger than on them, or at `settings.tolerance`;
            0 turns this off.
        statistic: For `overfit`: `max`, `p999` or `mean`, as in certify-surrogate; training uses
            the largest error for the first two.
        network: `mlp`, `resmlp`, `siren` and `fourier` for functions, `fno` for fields, or the
            import path of a class or factory such as `my_pkg.nets:Net`.
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
        experiment: Folder below that root; empty uses `student`, `control` or `overfit`, by mode.
        resume: `auto` continues from an earlier attempt, `never` starts anew, `must` fails if there
            is nothing to resume.
        settings: All other settings of a training run, listed in docs/settings.md.

    Returns:
        model: The exported model: weights, and a spec that includes its feature encoding.
        ledger: Every checkpoint of the training run: step, metrics, size, digests, URI.
        metrics: Scalars of the exported model.
        report: Learning curves, checkpoints, settings and cost, as an HTML page.
        summary: The same in short, as Markdown.
        model_uri: Location of the exported model.
    """
    return call_step("train_student", locals())
