"""End training runs where a test wants it, and read what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kubestill.runtime.checkpoints.ledger import Checkpoint, read_ledger_artifact
from kubestill.runtime.checkpoints.restore import load_state
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.training.engine import Trainer


@contextmanager
def dies_after(step: int) -> Iterator[None]:
    """End the training run of the block after a step, once that is saved; 0 is before any."""
    run_until = Trainer._run_until  # pyright: ignore[reportPrivateUsage]

    def killed(trainer: Trainer, _: int) -> None:
        run_until(trainer, step)
        if step:
            trainer._save("recovery")  # pyright: ignore[reportPrivateUsage]
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_run_until", killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def last_state(out: Path) -> TrainingState:
    """Return the last milestone of the training run whose outputs lie here."""
    ledger = read_ledger_artifact(str(out / "ledger"))
    return load_state(Checkpoint.of(ledger, ledger.milestones[-1]))


def same_states(first: Path, second: Path) -> dict[str, Tensor]:
    """Hold two training runs to the same bits in their last milestone, and return its tensors."""
    one, other = (last_state(out).tensors for out in (first, second))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    return one
