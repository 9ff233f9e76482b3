"""Run one training run: adopt the result of a finished one, resume or begin; train to the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from kubestill.errors import Diverged, InvalidInput, Problems, TrainingFailed, nearest
from kubestill.runtime.base.memory import keep_freed_memory
from kubestill.runtime.base.processor import describe_processor
from kubestill.runtime.checkpoints.checkpointer import Checkpointer, Resume
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.ledger import Ledger
from kubestill.runtime.checkpoints.place import Place, resolve_place
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.training.device import arithmetic, numerics_key
from kubestill.runtime.training.distributed import process_group
from kubestill.runtime.training.engine import Start, Trainer
from kubestill.runtime.training.fingerprint import fingerprint
from kubestill.runtime.training.job import Job
from kubestill.runtime.training.prepare import main_metric, prepare
from kubestill.runtime.training.record import AttemptRecord, PresetName, TrainingRecord, training_of

_RESUME = ("auto", "never", "must")


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where checkpoints are kept, and what to do with those that are there."""

    checkpoint_uri: str
    """The root; empty keeps them beside the ledger artifact."""
    experiment: str
    """Folder below the root; empty takes the preset's name."""
    resume: str
    """`auto`, `never` or `must`."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint that fine-tuning starts from."""

    model: Model
    """The model as it was there."""
    start: Start
    """What else is kept of it."""
    digest: str
    """SHA-256 over the checkpoint and what is kept of it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training run, as every process that shares it gets it."""

    name: PresetName
    """The preset, which also names the experiment where `keeping` does not."""
    job: Job
    """The checked job."""
    keeping: Keeping
    """Where checkpoints are kept."""
    ledger_uri: str
    """Address of the ledger artifact; checkpoints go beside it where `keeping` names no root."""
    origin: Origin | None = None
    """The checkpoint that fine-tuning starts from."""


def check_resume(resume: str, problems: Problems) -> None:
    """Note a `resume` that is not one of `auto`, `never` and `must`."""
    if resume not in _RESUME:
        problems.add("resume", resume, nearest(resume, _RESUME))


def train(
    task: Task, *, on_failure: Callable[[Ledger], None] = lambda ledger: None
) -> tuple[TrainingRecord, Ledger]:
    """Train to the end, from wherever this training run is.

    Args:
        task: What to train.
        on_failure: Takes the ledger of a training run that cannot succeed: what it saved before
            is there to choose from.

    Returns:
        The record of the training run, and its ledger.

    Raises:
        InvalidInput: The rows or the store refuse what no check before could see.
        Diverged: The loss or a weight became NaN or infinite.
        TrainingFailed: An earlier attempt recorded that this training run cannot succeed.
    """
    keep_freed_memory()
    with process_group(), arithmetic(task.job.settings):
        place = find_place(task)
        try:
            return _train(task, place, on_failure)
        except TrainingFailed:
            on_failure(LedgerCell(place).read()[0])
            raise


def find_place(task: Task) -> Place:
    """Return where the checkpoints of a training run are, by what decides its result.

    Raises:
        InvalidInput: See `resolve_place`.
    """
    job, keeping = task.job, task.keeping
    identity = fingerprint(
        job.settings,
        data=job.fingerprints | {"loss": job.loss_name},
        source=job.source,
        start=task.origin.digest if task.origin else "",
    )
    return resolve_place(
        keeping.checkpoint_uri,
        keeping.experiment or task.name,
        identity,
        task.ledger_uri,
        announce=say,
    )


def _train(
    task: Task, place: Place, on_failure: Callable[[Ledger], None]
) -> tuple[TrainingRecord, Ledger]:
    job, origin = task.job, task.origin
    settings, policy = job.settings, job.settings.checkpoints
    if not policy.metric and (job.validation or job.whole_domain):
        kind = str(job.dataset.schema.task)
        metric = settings.metric or main_metric(kind, True, job.whole_domain)
        policy = policy.model_copy(update={"metric": metric})
    opened = Checkpointer.open(
        place,
        policy,
        resume=cast(Resume, task.keeping.resume),
        numerics=numerics_key(
            job.machine,
            step_path=settings.step_path,
            world_size=1 if settings.virtual_workers > 1 else Ranks.current().world,
            processors=Ranks.current().gather(describe_processor()),
        ),
        replicated=settings.virtual_workers > 1,
        sharded=bool(settings.shard),
        announce=say,
    )
    with opened as checkpointer:
        if checkpointer.finished is not None:
            say(f"this training run is finished at {place.uri}: its result is adopted")
            record = training_of(checkpointer.ledger)
            assert record
            return record, checkpointer.ledger
        try:
            prepared = prepare(
                job.dataset,
                job.validation,
                settings,
                job.machine,
                loss_name=job.loss_name,
                start=origin.model if origin else None,
                teacher=load_model(job.teacher).model if job.teacher else None,
                whole_domain=job.whole_domain,
            )
        except InvalidInput as error:
            # The rows are wrong, and equal rows will be: no retry needs to read them again.
            checkpointer.fail(str(error))
            raise
        start = origin.start if origin else None
        if job.repeated:
            start = start or Start()
            whole = start.schedule_from + job.repeated.schedule_steps
            start = replace(start, schedule_steps=max(start.schedule_steps, whole))
        trainer = Trainer(prepared, settings, job.machine, checkpointer, say=say, start=start)
        try:
            learned = trainer.fit()
        except Diverged:
            on_failure(checkpointer.ledger)
            raise
        more: dict[str, Any] = {"repeats": job.repeated.digest} if job.repeated else {}
        more |= {"recipe": job.recipe} if job.recipe else {}
        record = TrainingRecord(
            **dict(learned),
            preset=task.name,
            fingerprint=place.fingerprint,
            # Not `place.uri`: `resume="never"` begins in a place of its own.
            checkpoint_uri=checkpointer.place.uri,
            attempts=tuple(map(AttemptRecord.of, checkpointer.attempts)),
            saving=checkpointer.report(),
            **more,
        )
        ledger = checkpointer.finish(record.to_result())
    return record, ledger


def say(line: str) -> None:
    """Print a line, on rank 0 alone."""
    if Ranks.current().rank == 0:
        print(line, flush=True)
