"""Restore states from the disks of several nodes: who has which, and how it gets to the others.

    list ── every process says what it finds on its node's disk; then all know of all
    agree ── rank 0 names one state, until all processes have it
    read ── a process reads its own node's copy, or gets another's where that is missing or damaged

Copies of a state are those whose step, attempt and SHA-256 are equal; one that processes shared out
is there once each of its pieces is on some disk. A process needs the pieces that have tensors which
it takes, in whatever number they were written. What is received goes straight into the memory of
these tensors, and is verified on its way as a file is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from kubestill.errors import CorruptData, InvalidInput, StoreError
from kubestill.runtime.checkpoints import checksum
from kubestill.runtime.checkpoints.ledger import Json, LedgerEntry
from kubestill.runtime.checkpoints.manifest import Manifest, check_manifest, read_manifest
from kubestill.runtime.checkpoints.near import NearState, Piece, near_states, near_store
from kubestill.runtime.checkpoints.place import Announce, Place
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.reading import read_header
from kubestill.runtime.checkpoints.restore import (
    Restored,
    Wanted,
    collect,
    read_some,
    read_tensors,
    sort_out,
)
from kubestill.runtime.checkpoints.state import Layout, TrainingState
from kubestill.runtime.stores.base import Store

_CHUNK = 4 << 20
"""Bytes that are sent at a time: all that a sender needs beside its own state."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    """One state, and the ranks that find its pieces on their nodes' disks."""

    pieces: tuple[Mapping[int, NearState], ...]
    """Of each piece, rank → what the record there says; all of a state is one piece."""

    @property
    def any(self) -> NearState:
        """One of them: in all that decides they are equal."""
        return next(iter(self.pieces[0].values()))

    @property
    def names(self) -> frozenset[str]:
        """What the disks call it."""
        return frozenset(one.name for piece in self.pieces for one in piece.values())

    def to_json(self) -> list[Json]:
        """Return plain JSON."""
        return [{str(rank): one.to_json() for rank, one in of.items()} for of in self.pieces]

    @classmethod
    def from_json(cls, form: Sequence[Json]) -> Copies:
        """Read what `to_json` gave."""
        return cls(
            pieces=tuple(
                {int(rank): NearState.from_json(one) for rank, one in of.items()} for of in form
            )
        )


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What a process says of the pieces that it needs."""

    has: Sequence[int]
    """Those that it has."""
    lacks: Sequence[int]
    """Those that it has not."""
    faults: Sequence[tuple[int, int, str]]
    """Piece, the rank whose copy of it cannot be used, and why."""


@dataclass(frozen=True)
class _Part:
    """One piece, as far as it is wanted."""

    manifest: Manifest
    tensors: dict[str, torch.Tensor]


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
    listed: dict[tuple[int, int, str], dict[int, dict[int, NearState]]] = {}
    worlds: dict[tuple[int, int, str], int] = {}
    for rank, told in enumerate(ranks.gather(json.dumps([trouble, found]))):
        lines, states = json.loads(told)
        for line in lines:
            announce(line if ranks.world == 1 else f"{line} (rank {rank})")
        for sha256, form in states:
            state = NearState.from_json(form)
            piece = state.piece or Piece(of=sha256, rank=0, world=1)
            which = state.entry.step, state.entry.attempt, piece.of
            worlds[which] = piece.world
            listed.setdefault(which, {}).setdefault(piece.rank, {}).setdefault(rank, state)
    copies: list[Copies] = []
    for which, pieces in listed.items():
        every = range(worlds[which])
        if all(number in pieces for number in every):
            copies.append(Copies(pieces=tuple(pieces[number] for number in every)))
    if listed and not copies:
        which = max(listed)
        absent = [str(one) for one in range(worlds[which]) if one not in listed[which]]
        announce(
            f"no state on the nodes' disks has all of its pieces: of step {which[0]}, for one, "
            f"those of ranks {', '.join(absent)} are on none"
        )
    return copies


def read_copy(
    copies: Copies, store: Store, ranks: Ranks, announce: Announce, wanted: Wanted | None
) -> tuple[Restored | None, str]:
    """Give every rank what it wants of one state, from its node's disk or from another's.

    All ranks call it.

    Returns:
        What was read, where all ranks have it, and on every rank why one has not.
    """
    needed = _needed(copies, store, ranks, wanted)
    got, faults = dict[int, _Part](), list[tuple[int, int, str]]()
    for number in needed:
        if (mine := copies.pieces[number].get(ranks.rank)) is None:
            continue
        try:
            got[number] = _read(store, mine.entry, wanted)
        except (CorruptData, StoreError) as error:
            faults.append((number, ranks.rank, str(error)))
    unusable: dict[int, dict[int, str]] = {number: {} for number in range(len(copies.pieces))}
    while True:
        lacks = [number for number in needed if number not in got]
        told = _Report(has=[*got], lacks=lacks, faults=faults)
        reports = [_Report(**json.loads(one)) for one in ranks.gather(json.dumps(vars(told)))]
        news = [fault for report in reports for fault in report.faults]
        for number, rank, why in news:
            unusable[number][rank] = why
        lack = [
            (number, rank)
            for number in unusable
            for rank, report in enumerate(reports)
            if number in report.lacks
        ]
        givers: dict[int, list[int]] = {}
        for number in dict.fromkeys(number for number, _ in lack):
            sound = [rank for rank in copies.pieces[number] if rank not in unusable[number]]
            # Rather from who has read it than from who has not looked.
            givers[number] = [r for r in sound if number in reports[r].has] or sound
            if not sound:
                return None, "; ".join(dict.fromkeys(unusable[number].values()))
        for _, rank, why in news:
            announce(f"WARNING: {_unusable(copies.any)} (rank {rank}: {why})")
        if not lack:
            break
        faults = _pass_on(lack, givers, copies, got, store, ranks, announce, wanted)
    manifest, tensors = got[0].manifest, dict[str, torch.Tensor]()
    for number in needed:
        tensors |= got.pop(number).tensors
    missing = sorted(wanted.names - tensors.keys()) if wanted else []
    why = f"no piece of it has {missing[0]}" if missing else ""
    why = "; ".join(dict.fromkeys(filter(None, ranks.gather(why))))
    if why:
        return None, why
    meta = dict(manifest.meta)
    if manifest.rank_meta[0] is not None:
        meta["rank"] = manifest.rank_meta[0]
    return Restored(copies.any.entry, manifest, TrainingState(tensors, meta)), ""


def _needed(copies: Copies, store: Store, ranks: Ranks, wanted: Wanted | None) -> Sequence[int]:
    """Return the pieces that have something of what this rank wants; all ranks call it.

    The first one has what every rank wants.
    """
    if len(copies.pieces) == 1:
        return [0]
    names: dict[str, list[str] | None] = {}
    for number, holders in enumerate(copies.pieces):
        if ranks.rank == min(holders):
            names[str(number)] = _names(store, holders[ranks.rank])
    for told in ranks.gather(json.dumps(names)):
        names |= json.loads(told)

    def is_needed(number: int) -> bool:
        held = names[str(number)]
        return not number or wanted is None or held is None or any(map(wanted.takes, held))

    return [number for number in range(len(copies.pieces)) if is_needed(number)]


def _names(store: Store, state: NearState) -> list[str] | None:
    """Return the names of a piece's tensors, not verified; None where they cannot be read."""
    with suppress(CorruptData, InvalidInput, StoreError, OSError):
        (file,) = read_manifest(store, state.entry.manifest).files
        path = store.local_path(file.key)
        assert path, "it is on this node's disk"
        with open(path, "rb") as opened:
            header = read_header(opened.fileno(), file)
        return [slot.name for slot in Layout.parse(header, source=path, total=file.bytes).slots]
    return None


