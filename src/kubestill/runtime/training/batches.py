"""The order of the data, and the batches cut from it.

The order is a pure function of (seed, epoch), so a position in the data is a step number and
nothing else: a resumed training cuts the very batch that comes next. Rows are gathered a window at
a time into buffers that are used again, and a batch is a view into such a buffer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

BLOCK_ROWS = 8192
_WINDOW_BYTES = 256 << 20


class Rows(Protocol):
    """Features and targets of a dataset, row by row."""

    count: int
    row_bytes: int

    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return features [n, ...] and targets [n, ...] of the rows `index` int64 [n].

        The tensors may be buffers that the next call overwrites.
        """
        ...

    def between(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Return features and targets of the rows from `start` up to `stop`, for reading only.

        Unlike `gather` it leaves the batches of a window that is being trained on alone.
        """
        ...


class ResidentRows(Rows):
    """Rows that lie in memory, on the device that trains.

    Args:
        tensors: Features and targets, equal in their first dimension.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tuple(tensor.contiguous() for tensor in tensors)
        self.count = len(self.tensors[0])
        self.row_bytes = sum(t[:1].numel() * t.element_size() for t in self.tensors)
        self._buffers: tuple[Tensor, ...] = ()

    @override
    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        device = self.tensors[0].device
        index = index.to(device, non_blocking=True)
        if not self._buffers or len(self._buffers[0]) < len(index):
            self._buffers = tuple(t.new_empty(len(index), *t.shape[1:]) for t in self.tensors)
        views = tuple(buffer[: len(index)] for buffer in self._buffers)
        for tensor, view in zip(self.tensors, views, strict=True):
            torch.index_select(tensor, 0, index, out=view)
        return views

    @override
    def between(self, start: int, stop: int) -> tuple[Tensor, ...]:
        return tuple(tensor[start:stop] for tensor in self.tensors)


class StreamedRows(Rows):
    """Rows that stay on disk; a window of them is read, encoded and moved to the device at a time.

    Args:
        raw: Raw features [N, R], typically a memory map.
        targets: Targets [N, ...] in memory or mapped.
        encode: Raw features [n, R] to what the network takes.
        device: Where the batches are wanted.
    """

    def __init__(
        self,
        raw: np.ndarray,
        targets: Sequence[np.ndarray],
        *,
        encode: Callable[[Tensor], Tensor],
        device: torch.device,
    ):
        self._arrays = (raw, *targets)
        self._encode = encode
        self._device = device
        self.count = len(raw)
        self.row_bytes = sum(array[:1].nbytes for array in self._arrays)

    @override
    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        # Ascending reads touch each page once; the shuffle happens in memory afterwards.
        ascending, back = torch.sort(index)
        rows = ascending.numpy()
        read = [torch.from_numpy(np.ascontiguousarray(array[rows])) for array in self._arrays]
        order = torch.empty_like(back)
        order[back] = torch.arange(len(back))
        features, *targets = (part[order].to(self._device) for part in read)
        return (self._encode(features), *targets)

    @override
    def between(self, start: int, stop: int) -> tuple[Tensor, ...]:
        return self.gather(torch.arange(start, stop))


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which rows make which batch."""

    rows: int
    batch_size: int
    seed: int
    shuffle: str
    """`full`, `blocks` (whole blocks of 8,192 rows are permuted, rows within windows) or `none`."""
    window_rows: int
    """Rows gathered at a time."""
    rank: int = 0
    world_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch; the last one may be short."""
        return -(-self.rows // self.batch_size)

    def windows(self, epoch: int, first_batch: int = 0) -> Iterator[Tensor]:
        """Yield the row numbers of the batches from `first_batch` on, int64, a window at a time.

        Every window but the last holds whole batches.
        """
        per_window = max(1, self.window_rows // self.batch_size) * self.batch_size
        start = first_batch * self.batch_size
        position, held = 0, torch.empty(0, dtype=torch.int64)
        for piece in self._pieces(epoch):
            if position + len(held) + len(piece) <= start:
                position += len(held) + len(piece)
                held = held[:0]
                continue
            held = torch.cat([held, piece]) if len(held) else piece
            if position < start:
                held, position = held[start - position :], start
            while len(held) >= per_window:
                yield held[:per_window]
                held, position = held[per_window:], position + per_window
        if len(held):
            yield held

    def _pieces(self, epoch: int) -> Iterator[Tensor]:
        """Yield the whole epoch's row numbers in order, in pieces that are cheap to hold."""
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        if self.shuffle == "full":
            yield torch.randperm(self.rows, generator=generator)
            return
        per_piece = max(1, self.window_rows // BLOCK_ROWS)
        blocks = torch.arange(-(-self.rows // BLOCK_ROWS))
        if self.shuffle == "blocks":
            blocks = torch.randperm(len(blocks), generator=generator)
        for some in blocks.split(per_piece):
            spans = [self._rows_of(int(block)) for block in some]
            piece = torch.cat(spans)
            if self.shuffle == "blocks":
                piece = piece[torch.randperm(len(piece), generator=generator)]
            yield piece

    def _rows_of(self, block: int) -> Tensor:
        return torch.arange(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self.rows))


class Batches:
    """Batches in training order, from any step on.

    Args:
        rows: Where they are gathered from.
        order: Which rows make them.
    """

    def __init__(self, rows: Rows, order: Order):
        self._rows = rows
        self._order = order

    def starting_at(self, step: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield (features [b, ...], *targets [b, ...]) of every step after `step` finished ones.

        With several ranks b is this rank's share of the batch, the same on every rank; rows of a
        short last batch that cannot be shared evenly are left out. A batch is overwritten by the
        next window.
        """
        epoch, first = divmod(step, self._order.steps_per_epoch)
        while True:
            for index in self._order.windows(epoch, first):
                yield from self._cut(index)
            epoch, first = epoch + 1, 0

    def _cut(self, index: Tensor) -> Iterator[tuple[Tensor, ...]]:
        size, world = self._order.batch_size, self._order.world_size
        if world > 1:
            shares = [
                batch.tensor_split(world)[self._order.rank]
                for batch in _even(index.split(size), world)
            ]
            sizes = [len(share) for share in shares]
            index = torch.cat(shares)
        else:
            sizes = [size] * (len(index) // size) + (
                [len(index) % size] if len(index) % size else []
            )
        gathered = self._rows.gather(index)
        yield from zip(*(tensor.split(sizes) for tensor in gathered), strict=True)


def choose_window(rows: Rows, batch_size: int) -> int:
    """Return how many rows to gather at a time: whole batches within 256 MB, at least one."""
    return max(batch_size, min(rows.count, _WINDOW_BYTES // max(1, rows.row_bytes)))


def _even(batches: Sequence[Tensor], world_size: int) -> list[Tensor]:
    trimmed = [batch[: len(batch) // world_size * world_size] for batch in batches]
    return [batch for batch in trimmed if len(batch)]


def _mix(seed: int, epoch: int) -> int:
    """Return a 63-bit generator seed; neighbouring seeds and epochs share nothing."""
    digest = hashlib.sha256(f"kubestill/order/1:{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
