"""Restore states from the disks of several nodes: who has which, and how it gets to the others.

    list ── every process says what it finds on its node's disk; then all know of all
    agree ── rank 0 names one state, until all processes have it
    read ── a process reads its own node's copy, or gets another's where that is missing or damaged

Copies of a state are those whose step, attempt and SHA-256 are equal. What is received goes
straight into the memory that the tensors lie in, and is verified there as a file is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from kubestill.errors import CorruptData, InvalidInput, StoreError
from kubestill.runtime.checkpoints import checksum
from kubestill.runtime.checkpoints.ledger import Json, LedgerEntry
from kubestill.runtime.checkpoints.manifest import check_manifest, read_manifest
from kubestill.runtime.checkpoints.near import NearState, near_states, near_store
from kubestill.runtime.checkpoints.place import Announce, Place
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.reading import large_pages
from kubestill.runtime.checkpoints.restore import Restored, read_state, tensors_in
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.stores.base import Store

_CHUNK = 4 << 20
"""Bytes that are sent at a time: all that a sender needs beside its own state."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    """One state, and the ranks that find it on their nodes' disks."""

    of: Mapping[int, NearState]
    """Rank → what the record there says."""

    @property
    def any(self) -> NearState:
        """One of them: in all that decides they are equal."""
        return next(iter(self.of.values()))


def list_copies(folder: str, place: Place, ranks: Ranks, announce: Announce) -> list[Copies]:
    """Return the complete states of a place on the disks of all nodes; all ranks call it.

    What is said of a state here is not verified yet, but for its record and its manifest.

    Args:
        folder: `near` of the settings, on each node.
        place: Whose states they are.
        ranks: The processes that restore together.
        announce: Takes warnings, one line each; rank 0's get all.
    """
    trouble: list[str] = []
    store, found = near_store(folder, place), list[tuple[str, Json]]()
    for state in near_states(folder, place, trouble.append):
        try:
            (file,) = read_manifest(store, state.entry.manifest).files
        except (CorruptData, InvalidInput, StoreError, ValueError) as error:
            trouble.append(f"WARNING: {_unusable(state)} ({error})")
            continue
        found.append((file.sha256, state.to_json()))
    copies: dict[tuple[int, int, str], dict[int, NearState]] = {}
    for rank, told in enumerate(ranks.gather(json.dumps([trouble, found]))):
        lines, states = json.loads(told)
        for line in lines:
            announce(line if ranks.world == 1 else f"{line} (rank {rank})")
        for sha256, form in states:
            state = NearState.from_json(form)
            same = copies.setdefault((state.entry.step, state.entry.attempt, sha256), {})
            same.setdefault(rank, state)
    return [Copies(of=same) for same in copies.values()]


def read_copy(
    copies: Copies, store: Store, ranks: Ranks, announce: Announce
) -> tuple[Restored | None, str]:
    """Give every rank one state, from its node's disk or from another's; all ranks call it.

    Returns:
        What was read, where all ranks have it, and on every rank why one has not.
    """
    restored, why = None, "it is not there"
    mine = copies.of.get(ranks.rank)
    if mine is not None:
        try:
            restored = read_state(store, mine.entry, rank=0, world=1, proof="crc32c")
        except (CorruptData, StoreError) as error:
            why = str(error)
    said = [json.loads(told) for told in ranks.gather(json.dumps([restored is not None, why]))]
    whole = [rank for rank, (has, _) in enumerate(said) if has]
    lack = [rank for rank, (has, _) in enumerate(said) if not has]
    if not whole:
        return None, "; ".join(dict.fromkeys(said[rank][1] for rank in copies.of))
    if not lack:
        return restored, ""
    for rank in lack:
        if rank in copies.of:
            announce(f"WARNING: {_unusable(copies.of[rank])} (rank {rank}: {said[rank][1]})")
    step = copies.any.entry.step
    announce(
        f"ranks {', '.join(map(str, lack))} get the state of step {step} from the disks of ranks "
        f"{', '.join(map(str, whole[: len(lack)]))}"
    )
    why = ""
    # Those that send take turns as those that lack do: each pair is in step, whatever others do.
    for turn, rank in enumerate(lack):
        giver = whole[turn % len(whole)]
        if ranks.rank == giver:
            _send(copies.of[giver].entry, store, ranks, rank)
        elif ranks.rank == rank:
            try:
                restored = _receive(copies.of[giver].entry, ranks, giver)
            except CorruptData as error:
                why = f"rank {giver} sent another state: {error}"
    why = "; ".join(dict.fromkeys(filter(None, ranks.gather(why))))
    return (None if why else restored), why


def _send(entry: LedgerEntry, store: Store, ranks: Ranks, to: int) -> None:
    """Send a manifest and its file, as many bytes as announced whatever becomes of the disk."""
    manifest, key = b"", ""
    # Where what was read before is gone or altered, zeros take its place, which nobody accepts.
    with suppress(StoreError, CorruptData, InvalidInput):
        content = store.get(entry.manifest.key)
        key = check_manifest(content, entry.manifest, source=entry.manifest.key).files[0].key
        manifest = content
    ranks.send(memoryview(bytearray(len(manifest).to_bytes(8, "little"))), to)
    if manifest:
        ranks.send(memoryview(bytearray(manifest)), to)
    path, chunk = key and store.local_path(key), memoryview(bytearray(_CHUNK))
    left = entry.bytes - len(manifest)
    file = None
    with suppress(OSError):
        file = open(path, "rb", buffering=0) if path else None
    try:
        while left:
            piece, done = chunk[: min(left, _CHUNK)], 0
            with suppress(OSError):
                while file and done < len(piece) and (count := file.readinto(piece[done:])):
                    done += count
            piece[done:] = bytes(len(piece) - done)
            ranks.send(piece, to)
            left -= len(piece)
    finally:
        if file:
            file.close()


def _receive(entry: LedgerEntry, ranks: Ranks, giver: int) -> Restored:
    """Receive what `_send` sends.

    Raises:
        CorruptData: It is not what the entry says.
    """
    length = bytearray(8)
    ranks.receive(memoryview(length), giver)
    content = bytearray(int.from_bytes(length, "little"))
    if content:
        ranks.receive(memoryview(content), giver)
    memory, crc = large_pages(entry.bytes - len(content)), 0
    with memoryview(memory) as whole:
        for start in range(0, len(whole), _CHUNK):
            with whole[start : start + _CHUNK] as piece:
                ranks.receive(piece, giver)
                crc = checksum.extend(crc, piece)
    source = f"what rank {giver} sent"
    manifest = check_manifest(bytes(content), entry.manifest, source=source)
    (file,) = manifest.files
    if (len(memory), crc) != (file.bytes, file.crc32c):
        raise CorruptData(f"{file.key} does not match its crc32c")
    meta = dict(manifest.meta)
    if manifest.rank_meta[0] is not None:
        meta["rank"] = manifest.rank_meta[0]
    return Restored(entry, manifest, TrainingState(tensors_in(memory, source=source), meta))


def _unusable(state: NearState) -> str:
    return f"the state of step {state.entry.step} on this node's disk cannot be used"
