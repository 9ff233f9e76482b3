"""Task of the component `generate-synthetic`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubestill.errors import Problems
from kubestill.runtime.artifacts import Artifact, check_kind
from kubestill.runtime.data.manifest import Dataset
from kubestill.runtime.synthetic.generate import generate
from kubestill.runtime.synthetic.request import parse_request


def generate_synthetic(
    *,
    dataset: Artifact,
    original: Artifact | None = None,
    method: str = "munge",
    rows: int = 32_768,
    shard: int = 0,
    shards: int = 1,
    include_original: bool = True,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> tuple[str]:
    """Write one shard of generated rows to `dataset`.

    Args:
        dataset: Output.
        original: The real dataset to augment.
        method: `munge`, `mixup`, `jitter`, or `package.module:Name` of a source (see
            `kubestill.runtime.synthetic.source`).
        rows: Generated rows over all shards together.
        shard: Index of this shard, from 0.
        shards: How many shards there are.
        include_original: Start with the real rows, labels included.
        seed: Of the random numbers.
        settings: Options of the method.

    Returns:
        The URI of the shard.

    Raises:
        InvalidInput: With everything that is wrong, before anything is written.
        CorruptData: The original dataset is damaged.
    """
    problems = Problems()
    with problems.collect():
        check_kind(original, "dataset", "original")
    request = None
    with problems.collect():
        values = {
            "method": method,
            "rows": rows,
            "shard": shard,
            "shards": shards,
            "include_original": include_original,
            "seed": seed,
            "settings": settings or {},
        }
        request = parse_request(values, has_original=original is not None)
    problems.raise_if_any()
    assert request is not None
    source = Dataset.open(original.path) if original else None
    made = generate(dataset.path, request, source)
    dataset.metadata |= {"kind": "dataset", "fingerprint": made.fingerprint, "rows": made.rows}
    return (dataset.uri,)
