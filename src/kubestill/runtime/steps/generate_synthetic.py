"""Task of the component `generate-synthetic`: write one shard of generated rows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from kubestill.errors import Problems
from kubestill.runtime.base.artifacts import Artifact, check_kind
from kubestill.runtime.datasets.manifest import open_input
from kubestill.runtime.generation.generate import generate
from kubestill.runtime.generation.request import parse_request
from kubestill.runtime.generation.systems.kept import Keep

if TYPE_CHECKING:
    from kubestill.runtime.models.predict import Predictor


def generate_synthetic(
    *,
    dataset: Artifact,
    original: Artifact | None = None,
    model: Artifact | None = None,
    method: str = "auto",
    rows: int = 32_768,
    shard: int = 0,
    shards: int = 1,
    include_original: bool = True,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    system: str = "",
    system_args: Mapping[str, Any] | None = None,
    on_failure: str = "stop",
    checkpoint_uri: str = "",
) -> tuple[str]:
    """Write one shard of generated rows to `dataset`; the component documents the parameters.

    Returns:
        The URI of the shard.

    Raises:
        InvalidInput: Everything that is wrong, before anything is written.
        CorruptData: Rows of the original dataset are damaged.
    """
    problems = Problems()
    surrogate = request = numerical = None
    source = open_input(original, "original", problems)
    if model is not None:
        with problems.collect("model", model.uri):
            check_kind(model, "model")
            surrogate = _surrogate(model)
    with problems.collect():
        values = {
            "method": method,
            "rows": rows,
            "shard": shard,
            "shards": shards,
            "include_original": include_original,
            "seed": seed,
            "settings": settings or {},
            "system": system,
            "system_args": system_args or {},
            "on_failure": on_failure,
        }
        request, numerical = parse_request(
            values, has_original=original is not None, has_model=model is not None
        )
    problems.raise_if_any()
    assert request is not None
    with ExitStack() as stack:
        keep = None
        if numerical is not None:
            place = checkpoint_uri or f"{dataset.uri}.d"
            keep = stack.enter_context(Keep(place, numerical, request.system_args))
        made = generate(
            dataset.path, request, source, system=numerical, surrogate=surrogate, keep=keep
        )
    dataset.metadata |= {"kind": "dataset", "fingerprint": made.fingerprint, "rows": made.rows}
    return (dataset.uri,)


def _surrogate(model: Artifact) -> Predictor:
    from kubestill.runtime.models.export import load_model

    return load_model(model.path)
