"""Promote the challenger to champion."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_model(
    model: dsl.Input[dsl.Model],
    ledger: dsl.Input[dsl.Artifact],
    registry: str,
    run_id: str,
    summary: dsl.Output[dsl.Markdown],
    record: dsl.Input[dsl.Artifact] = None,
    metrics: dsl.Input[dsl.Metrics] = None,
    whole: dsl.Input[dsl.Dataset] = None,
    checkpoint: dsl.Input[dsl.Artifact] = None,
    replay: dsl.Input[dsl.Dataset] = None,
    refit: bool = True,
    model_registry: str = "",
    model_name: str = "",
    device: str = "auto",
    checkpoint_uri: str = "",
) -> NamedTuple("Outputs", [("version", int), ("model_uri", str)]):
    """Promote what was judged, or its refit: copy it into the registry and swap the champion.

    The promotion is refused unless the digests of challenger, champion and judging rows are those
    of the decision. With `whole`, the challenger's training run is repeated on all rows: the same
    recipe, and as many passes as its exported checkpoint took. What comes of it is promoted in its
    place, unless it is worse on the rows that judged, beyond noise, although it learned them.
    Champion and window change in one compare-and-swap; a retry finds its work done.

    Args:
        model: The challenger.
        ledger: Its ledger; the state from before overfitting is kept, to fine-tune from.
        registry: Folder that all runs share, local, gs:// or s3://.
        run_id: Id of the pipeline run that holds the window: `dsl.PIPELINE_JOB_ID_PLACEHOLDER`.
        record: Record of the continuous-eval that judged the model; it holds the decision.
        metrics: Metrics of the same evaluation, for versions that kept the decision there.
        whole: Every row, those that judged included: the challenger's training run is repeated on
            them, and promoted in its place. Not connected: promotes the challenger itself.
        checkpoint: Where finetune-fresh started from, if it trained the challenger.
        replay: Older rows that finetune-fresh mixed in; a sample of the same share is drawn again.
        refit: False promotes the challenger itself, whatever is connected.
        model_registry: Address of the Kubeflow Model Registry where the model is registered, such
            as `http://model-registry-service.kubeflow:8080`; empty skips registration. A service
            that does not answer never prevents the promotion.
        model_name: Name of the model there; empty uses the registry's last folder.
        device: Where to train: `auto`, `cpu`, `cuda` or `cuda:1`.
        checkpoint_uri: Root of the checkpoints of that training run, local, gs:// or s3://; empty
            keeps them beside the summary.

    Returns:
        summary: Who is champion, and whether the Model Registry accepted the model.
        version: Version of the new champion.
        model_uri: Location of the new champion.
    """
    return call_step("promote_model", locals())
