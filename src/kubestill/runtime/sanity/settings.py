"""The settings of the gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kubestill.runtime.base.settings import Settings


class GateSettings(Settings):
    """The `gate` parameter of `overfit-batch`."""

    rows: int = Field(default=64, ge=2, le=4096)
    """Rows of the batch."""
    excess: float = Field(default=0.01, gt=0, lt=1)
    """How close to its floor the loss must come: share of the way from the best constant answer."""
    steps: int = Field(default=0, ge=0)
    """Maximum optimizer steps; 0 uses those of the training run, between 2,000 and 4,000."""
    seconds: float = Field(default=60.0, gt=0)
    """Time for everything together, while a processor works on it."""
    untrained: list[str] = []
    """Parameters that are not supposed to learn, by name; `backbone.*` matches many."""
    undetermined: Literal["refuse", "accept"] = "refuse"
    """What to do if unseen rows cannot be predicted better than by a constant."""
    held_out_rows: int = Field(default=4000, ge=0)
    """Rows for that check; 0 turns it off."""
