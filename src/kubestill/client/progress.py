"""The progress of a run, step by step, from Kubeflow's list of tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kubestill.client.nodes import NodeNames, children_of, key_of, keys_of
from kubestill.client.steps import Step

ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
_WORDS = {
    "SUCCEEDED": "succeeded",
    "CACHED": "succeeded",
    "SKIPPED": "skipped",
    "FAILED": "failed",
    "ERROR": "failed",
    "CANCELED": "canceled",
    "CANCELING": "running",
    "RUNNING": "running",
    "PENDING": "running",
    "PAUSED": "running",
}
"""A task that Argo left out has no state at all."""
_NO_STEP = re.compile(
    r"root|executor|.*driver|.*\.onExit|(for-loop|condition|exit-handler|iteration)(-.*)?"
)


@dataclass(frozen=True, kw_only=True)
class Status:
    """The progress of one step."""

    step: Step
    state: str
    """waiting, pending, running, succeeded, failed, canceled or skipped."""
    done: int = 0
    """Iterations that have succeeded; 1 at most outside of loops."""
    total: int = 1
    """Iterations that are known of."""
    attempts: int = 1
    """Most starts of one iteration."""
    started: datetime | None = None
    ended: datetime | None = None
    pods: tuple[str, ...] = ()
    """Node ids of its executors, the newest last; where some have failed, only those."""

    @property
    def seconds(self) -> float:
        """Its duration, from its first start to its last end; 0 while that is unknown."""
        if self.started is None or self.ended is None:
            return 0.0
        return max(0.0, (self.ended - self.started).total_seconds())


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a whole run."""

    state: str
    """Kubeflow's word."""
    steps: tuple[Status, ...]
    """In the order in which they run."""
    stands_still: bool
    """Whether Kubeflow no longer updates the list: the run has ended, but not all of its tasks."""
    planning_since: datetime | None
    """Start of the oldest driver that has not ended."""
    workflow: str
    """Argo's name of the run; empty where the list does not tell it."""

    @property
    def counted(self) -> tuple[int, int]:
        """Steps that are over, and all that may come."""
        coming = [one for one in self.steps if one.state != "skipped"]
        over = [one for one in coming if one.state in ("succeeded", "failed", "canceled")]
        return len(over), len(coming)


def read_progress(run: Mapping[str, Any], steps: Sequence[Step], names: NodeNames) -> Progress:
    """Read how far a run is.

    Args:
        run: Kubeflow's answer.
        steps: Of its pipeline; empty takes those that the list names.
        names: Of its nodes; learns.
    """
    listed = (run.get("run_details") or {}).get("task_details") or ()
    entries = [entry for entry in listed if isinstance(entry, dict)]
    names.learn(entries)
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_name.setdefault(str(entry.get("display_name") or ""), []).append(entry)
    executors = names.executors()
    steps = steps or _told_steps(by_name, names.workflow)
    failed = {
        child
        for entry in entries
        if entry.get("state") in ("FAILED", "ERROR")
        for child in children_of(entry)
    }
    found = list[Status]()
    for step in steps:
        own = by_name.get(step.key, [])
        tries = {name: nodes for name, nodes in executors.items() if key_of(name) == step.key}
        twins = [one for one in steps if one.key == step.key]
        if len(twins) > 1:
            named = {id(entry): names.name_of(entry) for entry in own}
            known = [entry for entry in own if _belongs(named[id(entry)], step, twins)]
            # What was left out has no attempt that tells its name.
            own = known or [entry for entry in own if not named[id(entry)]]
            tries = {name: nodes for name, nodes in tries.items() if _belongs(name, step, twins)}
        found.append(_status(step, own, by_name, [*tries.values()], failed, names, run=run))
    unfinished = [
        entry for entry in entries if _WORDS.get(str(entry.get("state") or ""), "") == "running"
    ]
    drivers = [
        entry
        for entry in unfinished
        if re.fullmatch(r".*driver(\(\d+\))?", str(entry.get("display_name") or ""))
    ]
    return Progress(
        state=str(run.get("state") or ""),
        steps=tuple(found),
        stands_still=run.get("state") in ENDED and bool(unfinished),
        planning_since=min(filter(None, map(_started, drivers)), default=None),
        workflow=names.workflow,
    )


def was_canceled(run: Mapping[str, Any]) -> bool:
    """Return whether somebody stopped the run: it ends as FAILED, and only its history shows it."""
    words = [str(run.get("state") or "")]
    words += [str(one.get("state") or "") for one in run.get("state_history") or ()]
    # A run that was retried after it had been stopped begins anew.
    for word in reversed(words[1:]):
        if word == "RUNNING":
            break
        if word in ("CANCELING", "CANCELED"):
            return True
    return words[0] in ("CANCELING", "CANCELED")


