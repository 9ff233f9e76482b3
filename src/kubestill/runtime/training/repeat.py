"""Repeat a training run on other rows, for as long as it took.

A training run spends rows on finding out how long to train: it follows them, and learns nothing
from them. Once that is known, the same recipe can learn from all rows: it makes as many passes over
them as the exported milestone took, under the same schedule, and exports the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.base.artifacts import Artifact, check_kind
from kubestill.runtime.models.identity import read_digest
from kubestill.runtime.stores import open_store
from kubestill.runtime.training.job import Job, Repeated
from kubestill.runtime.training.plan import Plan
from kubestill.runtime.training.record import TrainingRecord, read_training

_GUIDED = ("choose", "converged_after", "metric", "min_delta", "patience", "tolerance")
"""Settings that need rows to follow, and decide how long to train."""
_REPEATABLE = ("teacher", "finetune")


@dataclass(frozen=True, kw_only=True)
class OriginalRun:
    """The training run to repeat."""

    digest: str
    """Of the model that it exported."""
    record: TrainingRecord


def read_original(like: Artifact) -> OriginalRun:
    """Read which training run to repeat.

    Raises:
        InvalidInput: `like` is no model of a training run that can be repeated.
        CorruptData: It is damaged.
    """
    check_kind(like, "model", "like")
    record = read_training(like.path)
    if record is None or record.preset not in _REPEATABLE:
        how = f"was trained as a {record.preset}" if record else "does not say how it was trained"
        remedy = f"{how}; connect a model of train-teacher or finetune-fresh"
        raise InvalidInput([Problem("like", like.uri, remedy)])
    return OriginalRun(digest=read_digest(open_store(like.path)), record=record)


def without_guidance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings without what needs rows to follow."""
    saving = {**settings["checkpoints"], "metric": "", "mode": "auto"}
    kept = {name: value for name, value in settings.items() if name not in _GUIDED}
    return {**kept, "checkpoints": saving, "choose": "last"}


def repeat(job: Job, original: OriginalRun) -> Job:
    """Return the job that makes as many passes over its own rows as the one before took.

    Args:
        job: The same recipe on other rows, without guidance.
        original: What to repeat.
    """
    record, settings = original.record, job.settings
    first = Plan(rows=record.rows, settings=settings)
    whole = Plan(rows=job.dataset.rows, settings=settings).finish_from
    # A network that drops the last rows of an epoch takes a step less than the plan says. The curve
    # tells how many epochs it were.
    reached = {point.step: point.epoch for point in record.curves.train}
    done = record.chosen.step / first.finish_from
    if not settings.steps and record.chosen.step in reached:
        done = reached[record.chosen.step] / settings.epochs
    length = {
        "steps": max(1, round(min(1.0, done) * whole)),
        "finish_steps": max(0, record.chosen.step - first.finish_from),
    }
    return replace(
        job,
        settings=settings.model_copy(update=length),
        repeated=Repeated(digest=original.digest, schedule_steps=whole),
    )
