"""A step whose bits do not depend on how many processes share it (`virtual_workers`).

A batch is cut into V micro-batches. Each draws its random numbers from a stream of its own, which
follows from seed, position in the data and micro-batch, and each starts from the buffers that the
batch began with. What they give, gradients, loss and running statistics, is weighted by their rows
and summed along one binary tree (`tree`). So a process that has all of them, and eight that have
one or two each, do the same arithmetic in the same order.
"""

# Modules name their buffers, but only `_buffers` says where one that was replaced is kept.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import override

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.training.batches import Cut, Part
from kubestill.runtime.training.kernels import foreach_copy_
from kubestill.runtime.training.overlap import Buckets, share_out
from kubestill.runtime.training.random_state import seed_generators
from kubestill.runtime.training.steps import AutogradStep, Batch, SplitStep, Step
from kubestill.runtime.training.tree import Groups, Tree

_STREAM = 0x6D6963726F
"""Sets these numbers apart from others that Philox makes of the same seed."""
_WORDS = 4096
"""Made at a time."""
_BYTES = 64
"""Tensors begin at multiples of it: some kernels round otherwise where rows lie otherwise."""


class MicroBatches(Step):
    """Trains by the gradients of micro-batches, those of other processes included.

    Args:
        step: Gives the gradient of a micro-batch, and updates by that of a batch.
        network: What it trains.
        leaves: Micro-batches of a batch.
        seed: Of the training run.
        groups: The other processes; None where there are none.
    """

    def __init__(
        self,
        step: SplitStep,
        network: nn.Module,
        *,
        leaves: int,
        seed: int,
        groups: Groups | None = None,
    ):
        self._step, self._leaves, self._groups = step, leaves, groups
        self._streams = Streams(seed, leaves, next(network.parameters()).device)
        self._buffers = WrittenBuffers(network)
        self._sums: Tree | Buckets | None = None

    @override
    def __call__(self, batch: Batch, learning_rate: float, part: Part = 1.0) -> Tensor:
        assert isinstance(part, Cut)
        if not part.shared:
            self._streams.seed(part.position, 0)
            loss, gradients = self._step.gradient(tuple(map(aligned, batch)))
            self._step.update(gradients, learning_rate)
            return loss
        begun, first, count = self._buffers.begin(), 0, 0
        for leaf, rows, weight in part.leaves:
            if first:
                self._buffers.restore(begun)
            own = tuple(aligned(tensor[first : first + rows]) for tensor in batch)
            first += rows
            self._streams.seed(part.position, leaf)
            if isinstance(self._sums, Buckets):
                self._sums.expect(leaf)
            loss, gradients = self._step.gradient(own, weight)
            count = len(gradients)
            summands = [*gradients, loss, *self._buffers.weighted(begun, weight)]
            if self._sums is None:
                self._sums = self._prepare_sums(summands)
            self._sums.add(leaf, summands)
        self._buffers.check()
        assert self._sums
        total = self._sums.total()
        self._step.update(total[:count], learning_rate)
        loss, *buffers = total[count:]
        self._buffers.take(buffers)
        return loss

    def _prepare_sums(self, like: list[Tensor]) -> Tree | Buckets:
        if self._groups is not None and type(self._step) is AutogradStep:
            buckets = share_out(like, len(self._step.parameters))
            if len(buckets) > 1:
                parameters, leaves = self._step.parameters, self._leaves
                return Buckets(parameters, like, buckets, leaves=leaves, groups=self._groups)
        return Tree(like, leaves=self._leaves, groups=self._groups)

    @override
    def state(self) -> dict[str, Tensor]:
        return self._step.state()

    @override
    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        self._step.load_state(saved)


