"""Continue training on fresh rows."""

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

    Network, feature encoding and classes come from the checkpoint, and the fresh rows must fit
    them.

    Args:
        checkpoint: The starting point, as chosen by select-checkpoint.
        dataset: Fresh labelled rows.
        validation: Rows for early stopping and for choosing between checkpoints.
        replay: Older rows; a sample of them is mixed in to prevent forgetting.
        replay_share: Share of the mix that is replayed, in [0, 1); 0 turns it off. If `replay` has
            fewer rows than that, all of them are used.
        epochs: Passes over the dataset, or over the mix.
        steps: Optimizer steps; overrides `epochs` when above 0.
        batch_size: Rows per step.
        optimizer: Class name in `torch.optim`; ignored if the checkpoint's optimizer is kept.
        learning_rate: Peak learning rate.
        schedule: Class name in `torch.optim.lr_scheduler`, or `constant`.
        keep_optimizer: Keep the checkpoint's optimizer, with its arguments and state.
        keep_schedule: Keep the checkpoint's learning-rate schedule, at its original length.
        keep_position: Continue in the order of the rows where the checkpoint left off.
        shrink: Factor on the weights before training (Ash & Adams 2020); 1 leaves them unchanged, 0
            trains from scratch: only network, optimizer and their arguments are the checkpoint's,
            and the feature encoding is fitted to these rows.
        perturb: Share of a fresh initialisation that is added to them; 0 turns it off.
        seed: Seeds the initial weights, the order of the rows and dropout.
        device: `auto`, `cpu`, `cuda` or `cuda:1`; requesting a GPU that is missing is an error.
        checkpoint_uri: Root of the checkpoints, local, gs:// or s3://; empty keeps them beside the
            ledger.
        experiment: Folder below that root; empty uses `finetune`.
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
    return call_step("finetune_fresh", locals())
