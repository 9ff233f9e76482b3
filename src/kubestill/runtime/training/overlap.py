"""Sum gradients over processes in buckets, while the backward pass still makes those that follow.

A bucket is a tree of its own (`tree`), over some parameters of neighbouring layers, the last ones
first. Once autograd has given the gradients of a bucket for the last micro-batch of this process, a
thread exchanges it. All processes exchange the buckets in one order. Which bucket a number is in
changes nothing of how it is summed, and so no bit.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from kubestill.runtime.training.tree import Groups, Tree

BUCKET_BYTES = 1 << 20
"""A bucket is full once it holds as much."""
_PATIENCE = 5.0
"""Seconds that the end of a training run waits for the thread."""


class Buckets:
    """Sums lists of tensors, one a micro-batch: the gradients of parameters, then any others.

    Args:
        parameters: Whose gradients autograd computes.
        like: Tensors of the shapes and types that are summed, those of the parameters first.
        buckets: Which of them are exchanged together, from `share_out`.
        leaves: Micro-batches of a batch.
        groups: How sums pass between processes.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        like: Sequence[Tensor],
        buckets: list[list[int]],
        *,
        leaves: int,
        groups: Groups,
    ):
        self._count = len(like)
        self._members = buckets
        self._trees = [
            Tree([like[i] for i in members], leaves=leaves, groups=groups)
            for members in self._members
        ]
        self._last = groups.own[-1]
        self._listens = False
        self._next = 0
        """The first bucket that is not summed up yet."""
        self._got: dict[int, Tensor] = {}
        self._ready: queue.SimpleQueue[Tree | None] = queue.SimpleQueue()
        self._totals: queue.SimpleQueue[list[Tensor] | BaseException] = queue.SimpleQueue()
        for i, parameter in enumerate(parameters):
            parameter.register_hook(partial(_take, weakref.ref(self), i))
        thread = threading.Thread(
            target=_exchange, args=(self._ready, self._totals), name="exchange", daemon=True
        )
        thread.start()
        weakref.finalize(self, _end, self._ready, thread)

    def expect(self, leaf: int) -> None:
        """Prepare for the gradients of a leaf: the last one's are taken as autograd gives them."""
        self._listens = leaf == self._last

    def take(self, i: int, gradient: Tensor) -> None:
        """Take one of them, and exchange the buckets that are full, in their order."""
        if not self._listens:
            return
        self._got[i] = gradient
        # The last one waits for `add`: it holds what autograd does not give.
        while self._next < len(self._trees) - 1:
            members = self._members[self._next]
            if any(i not in self._got for i in members):
                return
            self._sum_up([self._got.pop(i) for i in members])

    def add(self, leaf: int, summands: Sequence[Tensor]) -> None:
        """Take in what a leaf of this process gives, except what was taken before."""
        self._listens = False
        if leaf != self._last:
            for tree, members in zip(self._trees, self._members, strict=True):
                tree.add(leaf, [summands[i] for i in members])
            return
        while self._next < len(self._trees):
            self._sum_up([summands[i] for i in self._members[self._next]])
        self._next = 0
        self._got.clear()

    def total(self) -> list[Tensor]:
        """Return the sum over all leaves of all processes; the next leaf overwrites it."""
        placed: dict[int, Tensor] = {}
        for members in self._members:
            total = self._totals.get()
            if isinstance(total, BaseException):
                raise total
            placed |= zip(members, total, strict=True)
        return [placed[i] for i in range(self._count)]

    def _sum_up(self, summands: list[Tensor]) -> None:
        tree = self._trees[self._next]
        tree.add(self._last, summands)
        self._ready.put(tree)
        self._next += 1


def share_out(like: Sequence[Tensor], parameters: int) -> list[list[int]]:
    """Return the members of each bucket: parameters from the last on, and at the end the others."""
    buckets, size = [list[int]()], 0
    for i in reversed(range(parameters)):
        if size >= BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(i)
        size += like[i].numel() * like[i].element_size()
    buckets[-1] += range(parameters, len(like))
    return buckets


def _take(buckets: weakref.ref[Buckets], i: int, gradient: Tensor) -> None:
    if (found := buckets()) is not None:
        found.take(i, gradient)


def _end(ready: queue.SimpleQueue[Tree | None], thread: threading.Thread) -> None:
    """End the thread, and wait until it has let go of tensors and groups.

    A process that ends before that aborts: torch's destructors cannot be interrupted. An exchange
    that nobody answers is not waited for.
    """
    ready.put(None)
    thread.join(_PATIENCE)


def _exchange(
    ready: queue.SimpleQueue[Tree | None],
    totals: queue.SimpleQueue[list[Tensor] | BaseException],
) -> None:
    while (tree := ready.get()) is not None:
        try:
            totals.put(tree.total())
        except BaseException as error:  # the thread that trains raises it
            totals.put(error)
