"""One training from its component's parameters to its outputs.

Everything that can be wrong is found before anything expensive: parameters, inputs, device, and
whether the checkpoints' place can be written. Then: adopt, resume or begin; train; choose; export;
report.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from kubestill.errors import CorruptData, InvalidInput, NotFound, Problems, nearest
from kubestill.runtime.artifacts import Artifact, MetricsArtifact, write_pages
from kubestill.runtime.checkpoints.checkpointer import Checkpointer, Resume
from kubestill.runtime.checkpoints.ledger import (
    Checkpoint,
    Ledger,
    LedgerEntry,
    write_ledger_artifact,
)
from kubestill.runtime.checkpoints.place import Place, resolve_place
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.restore import load_state
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.models.export import SPEC_FILE, export_from_state
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.serve import add_serving_file
from kubestill.runtime.reports.training import training_report
from kubestill.runtime.selection.direction import direction
from kubestill.runtime.training.device import arithmetic, numerics_key
from kubestill.runtime.training.distributed import process_group
from kubestill.runtime.training.engine import Start, Trainer
from kubestill.runtime.training.fingerprint import fingerprint
from kubestill.runtime.training.job import Job, Preset, check_job
from kubestill.runtime.training.prepare import main_metric, prepare

_RESUME = ("auto", "never", "must")


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


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where checkpoints are kept, and what to do with those that are there."""

    checkpoint_uri: str
    experiment: str
    resume: str
    """`auto`, `never` or `must`."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint a fine-tuning starts from."""

    model: Model
    start: Start
    digest: str
    """Covers the checkpoint and what is kept of it."""


def check_resume(resume: str, problems: Problems) -> None:
    """Note a `resume` that is none."""
    if resume not in _RESUME:
        problems.add("resume", resume, nearest(resume, _RESUME))


def run_training(
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
        InvalidInput: Every problem of parameters and data, at once; and what `train` raises.
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
    return train(preset.name, job, ports=ports, keeping=keeping)


def train(
    name: str, job: Job, *, ports: Ports, keeping: Keeping, origin: Origin | None = None
) -> tuple[str]:
    """Train, and write model, ledger, metrics, report and summary.

    Args:
        name: Of the preset; the experiment's where it has none of its own.
        job: The training, checked.
        ports: Outputs.
        keeping: Where checkpoints live.
        origin: For a fine-tuning.

    Returns:
        (model URI,).

    Raises:
        InvalidInput: What only rows can tell, or the store, at once.
        Diverged: Loss or weights became NaN or infinite.
        TrainingFailed: An earlier attempt recorded that this training cannot succeed.
    """
    with process_group(), arithmetic(job.settings):
        rank = Ranks.current().rank
        identity = fingerprint(
            job.settings,
            data=job.fingerprints | {"loss": job.loss_name},
            source=job.source,
            start=origin.digest if origin else "",
        )
        place = resolve_place(
            keeping.checkpoint_uri,
            keeping.experiment or name,
            identity,
            ports.ledger.uri,
            announce=_say,
        )
        about = {"preset": name, "fingerprint": identity, "checkpoint_uri": place.uri}
        record, ledger = _train(job, place, keeping, origin, about)
    if rank == 0:
        _write_outputs(record, ledger, ports)
        trust = [] if origin else _typed(job.settings.network, ports.model.path)
        add_serving_file(ports.model.path, job.settings.serving, trust=trust)
    return (ports.model.uri,)


def _train(
    job: Job, place: Place, keeping: Keeping, origin: Origin | None, about: Mapping[str, Any]
) -> tuple[dict[str, Any], Ledger]:
    """Adopt the result of a finished training, or train to the end from wherever it is."""
    settings = job.settings
    world = Ranks.current().world
    numerics = numerics_key(job.machine, step_path=settings.step_path, world_size=world)
    policy = settings.checkpoints
    if not policy.metric and (job.validation or job.whole_domain):
        policy = policy.model_copy(update={"metric": _followed_metric(job)})
    opened = Checkpointer.open(
        place,
        policy,
        resume=cast(Resume, keeping.resume),
        numerics=numerics,
        announce=_say,
    )
    with opened as checkpointer:
        if checkpointer.finished is not None:
            _say(f"this very training is finished at {place.uri}: its result is adopted")
            return dict(checkpointer.finished["training"]), checkpointer.ledger
        try:
            prepared = prepare(
                job.dataset,
                job.validation,
                settings,
                job.machine,
                loss_name=job.loss_name,
                start=origin.model if origin else None,
                whole_domain=job.whole_domain,
            )
        except InvalidInput as error:
            # The rows are wrong, and equal rows will be: no retry is to read them again.
            checkpointer.fail(str(error))
            raise
        trainer = Trainer(
            prepared,
            settings,
            job.machine,
            checkpointer,
            say=_say,
            start=origin.start if origin else None,
        )
        record = {**trainer.fit(), **about}
        record["attempts"] = checkpointer.attempts
        record["saving"] = checkpointer.report()
        ledger = checkpointer.finish({"training": record})
    return record, ledger


def _followed_metric(job: Job) -> str:
    task = str(job.dataset.schema.task)
    return job.settings.metric or main_metric(task, True, job.whole_domain)


def _typed(network: str, folder: str) -> list[str]:
    """Return the module that the caller's own word vouches for: where the model names just that.

    The model may come from a checkpoint, which somebody may have exchanged.
    """
    with open(os.path.join(folder, SPEC_FILE), encoding="utf-8") as file:
        named = json.load(file)["network"]["factory"]
    module, colon, _ = network.partition(":")
    return [module] if colon and named == network else []


def _write_outputs(record: dict[str, Any], ledger: Ledger, ports: Ports) -> None:
    entry, state = _chosen_state(record, ledger)
    record["checkpoints"] = [
        {"step": e.step, "kind": e.kind, "phase": e.phase, "metrics": dict(e.metrics)}
        for e in ledger.entries
    ]
    digest = export_from_state(state, ports.model.path, training=record)
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
    _say(f"exported step {entry.step:,} ({why}): {digest.parameters:,} parameters")


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
            _say(f"WARNING: step {entry.step:,} cannot be exported: {error}")
            continue
        if entry.step != chosen["step"]:
            why = f"step {chosen['step']:,}, the {chosen['why']}, is gone or damaged"
            _say(f"WARNING: {why}: exporting step {entry.step:,}")
            record["chosen"] = {"step": entry.step, "why": f"{why}; the next best"}
        return entry, state
    raise CorruptData(f"no milestone below {ledger.uri} can be read; train with resume='never'")


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


def _say(line: str) -> None:
    if Ranks.current().rank == 0:
        print(line, flush=True)
