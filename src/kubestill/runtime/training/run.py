"""One training run: adopt the result of a finished one, resume or begin; then train to the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from kubestill.errors import InvalidInput, Problems, nearest
from kubestill.runtime.checkpoints.checkpointer import Checkpointer, Resume
from kubestill.runtime.checkpoints.ledger import Ledger
from kubestill.runtime.checkpoints.place import Place, resolve_place
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.models.model import Model
from kubestill.runtime.training.device import arithmetic, numerics_key
from kubestill.runtime.training.distributed import process_group
from kubestill.runtime.training.engine import Start, Trainer
from kubestill.runtime.training.fingerprint import fingerprint
from kubestill.runtime.training.job import Job
from kubestill.runtime.training.prepare import main_metric, prepare

__all__ = ["Keeping", "Origin", "check_resume", "say", "train"]

_RESUME = ("auto", "never", "must")


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


def train(
    name: str, job: Job, *, keeping: Keeping, ledger_uri: str, origin: Origin | None = None
) -> tuple[dict[str, Any], Ledger]:
    """Train to the end, from wherever this training run is.

    Args:
        name: Of the preset; the experiment's where it has none of its own.
        job: The training run, checked.
        keeping: Where checkpoints live.
        ledger_uri: Beside it they live where `keeping` names no place.
        origin: The checkpoint that a fine-tuning starts from.

    Returns:
        (training record, ledger).

    Raises:
        InvalidInput: What only rows can tell, or the store, at once.
        Diverged: Loss or weights became NaN or infinite.
        TrainingFailed: An earlier attempt recorded that this training run cannot succeed.
    """
    with process_group(), arithmetic(job.settings):
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
            ledger_uri,
            announce=say,
        )
        about = {"preset": name, "fingerprint": identity, "checkpoint_uri": place.uri}
        return _train(job, place, keeping, origin, about)


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
        announce=say,
    )
    with opened as checkpointer:
        if checkpointer.finished is not None:
            say(f"this very training is finished at {place.uri}: its result is adopted")
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
            say=say,
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


def say(line: str) -> None:
    """Print a line, on rank 0 alone."""
    if Ranks.current().rank == 0:
        print(line, flush=True)