def _read(store: Store, entry: LedgerEntry, wanted: Wanted | None) -> _Part:
    """Read a piece from this node's disk.

    Raises:
        CorruptData: A file is missing, truncated or altered.
        StoreError: The disk did not answer.
    """
    manifest = read_manifest(store, entry.manifest)
    (file,) = manifest.files
    if wanted is None:
        return _Part(manifest, read_tensors(store, file, "crc32c"))
    return _Part(manifest, read_some(store, file, "crc32c", wanted.takes))


def _pass_on(
    lack: Sequence[tuple[int, int]],
    givers: Mapping[int, Sequence[int]],
    copies: Copies,
    got: dict[int, _Part],
    store: Store,
    ranks: Ranks,
    announce: Announce,
    wanted: Wanted | None,
) -> list[tuple[int, int, str]]:
    """Give each rank the pieces that it lacks; returns what this one could not use."""
    turns: dict[int, int] = {}
    pairs: list[tuple[int, int, int]] = []
    # Those that send take turns as those that lack do: each pair is in step, whatever others do.
    for number, rank in lack:
        turns[number] = turn = turns.get(number, -1) + 1
        pairs.append((number, givers[number][turn % len(givers[number])], rank))
    givers_told, takers_told = (
        ", ".join(map(str, sorted({pair[at] for pair in pairs}))) for at in (1, 2)
    )
    what = "the state" if len(copies.pieces) == 1 else "pieces of the state"
    announce(
        f"ranks {takers_told} get {what} of step {copies.any.entry.step} from the disks of ranks "
        f"{givers_told}"
    )
    faults: list[tuple[int, int, str]] = []
    for number, giver, rank in pairs:
        entry = copies.pieces[number][giver].entry
        if ranks.rank == giver:
            _send(entry, store, ranks, rank)
        elif ranks.rank == rank:
            try:
                got[number] = _receive(entry, ranks, giver, wanted)
            except CorruptData as error:
                faults.append((number, giver, f"it sent something else: {error}"))
    return faults


