"""Bring the champion into a pipeline."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def open_champion(
    registry: str,
    model: dsl.Output[dsl.Model],
    ledger: dsl.Output[dsl.Artifact],
    golden: dsl.Output[dsl.Dataset],
    run_id: str = "",
) -> NamedTuple("Outputs", [("version", int)]):
    """Copy the registry's champion into the run, with its ledger and the golden rows.

    Args:
        registry: Folder that all runs share, local, gs:// or s3://.
        run_id: Of the pipeline run; with it, the champion must be the one that the run's window is
            for. Empty takes whichever is there.

    Returns:
        model: The champion's export.
        ledger: Its training: the one state from before overfitting, to fine-tune from.
        golden: Rows that no model ever learns from: the user's own, or the first champion's judges.
        version: Which champion it is.
    """
    return call_step("open_champion", locals())
