"""Load the registry's champion into a pipeline."""

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
    checkpoint: dsl.Output[dsl.Artifact],
    run_id: str = "",
) -> NamedTuple("Outputs", [("version", int)]):
    """Copy the registry's champion into the run, with its ledger and the golden rows.

    Args:
        registry: Folder that all runs share, local, gs:// or s3://.
        run_id: Id of the pipeline run; the champion must then be the one that the run's window was
            collected for. Empty accepts any champion.

    Returns:
        model: The champion's export.
        ledger: Its ledger, with the one state from before overfitting, to fine-tune from.
        golden: Rows that no judged model learns from: your own, or those that judged the first
            champion.
        checkpoint: The state from before overfitting, as select-checkpoint would hand it on.
        version: Version of the champion.
    """
    return call_step("open_champion", locals())
