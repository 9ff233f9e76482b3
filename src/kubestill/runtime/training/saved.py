"""What a checkpoint says of the training run beside its tensors, checked before anybody follows it.

The engine writes it (`Trainer._state`); resuming, fine-tuning and selection read it by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from kubestill.runtime.base.values import Whole, read_as
from kubestill.runtime.training.record import Curves
from kubestill.runtime.training.stopping import Stopping


class _Open(BaseModel):
    """Later versions may say more."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Kept(_Open):
    schedule_from: Whole
    schedule_steps: Whole
    steps_per_epoch: Whole
    data_from: Whole


class _Network(_Open):
    factory: str
    args: dict[str, Any]


class _Spec(_Open):
    network: _Network


class _Settings(_Open):
    network: str
    network_args: dict[str, Any]
    optimizer: str
    optimizer_args: dict[str, Any]
    learning_rate: float
    schedule: str
    schedule_args: dict[str, Any]
    schedule_unit: str
    warmup_steps: float


class Saved(_Open):
    """A training run as it was when the state was copied."""

    step: Whole
    losses_since: Whole
    seconds: float
    curves: Curves
    stopping: Stopping
    stop: tuple[str, str] | None
    kept: _Kept
    resolved: dict[str, Any]
    model_spec: _Spec
    settings: _Settings


def read_saved(meta: Mapping[str, Any], source: str) -> Saved:
    """Read the `meta` of a state or a manifest.

    Args:
        meta: Of a `TrainingState` or a `Manifest`.
        source: Where it comes from, for messages.

    Raises:
        CorruptData: It is not what the engine writes; with the first few fields that are missing or
            wrong.
    """
    return read_as(Saved, dict(meta), source=source, what="saved training run")
