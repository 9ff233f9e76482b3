"""Threads of this process as ranks."""

from __future__ import annotations

import functools
import threading
from collections import Counter, defaultdict

import torch

from kubestill.runtime.training import tree


class Threads:
    """Threads of this process as ranks: what `Groups` is for processes."""

    def __init__(self, leaves: int, world: int):
        self.leaves = leaves
        self.plans = [tree._exchanges(leaves, rank, world) for rank in range(world)]
        peers = {one.peers for plan in self.plans for one in plan}
        self.barriers = {each: threading.Barrier(len(each)) for each in peers}
        self.given: dict[tuple[object, ...], list[torch.Tensor]] = defaultdict(list)
        self.sent: Counter[int] = Counter()
        """Numbers that each rank sends, by swaps."""


class Rank:
    """One of them."""

    def __init__(self, threads: Threads, number: int):
        self._threads, self.exchanges = threads, threads.plans[number]
        self.rank, self.own = number, tree.owned(threads.leaves, number, len(threads.plans))
        self._calls: Counter[tuple[int, ...]] = Counter()

    def all_reduce(self, tensor: torch.Tensor, exchange: tree._Exchange) -> None:
        self._calls[exchange.peers] += 1
        given = self._threads.given[exchange.peers, self._calls[exchange.peers]]
        given.append(tensor.clone())
        self._threads.barriers[exchange.peers].wait(30)
        # In the order in which they came: an all-reduce promises none.
        tensor.copy_(functools.reduce(torch.add, given))

    def swap(self, given: torch.Tensor, into: torch.Tensor, exchange: tree._Exchange) -> None:
        self._calls[exchange.peers] += 1
        turn = exchange.peers, self._calls[exchange.peers]
        self._threads.given[*turn, self.rank].append(given.clone())
        self._threads.sent[self.rank] += given.numel()
        self._threads.barriers[exchange.peers].wait(30)
        (peer,) = {*exchange.peers} - {self.rank}
        (theirs,) = self._threads.given[*turn, peer]
        into.copy_(theirs)
