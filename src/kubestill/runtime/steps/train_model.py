"""Check everything, train, write every output: what the three training components share."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubestill.errors import CorruptData, NotFound, Problems
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact
from kubestill.runtime.checkpoints.ledger import (
    Json,
    Ledger,
    LedgerEntry,
    write_ledger_artifact,
)
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.restore import stream_weights
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.metrics.catalog import direction
from kubestill.runtime.models.export import Export, Incoming
from kubestill.runtime.models.serve import add_serving_file
from kubestill.runtime.reports.brought import no_model_report
from kubestill.runtime.reports.training import training_report
from kubestill.runtime.steps.pages import write_pages
from kubestill.runtime.steps.tracking import mirror_results, training_results
from kubestill.runtime.stores import open_store
from kubestill.runtime.training.job import Job, Preset, check_job
from kubestill.runtime.training.nodes import leads_pods
from kubestill.runtime.training.processes import joined
from kubestill.runtime.training.record import Chosen, PresetName, TrainingRecord
from kubestill.runtime.training.run import (
    Keeping,
    Origin,
    Task,
    check_resume,
    find_place,
    say,
    train,
)
from kubestill.runtime.training.trainjob import train_on_pods
from kubestill.supervision import TRAINJOB_VARIABLE


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The artifacts of a training component."""

    dataset: Artifact
    validation: Artifact | None
    model: Artifact
    ledger: Artifact
    metrics: MetricsArtifact
    report: Artifact
    summary: Artifact


def train_model(
    preset: Preset,
    typed: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    ports: Ports,
    keeping: Keeping,
    problems: Problems | None = None,
    teacher: Artifact | None = None,
) -> tuple[str]:
    """Check everything that a training component was given, and train.

    Args:
        preset: Which of the training components this is.
        typed: The component's typed training parameters.
        settings: Its `settings` dict.
        ports: Inputs and outputs.
        keeping: Where checkpoints are kept.
        problems: What the component has already found wrong.
        teacher: Whom a student learns from.

    Returns:
        (model URI,).

    Raises:
        InvalidInput: Every problem of parameters and data, at once; and what `train_and_write`
            raises.
    """
    problems = problems or Problems()
    check_resume(keeping.resume, problems)
    job = check_job(
        preset,
        typed,
        settings,
        problems,
        dataset=ports.dataset,
        validation=ports.validation,
        teacher=teacher,
        trains=True,
    )
    problems.raise_if_any()
    assert job
    return train_and_write(preset.name, job, ports=ports, keeping=keeping)


def write_no_model(name: PresetName, why: str, ports: Ports) -> tuple[str]:
    """Write what stands in for a model where none is trained; `why` not, in a sentence."""
    os.makedirs(ports.model.path, exist_ok=True)
    with open(os.path.join(ports.model.path, "README"), "w", encoding="utf-8") as file:
        file.write(f"{why}\n")
    ports.model.metadata.update(kind="no-model", why=why)
    ports.metrics.metadata["kind"] = "metrics"
    write_pages(no_model_report(name, why), ports.report, ports.summary, None)
    say(why)
    return ("",)


def train_and_write(
    name: PresetName, job: Job, *, ports: Ports, keeping: Keeping, origin: Origin | None = None
) -> tuple[str]:
    """Train, and write model, ledger, metrics, report and summary.

    Args:
        name: The preset.
        job: The checked job.
        ports: Outputs.
        keeping: Where checkpoints are kept.
        origin: The checkpoint that fine-tuning starts from.

    Returns:
        (model URI,).

    Raises:
        CorruptData: No milestone can be read; and what `train` raises.
    """

    def write_ledger(ledger: Ledger) -> None:
        if first:
            os.makedirs(os.path.dirname(ports.ledger.path), exist_ok=True)
            write_ledger_artifact(ledger, ports.ledger.path)
            about = {"uri": ledger.uri, "fingerprint": ledger.fingerprint}
            ports.ledger.metadata.update(kind="ledger", **about)

    task = Task(name=name, job=job, keeping=keeping, ledger_uri=ports.ledger.uri, origin=origin)
    if leads_pods(job.settings):
        train_on_pods(job.settings, find_place(task), keeping.resume, say)
    with joined(task):
        # Outside of the group every rank would take itself for the only one.
        first = Ranks.current().rank == 0
        record, ledger = train(task, on_failure=write_ledger)
    # The step that made the pods writes its outputs.
    if first and TRAINJOB_VARIABLE not in os.environ:
        write_ledger(ledger)
        exported = _write_outputs(record, ledger, ports, job.dataset)
        # The import path that the caller typed vouches for its module where the model names just
        # that: the model may come from a checkpoint, which somebody may have exchanged.
        network = job.settings.network
        module, colon, _ = network.partition(":")
        typed = colon and not origin and exported.spec.network["factory"] == network
        add_serving_file(ports.model.path, job.settings.serving, trust=[module] if typed else [])
    return (ports.model.uri,)


def _write_outputs(record: TrainingRecord, ledger: Ledger, ports: Ports, rows: Dataset) -> Export:
    chosen, entry, incoming, spec = _read_chosen(record, ledger, ports.model.path)
    record = record.replace(chosen=chosen, checkpoints=ledger.entries)
    exported = incoming.export(spec, training=record.to_json())
    parameters = exported.spec.parameters
    ports.model.metadata.update(
        kind="model",
        digest=exported.digest,
        parameters=parameters,
        fingerprint=record.fingerprint,
        checkpoint_uri=record.checkpoint_uri,
    )
    ports.metrics.metadata["kind"] = "metrics"
    scores = {
        **entry.metrics,
        "parameters": float(parameters),
        "steps": float(record.steps),
        "examples": float(record.examples),
        "seconds": round(record.seconds, 3),
    }
    for name, value in scores.items():
        ports.metrics.log_metric(name, value)
    pages = training_report(record, exported.spec, exported.digest)
    write_pages(pages, ports.report, ports.summary, rows)
    if told := mirror_results(training_results(record, scores, ports.model)):
        say(told)
    say(f"exported step {entry.step:,} ({chosen.why}): {parameters:,} parameters")
    return exported


def _read_chosen(
    record: TrainingRecord, ledger: Ledger, folder: str
) -> tuple[Chosen, LedgerEntry, Incoming, Json]:
    """Read the milestone to export: the chosen one, or loudly the next best that can be read.

    Its weights may be more than fit into memory, and go to disk.

    The chosen one is missing where training resumed from a spilled state, in another place than it
    began in, and damaged where somebody or a disk damaged it.

    Raises:
        CorruptData: No milestone can be read.
    """
    metric, chosen = record.metric, record.chosen
    sign = 1 if direction(metric) == "min" else -1

    def rank(entry: LedgerEntry) -> tuple[bool, float]:
        score = sign * entry.metrics[metric] if metric in entry.metrics else math.inf
        return entry.step != chosen.step, score

    for entry in sorted(ledger.milestones, key=rank):
        try:
            incoming, meta = stream_weights(open_store(ledger.uri), entry, folder)
        except (CorruptData, NotFound) as error:
            say(f"WARNING: step {entry.step:,} cannot be exported: {error}")
            continue
        if entry.step == chosen.step:
            return chosen, entry, incoming, meta.get("model_spec", {})
        why = f"step {chosen.step:,}, the {chosen.why}, is gone or damaged"
        say(f"WARNING: {why}: exporting step {entry.step:,}")
        found = Chosen(step=entry.step, why=f"{why}; the next best")
        return found, entry, incoming, meta.get("model_spec", {})
    raise CorruptData(f"no milestone below {ledger.uri} can be read; train with resume='never'")
