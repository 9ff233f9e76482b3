"""Parts of a loss in which a student imitates more of its teacher than its answers.

Each part costs every row something [B]. The mean over the rows, times the weight of the part, is
added to the loss of the answers; weights of rows count here as they do there. Autograd
differentiates a part. One that learns, such as a projection, is part of a training run's state and
not of the exported student.

B is the batch, C the channels of a layer, K the classes. A layer gives [B, C] or [B, C, *grid].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kubestill.runtime.training.losses import Targets

Pair = tuple[str, str]
"""A layer of the student, and the layer of the teacher that it imitates."""

_TINY = 1e-12
"""Squared distances below it count as none: a root has no slope at zero."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one network makes of a batch, in float32."""

    outputs: Tensor
    """Logits [B, K], [B, 1] for two classes, or standardised predictions [B, T]."""
    layers: Mapping[str, Tensor]
    """What the layers give that the part names, [B, ...]."""
    rows: Tensor | None = None
    """Numbers of the rows in the dataset, int64 [B], where a part remembers rows."""
    changed: Tensor | None = None
    """Outputs for the same rows changed at random, where a part compares them."""


class Part(Protocol):
    """What a row costs besides its answer."""

    def __call__(self, student: Seen, teacher: Any, targets: Targets) -> Tensor:
        """Return the cost of each row [B].

        Args:
            student: In training, with a graph behind it.
            teacher: What the teacher made of the same rows, as `Seen`; None for a part that needs
                its answers alone, and is given those that are stored.
            targets: The teacher's softened probabilities [B, K], or its standardised predictions
                [B, T]; then the true target, where the loss or a part heeds it.
        """
        ...


class Features(nn.Module):
    """Match layers through a learned linear map (FitNets, Romero et al. 2015, eq. 3).

    The map takes the student's channels to the teacher's, at each place of the grid, as a 1 x 1
    convolution does. The squared error is a mean over the teacher's numbers in place of half their
    sum, so that the weight does not depend on the size of a layer. Where the grids differ, the
    finer one is averaged down to the other. Pairs are added up.

    Args:
        pairs: Which layers.
        widths: Channels of the student's and of the teacher's layer of each pair.
    """

    def __init__(self, pairs: Sequence[Pair], widths: Sequence[tuple[int, int]]):
        super().__init__()
        self._pairs = tuple(pairs)
        self.maps = nn.ModuleList(nn.Linear(own, theirs) for own, theirs in widths)

    def forward(self, student: Seen, teacher: Seen, targets: Targets) -> Tensor:
        """Return the cost of each row [B]."""
        costs: list[Tensor] = []
        for (own, theirs), linear in zip(self._pairs, self.maps, strict=True):
            mine, wanted = _on_one_grid(student.layers[own], teacher.layers[theirs])
            error = linear(mine.movedim(1, -1)).movedim(-1, 1) - wanted
            costs.append(error.square().flatten(1).mean(1))
        return torch.stack(costs).sum(0)


class Attention:
    """Look where the teacher looks (Zagoruyko & Komodakis 2017, section 3.1).

    The attention of a layer is the mean over its channels of their squares, as a vector over the
    grid of length 1. The cost is the mean squared difference of the two, as in the authors' code.
    Where the grids differ, the finer layer is averaged down first. Pairs are added up.

    Args:
        pairs: Which layers, [B, C, *grid] each.
    """

    def __init__(self, pairs: Sequence[Pair]):
        self._pairs = tuple(pairs)

    def __call__(self, student: Seen, teacher: Seen, targets: Targets) -> Tensor:
        """Return the cost of each row [B]."""
        costs: list[Tensor] = []
        for own, theirs in self._pairs:
            both = _on_one_grid(student.layers[own], teacher.layers[theirs])
            mine, wanted = (F.normalize(x.square().mean(1).flatten(1)) for x in both)
            costs.append((mine - wanted).square().mean(1))
        return torch.stack(costs).sum(0)


class Relations:
    """Keep the rows of a batch where the teacher has them to each other (Park et al. 2019, RKD).

    Distances between two rows are compared in units of their mean over the batch (eq. 6), and the
    cosine of the angle at a row between two others as it is (eq. 9), both by the Huber loss. A row
    costs the mean over all pairs, or pairs of others, that it is in. Without pairs of layers, the
    outputs are compared. With `virtual_workers`, a batch is one micro-batch.

    Args:
        pairs: Which layers; each is taken as one vector a row.
        distance: Weight of the distances.
        angle: Weight of the angles, of which there are B^3.
    """

    def __init__(self, pairs: Sequence[Pair], *, distance: float, angle: float):
        self._pairs, self._distance, self._angle = tuple(pairs), distance, angle

    def __call__(self, student: Seen, teacher: Seen, targets: Targets) -> Tensor:
        """Return the cost of each row [B]."""
        compared = [(student.layers[a], teacher.layers[b]) for a, b in self._pairs]
        compared = compared or [(student.outputs, teacher.outputs)]
        costs: list[Tensor] = []
        for own, theirs in compared:
            mine, wanted = _distances(own), _distances(theirs)
            if self._distance:
                apart = F.smooth_l1_loss(mine, wanted, reduction="none")
                costs.append(self._distance * apart.mean(1))
            if self._angle:
                turned = F.smooth_l1_loss(_angles(mine), _angles(wanted), reduction="none")
                costs.append(self._angle * turned.mean((1, 2)))
        return torch.stack(costs).sum(0)


