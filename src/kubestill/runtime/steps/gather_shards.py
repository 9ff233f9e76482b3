"""Task of the component `gather-shards`: join shards without copying them."""

from __future__ import annotations

from collections.abc import Sequence

from kubestill.runtime.base.artifacts import Artifact
from kubestill.runtime.generation import gathering as gather


def gather_shards(*, uris: Sequence[str], dataset: Artifact) -> tuple[str]:
    """Write one index of all shards to `dataset`; no rows are copied.

    Args:
        uris: The shards, in any order.
        dataset: Output.

    Returns:
        The URI of the index.

    Raises:
        InvalidInput: Everything that is wrong, before anything is written.
        CorruptData: Rows of a shard are damaged, if they must be read.
    """
    made = gather.gather_shards(uris, dataset.path)
    dataset.metadata |= {"kind": "dataset", "fingerprint": made.fingerprint, "rows": made.rows}
    return (dataset.uri,)
