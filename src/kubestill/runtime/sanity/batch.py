"""The small batch that must be learned: rows in the order in which training would see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kubestill.runtime.training.batches import Order, choose_window
from kubestill.runtime.training.prepare import Prepared


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as the step takes them."""

    features: Tensor
    """[B, F], encoded."""
    targets: tuple[Tensor, ...]
    groups: Tensor
    """int64 [B]: rows with equal features have equal numbers."""

    @property
    def rows(self) -> int:
        """B."""
        return len(self.features)

    @property
    def step_input(self) -> tuple[Tensor, ...]:
        """Features and targets."""
        return (self.features, *self.targets)

    def shuffled(self, seed: int) -> Batch:
        """Return the same rows with each other's labels; rows of a group keep one label."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.rows, generator=generator).to(self.features.device)
        return make_batch(self.features, tuple(target[order] for target in self.targets))

    def spread(self, rows: int) -> Batch:
        """Return rows that lie far apart, the first two of which differ in their label."""
        places = self.features.flatten(1).double()
        first = self.targets[0]
        differs = (first != first[0]).reshape(self.rows, -1).any(1)
        nearest = torch.cdist(places[:1], places)[0]
        chosen = [0, int((nearest * differs).argmax())]
        while len(chosen) < rows:
            nearest = torch.minimum(nearest, torch.cdist(places[chosen[-1:]], places)[0])
            chosen.append(int(nearest.argmax()))
        return make_batch(self.features[chosen], tuple(target[chosen] for target in self.targets))


def make_batch(features: Tensor, targets: tuple[Tensor, ...]) -> Batch:
    """Number the groups of equal rows."""
    groups = torch.unique(features.flatten(1), dim=0, return_inverse=True)[1]
    return Batch(features=features, targets=targets, groups=groups)


def first_rows(prepared: Prepared, count: int, *, batch_size: int, seed: int) -> Tensor:
    """Return the numbers of the first rows that training will see, int64 [count at most]."""
    order = Order(
        rows=prepared.rows.count,
        batch_size=batch_size,
        seed=seed,
        shuffle=prepared.shuffle,
        window_rows=max(count, choose_window(prepared.rows, batch_size)),
    )
    return next(order.windows(0))[:count]


def draw(prepared: Prepared, index: Tensor, labels: NDArray[Any] | None, rows: int) -> Batch:
    """Take the first rows of `index`; where they happen to share one label, mix in others.

    Args:
        prepared: Where rows are gathered.
        index: Row numbers in the order of training.
        labels: Label of every row of the dataset [N, ...]; None where there are none.
        rows: Size of the batch.
    """
    chosen = index[:rows]
    if labels is not None and len(chosen) > 1:
        first = labels[int(chosen[0])]
        if (labels[chosen.numpy()] == first).all():
            differs = labels != first
            others = np.flatnonzero(differs.reshape(len(labels), -1).any(1))
            # A rare class: half of the batch is taken from its rows.
            rare = torch.from_numpy(others[: len(chosen) // 2])
            chosen = torch.cat([chosen[: len(chosen) - len(rare)], rare])
    features, *targets = (tensor.clone() for tensor in prepared.rows.gather(chosen))
    return make_batch(features, tuple(targets))