def read_time(text: object) -> datetime | None:
    """Read a time of the API; None where there is none: the year 1 or 1970 stands for that."""
    try:
        moment = datetime.fromisoformat(str(text or ""))
    except ValueError:
        return None
    return moment if moment.year > 1970 and moment.tzinfo is not None else None


def _told_steps(by_name: Mapping[str, list[Mapping[str, Any]]], workflow: str) -> list[Step]:
    """List what looks like a step in the order of the starts."""
    keys = [
        key
        for key in by_name
        if key and "(" not in key and key != workflow and not _NO_STEP.fullmatch(key)
    ]
    keys.sort(key=lambda key: min(str(entry.get("start_time")) for entry in by_name[key]))
    return [Step(key=key, name=key) for key in keys]


def _status(
    step: Step,
    own: list[Mapping[str, Any]],
    by_name: Mapping[str, list[Mapping[str, Any]]],
    executors: list[list[str]],
    failed: set[str],
    names: NodeNames,
    *,
    run: Mapping[str, Any],
) -> Status:
    words = [_WORDS.get(str(entry.get("state") or ""), "") for entry in own]
    total = max(1, len(own))
    if step.loops:
        total = max(total, *(names.count_iterations(loop) for loop in step.loops))
    done = words.count("succeeded")
    starts = list(filter(None, map(_started, own)))
    ends = [read_time(entry.get("end_time")) for entry in own]
    over = bool(ends) and None not in ends
    pods = [node for tries in executors for node in tries]
    state = _combine(words, done, total)
    if state == "waiting" and any(_is_skipped(by_name.get(parent)) for parent in step.parents):
        state = "skipped"
    if state == "running" and run.get("state") not in ENDED and _all_pending(own, by_name):
        state = "pending"
    return Status(
        step=step,
        state=state,
        done=done,
        total=total,
        attempts=max([1, *map(len, executors)]) + max([0, *map(_restarts, own)]),
        started=min(starts, default=None),
        ended=max(filter(None, ends)) if over else None,
        pods=tuple(node for node in pods if node in failed) or tuple(pods),
    )


def _belongs(name: str, step: Step, twins: Sequence[Step]) -> bool:
    """Return whether a task belongs to a step, and to no other step with the same key.

    Args:
        name: The task's full name.
        step: Which step.
        twins: All steps of that key: a nested pipeline that is used twice has its steps twice.
    """
    known = {parent for one in twins for parent in one.parents}
    return bool(name) and tuple(key for key in keys_of(name) if key in known) == step.parents


def _combine(words: list[str], done: int, total: int) -> str:
    """Return the progress of a step whose iterations are listed."""
    for word in ("failed", "canceled"):
        if word in words:
            return word
    if done >= total:
        return "succeeded"
    if "running" in words or done:
        return "running"
    if words and set(words) == {"skipped"}:
        return "skipped"
    return "waiting"


def _is_skipped(entries: list[Mapping[str, Any]] | None) -> bool:
    return bool(entries) and all(entry.get("state") == "SKIPPED" for entry in entries or ())


def _all_pending(
    own: list[Mapping[str, Any]], by_name: Mapping[str, list[Mapping[str, Any]]]
) -> bool:
    """Return whether the pods of all running iterations have yet to start.

    The list does not tie a pod to its step. The two start in the same second, though: it is pending
    where every pod that started with the step is.
    """
    running = [entry for entry in own if _WORDS.get(str(entry.get("state") or ""), "") == "running"]
    if all(entry.get("state") == "PENDING" for entry in running):
        return True
    starts = {entry.get("start_time") for entry in running}
    pods = [
        entry
        for name, entries in by_name.items()
        if re.fullmatch(r"executor\(\d+\)", name)
        for entry in entries
        if entry.get("start_time") in starts and entry.get("state") in ("PENDING", "RUNNING")
    ]
    return bool(pods) and all(entry.get("state") == "PENDING" for entry in pods)


def _restarts(entry: Mapping[str, Any]) -> int:
    """Count how often a task was begun again after it had failed, as "Retry" does."""
    words = [one.get("state") for one in entry.get("state_history") or ()]
    return sum(
        1 for before, after in zip(words, words[1:], strict=False) if (before, after) == _AGAIN
    )


_AGAIN = ("FAILED", "RUNNING")


def _started(entry: Mapping[str, Any]) -> datetime | None:
    return read_time(entry.get("start_time"))
