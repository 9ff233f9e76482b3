"""The few scores a training follows while it runs, on validation rows that stay in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kubestill.runtime.models.decoder import Decoder

_CHUNK = 8192

MAIN_METRIC = {"multiclass": "log_loss", "binary": "log_loss", "regression": "rmse"}
"""What early stopping and the choice of a milestone look at by default."""

METRICS = {
    "multiclass": ("log_loss", "accuracy"),
    "binary": ("log_loss", "accuracy"),
    "regression": ("rmse", "mae", "r2"),
}


class Validation:
    """Scores a network on fixed rows.

    Args:
        features: Encoded features [N, F].
        target: Class index int64 [N], or values in the target's own units float32 [N, T].
        task: multiclass, binary or regression.
        decoder: Turns standardised outputs into target units.
    """

    where = "on the validation rows"
    followed = "validation"

    def __init__(self, features: Tensor, target: Tensor, *, task: str, decoder: Decoder):
        self._features, self._target = features, target
        self._decoder = decoder
        self._score: Callable[[Tensor], dict[str, float]] = {
            "multiclass": self._multiclass,
            "binary": self._binary,
            "regression": self._regression,
        }[task]

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return the task's metrics. Leaves the network's mode and all random generators alone."""
        training = network.training
        network.eval()
        devices = [self._features.device] if self._features.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            outputs = torch.cat([network(rows).float() for rows in self._features.split(_CHUNK)])
        network.train(training)
        return self._score(self._decoder(outputs))

    def _multiclass(self, logits: Tensor) -> dict[str, float]:
        return {
            "log_loss": float(F.cross_entropy(logits, self._target)),
            "accuracy": float((logits.argmax(1) == self._target).double().mean()),
        }

    def _binary(self, logits: Tensor) -> dict[str, float]:
        wanted = self._target[:, None].float()
        return {
            "log_loss": float(F.binary_cross_entropy_with_logits(logits, wanted)),
            "accuracy": float(((logits > 0) == (wanted > 0)).double().mean()),
        }

    def _regression(self, values: Tensor) -> dict[str, float]:
        error = (values - self._target).double()
        spread = (self._target - self._target.mean(0)).double().square().sum()
        r2 = 1.0 - error.square().sum() / spread.clamp(min=torch.finfo(torch.float64).tiny)
        return {
            "rmse": float(error.square().mean().sqrt()),
            "mae": float(error.abs().mean()),
            "r2": float(r2),
        }
