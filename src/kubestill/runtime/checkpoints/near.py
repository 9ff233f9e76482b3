"""Recovery states on this node's own disk: saved every few seconds, the bucket follows more slowly.

The ledger does not list them, and no commit rests on them: whoever loses the disk loses nothing
that the place itself does not hold. A state is complete once its record is, which is written last
and holds its own SHA-256; the record names the manifest by its SHA-256, and the manifest names the
state file by its own. What does not match is not there.

An attempt resumes from a state here only where two things hold, so that its result is the one of a
training run that was never interrupted:

    every milestone before the state is in the ledger, or it would be lost for good
    no later attempt has committed anything: the training run went on elsewhere

Where several nodes share the training run, each has the whole state in memory, equal in every bit:
the first process of some of them writes it, and none sends it. Where the processes share the state
out, each writes its piece, and brings it to other nodes' disks (`mirror`). A state in pieces is
complete once every piece of it is, wherever that lies; since all write at the same step or none
does, each learns from the others what is complete, and removes nothing before something newer is.
`peers` says who restores what.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from kubestill.errors import CorruptData, InvalidInput, NotFound, StoreError
from kubestill.runtime.base.values import Whole, parse_json, read_as
from kubestill.runtime.checkpoints.arena import Arena
from kubestill.runtime.checkpoints.ledger import Attempt, Json, Ledger, LedgerEntry, check_format
from kubestill.runtime.checkpoints.manifest import (
    MANIFEST_NAME,
    attempt_number,
    folder_name,
    parse_manifest,
)
from kubestill.runtime.checkpoints.mirror import Mirror
from kubestill.runtime.checkpoints.place import Announce, Place
from kubestill.runtime.checkpoints.schedule import RecoverySchedule, SaveCost, SavingReport
from kubestill.runtime.checkpoints.writer import Snapshot, StateWriter, remove_checkpoint
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.base import Store
from kubestill.runtime.stores.files import private_folder

NEAR_FORMAT = "kubestill/near/1"
_RECORD = "near.json"
_KEPT = 2
"""Newest states that stay: one before the last, in case that is damaged."""
_LONGEST_WAIT = 10.0
"""Seconds that the end of a run waits for a local disk that hangs."""
_PATIENCE = 10
"""How many times as long as usual it takes until a disk that refused a state is asked again."""


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What the ledger lists, as far as it decides which states near count."""

    milestone: Whole | None
    """Step of the newest milestone; None where there is none."""
    attempt: Whole
    """The last one that committed a state; 0 where none did."""

    @classmethod
    def of(cls, ledger: Ledger) -> Committed:
        """Return what a ledger lists."""
        return cls(
            milestone=max((entry.step for entry in ledger.milestones), default=None),
            attempt=max((entry.attempt for entry in ledger.entries), default=0),
        )

    def outdates(self, state: NearState) -> bool:
        """Return whether a later attempt than the one that wrote a state has committed one."""
        return state.entry.attempt < self.attempt

    def precedes(self, state: NearState) -> bool:
        """Return whether the ledger lists every milestone before a state."""
        if state.after is None:
            return True
        return self.milestone is not None and state.after <= self.milestone


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Which part of a state that processes share out lies in a file of its own."""

    of: str
    """Names the state: equal for all of its pieces, and for no others."""
    rank: Whole
    """Of the process that wrote it."""
    world: Whole
    """How many pieces the state has."""


@dataclass(frozen=True, kw_only=True)
class NearState:
    """A complete state, or a complete piece of one, on this node's disk."""

    entry: LedgerEntry
    """What a ledger would say of it."""
    after: Whole | None
    """Step of the last milestone before it; None where there was none."""
    piece: Piece | None = None
    """Which piece it is; None where it is all of a state."""

    @property
    def name(self) -> str:
        """Names the state that it is, or is a piece of."""
        return self.piece.of if self.piece else _folder_of(self)

    def to_json(self) -> Json:
        """Return plain JSON."""
        form = {"entry": self.entry.to_json(), "after": self.after}
        # Versions that know nothing of pieces read all others.
        return form | ({"piece": vars(self.piece)} if self.piece else {})

    @classmethod
    def from_json(cls, form: Mapping[str, Any], *, source: str = "a state near") -> NearState:
        """Read what `to_json` gave.

        Raises:
            CorruptData: It is none.
        """
        return read_as(cls, form, source=source, what="record of a state")

    def to_bytes(self) -> bytes:
        """Return its record: a line with the SHA-256 of what follows, then JSON."""
        form = {"format": NEAR_FORMAT, **self.to_json()}
        body = json.dumps(form, sort_keys=True, allow_nan=False).encode()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str) -> NearState:
        """Read what `to_bytes` gave.

        Raises:
            CorruptData: It is torn or altered.
            InvalidInput: It was written by another format version.
        """
        digest, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise CorruptData(f"{source} does not match its sha256")
        form = parse_json(body, source=source, what="record of a state")
        check_format(form.pop("format", None), NEAR_FORMAT, source, "state")
        return cls.from_json(form, source=source)


