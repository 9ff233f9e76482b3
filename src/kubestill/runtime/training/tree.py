"""Sum what micro-batches give along one fixed binary tree, whichever processes they belong to.

Floating-point sums depend on their order. Here the order is a property of the batch: its
micro-batches are the leaves of a complete binary tree, and every inner node is the sum of its two
children. A process owns consecutive leaves and sums the nodes above them by itself. A node above
the leaves of several processes takes an exchange between them: one adds its left child to another's
right child, everybody else adds -0.0, which leaves every number as it is. So it is the same two
summands whatever the library does inside of an all-reduce, and however many processes there are.

Where the processes are 4, 8, 16, ..., two of them swap halves at each level: one adds up the lower
half of what both have, the other the upper, and the next level halves again. Then the sums go back
the same way. So a process sends less than twice the vector, however many there are, and half of
that to the nearest one.
"""

# Documented names of torch.distributed, which pyright does not count as exported.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kubestill.runtime.training.kernels import foreach_add_, foreach_copy_

Node = tuple[int, int]
"""Level, 0 for leaves, and number within it, from the left."""

_ALIGNMENT = 16
"""Numbers: each tensor begins where vectors of any CPU begin."""


def owned(leaves: int, rank: int, world: int) -> range:
    """Return the leaves of a process: consecutive ones, one more or less than the others have."""
    return range(rank * leaves // world, (rank + 1) * leaves // world)


@dataclass(frozen=True, kw_only=True)
class _Exchange:
    """How one node comes about between processes, from one of them."""

    node: Node
    peers: tuple[int, ...]
    """Ranks that take part."""
    adds: bool
    """Whether this process has a summand, or only receives the sum."""


class Groups:
    """The groups in which the processes of a training run exchange sums.

    Args:
        leaves: Micro-batches of a batch.
        rank: This process.
        world: All of them.
        timeout: Seconds after which an exchange fails because somebody does not take part.
    """

    def __init__(self, leaves: int, *, rank: int, world: int, timeout: float):
        self.leaves, self.own, self.rank = leaves, owned(leaves, rank, world), rank
        plans = [_exchanges(leaves, one, world) for one in range(world)]
        self.exchanges = plans[rank]
        self._groups: dict[tuple[int, ...], Any] = {}
        # All processes make all groups, in the same order.
        for peers in dict.fromkeys(one.peers for plan in plans for one in plan):
            self._groups[peers] = dist.new_group(peers, timeout=timedelta(seconds=timeout))

    def all_reduce(self, tensor: Tensor, exchange: _Exchange) -> None:
        """Replace a tensor by its sum over the processes of an exchange."""
        dist.all_reduce(tensor, group=self._groups[exchange.peers])

    def swap(self, given: Tensor, into: Tensor, exchange: _Exchange) -> None:
        """Send a tensor to the other process of an exchange, and receive another from it."""
        group, (peer,) = self._groups[exchange.peers], {*exchange.peers} - {self.rank}
        both = ((dist.isend, given), (dist.irecv, into))
        sent = [dist.P2POp(act, one, peer, group) for act, one in both if len(one)]
        for work in dist.batch_isend_irecv(sent) if sent else ():
            work.wait()


def _exchanges(leaves: int, rank: int, world: int) -> list[_Exchange]:
    """Return the exchanges that a process takes part in, from the leaves to the root."""
    found: list[_Exchange] = []
    holders = [{one} for one in range(world) for _ in owned(leaves, one, world)]
    level = 0
    while len(holders) > 1:
        level += 1
        pairs = zip(holders[::2], holders[1::2], strict=True)
        for number, (left, right) in enumerate(pairs):
            peers, adding = _meet(sorted(left), sorted(right), rank)
            if len(peers) > 1 and rank in peers:
                node = (level, number)
                found.append(_Exchange(node=node, peers=peers, adds=rank in adding))
        holders = [a | b for a, b in zip(holders[::2], holders[1::2], strict=True)]
    return found


def _meet(left: list[int], right: list[int], rank: int) -> tuple[tuple[int, ...], set[int]]:
    """Return who exchanges two children of a node with a process, and which of them add one."""
    if both := set(left) & set(right):
        return tuple(sorted({*left, *right})), both
    if len(left) == len(right):
        place = left.index(rank) if rank in left else right.index(rank) if rank in right else 0
        return (left[place], right[place]), {left[place], right[place]}
    return tuple(left + right), {left[0], right[0]}


class Tree:
    """Sums lists of tensors, one a micro-batch.

    Args:
        like: Tensors of the shapes and types that are summed.
        leaves: Micro-batches of a batch.
        groups: How sums pass between processes; None where one process owns all leaves.
    """

    def __init__(self, like: Sequence[Tensor], *, leaves: int, groups: Groups | None = None):
        self._new = partial(_Sum, [(t.shape, t.dtype, t.device) for t in like])
        self._free: list[_Sum] = []
        self._held: dict[Node, _Sum] = {}
        self._groups, self._root = groups, (leaves.bit_length() - 1, 0)

    def add(self, leaf: int, summands: Sequence[Tensor]) -> None:
        """Take in what a leaf of this process gives; from the left to the right."""
        level, number = 0, leaf
        left = self._held.pop((0, leaf - 1), None) if leaf % 2 else None
        if left is None:
            total = self._free.pop() if self._free else self._new()
            foreach_copy_(total.views, summands)
        else:
            total = left
            foreach_add_(total.views, summands)
            level, number = 1, leaf // 2
        while number % 2 and (left := self._held.pop((level, number - 1), None)):
            left.add_(total)
            self._free.append(total)
            level, number, total = level + 1, number // 2, left
        self._held[level, number] = total

    def total(self) -> list[Tensor]:
        """Return the sum over all leaves of all processes; the next leaf overwrites it."""
        if self._groups is not None:
            exchanges = self._groups.exchanges
            if len(exchanges) > 1 and all(len(one.peers) == 2 for one in exchanges):
                ((_, total),) = self._held.items()
                for flat in total.flats:
                    self._swap_halves(flat.view(-1), exchanges, self._groups)
                self._held = {self._root: total}
            else:
                for exchange in exchanges:
                    self._exchange(exchange, self._groups)
        root = self._held.pop(self._root)
        assert not self._held, "a leaf is missing, or was added twice"
        self._free.append(root)
        return root.views

    def _swap_halves(self, flat: Tensor, exchanges: Sequence[_Exchange], groups: Groups) -> None:
        """Replace a vector by its sum over all processes, which are 2, 4, 8, ... in number."""
        ways: list[tuple[Tensor, Tensor, _Exchange]] = []
        whole, spare = flat, torch.empty_like(flat[: -(-len(flat) // 2)])
        for exchange in exchanges:
            kept, given = whole.tensor_split(2)
            if groups.rank == max(exchange.peers):
                kept, given = given, kept
            theirs = spare[: len(kept)]
            groups.swap(given, theirs, exchange)
            kept.add_(theirs)
            ways.append((kept, given, exchange))
            whole = kept
        for kept, given, exchange in reversed(ways):
            groups.swap(kept, given, exchange)

    def _exchange(self, exchange: _Exchange, groups: Groups) -> None:
        level, number = exchange.node
        children = [
            self._held.pop(child)
            for child in ((level - 1, 2 * number), (level - 1, 2 * number + 1))
            if child in self._held
        ]
        total = children[0]
        if len(children) == 2:
            total.add_(children[1])
            self._free.append(children[1])
        for flat in total.flats:
            if not exchange.adds:
                flat.fill_(-0.0)
            groups.all_reduce(flat, exchange)
        self._held[exchange.node] = total


class _Sum:
    """Tensors that lie side by side, one vector a type: an addition or an exchange is one call."""

    def __init__(self, like: Iterable[tuple[torch.Size, torch.dtype, torch.device]]):
        numbered = sorted(enumerate(like), key=lambda one: str(one[1][1]))
        self.flats: list[Tensor] = []
        views: dict[int, Tensor] = {}
        for dtype, alike in groupby(numbered, key=lambda one: one[1][1]):
            shapes = [(i, shape, device) for i, (shape, _, device) in alike]
            sizes = [-(-shape.numel() // _ALIGNMENT) * _ALIGNMENT for _, shape, _ in shapes]
            flat = torch.zeros(sum(sizes), dtype=dtype, device=shapes[0][2])
            self.flats.append(torch.view_as_real(flat) if dtype.is_complex else flat)
            for (i, shape, _), part in zip(shapes, flat.split(sizes), strict=True):
                views[i] = part[: shape.numel()].view(shape)
        self.views = [views[i] for i in range(len(views))]

    def add_(self, other: _Sum) -> None:
        foreach_add_(self.flats, other.flats)
