"""How low the loss of a batch can go, whatever the network.

A network is a function: rows with equal features get equal outputs. So the floor is the least loss
over one free output for each group of equal rows, and the baseline that over one output for all.
Both are convex problems for every loss here, and are solved on the loss itself, in float64.
"""

# torch.optim's LBFGS is only partly typed.
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kubestill.runtime.sanity.batch import Batch
from kubestill.runtime.training.losses import Loss, Targets


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The two ends of what a batch's loss can be reduced by."""

    value: float
    """Least loss of any function of the features."""
    baseline: float
    """Loss of the best constant answer."""
    conflicts: int
    """Rows whose features equal another row's while their labels differ."""

    @property
    def gap(self) -> float:
        """What there is to learn."""
        return self.baseline - self.value

    def excess(self, loss: float) -> float:
        """Return how far a loss is above the floor; 1 is the best constant answer."""
        return (loss - self.value) / self.gap


def find_floor(loss: Loss, batch: Batch, outputs: int) -> Floor:
    """Return floor and baseline of a batch, of a network with so many outputs."""
    targets = in_double(batch.targets)
    together = torch.zeros_like(batch.groups)
    return Floor(
        value=_least(loss, targets, batch.groups, outputs),
        baseline=_least(loss, targets, together, outputs),
        conflicts=_conflicts(batch),
    )


def in_double(targets: Targets) -> Targets:
    """Return targets in float64 on the CPU; class numbers stay what they are."""
    return tuple(t.cpu().double() if t.is_floating_point() else t.cpu() for t in targets)


def _least(loss: Loss, targets: Targets, groups: Tensor, outputs: int) -> float:
    groups = groups.cpu()
    free = _start(targets, groups, outputs).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free],
        max_iter=300,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    best = float("inf")

    def closure() -> Tensor:
        nonlocal best
        with torch.no_grad():
            value, gradient = loss(free.detach()[groups], targets)
            free.grad = torch.zeros_like(free).index_add_(0, groups, gradient)
        best = min(best, float(value))
        return value

    optimizer.step(closure)
    return best


def _start(targets: Targets, groups: Tensor, outputs: int) -> Tensor:
    """Return where to begin [G, outputs]: medians of values, which are the floor of `l1`."""
    count = int(groups.max()) + 1
    first = targets[0]
    if not (first.is_floating_point() and first.ndim == 2 and first.shape[1] == outputs):
        return torch.zeros(count, outputs, dtype=torch.float64)
    return torch.stack([first[groups == group].nanmedian(0).values for group in range(count)])


def _conflicts(batch: Batch) -> int:
    labels = torch.cat([t.reshape(len(t), -1).double() for t in batch.targets], 1).nan_to_num(-1e30)
    inputs = batch.groups[:, None].double()
    distinct = torch.unique(torch.cat([inputs, labels], 1), dim=0)
    answers = torch.bincount(distinct[:, 0].long(), minlength=int(batch.groups.max()) + 1)
    return int((answers[batch.groups] > 1).sum())