def near_store(folder: str, place: Place) -> Store:
    """Return where this node's disk keeps the states of a place; nothing is made."""
    name = hashlib.sha256(place.uri.encode()).hexdigest()[:16]
    return open_store(os.path.join(_ours(folder), name))


def near_states(folder: str, place: Place, announce: Announce) -> list[NearState]:
    """Return the complete states of a place on this node's disk, in no order.

    Args:
        folder: `near` of the settings.
        place: Whose states they are.
        announce: Takes warnings, one line each.
    """
    if not os.path.lexists(_ours(folder)):
        return []
    store, found = near_store(folder, place), list[NearState]()
    try:
        private_folder(_ours(folder))
        for key in [listed.key for listed in store.list()]:
            if not key.endswith(f"/{_RECORD}"):
                continue
            try:
                state = NearState.from_bytes(store.get(key), source=f"{store.uri}/{key}")
            except (CorruptData, InvalidInput, NotFound):
                continue
            if _folder_of(state) == key.rpartition("/")[0]:
                found.append(state)
    except StoreError as error:
        announce(f"WARNING: states on this node's disk are not looked for: {error}")
    return found


def remove_near(folder: str, place: Place) -> None:
    """Remove every state of a place from this node's disk: its training run has ended."""
    shutil.rmtree(near_store(folder, place).uri, ignore_errors=True)


