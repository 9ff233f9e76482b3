"""Join the shards of a fan-out."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather_shards(
    uris: list[str],
    dataset: dsl.Output[dsl.Dataset],
) -> NamedTuple("Outputs", [("dataset_uri", str)]):
    """Join the shards of a fan-out to one dataset: an index of their parts; no bytes are copied.

    Fan-outs join by URI strings because Kubeflow would download every shard to join artifacts.

    Args:
        uris: The shards in any order: the `dataset_uri` of each iteration.

    Returns:
        dataset: One dataset over all rows, ordered by the number of the shard.
        dataset_uri: Location of the index.
    """
    return call_step("gather_shards", locals())
