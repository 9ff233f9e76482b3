"""Preemption-proof checkpoints: state in a store, listed by a ledger that is swapped atomically.

Reading order: `ledger` (the values), `protocol` (how they may change), `commits` (swapping them in
a store), `place`, `manifest`, `saver` (copy fast, write behind), `restore`, `near`, `mirror` and
`peers` (what nodes keep on their own disks), and `checkpointer`, which is what a training loop
holds. `state`, `arena`, `saver`, `restore`, `near`, `mirror`, `peers` and `checkpointer` need
torch; the rest does not, so that clients can read ledgers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kubestill.runtime.checkpoints.ledger import (
    Checkpoint,
    Ledger,
    LedgerEntry,
    read_checkpoint_artifact,
    read_ledger_artifact,
    write_checkpoint_artifact,
    write_ledger_artifact,
)
from kubestill.runtime.checkpoints.place import Place, resolve_place

if TYPE_CHECKING:
    from kubestill.runtime.checkpoints.checkpointer import Checkpointer
    from kubestill.runtime.checkpoints.restore import load_state
    from kubestill.runtime.checkpoints.settings import CheckpointSettings
    from kubestill.runtime.checkpoints.state import TrainingState

__all__ = [
    "Checkpoint",
    "CheckpointSettings",
    "Checkpointer",
    "Ledger",
    "LedgerEntry",
    "Place",
    "TrainingState",
    "load_state",
    "read_checkpoint_artifact",
    "read_ledger_artifact",
    "resolve_place",
    "write_checkpoint_artifact",
    "write_ledger_artifact",
]

_LAZY = {
    "Checkpointer": "checkpointer",
    "CheckpointSettings": "settings",
    "TrainingState": "state",
    "load_state": "restore",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
