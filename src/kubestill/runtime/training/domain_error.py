"""How wrong a network is over every row it is trained on, which is the whole domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.training.batches import Rows

__all__ = ["DomainError"]

CHUNK_ROWS = 8192


class DomainError:
    """Scores a network on all rows, in order.

    `max_error` is the largest absolute error of any output of any row, `mean_error` and `rmse` go
    over all of them, in the target's own units; `error_rate` is the share of rows whose most likely
    label is not theirs, and at 0 the network has become the table.

    Args:
        rows: Features, and targets as the loss takes them.
        task: multiclass, binary or regression.
        decoder: Tells the target's units.
    """

    where = "over the whole domain"
    followed = "whole-domain"

    def __init__(self, rows: Rows, *, task: str, decoder: Decoder):
        self._rows, self._task, self._decoder = rows, task, decoder

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return the task's metrics. Leaves the network's mode and all random generators alone."""
        training = network.training
        network.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        count = self._rows.count
        device = next(network.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for start in range(0, count, CHUNK_ROWS):
                features, target, *_ = self._rows.between(start, min(start + CHUNK_ROWS, count))
                found = self._measure(network(features).float(), target)
                sums = torch.stack(
                    [torch.maximum(sums[0], found[0]), sums[1] + found[1], sums[2] + found[2]]
                )
        network.train(training)
        largest, first, second = sums.tolist()
        if self._task == "regression":
            return {
                "max_error": largest,
                "mean_error": first / count,
                "rmse": (second / count) ** 0.5,
            }
        return {"error_rate": first / count, "log_loss": second / count}

    def _measure(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return (largest, sum of first, sum of second) [3], means over a row's outputs summed."""
        if self._task == "regression":
            scale = 1.0 if self._decoder.identity else self._decoder.std
            error = ((outputs - target) * scale).double().abs()
            return torch.stack(
                [error.max(), error.mean(1).sum(), error.square().mean(1).sum()]
            ).cpu()
        if self._task == "binary":
            wrong = (outputs > 0) != (target > 0.5)
            loss = nn.functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        else:
            wrong = outputs.argmax(1) != target
            loss = nn.functional.cross_entropy(outputs, target, reduction="none")
        return torch.stack(
            [
                torch.zeros((), device=loss.device).double(),
                wrong.double().sum(),
                loss.double().sum(),
            ]
        ).cpu()
