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

__all__ = ["check_saved"]


class _Open(BaseModel):
    """Later versions may say more."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Kept(_Open):
    schedule_from: Whole
    schedule_steps: Whole
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


class _Saved(_Open):
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


def check_saved(meta: Mapping[str, Any], source: str) -> None:
    """Refuse the `meta` of a state or a manifest that is not what the engine writes.

    Args:
        meta: Of a `TrainingState` or a `Manifest`.
        source: Where it comes from, for messages.

    Raises:
        CorruptData: With the first few fields that are missing or wrong.
    """
    read_as(_Saved, dict(meta), source=source, what="saved training run")