class Streams:
    """Random numbers of each micro-batch: Philox(seed, position in the data, micro-batch).

    Args:
        seed: Of the training run.
        leaves: Micro-batches of a batch.
        device: Where the network draws.
    """

    def __init__(self, seed: int, leaves: int, device: torch.device):
        self._key, self._leaves = np.array([seed, _STREAM], np.uint64), leaves
        self._device = device
        self._first, self._words = 0, list[int]()

    def seed(self, position: int, leaf: int) -> None:
        """Start every generator that a network may draw from anew."""
        number = position * self._leaves + leaf
        if not self._first <= number < self._first + len(self._words):
            self._first = number - number % _WORDS
            philox = np.random.Philox(key=self._key, counter=self._first // 4)
            self._words = philox.random_raw(_WORDS).tolist()
        seed_generators(self._words[number - self._first] >> 1, self._device)


@dataclass(frozen=True)
class _Place:
    """Where a buffer is kept: a forward pass may replace it."""

    module: nn.Module
    name: str
    full_name: str

    @property
    def tensor(self) -> Tensor:
        found = self.module._buffers[self.name]
        assert found is not None
        return found


class WrittenBuffers:
    """The buffers that a network writes to while it trains, such as the statistics of batch norm.

    Which others they are shows at the first micro-batch.
    """

    def __init__(self, network: nn.Module):
        self._places = [
            _Place(module, name, f"{prefix}.{name}".removeprefix("."))
            for prefix, module in network.named_modules()
            for name, tensor in module._buffers.items()
            if tensor is not None
        ]
        self._written: list[_Place] | None = None
        self._averaged: list[_Place] = []
        self._seen: list[tuple[Tensor, int]] = []

    def begin(self) -> dict[str, Tensor]:
        """Return what may be written to as it is before a batch."""
        self._seen = [(place.tensor, place.tensor._version) for place in self._places]
        kept = self._places if self._written is None else self._written
        return {place.full_name: place.tensor.clone() for place in kept}

    def restore(self, begun: Mapping[str, Tensor]) -> None:
        """Give the next micro-batch what the batch began with."""
        for place in self._written or ():
            place.tensor.copy_(begun[place.full_name])

    @torch.no_grad()
    def weighted(self, begun: Mapping[str, Tensor], weight: float) -> list[Tensor]:
        """Return what a micro-batch wrote, times its share of the batch.

        Args:
            begun: From `begin`.
            weight: The share.

        Raises:
            InvalidInput: It wrote what has no mean.
        """
        if self._written is None:
            self._written = self._find_written(begun)
            self._averaged = [one for one in self._written if _has_mean(one)]
        return [place.tensor * weight for place in self._averaged]

    @torch.no_grad()
    def take(self, means: Sequence[Tensor]) -> None:
        """Write the means over a batch."""
        if means:
            foreach_copy_([place.tensor for place in self._averaged], means)

    def check(self) -> None:
        """Refuse what is only written to at some steps: it would differ between processes.

        Raises:
            InvalidInput: It is there.
        """
        known = {place.full_name for place in self._written or ()}
        if late := [place for place in self._changed() if place.full_name not in known]:
            raise _refused(late[0], "is written to at some steps and not at others")

    def _find_written(self, begun: Mapping[str, Tensor]) -> list[_Place]:
        # The kernel of batch norm counts no version, and a layer that is left out now and then may
        # have been left out here.
        changed = {place.full_name for place in self._changed()}
        return [
            place
            for place in self._places
            if isinstance(place.module, _NormBase)
            or place.full_name in changed
            or not torch.equal(place.tensor, begun[place.full_name])
        ]

    def _changed(self) -> list[_Place]:
        return [
            place
            for place, (tensor, version) in zip(self._places, self._seen, strict=True)
            if place.tensor is not tensor or tensor._version != version
        ]


def _has_mean(place: _Place) -> bool:
    if place.tensor.is_floating_point() or place.tensor.is_complex():
        return True
    # A count of batches is the same for every micro-batch that begins with the same one.
    if place.name != "num_batches_tracked":
        raise _refused(place, f"holds {place.tensor.dtype}, of which there is no mean")
    return False


def _refused(place: _Place, why: str) -> InvalidInput:
    remedy = f"the network's buffer {place.full_name!r} {why}; use virtual_workers 1"
    return InvalidInput([Problem("settings.virtual_workers", "above 1", remedy)])


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that begins where every process's does."""
    return tensor.clone() if tensor.data_ptr() % _BYTES else tensor
