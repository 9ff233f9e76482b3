"""Read state back: the newest checkpoint that is whole, verified, and never through pickle."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kubestill.errors import CorruptData
from kubestill.runtime.checkpoints.ledger import Checkpoint, Json, LedgerEntry
from kubestill.runtime.checkpoints.manifest import Manifest, StateFile, read_manifest
from kubestill.runtime.checkpoints.reading import Proof, read_verified, scan
from kubestill.runtime.checkpoints.state import RANK_PREFIX, Layout, Slot, TrainingState
from kubestill.runtime.models.export import Incoming
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.base import Store

Take = Callable[[int, memoryview], None]
"""Gets a piece of a tensor's content and the byte at which it begins; the piece is overwritten."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What one of several processes, which share out the state, needs of it."""

    names: frozenset[str]
    """Tensors that it must have."""
    takes: Callable[[str], bool]
    """Which tensors it takes; what belongs to one of the names lies in the same file."""


@dataclass(frozen=True)
class Restored:
    """A state that was read back, and what its manifest says about it."""

    entry: LedgerEntry
    manifest: Manifest
    state: TrainingState


def load_state(checkpoint: Checkpoint, takes: Callable[[str], bool] | None = None) -> TrainingState:
    """Read a chosen checkpoint's state: what all ranks share, and what was rank 0's own.

    Downloads this one state and nothing else of the history, and checks its SHA-256.

    Args:
        checkpoint: Chosen.
        takes: Which of the shared tensors are wanted, in memory for no more than those; None for
            all, and for what was rank 0's own.

    Raises:
        CorruptData: A file is missing, truncated or altered.
        InvalidInput: It was written by another format version.
        StoreError: The store did not answer.
    """
    store = open_store(checkpoint.uri)
    if takes is None:
        return read_state(store, checkpoint.entry, rank=0, world=1).state
    manifest, tensors = read_manifest(store, checkpoint.entry.manifest), dict[str, torch.Tensor]()
    for file in _shared_files(manifest):
        tensors |= read_some(store, file, "sha256", takes)
    return TrainingState(tensors, dict(manifest.meta))


def read_state(
    store: Store,
    entry: LedgerEntry,
    *,
    rank: int,
    world: int,
    proof: Proof = "sha256",
    wanted: Wanted | None = None,
) -> Restored:
    """Read one checkpoint for one of `world` ranks, and verify it by the given `proof`.

    Where the checkpoint was written by another number of ranks, only what they shared comes back,
    but for a lone reader, which also gets rank 0's own. One in shards comes back whole, or what is
    `wanted` of it, which files that have none of it need not be read for.

    Raises:
        CorruptData: A file is missing, truncated or altered.
        InvalidInput: It was written by another format version.
        StoreError: The store did not answer.
    """
    manifest = read_manifest(store, entry.manifest)
    if manifest.sharded or wanted:
        wanted = wanted or Wanted(names=frozenset(), takes=lambda name: True)
        tensors = _gather_shards(store, manifest, rank, proof, wanted)
        return Restored(entry, manifest, TrainingState(tensors, dict(manifest.meta)))
    own: int | None = 0 if world == 1 else None
    if len(manifest.files) == world:
        own = rank
    tensors = read_tensors(store, manifest.files[0], proof)
    if own != 0:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(RANK_PREFIX)}
    if own:
        tensors |= read_tensors(store, manifest.files[own], proof)
    meta = dict(manifest.meta)
    if own is not None and manifest.rank_meta[own] is not None:
        meta["rank"] = manifest.rank_meta[own]
    return Restored(entry, manifest, TrainingState(tensors, meta))


def _gather_shards(
    store: Store, manifest: Manifest, rank: int, proof: Proof, wanted: Wanted
) -> dict[str, torch.Tensor]:
    # Most likely in the file of the same rank; what all have is in the first one.
    files = sorted(manifest.files, key=lambda file: (file.rank != rank, file.rank))
    tensors: dict[str, torch.Tensor] = {}
    for i, file in enumerate(files):
        if i > 1 and wanted.names and wanted.names <= tensors.keys():
            break
        tensors |= read_some(store, file, proof, wanted.takes)
    if missing := sorted(wanted.names - tensors.keys()):
        raise CorruptData(f"{manifest.files[0].key} and those beside it have no {missing[0]}")
    return tensors


def read_some(
    store: Store, file: StateFile, proof: Proof, takes: Callable[[str], bool]
) -> dict[str, torch.Tensor]:
    """Read some tensors of a state file that is as recorded, in memory for no more than those.

    Raises:
        CorruptData: It is missing, truncated or altered.
        StoreError: The store did not answer.
    """
    tensors: dict[str, torch.Tensor] = {}
    stream_file(store, file, proof, collect(tensors, takes))
    return tensors