class DecoupledDistillation:
    """Match the target class and the others apart (Zhao et al. 2022, DKD, eq. 7).

    A row costs T^2 (alpha KL of "target or not" + beta KL among the others), where the classical
    loss of distillation has the teacher's doubt of the target in place of beta. The target is the
    true class; of a row without a label, the teacher's.

    Args:
        temperature: T, that of the softened probabilities in the targets.
        alpha: Weight of the target.
        beta: Weight of the others.
    """

    def __init__(self, *, temperature: float, alpha: float, beta: float):
        self._temperature, self._alpha, self._beta = temperature, alpha, beta

    def __call__(self, student: Seen, teacher: Seen | None, targets: Targets) -> Tensor:
        """Return the cost of each row [B]; of an ensemble's members [B, M, K] the mean."""
        wanted = targets[0]
        is_target = F.one_hot(_target_classes(targets), wanted.shape[1]).bool()
        outputs = student.outputs
        if outputs.dim() == 3:
            wanted, is_target = wanted[:, None], is_target[:, None].expand(outputs.shape)
        scaled = outputs / self._temperature
        others = scaled.masked_fill(is_target, -math.inf)
        whole, left = scaled.logsumexp(-1), others.logsumexp(-1)
        log_target = scaled.masked_fill(~is_target, 0.0).sum(-1) - whole
        sure = wanted.masked_fill(~is_target, 0.0).sum(-1)
        rest = wanted.masked_fill(is_target, 0.0)
        doubt = rest.sum(-1)
        target = _divergence(sure, log_target) + _divergence(doubt, left - whole)
        share = rest / doubt.clamp(min=torch.finfo(doubt.dtype).tiny)[..., None]
        # No class of weight 0 reaches its logarithm: of the target that is minus infinity.
        log_share = (scaled - left[..., None]).masked_fill(is_target, 0.0)
        among = _divergence(share, log_share).sum(-1)
        cost = self._temperature**2 * (self._alpha * target + self._beta * among)
        return cost if cost.dim() == 1 else cost.mean(1)


class Contrast(nn.Module):
    """Tell a row from others by what the other network makes of it (Tian et al. 2020, CRD).

    Learned linear maps take both layers to vectors of length 1. Student and teacher are each asked
    which of 1 + `negatives` vectors of the other is that of the same row (eq. 10 and 19). Those
    vectors are remembered from batches before, as the authors' code has it: a memory of both for
    each row of the dataset moves towards what is new, and the mean over the first batch normalises
    the scores. Others are drawn from all rows, with replacement. Pairs are added up.

    Args:
        pairs: Which layers; each is taken as one vector a row.
        widths: Numbers of the student's and of the teacher's layer of each pair.
        rows: Rows of the dataset.
        dim: Numbers of a vector.
        negatives: Others that a row is told from.
        temperature: Of the scores.
        momentum: What the memory keeps of what it held.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        widths: Sequence[tuple[int, int]],
        *,
        rows: int,
        dim: int,
        negatives: int,
        temperature: float,
        momentum: float,
    ):
        super().__init__()
        self._pairs = tuple(pairs)
        self._negatives, self._temperature, self._momentum = negatives, temperature, momentum
        self.maps = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, dim) for width in both) for both in widths
        )
        bound = math.sqrt(3 / dim)
        self.memory: Tensor
        self.register_buffer("memory", torch.empty(len(pairs), 2, rows, dim))
        self.memory.uniform_(-bound, bound)
        self.scale: Tensor
        self.register_buffer("scale", torch.zeros(len(pairs), 2))

    def forward(self, student: Seen, teacher: Seen, targets: Targets) -> Tensor:
        """Return the cost of each row [B]."""
        places = teacher.rows
        assert places is not None
        rows, costs = self.memory.shape[2], list[Tensor]()
        asked = torch.cat([places[:, None], self.draw(len(places)).to(places)], dim=1)
        for pair, (own, theirs) in enumerate(self._pairs):
            layers = (student.layers[own], teacher.layers[theirs])
            maps: Any = self.maps[pair]
            both = [
                F.normalize(linear(one.flatten(1)))
                for linear, one in zip(maps, layers, strict=True)
            ]
            for side, vectors in enumerate(both):
                remembered = self.memory[pair, 1 - side].clone()
                scores = (vectors @ remembered.t()).gather(1, asked)
                chances = (scores / self._temperature).exp()
                costs.append(self._tell_apart(chances, rows, self.scale[pair, side]))
            for side, vectors in enumerate(both):
                self._remember(self.memory[pair, side], places, vectors.detach())
        return torch.stack(costs).sum(0)

    def draw(self, count: int) -> Tensor:
        """Return the others that each of so many rows is told from, int64 [count, negatives]."""
        device = self.memory.device
        return torch.randint(self.memory.shape[2], (count, self._negatives), device=device)

    def _tell_apart(self, chances: Tensor, rows: int, scale: Tensor) -> Tensor:
        """Return how badly the first of 1 + negatives is told from the others, [B]."""
        with torch.no_grad():
            scale.copy_(torch.where(scale > 0, scale, chances.mean() * rows))
        chances = chances / scale.clone()
        noise = self._negatives / rows
        there, others = chances[:, 0], chances[:, 1:]
        least = 1e-7  # of the authors' code
        right = (there / (there + noise + least)).log()
        return -right - (noise / (others + noise + least)).log().sum(1)

    @torch.no_grad()
    def _remember(self, memory: Tensor, places: Tensor, vectors: Tensor) -> None:
        kept = memory[places] * self._momentum + vectors * (1 - self._momentum)
        memory.index_copy_(0, places, F.normalize(kept))


class Consistency:
    """Give a row that is changed at random the answer to the row itself (Xie et al. 2020, eq. 1).

    Classes cost KL(p(row) || p(changed row)), values their mean squared difference. The answer to
    the row itself is taken as given: no gradient goes through it. Labels play no part.

    Args:
        task: `regression`, `binary` or `multiclass`.
    """

    def __init__(self, task: str):
        self._task = task

    def __call__(self, student: Seen, teacher: Seen | None, targets: Targets) -> Tensor:
        """Return the cost of each row [B]; of an ensemble's members [B, M, K] the mean."""
        wanted, given = student.outputs.detach(), student.changed
        assert given is not None
        if self._task == "regression":
            cost = (given - wanted).square().mean(-1)
        elif self._task == "binary":
            sure = torch.sigmoid(wanted)
            cost = _divergence(sure, F.logsigmoid(given))
            cost = (cost + _divergence(1 - sure, F.logsigmoid(-given))).sum(-1)
        else:
            cost = _divergence(wanted.softmax(-1), given.log_softmax(-1)).sum(-1)
        return cost if cost.dim() == 1 else cost.mean(1)