class Near:
    """Saves the states of one attempt on this node's disk, each in a thread of its own.

    A disk that takes none is announced and asked again later; training goes on with the place
    alone.
    """

    def __init__(
        self,
        folder: str,
        place: Place,
        attempt: Attempt,
        numerics: dict[str, Any],
        *,
        rank: int = 0,
        pieces: int = 1,
        mirror: Mirror | None = None,
        schedule: RecoverySchedule,
        committed: Callable[[], Committed],
        announce: Announce,
    ):
        """Describe the folder; nothing is made yet.

        Args:
            folder: `near` of the settings.
            place: Whose states they are.
            attempt: The attempt that owns it.
            numerics: What each state records as its numerics key.
            rank: Of this process: those of two pods may find the same disk.
            pieces: Processes that each write a piece of every state; 1 where one has all of it.
            mirror: Brings the pieces to other nodes; None where each stays on its own.
            schedule: When states are due.
            committed: Gives what the place's ledger lists, as this process knows it.
            announce: Takes warnings, one line each.
        """
        self._folder, self._place, self._attempt = folder, place, attempt
        self._rank, self._pieces, self._mirror = rank, pieces, mirror
        self._store = near_store(folder, place)
        self._writer = StateWriter(
            self._store, place, self._as(rank), numerics=numerics, sharded=pieces > 1
        )
        self._schedule, self._committed, self._announce = schedule, committed, announce
        self._arena = Arena()
        self._thread: threading.Thread | None = None
        self._made = False
        self._refused = False
        self._asked_again = 0.0
        """When a disk that refused a state gets the next, by the monotonic clock."""
        self._error: BaseException | None = None
        self._found: frozenset[str] = frozenset()
        """States of earlier attempts that are complete, by name."""
        self._written: tuple[str, ...] = ()
        """What of this attempt is on the disk, by name, in order."""

    @property
    def busy(self) -> bool:
        """Whether a state is still being written."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether the disk takes a state now, as far as is known."""
        return not self.busy and time.monotonic() >= self._asked_again

    @property
    def written(self) -> tuple[str, ...]:
        """What this process has written and not removed, by name, in order."""
        return self._written

    def found(self, names: Iterable[str]) -> None:
        """Note which complete states there are of earlier attempts, by name; others may go."""
        self._found = frozenset(names)

    def due(self, now: float) -> bool:
        """Say whether to save a state now."""
        self.check()
        return self._schedule.due(now) and not self.busy

    def save(
        self,
        tensors: Mapping[str, torch.Tensor],
        snapshot: Snapshot,
        *,
        after: int | None,
        complete: Iterable[str] | None = None,
    ) -> None:
        """Copy the live tensors and return; leave them out while a state is still being written.

        Args:
            tensors: What to save.
            snapshot: What else there is to say of it.
            after: Step of the last milestone before it.
            complete: Which states of this attempt have all of their pieces, by name; None where
                those that are written do.
        """
        self.check()
        started = time.monotonic()
        if not self.ready:
            return
        self._arena.fill(tensors)
        copied = time.monotonic()
        self._schedule.saved(copied)
        complete = None if complete is None else frozenset(complete)
        arguments = (snapshot, after, complete, copied - started, copied)
        self._thread = threading.Thread(
            target=self._write, args=arguments, name="near-saver", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written, though not for a disk that hangs."""
        if self._thread is not None:
            self._thread.join(_LONGEST_WAIT)

    def report(self, now: float) -> SavingReport:
        """Return how often states were saved here, and what that cost."""
        return self._schedule.report(now)

    def check(self) -> None:
        """Raise what stopped it, if anything but the disk did."""
        if self._error is not None:
            raise self._error

    def _as(self, rank: int) -> Attempt:
        """Return the attempt as the folders of a process call it."""
        return replace(self._attempt, id=f"{self._attempt.id}{rank:04x}") if rank else self._attempt

    def _write(
        self,
        snapshot: Snapshot,
        after: int | None,
        complete: frozenset[str] | None,
        blocked: float,
        copied: float,
    ) -> None:
        cpu = time.thread_time()
        try:
            refused = self._refusal(snapshot, after, complete)
        except BaseException as error:  # what is no fault of the disk must reach training
            self._error = error
            return
        if refused is not None:
            if not self._refused:
                self._announce(
                    f"WARNING: checkpoints.near: {self._folder} does not take the state of step "
                    f"{snapshot.stamp.step}; training goes on with {self._place.uri} alone, and "
                    f"tries again later: {refused}"
                )
            self._refused = True
            self._asked_again = copied + _PATIENCE * self._schedule.interval
            self._schedule.saved(copied + (_PATIENCE - 1) * self._schedule.interval)
            return
        if self._refused:
            self._announce(f"{self._folder} takes states again, from step {snapshot.stamp.step} on")
            self._refused = False
        stolen = (time.thread_time() - cpu) / (os.cpu_count() or 1)
        behind = time.monotonic() - copied
        self._schedule.measured(SaveCost(blocked=blocked, behind=behind, stolen=stolen))

    def _refusal(
        self, snapshot: Snapshot, after: int | None, complete: frozenset[str] | None
    ) -> StoreError | None:
        """Write a state, and what others bring; return why the disk takes none, where it does not.

        What others bring comes in any case: they do not know of this disk.
        """
        step, save = snapshot.stamp.step, snapshot.save
        folder = name = folder_name(step, self._as(self._rank), save)
        if self._pieces > 1:
            name = folder_name(step, self._attempt, save)
        parts, refused = self._arena.parts(), None
        record, manifest = b"", b""
        try:
            if not self._made:
                private_folder(_ours(self._folder))
                self._store.check_writable()
                self._made = True
            entry = self._writer.put(snapshot, parts)
            assert entry, "one process writes each file"
            piece = None
            if self._pieces > 1:
                piece = Piece(of=name, rank=self._rank, world=self._pieces)
            record = NearState(entry=entry, after=after, piece=piece).to_bytes()
            if self._mirror is not None:
                manifest = self._store.get(entry.manifest.key)
            self._store.put(f"{folder}/{_RECORD}", record)
            self._written += (name,)
        except StoreError as error:
            refused = error
        try:
            if self._mirror is not None:
                sent = (record, manifest, *parts) if record and manifest else ()
                for got in self._mirror.swap(sent):
                    if got and refused is None:
                        refused = self._take(*got)
        except StoreError as error:
            refused = refused or error
        try:
            # Above all where the disk is full: what was not finished goes, too.
            if self._made:
                self._prune(name, complete)
        except StoreError as error:
            refused = refused or error
        return refused

    def _take(
        self, record: memoryview, manifest: memoryview, *parts: memoryview
    ) -> StoreError | None:
        """Write another process's piece as it did; return why the disk takes none."""
        state = NearState.from_bytes(bytes(record), source="a piece of another process")
        folder = _folder_of(state)
        (file,) = parse_manifest(bytes(manifest), source=folder).files
        try:
            self._store.put_parts(file.key, parts)
            self._store.put(f"{folder}/{MANIFEST_NAME}", manifest)
            self._store.put(f"{folder}/{_RECORD}", record)
        except StoreError as error:
            return error
        return None

    def _prune(self, just: str, complete: frozenset[str] | None) -> None:
        """Remove what nobody will resume from, and what earlier attempts left.

        Args:
            just: What was written just now, by name: others may not have their pieces yet.
            complete: As of `save`.
        """
        committed = self._committed()
        ranks = {self._rank, *(self._mirror.sources if self._mirror else ())}
        mine = tuple(f"-{self._as(rank).id}-" for rank in ranks)

        def is_ours(folder: str) -> bool:
            number = attempt_number(folder)
            return number is not None and (
                number < self._attempt.number or any(one in folder for one in mine)
            )

        def is_complete(state: NearState) -> bool:
            if state.entry.attempt < self._attempt.number:
                return state.name in self._found
            return complete is None or state.name in complete

        # Read again: a damaged record must not keep its state for ever.
        found = near_states(self._folder, self._place, lambda _: None)
        states = [one for one in found if is_ours(_folder_of(one)) and not committed.outdates(one)]
        states.sort(key=lambda one: (one.entry.step, one.entry.created), reverse=True)
        usable = [one for one in states if is_complete(one)]
        kept = [*dict.fromkeys(one.name for one in usable)][:_KEPT]
        # A milestone that the place has not taken yet makes those behind it useless so far.
        kept += [one.name for one in usable if committed.precedes(one)][:1]
        names = {*kept, just}
        folders = {_folder_of(one) for one in states if one.name in names}
        for folder in dict.fromkeys(listed.key.partition("/")[0] for listed in self._store.list()):
            if is_ours(folder) and folder not in folders:
                remove_checkpoint(self._store, f"{folder}/{_RECORD}")
        self._written = tuple(name for name in self._written if name in names)


def _folder_of(state: NearState) -> str:
    return state.entry.manifest.key.rpartition("/")[0]


def _ours(folder: str) -> str:
    return os.path.join(os.path.abspath(folder), f"kubestill-near-{os.getuid()}")
