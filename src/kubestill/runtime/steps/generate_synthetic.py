"""Task of the component `generate-synthetic`: write one shard of generated rows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from kubestill.errors import Problems
from kubestill.runtime.base.artifacts import Artifact, check_kind
from kubestill.runtime.base.settings import check_overlap, read
from kubestill.runtime.certification import CertificateSettings
from kubestill.runtime.certification.ahead import solve_ahead
from kubestill.runtime.datasets.manifest import open_input
from kubestill.runtime.generation.generate import generate
from kubestill.runtime.generation.request import parse_request
from kubestill.runtime.generation.systems.kept import Keep
from kubestill.runtime.steps.plan_shards import take


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
    assurance: str = "auto",
    samples: int = 0,
    certificate_settings: Mapping[str, Any] | None = None,
) -> tuple[str]:
    """Write one shard of generated rows to `dataset`; the component documents the parameters.

    Returns:
        The URI of the shard.

    Raises:
        InvalidInput: Everything that is wrong, before anything is written.
        CorruptData: Rows of the original dataset are damaged.
    """
    problems = Problems()
    surrogate = request = numerical = certificate = None
    source = open_input(original, "original", problems)
    if model is not None:
        with problems.collect("model", model.uri):
            check_kind(model, "model")
            from kubestill.runtime.models.export import load_model

            surrogate = load_model(model.path)
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
    if samples or certificate_settings:
        typed = {"assurance": assurance, "samples": samples}
        typed |= {"seed": seed, "on_failure": on_failure}
        asked, found = certificate_settings or {}, Problems()
        own = check_overlap(asked, typed, found)
        certificate = read(CertificateSettings, {**asked, **typed}, found, prefixed=own)
        take(found, "certificate_settings", problems)
        if not system:
            problems.add("samples", samples, "they are points of a system; name one in `system`")
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
        if certificate and numerical and keep and keep.rows is not None:
            said = "the certificate's points are left to it: it looks below `checkpoint_uri` alone"
            if checkpoint_uri:
                said = solve_ahead(
                    numerical,
                    certificate,
                    keep,
                    rows=request.rows,
                    shard=shard,
                    shards=shards,
                )
            print(said, flush=True)
    dataset.metadata |= {"kind": "dataset", "fingerprint": made.fingerprint, "rows": made.rows}
    return (dataset.uri,)
