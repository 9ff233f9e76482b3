"""Make one checkpoint durable: state, manifest, ledger, and the pruning that follows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kubestill.errors import NotFound, StoreError, StoreUnavailable
from kubestill.runtime.base.values import parse_json, read_as
from kubestill.runtime.checkpoints import protocol
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.ledger import Attempt, LedgerEntry
from kubestill.runtime.checkpoints.manifest import (
    MANIFEST_NAME,
    Manifest,
    Stamp,
    StateFile,
    attempt_number,
    encode_manifest,
    folder_name,
)
from kubestill.runtime.checkpoints.place import Place
from kubestill.runtime.checkpoints.reading import digests
from kubestill.runtime.stores.base import Content, Store

RANK_SECONDS = 600.0
"""How long rank 0 waits for the files of the others."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One rank's copied state, ready to be written."""

    stamp: Stamp
    save: int
    """Counts the saves of this attempt."""
    meta: str
    """JSON text."""
    rank_meta: str
    """JSON text."""
    marks: protocol.Marks = protocol.Marks()
    """What the curves said when the state was copied: what is pruned must not depend on how fast a
    store is."""


@dataclass(frozen=True, kw_only=True)
class _RankFile:
    """What a rank tells rank 0 of its state."""

    file: StateFile
    meta: str
    """JSON text."""


@dataclass
class _Progress:
    """What of one save the store has acknowledged."""

    save: int
    file: StateFile | None = None
    entry: LedgerEntry | None = None


class StateWriter:
    """Writes the states of one attempt in full: state files, then the manifest that lists them."""

    def __init__(
        self,
        store: Store,
        place: Place,
        attempt: Attempt,
        *,
        numerics: dict[str, Any],
        rank: int = 0,
        world: int = 1,
        sharded: bool = False,
        leaves: Callable[[], bool] = lambda: False,
    ):
        self._store = store
        self._place = place
        self._attempt = attempt
        self._numerics = numerics
        self._rank = rank
        self._world = world
        self._sharded, self._leaves = sharded, leaves
        self._progress = _Progress(0)

    def put(self, snapshot: Snapshot, parts: Sequence[Content]) -> LedgerEntry | None:
        """Make one state durable, and return what a ledger says of it; None on other ranks.

        Safe to call again after a `StoreError`: a second call goes on where the first one stopped,
        and never writes again what was already acknowledged. The commit may have happened though
        its answer was lost, and listed files must not change.

        Raises:
            StoreError: The store could not take it.
        """
        if self._progress.save != snapshot.save:
            self._progress = _Progress(snapshot.save)
        progress = self._progress
        folder = folder_name(snapshot.stamp.step, self._attempt, snapshot.save)
        if progress.file is None:
            progress.file = self._put_state(folder, parts)
        if self._rank:
            body = {"file": vars(progress.file), "meta": snapshot.rank_meta}
            self._store.put(_rank_key(folder, self._rank), json.dumps(body).encode())
            return None
        if progress.entry is None:
            files, rank_meta = [progress.file], [snapshot.rank_meta]
            for rank in range(1, self._world):
                body = self._await_rank(folder, rank)
                files.append(body.file)
                rank_meta.append(body.meta)
            progress.entry = self._put_manifest(folder, snapshot, files, rank_meta)
        return progress.entry

    def _put_state(self, folder: str, parts: Sequence[Content]) -> StateFile:
        key = f"{folder}/state-{self._rank:05d}-of-{self._world:05d}.safetensors"
        entry = self._store.put_parts(key, parts)
        sha256, crc32c = digests(parts)
        return StateFile(
            key=key,
            rank=self._rank,
            bytes=sum(len(part) for part in parts),
            sha256=sha256,
            crc32c=crc32c,
            version=entry.version,
        )

    def _await_rank(self, folder: str, rank: int) -> _RankFile:
        deadline = time.monotonic() + RANK_SECONDS
        while True:
            try:
                content = self._store.get(_rank_key(folder, rank))
                source, what = _rank_key(folder, rank), "record of a rank"
                form = parse_json(content, source=source, what=what)
                return read_as(_RankFile, form, source=source, what=what)
            except NotFound:
                if self._leaves():
                    raise StoreUnavailable(f"rank {rank} is not waited for any more") from None
                if time.monotonic() > deadline:
                    message = f"rank {rank} did not write its state to {folder} in {RANK_SECONDS} s"
                    raise StoreUnavailable(message) from None
                time.sleep(0.05)

    def _put_manifest(
        self, folder: str, snapshot: Snapshot, files: list[StateFile], rank_meta: list[str]
    ) -> LedgerEntry:
        manifest = Manifest(
            stamp=snapshot.stamp,
            files=tuple(files),
            attempt=self._attempt.number,
            attempt_id=self._attempt.id,
            experiment=self._place.experiment,
            fingerprint=self._place.fingerprint,
            numerics=self._numerics,
            meta={},
            rank_meta=(),
            sharded=self._sharded,
        )
        content = encode_manifest(manifest, meta=snapshot.meta, rank_meta=rank_meta)
        key = f"{folder}/{MANIFEST_NAME}"
        self._store.put(key, content)
        return manifest.entry(key, content)


