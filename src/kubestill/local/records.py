"""The record of a run in its folder: what was run, how it went, and where its results lie.

A run writes it when its first step starts and again when it is over, so that one that was killed
is found, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from kubestill.errors import KubestillError, nearest
from kubestill.runtime.base.redaction import redact_uris
from kubestill.runtime.base.values import parse_json

FILE = "run.json"
FORMAT = "kubestill/run/1"
_ALIVE = ".alive"
"""Is locked while the run goes on; the kernel unlocks it when the process ends."""
_LARGEST = 4 * 1024 * 1024
"""Bytes of a record; whatever is larger was not written here."""
_DEPTH = 2
"""Folders between the one that is searched and a run's: runs/<pipeline>/<run>."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """How one step went."""

    name: str
    ok: bool
    seconds: float
    error: str = ""
    log: str = ""
    """Relative to the run's folder, as all paths of a record that lie below it."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One local run."""

    id: str
    pipeline: str
    started: str
    """ISO 8601, UTC."""
    ended: str = ""
    """Empty while it runs, and of a run that was killed."""
    state: str = "running"
    """`running`, `succeeded`, `failed` or `interrupted`."""
    cause: str = ""
    """Why it failed: the step, and what it said."""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    steps: tuple[StepRecord, ...] = ()
    models: dict[str, str] = field(default_factory=dict[str, str])
    reports: dict[str, str] = field(default_factory=dict[str, str])
    folder: str = ""
    """Where it was read from; not in the file."""

    @property
    def shown_state(self) -> str:
        """The state as far as it is true: a run whose process was killed could not note that."""
        return "interrupted" if self.state == "running" and not _lives(self.folder) else self.state

    @property
    def seconds(self) -> float | None:
        """How long it took; None where nobody noted its end."""
        if not self.ended:
            return None
        started, ended = (datetime.fromisoformat(text) for text in (self.started, self.ended))
        return (ended - started).total_seconds()

    def write(self) -> None:
        """Put it into the run's folder; once the run is over, beside the page that shows it."""
        form = {"format": FORMAT, **asdict(replace(self, folder=""))}
        del form["folder"]
        path = os.path.join(self.folder, FILE)
        beside = f"{path}.{os.getpid()}"
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(form, file, indent=1, default=str)
        os.replace(beside, path)
        if self.ended:
            # Only now: a run starts without it.
            from kubestill.local.pages import write_index

            write_index(self)


@contextlib.contextmanager
def alive(folder: str) -> Iterator[None]:
    """Show others that a run is alive, until this process leaves or is killed."""
    with open(os.path.join(folder, _ALIVE), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def now() -> str:
    """Return this moment as records write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """Return a value as a record holds it: without credentials in URIs, its numbers finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return redact_uris(value) if isinstance(value, str) else value


def list_records(root: str) -> list[RunRecord]:
    """Return the runs below a folder, newest first; what is no record of a run is left out."""
    found: list[RunRecord] = []
    folders = [(os.path.abspath(root), 0)]
    while folders:
        folder, depth = folders.pop()
        record = _read(folder)
        if record:
            found.append(record)
        elif depth < _DEPTH and os.path.isdir(folder):
            with os.scandir(folder) as entries:
                folders += [(e.path, depth + 1) for e in entries if e.is_dir(follow_symlinks=False)]
    return sorted(found, key=lambda one: (one.started, one.folder), reverse=True)


def find_record(root: str, run: str) -> RunRecord:
    """Return the run with an id, the beginning of an id, or a folder.

    Raises:
        KubestillError: There is none, or there are several.
    """
    records = list_records(root)
    path = os.path.abspath(run)
    found = [
        one for one in records if one.folder == path or os.path.basename(path) == run == one.id
    ]
    found = found or [
        one
        for one in records
        if run and (one.id.startswith(run) or os.path.basename(one.folder) == run)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(one.id for one in found)
        raise KubestillError(f"{run!r} is the beginning of several ids: {ids}")
    remedy = nearest(run, [one.id[:8] for one in records]) if records else "there is no run"
    raise KubestillError(f"no run {run!r} below {root}; {remedy}")


def _read(folder: str) -> RunRecord | None:
    path = os.path.join(folder, FILE)
    try:
        if os.path.getsize(path) > _LARGEST:
            return None
        with open(path, "rb") as file:
            form = parse_json(file.read(), source=path, what="record of a run")
        if form.pop("format", None) != FORMAT:
            return None
        steps = tuple(StepRecord(**step) for step in form.pop("steps"))
        record = RunRecord(**form, steps=steps, folder=folder)
        datetime.fromisoformat(record.started)
    except (OSError, KubestillError, TypeError, ValueError, KeyError, AttributeError):
        return None
    return record


def _lives(folder: str) -> bool:
    try:
        with open(os.path.join(folder, _ALIVE), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
