"""States that wait on local disk because their store does not take them, and come back.

When a store is gone for longer than training goes on without it, `Spill` commits what it has not
taken to a folder of this user's, in the layout of any checkpoint root and in order of step: no
state is kept without every milestone before it that the store lacks. The next attempt at the same
place finds the folder and commits its states there as the lost attempt would have (`bring_back`).
Where the store is gone for good the folder itself serves as `checkpoint_uri`; it then takes over
the milestones of the place it stands in for, if that answers by then (`catch_up`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from kubestill.errors import CorruptData, InvalidInput, NotFound, StoreError, TrainingFailed
from kubestill.runtime.base.values import parse_json, read_as
from kubestill.runtime.checkpoints import protocol
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.ledger import Attempt, Ledger, LedgerEntry
from kubestill.runtime.checkpoints.manifest import folder_name, read_manifest
from kubestill.runtime.checkpoints.place import Announce, Place
from kubestill.runtime.checkpoints.reading import read_verified
from kubestill.runtime.checkpoints.writer import CheckpointWriter, Snapshot
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.base import Content, Store
from kubestill.runtime.stores.files import private_folder

_ORIGIN = "origin.json"
"""Names the place that a spilled one stands in for."""
_MARKS = "marks.json"
"""Beside a spilled state: what the curves said when it was copied."""


class Spill:
    """Commits states of one attempt to local disk."""

    def __init__(self, folder: str, place: Place, numerics: dict[str, Any]):
        """Describe the folder; nothing is made yet.

        Args:
            folder: `spill_folder` of the settings.
            place: The place that cannot be written.
            numerics: What each checkpoint records as its numerics key.
        """
        self._folder = folder or tempfile.gettempdir()
        self._place = place
        self._numerics = numerics
        self._open: tuple[str, Place, Attempt, CheckpointWriter] | None = None

    def folder(self) -> str:
        """Return this user's own folder on local disk, made where it is missing.

        Raises:
            StoreError: It cannot be made, or may be somebody else's.
        """
        return private_folder(_ours(self._folder))

    def keep(self, snapshot: Snapshot, parts: Sequence[Content]) -> str:
        """Commit a state; return the root that it is below.

        Raises:
            StoreError: The disk does not take it either, or the folder may be somebody else's.
        """
        root, local, attempt, writer = self._open = self._open or self._claim()
        folder = folder_name(snapshot.stamp.step, attempt, snapshot.save)
        marks = {
            "phases": {str(step): phase for step, phase in snapshot.marks.phases.items()},
            "candidates": sorted(snapshot.marks.candidates),
        }
        local.store.put(f"{folder}/{_MARKS}", json.dumps(marks).encode())
        writer.write(snapshot, parts)
        return root

    def _claim(self) -> tuple[str, Place, Attempt, CheckpointWriter]:
        origin = self._place
        for root in _roots(self._folder, origin):
            local = _below(root, origin)
            cell = LedgerCell(local)
            try:
                attempt = cell.claim(owner=origin.owner, beat_seconds=1.0, announce=_silently)
            except TrainingFailed:
                attempt = None
            # Another root where a training run that was told to go on in this one has ended there.
            if attempt is not None:
                local.store.put(_ORIGIN, json.dumps({"uri": origin.uri}).encode())
                writer = _writer(local, cell, attempt, self._numerics, _keep_all)
                return root, local, attempt, writer
        raise AssertionError("there is always another root")


def waits(folder: str, place: Place, announce: Announce) -> bool:
    """Return whether states of a place wait on local disk for `bring_back`."""
    return any(True for _ in _waiting(folder, place, announce))


def bring_back(
    folder: str,
    place: Place,
    cell: LedgerCell,
    attempt: Attempt,
    *,
    keep: protocol.Keep,
    announce: Announce,
) -> int:
    """Commit the spilled states of a place that are newer than what it lists; return how many.

    In order of step, so that a place holds every milestone before its newest state at any moment.
    What is damaged, and all that follows it, stays where it is. The folder goes with its last use.

    Args:
        folder: `spill_folder` of the settings.
        place: Whose states they are, claimed by `attempt` in `cell`.
        cell: Its ledger.
        attempt: The attempt that owns it.
        keep: Which of all entries stay listed.
        announce: Takes progress and warnings, one line each.

    Raises:
        StoreError: The store did not answer. Spilled states that are not back stay.
        Fenced: Another attempt owns the training run.
    """
    steps: list[int] = []
    for root, local, theirs in _waiting(folder, place, announce):
        # Whoever may still be writing there stops.
        theirs.claim(owner=place.owner, beat_seconds=1.0, announce=_silently)
        complete = True
        for entry in _newer(theirs.latest, cell.latest):
            try:
                _copy(local.store, entry, place, cell, attempt, keep, save=len(steps) + 1)
            except (CorruptData, InvalidInput) as error:
                what = f"the spilled state of step {entry.step} in {root} cannot be read"
                announce(f"WARNING: {what}, and is left out with all that follow: {error}")
                complete = False
                break
            steps.append(entry.step)
        if complete:
            shutil.rmtree(root, ignore_errors=True)
    if steps:
        announce(f"{name_states(steps)}, kept on local disk while the store was gone, came back")
    return len(steps)


def catch_up(
    place: Place, cell: LedgerCell, attempt: Attempt, *, folder: str, announce: Announce
) -> int:
    """Copy the milestones of the place that a spilled one stands in for; return how many.

    A training run that goes on in a spill folder would else choose among the few milestones there.
    """
    origin = _origin(place, folder)
    if origin is None:
        return 0
    count = 0
    try:
        theirs = replace(place, store=open_store(origin))
        ledger = LedgerCell(theirs).read()[0]
        if ledger.attempt is None:
            raise NotFound("nothing is left there")
        known = {entry.step for entry in cell.latest.milestones}
        for entry in ledger.milestones:
            if entry.step not in known:
                count += 1
                _copy(theirs.store, entry, place, cell, attempt, _keep_all, save=count)
        place.store.delete(_ORIGIN)
    except (StoreError, CorruptData, InvalidInput) as error:
        announce(
            f"WARNING: the milestones at {origin}, which {place.uri} stands in for, cannot be read "
            f"({error}): the model that is exported may be of another step than without the loss. "
            "To choose among all of them, start again once they can"
        )
    return count


def name_states(steps: Iterable[int]) -> str:
    """Return `the state of step 4`, or `the states of steps 4, 8 and 10`."""
    names = [str(step) for step in steps]
    if len(names) == 1:
        return f"the state of step {names[0]}"
    return f"the states of steps {', '.join(names[:-1])} and {names[-1]}"


def _newer(spilled: Ledger, committed: Ledger) -> list[LedgerEntry]:
    """Return what the place lacks: behind its newest state, by step and, at one step, by kind."""

    def position(entry: LedgerEntry) -> tuple[int, bool]:
        return entry.step, entry.kind == "milestone"

    last = max(map(position, committed.newest_first), default=(-1, False))
    return [entry for entry in spilled.entries if position(entry) > last]


def _copy(
    source: Store,
    entry: LedgerEntry,
    place: Place,
    cell: LedgerCell,
    attempt: Attempt,
    keep: protocol.Keep,
    *,
    save: int,
) -> None:
    """Commit a checkpoint of another store as this attempt's own, with nothing else changed."""
    manifest = read_manifest(source, entry.manifest)
    state = read_verified(source, manifest.files[0], proof="sha256")
    snapshot = Snapshot(
        stamp=manifest.stamp,
        save=save,
        meta=json.dumps(manifest.meta),
        rank_meta=json.dumps(manifest.rank_meta[0]),
        marks=_marks(source, entry),
    )
    writer = _writer(place, cell, attempt, dict(manifest.numerics), keep)
    writer.write(snapshot, [memoryview(state)])


