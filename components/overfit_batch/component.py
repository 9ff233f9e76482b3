"""Find out in seconds whether a training can learn at all."""

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
    """Overfit one small batch on purpose before the expensive training, or say why that fails.

    The batch goes through the same decoding, encoding, loss and optimizer step as the training to
    come, and its loss has to reach the least that any function of these features can have. What is
    wrong otherwise is found by experiment: another learning rate, normalised features, a plain
    network, fewer rows. A separate check on held-out rows finds labels that stand in other rows.
    Give it the parameters of the training that it guards.

    Args:
        dataset: Rows of the training to come.
        validation: Its validation rows: what it is told of them is checked here.
        mode: `hard`, `distil` or `overfit`, as in train-student; `hard` for a teacher.
        temperature: As in the training to come, and so are all parameters down to `settings`.
        hard_weight: Share of the hard-label loss in mode `distil`.
        network: `mlp`, or the import path of a class or factory such as `my_pkg.nets:Net`.
        network_args: Its keyword arguments, such as `{"hidden": [128, 128]}`.
        epochs: Passes over the dataset of the training to come.
        steps: Its optimizer steps; overrides `epochs` when above 0.
        batch_size: Rows a step of it.
        optimizer: Class name in `torch.optim`.
        learning_rate: Peak learning rate.
        schedule: Class name in `torch.optim.lr_scheduler`, or `constant`.
        seed: Of the initial weights and the order of the rows.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        settings: Everything else the training is told: docs/settings.md lists it.
        strict: Fail unless the verdict is `pass`.
        gate: Options of this check: docs/settings.md lists them.
        thresholds: Of the continuous-eval that ends the pipeline: refused here, not at its end.
        slices: Columns of the same.

    Returns:
        metrics: Floor, excess, steps to the floor, skill on held-out rows.
        report: Learning curves of every attempt and every question asked, as a page.
        summary: The same in short.
        findings: All that was found, as JSON.
        verdict: `pass`, `fail` or `undetermined`.
        reason: The diagnosis in sentences.
    """
    return call_step("overfit_batch", locals())
