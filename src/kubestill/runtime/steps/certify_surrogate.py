"""Task of the component `certify-surrogate`: certify that a network has become its solver."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from kubestill.errors import Problems, Refused, counted
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, check_kind
from kubestill.runtime.base.rounding import exact_percent
from kubestill.runtime.base.settings import check_overlap, validate
from kubestill.runtime.certification import CertificateSettings
from kubestill.runtime.certification.certify import Examined, certify, check_bands, check_exceptions
from kubestill.runtime.certification.cost import weights_bytes
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.generation.systems.kept import Keep
from kubestill.runtime.generation.systems.load import load_named_system, load_system
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.models.bands import BANDS_FILE, Bands
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.reports.certificate import certificate_report
from kubestill.runtime.steps.pages import write_pages
from kubestill.runtime.steps.tracking import Results, mirror_results


def certify_surrogate(
    *,
    model: Artifact,
    dataset: Artifact,
    certificate: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    system: str = "",
    system_args: Mapping[str, Any] | None = None,
    assurance: str = "auto",
    tolerance: float = 0.0,
    statistic: str = "max",
    samples: int = 20_000,
    exceptions: bool = False,
    on_failure: str = "stop",
    seed: int = 0,
    strict: bool = True,
    checkpoint_uri: str = "",
    settings: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Certify a surrogate, or say why not; the component documents the parameters.

    Returns:
        verdict: `certified: enumerated`, `certified: proven`, `certified: sampled`, `measured` or
            `refused`; all but the last may end in `, where the solver answers`, and a proof on
            declared slopes in `, if what was declared holds`.
        reason: Why, in sentences.

    Raises:
        InvalidInput: Everything wrong with the inputs, at once.
        CorruptData: Model or dataset is damaged.
        Refused: The certificate is refused, and `strict` is set.
    """
    typed = {
        "assurance": assurance,
        "tolerance": tolerance,
        "statistic": statistic,
        "samples": samples,
        "exceptions": exceptions,
        "on_failure": on_failure,
        "seed": seed,
    }
    inputs = _check(model, dataset, system, system_args or {}, typed, settings or {})
    weights = weights_bytes(model.path)
    with ExitStack() as stack:
        keep = None
        if inputs.system is not None:
            place = checkpoint_uri or f"{certificate.uri}.d"
            keep = stack.enter_context(Keep(place, inputs.system, inputs.system_args))
        found = certify(
            inputs.predictor,
            inputs.dataset,
            inputs.system,
            inputs.settings,
            weights=weights,
            told=lambda said: print(said, flush=True),
            keep=keep,
        )
        # Its pictures solve rows as well.
        _write(found, inputs.dataset, certificate, metrics, report, summary)
        if found.bands is not None:
            _export_bands(found.bands, model.path, certificate.path)
    if found.truth:
        known = found.truth.reused
        before = f"; {known:,} more had been solved before" if known else ""
        print(f"{counted(found.truth.solved, 'row')} solved{before}", flush=True)
    made = found.certificate
    for condition in made.conditions:
        print(f"{condition.status}: {condition.name}. {condition.said}", flush=True)
    for band in made.bands:
        share = exact_percent(band.coverage)
        print(f"error band of {share}: within {band.mean:.3g} on average", flush=True)
    print(f"{made.verdict}: {made.reason}", flush=True)
    if strict and made.verdict == "refused":
        raise Refused(f"certify-surrogate: refused. {made.reason}")
    return made.verdict, made.reason


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Checked inputs."""

    predictor: Predictor
    dataset: Dataset
    system: System | None
    system_args: Mapping[str, Any]
    settings: CertificateSettings


def _check(
    model: Artifact,
    dataset: Artifact,
    system: str,
    system_args: Mapping[str, Any],
    typed: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> _Inputs:
    """Find every problem that can be found before anything is solved, and raise them together."""
    problems = Problems()
    predictor = rows = parsed = solver = None
    name, args = system, system_args
    own = check_overlap(settings, typed, problems)
    with problems.collect():
        parsed = validate(CertificateSettings, {**settings, **typed}, prefixed=own)
    with problems.collect():
        check_kind(model, "model")
        predictor = load_model(model.path)
    with problems.collect():
        check_kind(dataset, "dataset")
        rows = Dataset.open(dataset.path)
        if not rows.rows:
            problems.add("dataset", rows.root, "it has no rows; give what the surrogate learned")
        if rows.schema.target is None:
            problems.add("dataset", rows.root, "it has no labels; give what the surrogate learned")
    if rows:
        recorded = rows.provenance
        name = system or str(recorded.get("system", ""))
        args = system_args if system or system_args else recorded.get("system_args", {})
        if name:
            with problems.collect():
                solver = load_system(name, args) if system else load_named_system(name, args)
    if predictor and typed["exceptions"]:
        known = parsed if solver or not name else None
        classes = predictor.spec.task != "regression"
        check_exceptions(solver, known, classes=classes, problems=problems)
    if predictor and (solver or not name):
        classes = predictor.spec.task != "regression"
        check_bands(solver, parsed, classes=classes, problems=problems)
    if predictor and rows and rows.schema.target is not None:
        _check_fit(predictor, rows, solver, problems)
    problems.raise_if_any()
    assert predictor
    assert rows
    assert parsed
    return _Inputs(
        predictor=predictor, dataset=rows, system=solver, system_args=args, settings=parsed
    )


def _export_bands(bands: Bands, model: str, certificate: str) -> None:
    """Write a copy of the model with its bands, which only this step knows."""
    folder = os.path.join(certificate, "model")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    with open(os.path.join(folder, BANDS_FILE), "w", encoding="utf-8") as file:
        json.dump(bands.to_json(), file, allow_nan=False)


def _check_fit(
    predictor: Predictor, dataset: Dataset, system: System | None, problems: Problems
) -> None:
    """Check that model, dataset and system have the same inputs and the same output."""
    mine = predictor.spec.schema
    for name, schema in (("dataset", dataset.schema), ("system", system and system.schema)):
        if schema is None:
            continue
        theirs = {column.name: (column.kind, column.shape) for column in schema.features}
        for column in mine.features:
            if theirs.get(column.name) != (column.kind, column.shape):
                problems.add(
                    name,
                    sorted(theirs),
                    f"the model reads {column.name!r} ({column.kind}), and this has no such input",
                )
        ours, its = mine.target, schema.target
        assert ours
        assert its
        if (ours.kind, ours.shape, ours.categories) != (its.kind, its.shape, its.categories):
            remedy = f"the model answers {ours.name!r} ({ours.kind} {list(ours.shape)})"
            problems.add(name, f"{its.name} ({its.kind} {list(its.shape)})", remedy)


def _write(
    found: Examined,
    rows: Dataset,
    certificate: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
) -> None:
    made = found.certificate
    os.makedirs(certificate.path, exist_ok=True)
    if found.exceptions is not None:
        with open(os.path.join(certificate.path, "exceptions.bin"), "wb") as file:
            file.write(found.exceptions.to_bytes())
    with open(os.path.join(certificate.path, "certificate.json"), "w", encoding="utf-8") as file:
        json.dump(made.to_json(), file, indent=1, allow_nan=False)
    certificate.metadata.update(
        kind="certificate",
        verdict=made.verdict,
        assurance=made.assurance or "none",
        model=made.about.model,
    )
    write_pages(certificate_report(found), report, summary, rows)
    metrics.metadata["kind"] = "metrics"
    errors = made.errors
    data = errors.data.model_dump(exclude={"against"}, exclude_none=True)
    scalars = {
        **{f"data_{name}": value for name, value in data.items()},
        "off_grid_max": errors.off_grid and errors.off_grid.max,
        "off_grid_mean": errors.off_grid and errors.off_grid.mean,
        "proven_error": errors.proven and errors.proven.upper,
        "worst_error": made.worst.error,
        "size_ratio": made.size.ratio,
        "speed_ratio": made.speed and made.speed.ratio,
    }
    found_scores = {name: float(value) for name, value in scalars.items() if value is not None}
    for name, value in found_scores.items():
        metrics.log_metric(name, value)
    told = mirror_results(
        Results(
            step="certify",
            output_uri=certificate.uri,
            metrics=found_scores,
            tags={"verdict": made.verdict, "digest": made.about.model},
        )
    )
    if told:
        print(told, flush=True)