def collect(
    tensors: dict[str, torch.Tensor], takes: Callable[[str], bool]
) -> Callable[[Slot], Take | None]:
    """Return what begins with each tensor that is wanted, in fresh memory among `tensors`."""

    def begin(slot: Slot) -> Take | None:
        if not takes(slot.name):
            return None
        tensors[slot.name] = torch.empty(slot.shape, dtype=slot.dtype)
        memory: Any = tensors[slot.name].reshape(-1).view(torch.uint8).numpy()
        into = memoryview(memory)

        def take(start: int, piece: memoryview) -> None:
            into[start : start + len(piece)] = piece

        return take

    return begin


def stream_state(store: Store, entry: LedgerEntry, begin: Callable[[Slot], Take | None]) -> Json:
    """Go through a checkpoint's state in little memory; return what is no tensor.

    Args:
        store: The training run's place.
        entry: The checkpoint.
        begin: Gets each tensor's name and form; returns what takes its content, or None.

    Raises:
        CorruptData: A file is missing, truncated or altered: nothing that was taken is to be used.
        InvalidInput: It was written by another format version.
        StoreError: The store did not answer.
    """
    manifest = read_manifest(store, entry.manifest)
    for file in _shared_files(manifest):
        stream_file(store, file, "sha256", begin)
    return dict(manifest.meta)


def stream_weights(store: Store, entry: LedgerEntry, folder: str) -> tuple[Incoming, Json]:
    """Bring a checkpoint's weights to disk, in little memory, to be exported there.

    Args:
        store: The training run's place.
        entry: The checkpoint.
        folder: Of the export.

    Returns:
        The weights, and what the state holds beside its tensors.

    Raises:
        CorruptData: A file is missing, truncated or altered.
        InvalidInput: It was written by another format version.
        StoreError: The store did not answer.
    """
    incoming = Incoming(folder)

    def begin(slot: Slot) -> Take | None:
        return incoming.begin(slot.name, slot.type_name, slot.shape, slot.end - slot.start)

    try:
        return incoming, stream_state(store, entry, begin)
    except BaseException:
        incoming.close()
        raise


def _shared_files(manifest: Manifest) -> tuple[StateFile, ...]:
    """Return the files with what all ranks share: the first one, where there are no shards."""
    return manifest.files if manifest.sharded else manifest.files[:1]


def stream_file(
    store: Store, file: StateFile, proof: Proof, begin: Callable[[Slot], Take | None]
) -> None:
    """Go through one state file in little memory; see `stream_state`."""
    look, pass_on = sort_out(file, begin)
    scan(store, file, proof=proof, begin=look, take=pass_on)


def sort_out(
    file: StateFile, begin: Callable[[Slot], Take | None]
) -> tuple[Callable[[memoryview], None], Take]:
    """Return what gets a state file's header, and then what gets its pieces, for its tensors."""
    places: list[tuple[int, int, Take]] = []

    def look(header: memoryview) -> None:
        layout = Layout.parse(header, source=file.key, total=file.bytes)
        for slot in layout.slots:
            if (take := begin(slot)) is not None:
                first = len(layout.header)
                places.append((first + slot.start, first + slot.end, take))

    def pass_on(start: int, chunk: memoryview) -> None:
        for first, last, take in places:
            low, high = max(first, start), min(last, start + len(chunk))
            if low < high:
                take(low - first, chunk[low - start : high - start])

    return look, pass_on


def read_tensors(store: Store, file: StateFile, proof: Proof) -> dict[str, torch.Tensor]:
    """Read one state file that is as recorded; its tensors lie in one block of fresh memory.

    Raises:
        CorruptData: It is missing, truncated or altered.
        StoreError: The store did not answer.
    """
    # A mapping of the file itself would die with it: the store may prune it while training runs.
    return tensors_in(read_verified(store, file, proof=proof), source=file.key)


def tensors_in(memory: mmap.mmap, *, source: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a state file that was read into memory; they lie there.

    Raises:
        CorruptData: It is no safetensors file.
    """
    layout = Layout.parse(memoryview(memory), source=source)
    tensors: dict[str, torch.Tensor] = {}
    for slot in layout.slots:
        if slot.start == slot.end:
            tensors[slot.name] = torch.empty(slot.shape, dtype=slot.dtype)
            continue
        # Each with a storage of its own: `Generator.set_state` reads from a storage's beginning.
        data = torch.frombuffer(
            memory,
            dtype=torch.uint8,
            offset=len(layout.header) + slot.start,
            count=slot.end - slot.start,
        )
        tensors[slot.name] = data.view(slot.dtype).view(slot.shape)
    return tensors
