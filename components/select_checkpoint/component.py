"""Choose a checkpoint after the training run."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def select_checkpoint(
    ledger: dsl.Input[dsl.Artifact],
    checkpoint: dsl.Output[dsl.Artifact],
    model: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    dataset: dsl.Input[dsl.Dataset] = None,
    rule: str = "best",
    metric: str = "",
    tolerance: float = 0.0,
    settings: dict = {},
) -> NamedTuple("Outputs", [("checkpoint_uri", str), ("model_uri", str), ("reason", str)]):
    """Choose one milestone of a training run by a rule, export it, and record the reason.

    Args:
        ledger: The checkpoints of the training run.
        dataset: Rows to re-score the candidates on; if not connected, recorded metrics decide.
        rule: `best`, `last`, `earliest-within`, `before-overfitting`, `pareto` or `step`.
        metric: Metric to compare; empty uses that of the training run.
        tolerance: For `earliest-within`: share of the best value that may be lost, such as 0.01.
            0 allows one standard error of the difference to the best if `dataset` is connected,
            else the scatter of the recorded metric from milestone to milestone.
        settings: Further options, listed in docs/settings.md.

    Returns:
        checkpoint: Reference to the chosen checkpoint: URI and digests, a few hundred bytes.
        model: The chosen checkpoint, exported as a model.
        report: All candidates and the choice, as an HTML page.
        summary: The same in short, as Markdown.
        checkpoint_uri: Location of the full training state.
        model_uri: Location of the exported model.
        reason: Why this checkpoint was chosen.
    """
    return call_step("select_checkpoint", locals())
