"""The metrics that training follows at every milestone, as running sums over chunks of rows.

They are those of `formulas`, in torch, on the device of the network. On validation rows the loss of
a chunk is averaged in float32, which is fast; over a whole domain, where single rows decide, and
where rows have weights, each row is added in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Size:
    """What the totals are divided by."""

    rows: float
    """Number of rows, or the sum of their weights."""
    values: float
    """Rows times outputs of a row."""
    spread: float = 1.0
    """Sum of squares of the targets about their means, above 0."""


@dataclass(frozen=True)
class Running:
    """One metric of all rows, made of what each chunk adds.

    Both functions take [n, T] absolute errors (twice) for a regression, else logits and targets:
    [n, 1] and [n, 1] floats for a binary task, [n, K] and [n] class indices.
    """

    chunk: Callable[[Tensor, Tensor], Tensor]
    """Float64 scalar of a chunk whose rows all count the same."""
    each: Callable[[Tensor, Tensor], Tensor]
    """Float64 [n], whose sum, or largest, is that scalar."""
    value: Callable[[float, Size], float]
    """The metric, from the total of all chunks."""
    largest: bool = False
    """The total is the largest of the chunks, not their sum."""

    def of(self, first: Tensor, second: Tensor, weights: Tensor | None) -> Tensor:
        """Return the float64 scalar of a chunk; a row of weight 0 is as good as absent."""
        if weights is None:
            return self.chunk(first, second)
        each = self.each(first, second)
        if self.largest:
            return torch.where(weights > 0, each, 0.0).max()
        return each @ weights.double()

    def add(self, total: Tensor, chunk: Tensor) -> Tensor:
        """Return the total with one more chunk."""
        return torch.maximum(total, chunk) if self.largest else total + chunk


def _squares(error: Tensor, _: Tensor) -> Tensor:
    return error.square().sum()


def _row_squares(error: Tensor, _: Tensor) -> Tensor:
    return error.square().sum(1)


def _misses(outputs: Tensor, target: Tensor) -> Tensor:
    return _row_misses(outputs, target).sum()


def _row_misses(outputs: Tensor, target: Tensor) -> Tensor:
    if _is_binary(target):
        return ((outputs > 0) != (target > 0)).double()[:, 0]
    return (outputs.argmax(1) != target).double()


def _losses(outputs: Tensor, target: Tensor) -> Tensor:
    return _loss(outputs, target, "mean").double() * len(target)


def _row_losses(outputs: Tensor, target: Tensor) -> Tensor:
    return _loss(outputs, target, "none").double().reshape(len(target))


def _loss(outputs: Tensor, target: Tensor, reduction: str) -> Tensor:
    loss = F.binary_cross_entropy_with_logits if _is_binary(target) else F.cross_entropy
    return loss(outputs, target, reduction=reduction)


def _is_binary(target: Tensor) -> bool:
    return target.is_floating_point()


def _mean(total: float, size: Size) -> float:
    return total / size.rows


ON_VALIDATION_ROWS: Mapping[str, Running] = {
    "rmse": Running(_squares, _row_squares, lambda total, size: math.sqrt(total / size.values)),
    "mae": Running(
        lambda error, _: error.sum(),
        lambda error, _: error.sum(1),
        lambda total, size: total / size.values,
    ),
    "r2": Running(_squares, _row_squares, lambda total, size: 1.0 - total / size.spread),
    "log_loss": Running(_losses, _row_losses, _mean),
    "accuracy": Running(
        lambda outputs, target: len(target) - _misses(outputs, target),
        lambda outputs, target: 1.0 - _row_misses(outputs, target),
        _mean,
    ),
}
OVER_THE_DOMAIN: Mapping[str, Running] = {
    "max_error": Running(
        lambda error, _: error.max(),
        lambda error, _: error.amax(1),
        lambda total, _: total,
        largest=True,
    ),
    "mean_error": Running(
        lambda error, _: error.mean(1).sum(), lambda error, _: error.mean(1), _mean
    ),
    "rmse": Running(
        lambda error, _: error.square().mean(1).sum(),
        lambda error, _: error.square().mean(1),
        lambda total, size: (total / size.rows) ** 0.5,
    ),
    "error_rate": Running(_misses, _row_misses, _mean),
    "log_loss": Running(
        lambda outputs, target: _row_losses(outputs, target).sum(), _row_losses, _mean
    ),
}
