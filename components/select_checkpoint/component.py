"""Choose a checkpoint after the training."""

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
    """Choose one milestone of a training by a rule, export it, and write down why.

    Args:
        ledger: The training's checkpoints.
        dataset: Rows to score the candidates on again; without it the recorded metrics decide.
        rule: `best`, `last`, `earliest-within`, `before-overfitting`, `pareto` or `step`.
        metric: What to compare; empty takes the training's own.
        tolerance: For `earliest-within`: share of the best value that may be lost; 0 takes one
            standard error.
        settings: Further options: docs/settings.md lists them.

    Returns:
        checkpoint: Reference to the chosen one: URI and digests, a few hundred bytes.
        model: The chosen checkpoint, exported.
        report: What was compared, as a page.
        summary: The same in short.
        checkpoint_uri: Where the full training state lies.
        model_uri: Where the exported model lies.
        reason: Why this one.
    """
    return call_step("select_checkpoint", locals())
