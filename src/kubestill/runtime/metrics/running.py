"""The metrics that training follows at every milestone, as running sums over chunks of rows.

They are those of `formulas`, in torch, on the device of the network. On validation rows the loss of
a chunk is averaged in float32, which is fast; over a whole domain, where single rows decide, each
row is added in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

__all__ = ["ON_VALIDATION_ROWS", "OVER_THE_DOMAIN", "Running", "Size"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """What the totals are divided by."""

    rows: int
    values: int
    """Rows times outputs of a row."""
    spread: float = 1.0
    """Sum of squares of the targets about their means, above 0."""


@dataclass(frozen=True)
class Running:
    """One metric of all rows, made of what each chunk adds."""

    chunk: Callable[[Tensor, Tensor], Tensor]
    """Float64 scalar of a chunk, from [n, T] absolute errors (twice) for a regression, else from
    logits and targets: [n, 1] and [n, 1] floats for a binary task, [n, K] and [n] class indices."""
    value: Callable[[float, Size], float]
    """The metric, from the total of all chunks."""
    largest: bool = False
    """The total is the largest of the chunks, not their sum."""


def _squares(error: Tensor, _: Tensor) -> Tensor:
    return error.square().sum()


def _misses(outputs: Tensor, target: Tensor) -> Tensor:
    if _is_binary(target):
        return ((outputs > 0) != (target > 0)).double().sum()
    return (outputs.argmax(1) != target).double().sum()


def _hits(outputs: Tensor, target: Tensor) -> Tensor:
    return len(target) - _misses(outputs, target)


def _losses(outputs: Tensor, target: Tensor) -> Tensor:
    return _loss(outputs, target, "mean").double() * len(target)


def _row_losses(outputs: Tensor, target: Tensor) -> Tensor:
    return _loss(outputs, target, "none").double().sum()


def _loss(outputs: Tensor, target: Tensor, reduction: str) -> Tensor:
    loss = F.binary_cross_entropy_with_logits if _is_binary(target) else F.cross_entropy
    return loss(outputs, target, reduction=reduction)


def _is_binary(target: Tensor) -> bool:
    return target.is_floating_point()


ON_VALIDATION_ROWS: Mapping[str, Running] = {
    "rmse": Running(_squares, lambda total, size: math.sqrt(total / size.values)),
    "mae": Running(lambda error, _: error.sum(), lambda total, size: total / size.values),
    "r2": Running(_squares, lambda total, size: 1.0 - total / size.spread),
    "log_loss": Running(_losses, lambda total, size: total / size.rows),
    "accuracy": Running(_hits, lambda total, size: total / size.rows),
}
OVER_THE_DOMAIN: Mapping[str, Running] = {
    "max_error": Running(lambda error, _: error.max(), lambda total, _: total, largest=True),
    "mean_error": Running(
        lambda error, _: error.mean(1).sum(), lambda total, size: total / size.rows
    ),
    "rmse": Running(
        lambda error, _: error.square().mean(1).sum(),
        lambda total, size: (total / size.rows) ** 0.5,
    ),
    "error_rate": Running(_misses, lambda total, size: total / size.rows),
    "log_loss": Running(_row_losses, lambda total, size: total / size.rows),
}
