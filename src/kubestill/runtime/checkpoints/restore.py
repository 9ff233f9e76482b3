"""Read state back: the newest checkpoint that is whole, verified, and never through pickle."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kubestill.runtime.checkpoints.ledger import Checkpoint, LedgerEntry
from kubestill.runtime.checkpoints.manifest import Manifest, StateFile, read_manifest
from kubestill.runtime.checkpoints.reading import Proof, read_verified
from kubestill.runtime.checkpoints.state import RANK_PREFIX, Layout, TrainingState
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.base import Store


@dataclass(frozen=True)
class Restored:
    """A state that was read back, and what its manifest says about it."""

    entry: LedgerEntry
    manifest: Manifest
    state: TrainingState


def load_state(checkpoint: Checkpoint) -> TrainingState:
    """Read a chosen checkpoint's state: what all ranks share, and what was rank 0's own.

    Downloads this one state and nothing else of the history, and checks its SHA-256.

    Raises:
        CorruptData: A file is missing, truncated or altered.
        InvalidInput: It was written by another format version.
        StoreError: The store did not answer.
    """
    return read_state(open_store(checkpoint.uri), checkpoint.entry, rank=0, world=1).state


def read_state(
    store: Store, entry: LedgerEntry, *, rank: int, world: int, proof: Proof = "sha256"
) -> Restored:
    """Read one checkpoint for one of `world` ranks, and verify it by the given `proof`.

    Where the checkpoint was written by another number of ranks, only what they shared comes back,
    but for a lone reader, which also gets rank 0's own.

    Raises:
        CorruptData: A file is missing, truncated or altered.
        InvalidInput: It was written by another format version.
        StoreError: The store did not answer.
    """
    manifest = read_manifest(store, entry.manifest)
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


def read_tensors(store: Store, file: StateFile, proof: Proof) -> dict[str, torch.Tensor]:
    """Read one state file that is as recorded; its tensors lie in one block of fresh memory.

    Raises:
        CorruptData: It is missing, truncated or altered.
        StoreError: The store did not answer.
    """
    # A mapping of the file itself would die with it: the store may prune it while training runs.
    memory = read_verified(store, file, proof=proof)
    layout = Layout.parse(memoryview(memory), source=file.key)
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