class CheckpointWriter:
    """Writes the checkpoints of one attempt, in the order that makes a crash harmless."""

    def __init__(
        self,
        place: Place,
        cell: LedgerCell,
        attempt: Attempt,
        *,
        rank: int,
        world: int,
        sharded: bool = False,
        leaves: Callable[[], bool] = lambda: False,
        numerics: dict[str, Any],
        keep: protocol.Keep,
        clock: Callable[[], float] = time.time,
    ):
        self._states = StateWriter(
            place.store,
            place,
            attempt,
            numerics=numerics,
            rank=rank,
            world=world,
            sharded=sharded,
            leaves=leaves,
        )
        self._store = place.store
        self._cell = cell
        self._attempt = attempt
        self._keep = keep
        self._clock = clock
        self._stored: dict[str, None] = {}
        """Manifests that were listed once and are not deleted yet, oldest first."""

    def write(self, snapshot: Snapshot, parts: Sequence[Content]) -> None:
        """Make one checkpoint durable and commit it; safe to call again after a `StoreError`.

        Raises:
            Fenced: Another attempt owns the training run.
            StoreError: The store could not take it; nothing is listed that is not whole.
        """
        entry = self._states.put(snapshot, parts)
        if entry is not None:
            self._commit(entry, snapshot.marks)

    def _commit(self, entry: LedgerEntry, marks: protocol.Marks) -> None:
        # Remembered until it is deleted, not compared with the ledger before this commit: a commit
        # whose answer was lost has unlisted some of it already.
        listed = (*self._cell.latest.entries, entry)
        self._stored.update(dict.fromkeys(e.manifest.key for e in listed))
        ledger = self._cell.change(
            lambda ledger: protocol.commit(
                ledger,
                self._attempt,
                entry,
                now=self._clock(),
                keep=self._keep,
                marks=marks,
            )
        )
        kept = {e.manifest.key for e in ledger.entries}
        for key in [key for key in self._stored if key not in kept]:
            try:
                remove_checkpoint(self._store, key)
            except StoreError:
                continue  # the save is committed all the same; the next one deletes it
            del self._stored[key]


def remove_checkpoint(store: Store, manifest_key: str) -> None:
    """Delete a checkpoint that no ledger lists any more: manifest first, then the state."""
    store.delete(manifest_key)
    folder = manifest_key.rpartition("/")[0]
    for entry in list(store.list(f"{folder}/")):
        store.delete(entry.key)


def sweep(store: Store, listed: Sequence[LedgerEntry], me: Attempt) -> int:
    """Delete what earlier attempts wrote and never committed; return how many folders that were.

    Only folders of lower attempts go: those attempts can never commit again. Whatever this attempt
    or a higher one writes stays, even where `listed` is out of date.
    """
    kept = {entry.manifest.key.rpartition("/")[0] for entry in listed}
    folders = dict.fromkeys(entry.key.partition("/")[0] for entry in store.list())
    swept = 0
    for folder in folders:
        number = attempt_number(folder)
        if number is not None and number < me.number and folder not in kept:
            remove_checkpoint(store, f"{folder}/{MANIFEST_NAME}")
            swept += 1
    return swept


def _rank_key(folder: str, rank: int) -> str:
    return f"{folder}/rank-{rank:05d}.json"
