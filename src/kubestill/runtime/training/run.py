"""One training from its component's parameters to its outputs.

Everything that can be wrong is found before anything expensive: parameters, inputs, device, and
whether the checkpoints' place can be written. Then: adopt, resume or begin; train; choose; export;
report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from kubestill.errors import CorruptData, InvalidInput, NotFound, Problems, nearest
from kubestill.runtime.artifacts import Artifact, MetricsArtifact, check_kind, write_pages
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
from kubestill.runtime.data.checks import check_trainable, check_validation
from kubestill.runtime.data.dataset import Dataset
from kubestill.runtime.models.export import export_from_state
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.resolve import resolve_network, source_digest
from kubestill.runtime.models.serve import add_serving_file
from kubestill.runtime.reports.training import training_report
from kubestill.runtime.selection.direction import direction
from kubestill.runtime.training.device import Machine, arithmetic, choose_machine, numerics_key
from kubestill.runtime.training.distributed import process_group
from kubestill.runtime.training.engine import Start, Trainer
from kubestill.runtime.training.fingerprint import fingerprint
from kubestill.runtime.training.prepare import (
    main_metric,
    prepare,
    probe_network,
    resolve_loss,
)
from kubestill.runtime.training.settings import TrainingSettings, read_settings
from kubestill.runtime.training.steps import check_step_path

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


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What makes a training a teacher's, a student's or a fine-tuning."""

    name: str
    distil: bool = False
    """Learn from a teacher's outputs."""
    whole_domain: bool = False
    """The rows are all there is: follow the error over every one of them."""
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings where the user says nothing."""
    check: Callable[[TrainingSettings, Problems], None] = lambda settings, problems: None
    """Notes settings that contradict the preset."""


def run_training(
    preset: Preset,
    typed: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    ports: Ports,
    keeping: Keeping,
    origin: Origin | None = None,
    problems: Problems | None = None,
) -> tuple[str]:
    """Train, and write model, ledger, metrics, report and summary.

    Args:
        preset: Which of the three trainings.
        typed: The component's typed training parameters.
        settings: Its `settings` dict.
        ports: Inputs and outputs.
        keeping: Where checkpoints live.
        origin: For a fine-tuning.
        problems: What the component has already found wrong.

    Returns:
        (model URI,).

    Raises:
        InvalidInput: Every problem of parameters, data and store, at once.
        Diverged: The loss became NaN or infinite.
        TrainingFailed: An earlier attempt recorded that this training cannot succeed.
    """
    job = _check(preset, typed, settings, ports, keeping, origin, problems or Problems())
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
            keeping.experiment or preset.name,
            identity,
            ports.ledger.uri,
            announce=_say,
        )
        about = {"preset": preset.name, "fingerprint": identity, "checkpoint_uri": place.uri}
        record, ledger = _train(job, place, keeping, origin, about)
    if rank == 0:
        _write_outputs(record, ledger, ports)
        add_serving_file(ports.model.path, job.settings.serving)
    return (ports.model.uri,)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Checked parameters and inputs."""

    settings: TrainingSettings
    machine: Machine
    dataset: Dataset
    validation: Dataset | None
    loss_name: str
    whole_domain: bool
    source: str
    """Digest of the user's own network source."""

    @property
    def fingerprints(self) -> dict[str, str]:
        found = {"dataset": self.dataset.fingerprint}
        # What is followed decides when a training stops and which milestone is exported.
        found |= {"followed": "whole domain"} if self.whole_domain else {}
        return found | ({"validation": self.validation.fingerprint} if self.validation else {})


