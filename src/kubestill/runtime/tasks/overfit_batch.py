"""Task of the component `overfit-batch`: can this training learn at all? Told in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubestill.errors import Problems, Refused, nearest
from kubestill.runtime.artifacts import Artifact, MetricsArtifact, check_kind, clean, write_pages
from kubestill.runtime.data.cache import load_decoded
from kubestill.runtime.data.checks import check_trainable
from kubestill.runtime.data.dataset import Dataset
from kubestill.runtime.data.decode import RawLayout
from kubestill.runtime.evaluation.slices import check_slices
from kubestill.runtime.evaluation.thresholds import parse_thresholds
from kubestill.runtime.overfit_batch import Findings, GateSettings, Rows, examine
from kubestill.runtime.reports.overfit_batch import gate_report
from kubestill.runtime.settings import validate
from kubestill.runtime.tasks.train_student import MODES
from kubestill.runtime.training.device import Machine, arithmetic, choose_machine
from kubestill.runtime.training.prepare import prepare, resolve_loss
from kubestill.runtime.training.settings import TrainingSettings, read_settings

__all__ = ["overfit_batch"]


def overfit_batch(
    *,
    dataset: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    mode: str = "hard",
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    network: str = "mlp",
    network_args: dict[str, Any] = {},  # noqa: B006
    epochs: float = 20.0,
    steps: int = 0,
    batch_size: int = 128,
    optimizer: str = "AdamW",
    learning_rate: float = 0.001,
    schedule: str = "CosineAnnealingLR",
    seed: int = 0,
    device: str = "auto",
    settings: dict[str, Any] = {},  # noqa: B006
    strict: bool = True,
    gate: dict[str, Any] = {},  # noqa: B006
    thresholds: dict[str, Any] = {},  # noqa: B006
    slices: list[str] = [],  # noqa: B006
) -> tuple[str, str]:
    """Learn one small batch to the floor of its loss, and find out why where that fails.

    Args:
        dataset: Rows of the training to come.
        metrics: Output: scalars; `metadata["findings"]` holds everything.
        report: Output: HTML.
        summary: Output: Markdown.
        mode: `hard`, `distil` or `overfit`, as in `train-student`; `hard` for a teacher.
        temperature: As in the training to come, and so are all that follow.
        hard_weight: ″
        network: ″
        network_args: ″
        epochs: ″
        steps: ″
        batch_size: ″
        optimizer: ″
        learning_rate: ″
        schedule: ″
        seed: ″
        device: ″
        settings: ″
        strict: Raise where the verdict is not `pass`.
        gate: See `GateSettings`.
        thresholds: Of the evaluation to come; checked here, before anything is trained.
        slices: ″

    Returns:
        verdict: `pass`, `fail` or `undetermined`.
        reason: Why, in sentences.

    Raises:
        InvalidInput: Everything wrong with parameters and data, at once.
        Refused: The verdict is not `pass`, and `strict` is set.
    """
    typed = {
        "temperature": temperature,
        "hard_weight": hard_weight,
        "network": network,
        "network_args": network_args,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "seed": seed,
        "device": device,
    }
    job = _check(dataset, mode, typed, settings, gate, thresholds, slices)
    findings = _examine(job)
    _write(findings, job, metrics, report, summary)
    for check in findings.checks:
        print(f"{check.status}: {check.name}. {check.said}", flush=True)
    print(f"{findings.verdict}: {findings.reason}", flush=True)
    if strict and findings.verdict != "pass":
        raise Refused(f"overfit-batch: {findings.verdict}. {findings.reason}")
    return findings.verdict, findings.reason


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Checked parameters and inputs."""

    dataset: Dataset
    settings: TrainingSettings
    machine: Machine
    loss_name: str
    gate: GateSettings


def _check(
    dataset: Artifact,
    mode: str,
    typed: Mapping[str, Any],
    settings: Mapping[str, Any],
    gate: Mapping[str, Any],
    thresholds: Mapping[str, Any],
    slices: Sequence[str],
) -> _Job:
    """Find every problem that can be found without reading rows, and raise them together."""
    problems = Problems()
    rows = machine = loss_name = asked = None
    if mode not in MODES:
        problems.add("mode", mode, nearest(mode, MODES))
    preset = MODES.get(mode, MODES["hard"])
    with problems.collect():
        asked = validate(GateSettings, gate, prefix="gate.")
    parsed = read_settings(typed, settings, problems, defaults=preset.defaults)
    with problems.collect():
        machine = choose_machine(parsed)
    with problems.collect("dataset", dataset.uri):
        check_kind(dataset, "dataset")
        rows = Dataset.open(dataset.path)
        if rows.rows == 1:
            problems.add("dataset", "1 row", "give at least two")
        check_trainable(rows)
    if rows and rows.schema.task:
        with problems.collect():
            parse_thresholds(thresholds, rows.schema.task)
        with problems.collect():
            check_slices(slices, rows.schema)
    if rows:
        with problems.collect():
            loss_name = resolve_loss(parsed, rows, distil=preset.distil)
    problems.raise_if_any()
    assert rows
    assert machine
    assert loss_name
    assert asked
    return _Job(dataset=rows, settings=parsed, machine=machine, loss_name=loss_name, gate=asked)


def _examine(job: _Job) -> Findings:
    with arithmetic(job.settings):
        prepared = prepare(job.dataset, None, job.settings, job.machine, loss_name=job.loss_name)
        decoded = load_decoded(job.dataset, RawLayout(job.dataset.schema))
        rows = Rows(labels=decoded.target, soft=decoded.soft, complete=job.dataset.complete_domain)
        return examine(prepared, rows, job.settings, job.machine, job.gate)


def _write(
    findings: Findings, job: _Job, metrics: MetricsArtifact, report: Artifact, summary: Artifact
) -> None:
    told = {
        "network": job.settings.network,
        "arguments": job.settings.network_args,
        "loss": job.loss_name,
        "optimizer": job.settings.optimizer,
        "learning rate": job.settings.learning_rate,
        "device": job.machine.describe(),
        "dataset rows": job.dataset.rows,
        "gate": job.gate.model_dump(),
    }
    write_pages(gate_report(findings, told), report, summary)
    found = (
        {**findings.facts, "steps_to_floor": findings.traces[0].reached}
        if findings.traces
        else findings.facts
    )
    for name, value in found.items():
        if isinstance(value, int | float) and abs(value) < float("inf"):
            metrics.log_metric(name, float(value))
    metrics.metadata["kind"] = "metrics"
    metrics.metadata["findings"] = clean(findings.to_json())
