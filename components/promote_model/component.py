"""Make the challenger champion."""

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
    model_registry: str = "",
    model_name: str = "",
) -> NamedTuple("Outputs", [("version", int), ("model_uri", str)]):
    """Promote the very model that was judged: copy it into the registry and swap the champion.

    Refused unless the digests of challenger, champion and judging rows are those of the decision.
    Champion and window change in one compare-and-swap; repeated, it finds its work done.

    Args:
        model: The challenger.
        ledger: Its training; the state from before overfitting is kept, to fine-tune from.
        registry: Folder that all runs share, local, gs:// or s3://.
        run_id: Of the pipeline run that holds the window: `dsl.PIPELINE_JOB_ID_PLACEHOLDER`.
        record: Of the continuous-eval that judged it: it holds the decision.
        metrics: Of the same, where it was run by a version that kept the decision there.
        model_registry: Address of the Kubeflow Model Registry to tell, such as
            `http://model-registry-service.kubeflow:8080`; empty: nobody is told. Whether it answers
            changes nothing about the promotion.
        model_name: What it calls the model; empty: the registry's last folder.

    Returns:
        summary: Who is champion, and whether the Model Registry was told.
        version: Of the new champion.
        model_uri: Where it lies.
    """
    return call_step("promote_model", locals())
