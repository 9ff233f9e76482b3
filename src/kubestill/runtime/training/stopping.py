"""When a training run ends before its budget does, and which milestone was the best."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from kubestill.runtime.metrics.catalog import find_metric

CONVERGED_GAIN = 0.01
"""A smaller gain over the whole window, as a share of what is left to gain, is none."""
TINY = 1e-300


@dataclass
class Stopping:
    """Follows one metric over the milestones.

    Early stopping after Prechelt 1998: `patience` milestones in a row without an improvement of
    more than `min_delta`.
    """

    metric: str
    patience: int = 0
    min_delta: float = 0.0
    tolerance: float = 0.0
    best_value: float | None = None
    best_step: int = 0
    reference: float | None = None
    """Value of the last improvement that counted."""
    waited: int = 0
    converged_after: int = 0
    settled: list[float] = field(default_factory=list[float])
    """The best value at each milestone since the learning rate settled."""
    start: float | None = None
    """Value at a starting point whose weights are not those that training begins with: it may be
    the best, but nothing waits until it is bettered."""

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the best milestone; a tie keeps the earlier one, which cost less."""
        if self.best_value is None:
            return None if self.start is None else (0, self.start)
        sign = -find_metric(self.metric).sign
        if self.start is not None and not sign * self.best_value < sign * self.start:
            return 0, self.start
        return self.best_step, self.best_value

    def update(self, step: int, value: float, *, settled: bool = False) -> tuple[str, str] | None:
        """Take in a milestone; return (reason, detail) where the training run should stop.

        Args:
            step: Of the milestone.
            value: Of the metric there.
            settled: The learning rate is as small as it gets, or constant: from here on a metric
                that hardly changes has converged.

        A tie keeps the earlier milestone: it cost less. A value that is not finite is no
        improvement.
        """
        sign = -float(find_metric(self.metric).sign)
        sound = math.isfinite(value)
        if sound and (self.best_value is None or sign * value < sign * self.best_value):
            self.best_value, self.best_step = value, step
        gain = math.inf if self.reference is None else sign * (self.reference - value)
        if sound and gain > self.min_delta:
            self.reference, self.waited = value, 0
        else:
            self.waited += 1
        if self.tolerance and sound and sign * value <= sign * self.tolerance:
            return (
                "tolerance",
                f"{self.metric} {value:.6g} reached the tolerance {self.tolerance:g}",
            )
        if settled and self.converged_after and self.best_value is not None:
            self.settled.append(self.best_value)
            gained = self._gained(sign)
            if gained is not None and gained < CONVERGED_GAIN:
                return "converged", (
                    f"{self.metric} has gained {gained:.2%} of what it lacked over "
                    f"{self.converged_after} milestones; {self._best()}"
                )
        if self.patience and self.waited >= self.patience:
            detail = (
                f"{self.metric} has not improved by more than {self.min_delta:g} for {self.waited} "
                f"milestones; {self._best()}"
            )
            return "early-stopping", detail
        return None

    def _best(self) -> str:
        if self.best_value is None:
            return "it was never finite"
        return f"best {self.best_value:.6g} at step {self.best_step}"

    def _gained(self, sign: float) -> float | None:
        """Return the share of what the best lacked that it gained over the window, if that is full.

        Of an error that is the error itself; of R² or an accuracy, the part that is missing to 1.
        """
        if len(self.settled) <= self.converged_after:
            return None
        before, now = self.settled[-1 - self.converged_after], self.settled[-1]
        lacked = find_metric(self.metric).shortfall(before)
        return sign * (before - now) / max(lacked, TINY)

    def to_json(self) -> dict[str, Any]:
        """Return the state that a resumed training run goes on from."""
        return asdict(self)


def what_is_broken(loss: float, network: nn.Module, absent: Collection[int] = ()) -> str:
    """Return what makes a training run not worth saving, or nothing.

    A loss is that before its step's update: weights that the last one broke show in none yet. A
    buffer may be infinite on purpose, as the mask of attention is.

    Args:
        loss: Mean since the last milestone.
        network: What is trained.
        absent: Identities of parameters that other processes keep, and look at.
    """
    if not math.isfinite(loss):
        return f"the loss became {loss}"
    every = network.state_dict(keep_vars=True).items()
    here = {name: tensor.detach() for name, tensor in every if id(tensor) not in absent}
    real = {k: torch.view_as_real(t) if t.is_complex() else t for k, t in here.items()}
    learned = {name for name, _ in network.named_parameters()}
    broken = [
        ~tensor.float().sum().isfinite() if name in learned else tensor.isnan().any()
        for name, tensor in real.items()
        if tensor.is_floating_point()
    ]
    return "weights became infinite or NaN" if bool(sum(broken)) else ""
