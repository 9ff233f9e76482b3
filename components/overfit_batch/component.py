"""Check in seconds whether a training run can learn at all."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def overfit_batch(
    dataset: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    findings: dsl.Output[dsl.Artifact],
    validation: dsl.Input[dsl.Dataset] = None,
    mode: str = "hard",
    temperature: float = 4.0,
    hard_weight: float = 0.1,
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
    settings: dict = {},
    strict: bool = True,
    gate: dict = {},
    thresholds: dict = {},
    slices: list = [],
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):
    """Overfit one small batch before the expensive training run, or explain why that fails.

    The batch goes through the same decoding, encoding, loss and optimizer step as the training run
    itself, and its loss must reach the lowest value that any function of these features can have.
    If it does not, experiments find the cause: another learning rate, normalised features, a plain
    network, fewer rows. A separate check on held-out rows finds labels that belong to other rows.
    Pass it the parameters of the training run that it guards.

    Args:
        dataset: Rows of the training run that follows.
        validation: Validation rows of that run; settings that refer to them are checked here.
        mode: `hard`, `distil` or `overfit`, as in train-student; `hard` for a teacher.
        temperature: As in the training run that follows, like all parameters down to `settings`.
        hard_weight: Share of the hard-label loss in mode `distil`.
        network: `mlp`, or the import path of a class or factory such as `my_pkg.nets:Net`.
        network_args: Keyword arguments of the network, such as `{"hidden": [128, 128]}`.
        epochs: Passes over the dataset in the training run that follows.
        steps: Optimizer steps of that run; overrides `epochs` when above 0.
        batch_size: Rows per step of that run.
        optimizer: Class name in `torch.optim`.
        learning_rate: Peak learning rate.
        schedule: Class name in `torch.optim.lr_scheduler`, or `constant`.
        seed: Seeds the initial weights and the order of the rows.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        settings: All other settings of that run, listed in docs/settings.md.
        strict: Fail unless the verdict is `pass`.
        gate: Options of this check, listed in docs/settings.md.
        thresholds: Thresholds of the continuous-eval that ends the pipeline, to reject bad ones
            now.
        slices: Slices of the same evaluation.

    Returns:
        metrics: Floor, excess, steps to the floor, skill on held-out rows.
        report: Learning curves of every attempt and the result of every check, as an HTML page.
        summary: The same in short, as Markdown.
        findings: All findings, as JSON.
        verdict: `pass`, `fail` or `undetermined`.
        reason: The diagnosis in sentences.
    """
    return call_step("overfit_batch", locals())
