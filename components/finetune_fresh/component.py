"""Go on training on fresh rows."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finetune_fresh(
    checkpoint: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    ledger: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    validation: dsl.Input[dsl.Dataset] = None,
    replay: dsl.Input[dsl.Dataset] = None,
    replay_share: float = 0.5,
    epochs: float = 5.0,
    steps: int = 0,
    batch_size: int = 128,
    optimizer: str = "AdamW",
    learning_rate: float = 0.0001,
    schedule: str = "CosineAnnealingLR",
    keep_optimizer: bool = True,
    keep_schedule: bool = False,
    keep_position: bool = False,
    shrink: float = 1.0,
    perturb: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    checkpoint_uri: str = "",
    experiment: str = "",
    resume: str = "auto",
    settings: dict = {},
) -> NamedTuple("Outputs", [("model_uri", str)]):
    """Fine-tune a model on fresh rows from a checkpoint taken before it began to overfit.

    The checkpoint brings network, feature encoding and classes; the fresh rows must fit them.

    Args:
        checkpoint: Where to start, as select-checkpoint chose it.
        dataset: Fresh labelled rows.
        validation: Rows for early stopping and for choosing between checkpoints.
        replay: Older rows, some of which are mixed in against forgetting.
        replay_share: Share of the mix that is replayed, from 0 (off) to below 1; all of `replay`
            where that is less.
        epochs: Passes over the dataset, or over the mix.
        steps: Optimizer steps; overrides `epochs` when above 0.
        batch_size: Rows a step.
        optimizer: Class name in `torch.optim`; the checkpoint's own goes on where it is kept.
        learning_rate: Peak learning rate.
        schedule: Class name in `torch.optim.lr_scheduler`, or `constant`.
        keep_optimizer: Go on with its optimizer, arguments and state included, not a fresh one.
        keep_schedule: Go on with its learning-rate schedule, at its own length, not a fresh one.
        keep_position: Go on with the order of the rows where the checkpoint left it.
        shrink: Factor on the weights before training (Ash & Adams 2020); 1 leaves them alone.
        perturb: Share of a fresh initialisation to add to them; 0 is off.
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
    return call_step("finetune_fresh", locals())
