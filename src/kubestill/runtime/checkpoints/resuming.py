"""Which checkpoint an attempt resumes from, and whether it continues with the same bits."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from kubestill.errors import CorruptData
from kubestill.runtime.checkpoints import protocol
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.ledger import Attempt, Json, LedgerEntry
from kubestill.runtime.checkpoints.near import Committed
from kubestill.runtime.checkpoints.peers import Copies, read_copy
from kubestill.runtime.checkpoints.place import Announce
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.restore import Restored, Wanted, read_state
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
    near: Store | None = None,
    copies: Sequence[Copies] = (),
    wanted: Wanted | None = None,
) -> tuple[Restored, bool] | None:
    """Read the newest state that is whole for every rank; None where there is none.

    Each reads as one of `world` readers; see `read_state`.

    What any rank finds missing, torn or altered is skipped by all; rank 0 announces it, and marks
    it in the ledger that lists it.

    Args:
        store: What the ledger lists lies there.
        cell: The ledger.
        me: The attempt that resumes.
        ranks: The processes that resume together.
        announce: Takes warnings, one line each.
        rank: Whose state to read.
        world: Of so many readers.
        near: This node's disk.
        copies: The states on the disks of all nodes that count, as rank 0 sees them.
        wanted: What this rank needs of the state; None for all.

    Returns:
        What was read, and whether it was near.

    Raises:
        InvalidInput: The newest checkpoint was written by another format version.
        StoreError: The store did not answer.
        Fenced: Another attempt owns the training run.
    """
    committed = Committed.of(cell.latest)
    found = [(entry, False, list[Json]()) for entry in cell.latest.newest_first]
    found += [(one.any.entry, True, one.to_json()) for one in copies if committed.precedes(one.any)]
    # Of one step, what the ledger lists: a milestone counts as scored.
    found.sort(key=lambda one: (one[0].step, not one[1], one[0].attempt, one[0].created))
    # Rank 0's list: what another rank knows of the ledger may be older.
    told = [(entry.to_json(), is_near, of) for entry, is_near, of in found[::-1]]
    for form, is_near, of in json.loads(ranks.share(json.dumps(told))):
        entry = LedgerEntry.from_json(form)
        # Let go of what only this rank could read: two states may not fit into memory.
        restored, why = None, ""
        if is_near:
            assert near is not None, "every rank has the same settings"
            restored, why = read_copy(Copies.from_json(of), near, ranks, announce, wanted)
        else:
            try:
                reader = {"rank": rank, "world": world}
                restored = read_state(store, entry, **reader, proof="crc32c", wanted=wanted)
            except CorruptData as error:
                why = str(error)
            # Ranks that read the same file say the same of it.
            why = "; ".join(dict.fromkeys(filter(None, ranks.gather(why))))
        if not why:
            assert restored
            return restored, is_near
        if ranks.rank:
            continue
        what = f"the state of step {entry.step} on the nodes' disks cannot be used"
        if not is_near:
            what = f"the checkpoint of step {entry.step} is damaged"
        announce(f"WARNING: {what} ({why}); trying the one before it")
        if not is_near:
            marked = partial(protocol.mark_damaged, me=me, entry=entry, why=why, now=time.time())
            cell.change(marked)
    return None


def same_bits(
    restored: Restored, numerics: Mapping[str, Any], world: int | None, announce: Announce
) -> bool:
    """Say, and announce, whether training continues with the bits of an uninterrupted one.

    Args:
        restored: What was read.
        numerics: Of this attempt.
        world: Ranks that each save a state; None where their number decides no bit.
        announce: Takes one line.
    """
    saved = restored.manifest.numerics
    differ = [
        f"{name}: {saved.get(name)!r} then, {numerics.get(name)!r} now"
        for name in sorted({*saved, *numerics})
        if saved.get(name) != numerics.get(name)
    ]
    ranks = len(restored.manifest.files)
    if world is not None and ranks != world:
        differ.append(f"ranks: {ranks} then, {world} now")
    step = restored.entry.step
    if differ:
        what = "; ".join(differ)
        announce(f"WARNING: resuming from step {step}, but NOT with the same bits: {what}")
    else:
        announce(f"resuming from step {step}, with the same bits")
    return not differ
