"""The few scores a training follows while it runs, on validation rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.training.batches import Rows

_CHUNK = 8192


class Validation:
    """Scores a network on fixed rows, a chunk at a time: what that takes is independent of N.

    Args:
        rows: Encoded features [N, F], and class index int64 [N], or values in the target's own
            units float32 [N, T].
        task: multiclass, binary or regression.
        decoder: Turns standardised outputs into target units.
    """

    where = "on the validation rows"
    followed = "validation"

    def __init__(self, rows: Rows, *, task: str, decoder: Decoder):
        self._rows, self._task, self._decoder = rows, task, decoder
        _, one = rows.between(0, 1)
        self._values = rows.count * one.numel()
        self._spread = self._measure_spread() if task == "regression" else 0.0

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return the task's metrics. Leaves the network's mode and all random generators alone."""
        training = network.training
        network.eval()
        device = next(network.parameters()).device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for features, target in self._chunks():
                sums += self._measure(self._decoder(network(features).float()), target)
        network.train(training)
        first, second = sums.tolist()
        if self._task == "regression":
            return {
                "rmse": math.sqrt(first / self._values),
                "mae": second / self._values,
                "r2": 1.0 - first / self._spread,
            }
        return {"log_loss": first / self._values, "accuracy": second / self._values}

    def _chunks(self) -> Iterator[tuple[Tensor, ...]]:
        count = self._rows.count
        for start in range(0, count, _CHUNK):
            yield self._rows.between(start, min(start + _CHUNK, count))

    def _measure(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the sums over a chunk that the task's first two metrics are made of, [2]."""
        if self._task == "regression":
            error = (outputs - target).double()
            return torch.stack([error.square().sum(), error.abs().sum()])
        if self._task == "binary":
            wanted = target[:, None].float()
            loss = F.binary_cross_entropy_with_logits(outputs, wanted)
            right = (outputs > 0) == (wanted > 0)
        else:
            loss = F.cross_entropy(outputs, target)
            right = outputs.argmax(1) == target
        return torch.stack([loss.double() * len(target), right.double().sum()])

    def _measure_spread(self) -> float:
        """Return the sum of squares of the targets about their means, above 0."""
        mean, count = torch.zeros((), dtype=torch.float64), self._rows.count
        for _, target in self._chunks():
            mean = mean + target.mean(0).double() * (len(target) / count)
        mean = mean.float()
        squares = (float((t - mean).double().square().sum()) for _, t in self._chunks())
        return max(sum(squares), torch.finfo(torch.float64).tiny)
