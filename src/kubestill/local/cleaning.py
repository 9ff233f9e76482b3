"""Find what local runs have left and nobody needs any more: folders, checkpoints, decoded rows."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from kubestill.local.records import RunRecord, list_records

KEEP_ROWS = "KUBESTILL_KEEP_ROWS"
"""Environment variable: set to anything, it keeps the rows that earlier runs have made."""

_DAY = 86_400.0
_MAKERS = ("augment", "generate-synthetic", "label-with-teacher")
"""Steps whose rows follow from the run's parameters: run again, they are the same."""
_QUICK = 300.0
"""Seconds in which a step has to have made its rows, for them to be no loss."""
_WHOLE = 2
"""Newest runs of a pipeline that keep all of their rows."""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something that can be deleted."""

    kind: str
    """`run`, `checkpoints` or `cache`."""
    path: str
    bytes: int
    days: float
    """Since it was last used."""


def find_leftovers(root: str, *, days: float, keep: int) -> list[Leftover]:
    """Return what can go, the largest first.

    Args:
        root: Folder of runs, or of folders of runs as `runs/<pipeline>` is one.
        days: What was used within so many days stays.
        keep: Newest runs of each pipeline that stay, however old.

    Returns:
        Runs that are over and that no local registry names; checkpoints of training runs beside
        runs none of which goes on; and entries of this user's cache that no process uses.
    """
    runs = list_records(root)
    found = [*_runs(runs, days, keep), *_checkpoints(root, runs, days), *_cached(days)]
    return sorted(found, key=lambda one: -one.bytes)


def delete(leftovers: list[Leftover]) -> None:
    """Delete what `find_leftovers` found."""
    from kubestill.runtime.datasets.shelf import Shelf

    for one in leftovers:
        if one.kind == "cache":
            Shelf.default().drop(os.path.basename(one.path))
        else:
            shutil.rmtree(one.path)


def drop_made_rows(root: str, pipeline: str) -> int:
    """Delete the rows that steps of earlier runs made in minutes; return the bytes.

    Most of what a small run leaves is such rows. The newest runs keep theirs, and so does a run
    that failed, that a registry names, or whose teacher may have cost money. Models, reports,
    records, logs and checkpoints of all runs stay.
    """
    if os.environ.get(KEEP_ROWS):
        return 0
    runs = [one for one in list_records(root) if one.pipeline == pipeline]
    freed = 0
    for run in runs[_WHOLE:]:
        folders = list(_made_rows(run))
        if not folders or "://" in str(run.arguments.get("teacher", "")) or explain_need(run):
            continue
        for folder in folders:
            freed += _size(folder)[0]
            shutil.rmtree(folder)
    return freed


def _made_rows(run: RunRecord) -> Iterator[str]:
    """Find the datasets that quick steps of a run that went well have made."""
    if run.state != "succeeded":
        return
    for step in run.steps:
        maker = step.name.partition("[")[0] in _MAKERS
        if maker and step.log and step.seconds < _QUICK:
            for folder in _folders(os.path.join(run.folder, os.path.dirname(step.log))):
                if os.path.isfile(os.path.join(folder, "dataset.json")):
                    yield folder


def explain_need(run: RunRecord) -> str:
    """Return why the folder of a run must stay; empty if nothing needs it."""
    if run.shown_state == "running":
        return "is running"
    registry = run.arguments.get("registry")
    if not isinstance(registry, str) or not registry or "://" in registry:
        return ""
    if not os.path.isabs(registry) and not os.path.isdir(registry):
        return f"works with the registry {registry}, which is not here: go to where it was started"
    for folder, _, files in os.walk(registry):
        for name in files:
            path = os.path.join(folder, name)
            if ".json" in name and _names(path, run.folder):
                return f"holds what its registry names ({os.path.relpath(path)})"
    return ""


def _runs(runs: Iterable[RunRecord], days: float, keep: int) -> Iterator[Leftover]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.pipeline] = counts.get(run.pipeline, 0) + 1
        age = (time.time() - datetime.fromisoformat(run.ended or run.started).timestamp()) / _DAY
        if counts[run.pipeline] > keep and age >= days and not explain_need(run):
            yield Leftover(kind="run", path=run.folder, bytes=_size(run.folder)[0], days=age)


def _checkpoints(root: str, runs: Iterable[RunRecord], days: float) -> Iterator[Leftover]:
    busy = {os.path.dirname(run.folder) for run in runs if run.shown_state == "running"}
    for beside in (root, *_folders(root)):
        if os.path.abspath(beside) in busy:
            continue
        for experiment in _folders(os.path.join(beside, "checkpoints")):
            for place in _folders(experiment):
                size, used = _size(place)
                age = (time.time() - used) / _DAY
                if age >= days and any(
                    name.startswith("ledger.json") for name in os.listdir(place)
                ):
                    yield Leftover(kind="checkpoints", path=place, bytes=size, days=age)


def _cached(days: float) -> Iterator[Leftover]:
    from kubestill.runtime.datasets.shelf import Shelf

    for used, size, path in Shelf.default().unused():
        age = (time.time() - used) / _DAY
        if age >= days:
            yield Leftover(kind="cache", path=str(path), bytes=size, days=age)


def _folders(root: str) -> list[str]:
    if not os.path.isdir(root):
        return []
    with os.scandir(root) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _size(folder: str) -> tuple[int, float]:
    """Return the bytes of all files below a folder, and when the last of them was written."""
    total, newest = 0, os.stat(folder).st_mtime
    for place, _, files in os.walk(folder):
        for name in files:
            status = os.lstat(os.path.join(place, name))
            total += status.st_size
            newest = max(newest, status.st_mtime)
    return total, newest


def _names(path: str, folder: str) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    return folder in text or json.dumps(folder)[1:-1] in text