def pool_to(layer: Tensor, grid: Sequence[int]) -> Tensor:
    """Average a layer [B, C, *grid] down to a coarser grid, as `adaptive_avg_pool` does.

    As a product with a matrix along each axis, it has the same gradient at every run on a GPU.
    """
    for axis, size in enumerate(grid, start=2):
        if layer.shape[axis] != size:
            means = _averages(layer.shape[axis], size).to(layer)
            layer = (layer.movedim(axis, -1) @ means).movedim(-1, axis)
    return layer


@lru_cache
def _averages(size: int, to: int) -> Tensor:
    """Return the matrix [size, to] whose columns average what each new place covers."""
    means = torch.zeros(size, to)
    for place in range(to):
        first, last = place * size // to, -(-(place + 1) * size // to)
        means[first:last, place] = 1 / (last - first)
    return means


def _on_one_grid(own: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    grid = tuple(map(min, own.shape[2:], theirs.shape[2:]))
    return pool_to(own, grid), pool_to(theirs, grid)


def _distances(layer: Tensor) -> Tensor:
    """Return the distances of rows [B, B], in units of their mean over those that are apart."""
    rows = layer.flatten(1).double()  # squares of distances are differences of larger numbers
    rows = rows - rows.mean(0)
    products = rows @ rows.t()
    squares = products.diagonal()
    squared = (squares[:, None] + squares - 2 * products).clamp(min=_TINY)
    distances = squared.sqrt().masked_fill(squared <= _TINY, 0.0)
    apart = (distances > 0).sum().clamp(min=1)
    return (distances / (distances.sum() / apart).clamp(min=_TINY)).to(layer.dtype)


def _angles(distances: Tensor) -> Tensor:
    """Return the cosines [B, B, B] of the angle at a row between two others, by their law."""
    squared, together = distances.square(), distances <= _TINY
    inverse = distances.masked_fill(together, 1.0).reciprocal().masked_fill(together, 0.0)
    opposite = squared[:, :, None] + squared[:, None, :] - squared
    return opposite * (0.5 * inverse)[:, :, None] * inverse[:, None, :]


def _target_classes(targets: Targets) -> Tensor:
    """Return the class of each row [B]: the true one, or where that is unknown the teacher's."""
    likeliest = targets[0].argmax(1)
    if len(targets) < 2:
        return likeliest
    labels = targets[1]
    if labels.is_floating_point():
        return torch.where(labels.isnan().any(1), likeliest, labels.nan_to_num().argmax(1))
    return torch.where(labels < 0, likeliest, labels)


def _divergence(wanted: Tensor, log_given: Tensor) -> Tensor:
    """Return the terms of KL(wanted || given)."""
    return torch.special.xlogy(wanted, wanted) - wanted * log_given
