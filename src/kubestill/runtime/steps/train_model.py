"""What the three training components share: check everything, train, write every output."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubestill.errors import CorruptData, NotFound, Problems
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, write_pages
from kubestill.runtime.checkpoints.ledger import (
    Checkpoint,
    Ledger,
    LedgerEntry,
    write_ledger_artifact,
)
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.restore import load_state
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.metrics.catalog import direction
from kubestill.runtime.models.export import SPEC_FILE, export_from_state
from kubestill.runtime.models.serve import add_serving_file
from kubestill.runtime.reports.training import training_report
from kubestill.runtime.training.job import Job, Preset, check_job
from kubestill.runtime.training.run import Keeping, Origin, check_resume, say, train

__all__ = ["Ports", "train_and_write", "train_model"]


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
) -> tuple[str]:
    """Check what a training is asked to do, and do it.

    Args:
        preset: Which of the three trainings.
        typed: The component's typed training parameters.
        settings: Its `settings` dict.
        ports: Inputs and outputs.
        keeping: Where checkpoints live.
        problems: What the component has already found wrong.

    Returns:
        (model URI,).

    Raises:
        InvalidInput: Every problem of parameters and data, at once; `train_and_write` tells more.
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
    )
    problems.raise_if_any()
    assert job
    return train_and_write(preset.name, job, ports=ports, keeping=keeping)


def train_and_write(
    name: str, job: Job, *, ports: Ports, keeping: Keeping, origin: Origin | None = None
) -> tuple[str]:
    """Train, and write model, ledger, metrics, report and summary.

    Args:
        name: Of the preset.
        job: The training run, checked.
        ports: Outputs.
        keeping: Where checkpoints live.
        origin: The checkpoint that a fine-tuning starts from.

    Returns:
        (model URI,).

    Raises:
        CorruptData: No milestone can be read; and what `train` raises.
    """
    rank = Ranks.current().rank
    record, ledger = train(name, job, keeping=keeping, ledger_uri=ports.ledger.uri, origin=origin)
    if rank == 0:
        _write_outputs(record, ledger, ports)
        trust = [] if origin else _typed(job.settings.network, ports.model.path)
        add_serving_file(ports.model.path, job.settings.serving, trust=trust)
    return (ports.model.uri,)


def _write_outputs(record: dict[str, Any], ledger: Ledger, ports: Ports) -> None:
    entry, state = _chosen_state(record, ledger)
    record["checkpoints"] = [
        {"step": e.step, "kind": e.kind, "phase": e.phase, "metrics": dict(e.metrics)}
        for e in ledger.entries
    ]
    digest = export_from_state(state.tensors, state.model_spec, ports.model.path, training=record)
    ports.model.metadata.update(
        kind="model",
        digest=digest.model,
        parameters=digest.parameters,
        fingerprint=record["fingerprint"],
        checkpoint_uri=record["checkpoint_uri"],
    )
    write_ledger_artifact(ledger, ports.ledger.path)
    ports.ledger.metadata.update(kind="ledger", uri=ledger.uri, fingerprint=record["fingerprint"])
    _write_scores(record, dict(entry.metrics), digest.parameters, ports.metrics)
    pages = training_report(record, state.meta["model_spec"])
    write_pages(pages, ports.report, ports.summary)
    why = record["chosen"]["why"]
    say(f"exported step {entry.step:,} ({why}): {digest.parameters:,} parameters")


def _chosen_state(record: dict[str, Any], ledger: Ledger) -> tuple[LedgerEntry, TrainingState]:
    """Return the milestone to export: the chosen one, or loudly the next best that can be read.

    The chosen one is missing where a training went on from a spilled state, elsewhere than it
    began, and damaged where somebody or a disk damaged it.

    Raises:
        CorruptData: No milestone can be read.
    """
    metric, chosen = record["metric"], record["chosen"]
    sign = 1 if direction(metric) == "min" else -1

    def rank(entry: LedgerEntry) -> tuple[bool, float]:
        score = sign * entry.metrics[metric] if metric in entry.metrics else math.inf
        return entry.step != chosen["step"], score

    for entry in sorted(ledger.milestones, key=rank):
        try:
            state = load_state(Checkpoint.of(ledger, entry))
        except (CorruptData, NotFound) as error:
            say(f"WARNING: step {entry.step:,} cannot be exported: {error}")
            continue
        if entry.step != chosen["step"]:
            why = f"step {chosen['step']:,}, the {chosen['why']}, is gone or damaged"
            say(f"WARNING: {why}: exporting step {entry.step:,}")
            record["chosen"] = {"step": entry.step, "why": f"{why}; the next best"}
        return entry, state
    raise CorruptData(f"no milestone below {ledger.uri} can be read; train with resume='never'")


def _typed(network: str, folder: str) -> list[str]:
    """Return the module that the caller's own word vouches for: where the model names just that.

    The model may come from a checkpoint, which somebody may have exchanged.
    """
    with open(os.path.join(folder, SPEC_FILE), encoding="utf-8") as file:
        named = json.load(file)["network"]["factory"]
    module, colon, _ = network.partition(":")
    return [module] if colon and named == network else []


def _write_scores(
    record: Mapping[str, Any], metrics: Mapping[str, float], parameters: int, port: MetricsArtifact
) -> None:
    port.metadata["kind"] = "metrics"
    scores = {
        **metrics,
        "parameters": float(parameters),
        "steps": float(record["steps"]),
        "examples": float(record["examples"]),
        "seconds": round(float(record["seconds"]), 3),
    }
    for name, value in scores.items():
        port.log_metric(name, value)