def _check(
    preset: Preset,
    typed: Mapping[str, Any],
    settings: Mapping[str, Any],
    ports: Ports,
    keeping: Keeping,
    origin: Origin | None,
    problems: Problems,
) -> _Job:
    """Find every problem that can be found without reading rows, and raise them together."""
    machine = dataset = validation = loss_name = None
    source = ""
    parsed = read_settings(typed, settings, problems, defaults=preset.defaults)
    with problems.collect("dataset", ports.dataset.uri):
        check_kind(ports.dataset, "dataset", "dataset")
        dataset = Dataset.open(ports.dataset.path)
        check_trainable(dataset)
    if ports.validation is not None and preset.whole_domain:
        remedy = (
            "the error is followed over every row of the dataset; disconnect it, and let "
            "certify-surrogate tell the error between the rows"
        )
        problems.add("validation", ports.validation.uri, remedy)
    elif ports.validation is not None:
        with problems.collect("validation", ports.validation.uri):
            check_kind(ports.validation, "dataset", "validation")
            opened = Dataset.open(ports.validation.path)
            # An import with a validation share of zero writes a dataset without rows.
            validation = opened if opened.rows else None
    if dataset and validation:
        with problems.collect("validation", validation.root):
            check_validation(dataset, validation)
    if keeping.resume not in _RESUME:
        problems.add("resume", keeping.resume, nearest(keeping.resume, _RESUME))
    preset.check(parsed, problems)
    _check_followed(parsed, dataset, validation, preset.whole_domain, problems)
    with problems.collect():
        machine = choose_machine(parsed)
    network = None
    with problems.collect():
        source = source_digest(resolve_network(parsed.network)) or ""
        if dataset and dataset.schema.features and dataset.schema.task and origin is None:
            network = probe_network(dataset, parsed)
    if network and machine:
        with problems.collect():
            check_step_path(network, parsed, machine)
    if dataset:
        with problems.collect():
            loss_name = resolve_loss(
                parsed, dataset, distil=preset.distil, whole_domain=preset.whole_domain
            )
    problems.raise_if_any()
    assert machine
    assert dataset
    assert loss_name
    return _Job(
        settings=parsed,
        machine=machine,
        dataset=dataset,
        validation=validation,
        loss_name=loss_name,
        source=source,
        whole_domain=preset.whole_domain,
    )


def _check_followed(
    settings: TrainingSettings,
    dataset: Dataset | None,
    validation: Dataset | None,
    whole_domain: bool,
    problems: Problems,
) -> None:
    followed = dataset if whole_domain else validation
    if followed is None and settings.patience:
        problems.add(
            "patience",
            settings.patience,
            "early stopping needs a validation set; connect one, or use 0",
        )
    if followed is None and settings.metric not in ("", "train_loss"):
        problems.add(
            "metric", settings.metric, "it needs a validation set; connect one, or use 'train_loss'"
        )
    if followed and settings.choose == "best" and not settings.checkpoints.keep_best:
        problems.add(
            "settings.checkpoints.keep_best", 0, "choose='best' exports a kept one; use 1 or more"
        )
    kept_by = settings.checkpoints.metric
    if followed and followed.schema.task and settings.choose == "best" and kept_by:
        exported_by = settings.metric or main_metric(followed.schema.task, True, whole_domain)
        if kept_by != exported_by:
            remedy = f"choose='best' exports the best by {exported_by}, which is kept; leave it out"
            problems.add("settings.checkpoints.metric", kept_by, remedy)
    if settings.finish_steps and settings.ema_decay:
        remedy = "the finish moves the weights themselves, not their average; use 0"
        problems.add("settings.ema_decay", settings.ema_decay, remedy)
    if settings.finish_steps and settings.network_args.get("dropout"):
        remedy = "L-BFGS needs the same loss for the same weights; use 0, or no finish_steps"
        problems.add("network_args.dropout", settings.network_args["dropout"], remedy)


def _train(
    job: _Job, place: Place, keeping: Keeping, origin: Origin | None, about: Mapping[str, Any]
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
        if checkpointer.resumed:
            record["resumed"] = [{"step": checkpointer.resumed.step, "exact": checkpointer.exact}]
        record["saving"] = checkpointer.report()
        ledger = checkpointer.finish({"training": record})
    return record, ledger


def _followed_metric(job: _Job) -> str:
    task = str(job.dataset.schema.task)
    return job.settings.metric or main_metric(task, True, job.whole_domain)


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
