"""Copies of the pieces that processes keep of a state, on other nodes' disks.

Each process sends its piece to one process of each of the next nodes, in turn, and writes what it
gets. That happens in the thread that saves, in a process group of its own, while training goes on.
"""

# Documented names of torch.distributed, which pyright does not count as exported.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from kubestill.errors import StoreUnavailable
from kubestill.runtime.stores.base import Content

_PARTS = 4
"""What is sent of a piece: its record, its manifest, and its file's header and data."""


class Mirror:
    """The processes that this one sends its piece to, and whose pieces it gets.

    Args:
        nodes: The ranks on each node, equal on all ranks.
        rank: Of this process.
        copies: Nodes that have each piece, its own included.
    """

    def __init__(self, nodes: Sequence[Sequence[int]], *, rank: int, copies: int) -> None:
        pairs = pair_up(nodes, copies)
        self.targets = [to for of, to in pairs if of == rank]
        """Ranks that get this process's piece."""
        self.sources = [of for of, to in pairs if to == rank]
        """Ranks whose pieces it gets."""
        # Of its own: training exchanges what it has to in another thread.
        group: Any = dist.new_group(backend="gloo")
        self._group: dist.ProcessGroup = group

    def swap(self, content: Sequence[Content]) -> Generator[tuple[memoryview, ...]]:
        """Send a piece, and yield those of others; all ranks call it at the same saves.

        Args:
            content: The parts of this process's piece; nothing where it has none to give.

        Raises:
            StoreUnavailable: Another process does not answer: training finds out by itself whether
                that is all it does not do.
        """
        try:
            yield from self._swap([_tensor(part) for part in content])
        except RuntimeError as error:
            raise StoreUnavailable(f"another process does not take or give copies: {error}") from (
                error
            )

    def _swap(self, given: Sequence[torch.Tensor]) -> Generator[tuple[memoryview, ...]]:
        sizes = torch.tensor([len(part) for part in given] or [0] * _PARTS)
        sending = [
            dist.isend(part, rank, group=self._group, tag=tag)
            for rank in self.targets
            for tag, part in enumerate((sizes, *given))
            if len(part)
        ]
        for rank in self.sources:
            told = torch.empty(_PARTS, dtype=torch.int64)
            dist.recv(told, rank, group=self._group)
            got = [torch.empty(size, dtype=torch.uint8) for size in told.tolist()]
            for tag, part in enumerate(got, start=1):
                if len(part):
                    dist.recv(part, rank, group=self._group, tag=tag)
            contents: list[Any] = [part.numpy() for part in got] if told.any() else []
            yield tuple(map(memoryview, contents))
        for work in sending:
            if work is not None:
                work.wait()


def pair_up(nodes: Sequence[Sequence[int]], copies: int) -> list[tuple[int, int]]:
    """Return who sends whom a copy: each process to one of each of the next nodes, in turn.

    Args:
        nodes: The ranks on each node.
        copies: Nodes that have each piece, its own included.
    """
    return [
        (rank, there[turn % len(there)])
        for number, here in enumerate(nodes)
        for turn, rank in enumerate(here)
        for further in range(1, min(copies, len(nodes)))
        for there in [nodes[(number + further) % len(nodes)]]
    ]


def _tensor(part: Content) -> torch.Tensor:
    """Return bytes as a tensor; what cannot be written to is copied."""
    view = memoryview(part)
    if not len(view):
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(view) if view.readonly else view, dtype=torch.uint8)