def _send(entry: LedgerEntry, store: Store, ranks: Ranks, to: int) -> None:
    """Send a manifest and its file, as many bytes as announced whatever becomes of the disk."""
    manifest, header, file = b"", memoryview(b""), None
    # Where what was read before is gone or altered, zeros take its place, which nobody accepts.
    with suppress(StoreError, CorruptData, InvalidInput, OSError):
        content = store.get(entry.manifest.key)
        named = check_manifest(content, entry.manifest, source=entry.manifest.key).files[0]
        manifest = content
        if path := store.local_path(named.key):
            file = open(path, "rb", buffering=0)
            header = read_header(file.fileno(), named)
            file.seek(len(header))
    lengths = b"".join(len(part).to_bytes(8, "little") for part in (manifest, header))
    ranks.send(memoryview(bytearray(lengths)), to)
    for part in (bytearray(manifest), header):
        if part:
            ranks.send(memoryview(part), to)
    chunk, left = memoryview(bytearray(_CHUNK)), entry.bytes - len(manifest) - len(header)
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


def _receive(entry: LedgerEntry, ranks: Ranks, giver: int, wanted: Wanted | None) -> _Part:
    """Receive what `_send` sends, and take what is wanted of it.

    Raises:
        CorruptData: It is not what the entry says.
    """
    lengths = bytearray(16)
    ranks.receive(memoryview(lengths), giver)
    sizes = [int.from_bytes(lengths[at : at + 8], "little") for at in (0, 8)]
    content, header = (bytearray(size) for size in sizes)
    for part in (content, header):
        if part:
            ranks.receive(memoryview(part), giver)
    tensors: dict[str, torch.Tensor] = {}
    manifest, broken, take = None, None, None
    try:
        manifest = check_manifest(bytes(content), entry.manifest, source=f"rank {giver}'s manifest")
        begin = collect(tensors, wanted.takes if wanted else lambda name: True)
        look, take = sort_out(manifest.files[0], begin)
        look(memoryview(header))
    except CorruptData as error:
        broken = error
    # All that was announced, of no use as it may be: what comes next is no part of it.
    at, crc = len(header), checksum.extend(0, memoryview(header))
    chunk, end = memoryview(bytearray(_CHUNK)), entry.bytes - len(content)
    while at < end:
        piece = chunk[: min(end - at, _CHUNK)]
        ranks.receive(piece, giver)
        crc = checksum.extend(crc, piece)
        if take and not broken:
            take(at, piece)
        at += len(piece)
    if broken:
        raise broken
    assert manifest
    (file,) = manifest.files
    if (at, crc) != (file.bytes, file.crc32c):
        raise CorruptData(f"{file.key} does not match its crc32c")
    return _Part(manifest, tensors)


def _unusable(state: NearState) -> str:
    return f"the state of step {state.entry.step} on this node's disk cannot be used"
