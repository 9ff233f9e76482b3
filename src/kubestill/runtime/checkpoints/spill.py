"""Keeping the last state on local disk when its store is gone for good."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kubestill.errors import TrainingFailed
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.place import Place, local_root
from kubestill.runtime.checkpoints.writer import CheckpointWriter, Snapshot
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.base import Content


def spill_to(
    folder: str, place: Place, numerics: dict[str, Any]
) -> Callable[[Snapshot, tuple[Content, ...]], str]:
    """Return what writes one snapshot as a checkpoint of its own below a local folder.

    The folder has the layout of any checkpoint root: given as `checkpoint_uri`, training resumes
    from it.

    Args:
        folder: The root; empty takes this user's temporary one.
        place: The place that cannot be written.
        numerics: What the checkpoint records as its numerics key.
    """
    first = folder or local_root()

    def spill(snapshot: Snapshot, parts: tuple[Content, ...]) -> str:
        # Another root where a training that was told to go on in this one has ended there.
        for root in itertools.chain([first], (f"{first}-{n}" for n in itertools.count(2))):
            store = open_store(f"{root}/{place.experiment}/{place.fingerprint}")
            local = replace(place, store=store, durable=False)
            cell = LedgerCell(local)
            try:
                attempt = cell.claim(owner=place.owner, beat_seconds=1.0, announce=lambda _: None)
            except TrainingFailed:
                continue
            if attempt is None:
                continue
            writer = CheckpointWriter(
                local, cell, attempt, rank=0, world=1, numerics=numerics, keep=list
            )
            writer.write(snapshot, parts)
            return f"{root} (give it as checkpoint_uri to resume)"
        raise AssertionError("there is always another root")

    return spill
