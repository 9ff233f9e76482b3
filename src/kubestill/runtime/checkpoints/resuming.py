"""Which checkpoint an attempt resumes from, and whether it continues with the same bits."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from kubestill.errors import CorruptData
from kubestill.runtime.checkpoints import protocol
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.ledger import Attempt, LedgerEntry
from kubestill.runtime.checkpoints.place import Announce
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.restore import Restored, read_state
from kubestill.runtime.stores.base import Store


def newest_whole(
    store: Store,
    cell: LedgerCell,
    me: Attempt,
    ranks: Ranks,
    announce: Announce,
    *,
    rank: int,
    world: int,
) -> Restored | None:
    """Read the newest checkpoint that is whole for every rank; None where there is none.

    Each reads as one of `world` readers; see `read_state`.

    What any rank finds missing, torn or altered is skipped by all; rank 0 announces it, and marks
    it in the ledger.

    Raises:
        InvalidInput: The newest checkpoint was written by another format version.
        StoreError: The store did not answer.
        Fenced: Another attempt owns the training run.
    """
    # Rank 0's list: what another rank knows of the ledger may be older.
    listed = ranks.share(json.dumps([entry.to_json() for entry in cell.latest.newest_first]))
    for entry in map(LedgerEntry.from_json, json.loads(listed)):
        # Let go of what only this rank could read: two states may not fit into memory.
        restored, found = None, ""
        try:
            restored = read_state(store, entry, rank=rank, world=world, proof="crc32c")
        except CorruptData as error:
            found = str(error)
        # Ranks that read the same file say the same of it.
        why = "; ".join(dict.fromkeys(filter(None, ranks.gather(found))))
        if not why:
            return restored
        if ranks.rank:
            continue
        announce(
            f"WARNING: the checkpoint of step {entry.step} is damaged ({why}); trying the one "
            "before it"
        )
        cell.change(partial(protocol.mark_damaged, me=me, entry=entry, why=why, now=time.time()))
    return None


def same_bits(
    restored: Restored, numerics: Mapping[str, Any], world: int, announce: Announce
) -> bool:
    """Say, and announce, whether training continues with the bits of an uninterrupted one."""
    saved = restored.manifest.numerics
    differ = [
        f"{name}: {saved.get(name)!r} then, {numerics.get(name)!r} now"
        for name in sorted({*saved, *numerics})
        if saved.get(name) != numerics.get(name)
    ]
    ranks = len(restored.manifest.files)
    if ranks != world:
        differ.append(f"ranks: {ranks} then, {world} now")
    step = restored.entry.step
    if differ:
        what = "; ".join(differ)
        announce(f"WARNING: resuming from step {step}, but NOT with the same bits: {what}")
    else:
        announce(f"resuming from step {step}, with the same bits")
    return not differ
