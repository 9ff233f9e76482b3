"""Record how a run ended."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def record_outcome(
    registry: str,
    run_id: str,
    final_status: dsl.PipelineTaskFinalStatus,
    summary: dsl.Output[dsl.Markdown],
    notify: str = "",
) -> NamedTuple("Outputs", [("outcome", str)]):
    """Close the run's window or give its rows back, and write the outcome to the history.

    This is the exit task of a pipeline: it runs after success and failure alike.

    Args:
        registry: Folder that all runs share, local, gs:// or s3://.
        run_id: Id of the pipeline run: `dsl.PIPELINE_JOB_ID_PLACEHOLDER`.
        final_status: What Kubeflow says about the steps before; filled in by Kubeflow.
        notify: Address of an HTTP webhook that gets what needs attention; empty takes that of
            the environment variable KUBESTILL_NOTIFY, if it is set.

    Returns:
        summary: How the run ended, and the state of the registry.
        outcome: `promoted`, `healthy`, `inconclusive`, `rejected` (the challenger), `unfit` (the
            rows), `waiting`, `busy`, `failed` or `abandoned`.
    """
    return call_step("record_outcome", locals())