def _marks(source: Store, entry: LedgerEntry) -> protocol.Marks:
    key = f"{entry.manifest.key.rpartition('/')[0]}/{_MARKS}"
    try:
        found = parse_json(source.get(key), source=f"{source.uri}/{key}", what="record of phases")
    except NotFound:
        return protocol.Marks(phases={entry.step: entry.phase} if entry.phase else {})
    return read_as(protocol.Marks, found, source=f"{source.uri}/{key}", what="record of phases")


def _keep_all(entries: Sequence[LedgerEntry], marks: protocol.Marks) -> Sequence[LedgerEntry]:
    return entries


def _writer(
    place: Place,
    cell: LedgerCell,
    attempt: Attempt,
    numerics: dict[str, Any],
    keep: protocol.Keep,
) -> CheckpointWriter:
    return CheckpointWriter(place, cell, attempt, rank=0, world=1, numerics=numerics, keep=keep)


def _below(root: str, origin: Place) -> Place:
    store = open_store(f"{root}/{origin.experiment}/{origin.fingerprint}")
    return replace(origin, store=store, durable=False)


def _ours(folder: str) -> str:
    return os.path.join(os.path.abspath(folder), f"kubestill-spilled-{os.getuid()}")


def _roots(folder: str, origin: Place) -> Iterator[str]:
    """Yield the roots that may hold the states of a place, without end; make their parent."""
    name = hashlib.sha256(origin.uri.encode()).hexdigest()[:12]
    parent = private_folder(_ours(folder))
    for number in itertools.count(1):
        yield os.path.join(parent, name if number == 1 else f"{name}-{number}")


def _spilled(folder: str, origin: Place, announce: Announce) -> Iterator[str]:
    """Yield the roots that do hold states of a place."""
    folder = folder or tempfile.gettempdir()
    if not os.path.lexists(_ours(folder)):
        return
    try:
        yield from itertools.takewhile(os.path.isdir, _roots(folder, origin))
    except StoreError as error:
        announce(
            f"WARNING: states that were kept while a store was gone are not looked for: {error}"
        )


def _waiting(
    folder: str, origin: Place, announce: Announce
) -> Iterator[tuple[str, Place, LedgerCell]]:
    """Yield root, place and ledger of each training run on local disk that is to come back."""
    for root in _spilled(folder, origin, announce):
        local = _below(root, origin)
        cell = LedgerCell(local)
        ledger = cell.refresh()
        if ledger.finished is None and not ledger.failed and ledger.entries:
            yield root, local, cell


def _origin(place: Place, folder: str) -> str | None:
    """Return which place a spilled one stands in for; None where it is no spilled one.

    Only a folder that nobody else can write to is asked: it names a place that is then read.
    """
    path = place.store.local_path(_ORIGIN)
    if path is None or not os.path.exists(path):
        return None
    ours = _ours(folder or tempfile.gettempdir())
    if os.path.commonpath([ours, os.path.realpath(path)]) != ours:
        return None
    private_folder(ours)
    found = parse_json(place.store.get(_ORIGIN), source=path, what="origin")
    return str(found.get("uri", ""))


def _silently(_: str) -> None:
    pass
