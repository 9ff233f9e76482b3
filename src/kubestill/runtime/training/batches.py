"""The order of the data, and the batches cut from it.

The order is a pure function of (seed, epoch), so a position in the data is a step number and
nothing else: a resumed training run cuts the very batch that comes next. Rows are gathered a chunk
of batches at a time, by a thread that works one chunk ahead, into two sets of buffers that take
turns; a batch is a view into such a buffer.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from kubestill.runtime.datasets.stream import ahead
from kubestill.runtime.training.tree import owned

BLOCK_ROWS = 8192
_WINDOW_BYTES = 256 << 20
_CHUNK_BYTES = 8 << 20
"""Small enough to stay in a cache until it is trained on."""
_PART_BYTES = 1 << 20
"""Rows converted at a time: each step of a conversion finds them in the cache."""
_CHUNK_BATCHES = 64
"""Enough to hand over rarely; more would only delay the first step, most of all where an epoch is a
few rows: then each batch has an order of its own."""


class Rows(Protocol):
    """Features and targets of a dataset, row by row."""

    count: int
    row_bytes: int
    whole_windows: bool
    """Whether a window is best gathered at once, however large."""

    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return features [n, ...] and targets [n, ...] of the rows `index` int32 or int64 [n].

        The tensors may be buffers that the next call but one overwrites.
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

    whole_windows = False

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tuple(tensor.contiguous() for tensor in tensors)
        self.count = len(self.tensors[0])
        self.row_bytes = sum(t[:1].numel() * t.element_size() for t in self.tensors)
        self._next: tuple[Tensor, ...] = ()
        self._last: tuple[Tensor, ...] = ()

    @override
    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        device = self.tensors[0].device
        index = index.to(device, non_blocking=True)
        if not self._next or len(self._next[0]) < len(index):
            self._next = tuple(t.new_empty(len(index), *t.shape[1:]) for t in self.tensors)
        views = tuple(buffer[: len(index)] for buffer in self._next)
        self._next, self._last = self._last, self._next
        for tensor, view in zip(self.tensors, views, strict=True):
            torch.index_select(tensor, 0, index, out=view)
        return views

    @override
    def between(self, start: int, stop: int) -> tuple[Tensor, ...]:
        return tuple(tensor[start:stop] for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array as it is stored, and how its rows become what is trained on."""

    stored: np.ndarray
    """[N, ...], typically a memory map."""
    convert: Callable[[Tensor], Tensor] = lambda rows: rows
    """Stored rows [n, ...] on the CPU to trained ones [n, ...] on any device; each row by itself:
    its bits do not depend on which others are read with it."""

    @property
    def row_bytes(self) -> int:
        """Of one row as it is trained on."""
        return self.read(slice(0, 1)).nbytes

    def read(self, rows: slice | np.ndarray) -> Tensor:
        """Return rows as they are trained on [n, ...], perhaps as a view of what is stored."""
        return self.convert(torch.from_numpy(np.asarray(self.stored[rows])))

    def read_all(self, device: torch.device) -> Tensor:
        """Return every row, [N, ...]."""
        out = self._empty(len(self.stored), device)
        for part in self._parts(len(self.stored)):
            out[part] = self.read(part)
        return out

    def scatter(self, rows: np.ndarray, places: Tensor, device: torch.device) -> Tensor:
        """Return the rows numbered `rows` [n], each at its place of `places` int64 [n]."""
        out = self._empty(len(rows), device)
        for part in self._parts(len(rows)):
            out.index_copy_(0, places[part].to(device), self.read(rows[part]).to(device))
        return out

    def _empty(self, rows: int, device: torch.device) -> Tensor:
        one = self.read(slice(0, 1))
        return one.new_empty((rows, *one.shape[1:]), device=device)

    def _parts(self, rows: int) -> Iterator[slice]:
        """Cut so that what is made on the way to the result is small."""
        size = max(1, _PART_BYTES // max(1, self.stored[:1].nbytes))
        return (slice(start, start + size) for start in range(0, rows, size))


class StreamedRows(Rows):
    """Rows that stay on disk; a window of them is read, converted and moved at a time.

    Args:
        features: Raw features [N, R], and how they are encoded.
        targets: Targets [N, ...] of the loss.
        device: Where the batches are wanted.
    """

    whole_windows = True

    def __init__(
        self, features: StoredArray, targets: Sequence[StoredArray], *, device: torch.device
    ):
        self._sources = (features, *targets)
        self._device = device
        self.count = len(features.stored)
        # The size of a window, and so the order of the rows, follows from the raw features.
        self.row_bytes = features.stored[:1].nbytes + sum(t.row_bytes for t in targets)

    @override
    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        # Ascending reads touch each page once; each row goes straight to its place in the shuffle.
        ascending, places = torch.sort(index)
        rows = ascending.numpy()
        return tuple(source.scatter(rows, places, self._device) for source in self._sources)

    @override
    def between(self, start: int, stop: int) -> tuple[Tensor, ...]:
        return tuple(source.read(slice(start, stop)).to(self._device) for source in self._sources)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The micro-batches that one process takes of a batch."""

    position: int
    """Of the batch, counted through all epochs from 0."""
    leaves: tuple[tuple[int, int, float], ...]
    """Number of a micro-batch, its rows, and the share of the batch that they are."""
    shared: bool
    """Whether the others take other rows; if not, every process takes the whole batch."""


Change = Callable[[tuple[Tensor, ...], int], tuple[Tensor, ...]]
Part = float | Cut
"""What a process takes of a batch: a weight (see `Order.share`), or micro-batches."""


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
    least_rows: int = 1
    """Rows that the network needs together; fewer, left over at the end of an epoch, join the batch
    before them."""
    rank: int = 0
    world_size: int = 1
    virtual_workers: int = 1
    """Micro-batches that a batch is cut into; 1 has each process take its share as a whole."""
    in_turn: bool = False
    """Whether micro-batches go to the ranks in turn; if not, each has neighbouring ones."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch; the last one may be short."""
        return count_batches(self.rows, self.batch_size, self.least_rows)

    def windows(self, epoch: int, first_batch: int = 0) -> Iterator[Tensor]:
        """Yield the row numbers of the batches from `first_batch` on, a window at a time.

        Every window but the last holds whole batches.
        """
        per_window = max(1, self.window_rows // self.batch_size) * self.batch_size
        start = first_batch * self.batch_size
        position, held = 0, torch.empty(0, dtype=self._dtype)
        for piece in self._pieces(epoch):
            if position + len(held) + len(piece) <= start:
                position += len(held) + len(piece)
                held = held[:0]
                continue
            held = torch.cat([held, piece]) if len(held) else piece
            if position < start:
                held, position = held[start - position :], start
            while len(held) >= per_window and self._can_end(position + per_window):
                yield held[:per_window]
                held, position = held[per_window:], position + per_window
        if len(held):
            yield held

    def _can_end(self, position: int) -> bool:
        """Return whether a batch may end at a row, or has to take along what is left over."""
        return not 0 < self.rows - position < self.least_rows

    def batches(self, window: Tensor) -> list[Tensor]:
        """Cut a window's row numbers into batches."""
        found = list(window.split(self.batch_size))
        if len(found) > 1 and len(found[-1]) < self.least_rows:
            found[-2:] = [torch.cat(found[-2:])]
        return found

    def cut(self, batch: Tensor, position: int) -> tuple[Cut, Tensor]:
        """Return (micro-batches of this rank, its row numbers) of the batch at a position.

        Micro-batches differ by a row at most. A batch of too few rows to be cut is a single one,
        and every rank's.
        """
        rows, leaves = len(batch), self.virtual_workers
        if rows < leaves * self.least_rows:
            return Cut(position=position, leaves=((0, rows, 1.0),), shared=False), batch
        edges = [rows * leaf // leaves for leaf in range(leaves + 1)]
        own = owned(leaves, self.rank, self.world_size)
        if self.in_turn:
            own = range(self.rank, leaves, self.world_size)
        sizes = ((leaf, edges[leaf + 1] - edges[leaf]) for leaf in own)
        parts = tuple((leaf, size, size / rows) for leaf, size in sizes)
        mine = [batch[edges[leaf] : edges[leaf + 1]] for leaf in own]
        return Cut(position=position, leaves=parts, shared=True), torch.cat(mine)

    def share(self, batch: Tensor) -> tuple[float, Tensor]:
        """Return (weight, this rank's row numbers) of a batch.

        Shares differ by a row at most, and a weight is a share's size in units of an equal one. A
        batch of too few rows to be shared is every rank's: were it left out, a step number would
        mean another batch to another number of ranks.
        """
        if len(batch) < self.world_size * self.least_rows:
            return 1.0, batch
        own = batch.tensor_split(self.world_size)[self.rank]
        return len(own) * self.world_size / len(batch), own

    def _pieces(self, epoch: int) -> Iterator[Tensor]:
        """Yield the whole epoch's row numbers in order, in pieces that are cheap to hold."""
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        if self.shuffle == "full":
            yield torch.randperm(self.rows, generator=generator, dtype=self._dtype)
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
        first, last = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self.rows)
        return torch.arange(first, last, dtype=self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """Of row numbers: half the bytes shuffle in two thirds of the time."""
        return torch.int32 if self.rows < 2**31 else torch.int64


class Batches:
    """Batches in training order, from any step on.

    Args:
        rows: Where they are gathered from.
        order: Which rows make them.
        change: Gets the rows of each part of a batch, and its number among all parts of all
            batches; returns what is trained on.
    """

    def __init__(self, rows: Rows, order: Order, change: Change | None = None):
        self._rows = rows
        self._order = order
        self._change = change
        if rows.whole_windows:
            batches = order.window_rows // order.batch_size
        else:
            batches = _CHUNK_BYTES // max(1, rows.row_bytes * order.batch_size)
            batches = min(batches, _CHUNK_BATCHES)
        self._chunk_batches = max(batches, _CHUNK_BATCHES)
        self._chunk_rows = max(1, batches) * order.batch_size

    def starting_at(self, step: int) -> Iterator[tuple[Part, tuple[Tensor, ...]]]:
        """Yield (part, (features [b, ...], *targets)) of every step after `step` finished ones.

        b is this rank's part of the batch; see `Order.share` and `Order.cut`. A batch may be
        overwritten once the next one is asked for.
        """
        chunks = self._chunks(step)
        jobs = itertools.repeat(lambda: self._gather(*next(chunks)))
        for parts, gathered in ahead(jobs, workers=1, depth=1):
            yield from zip(parts, zip(*gathered, strict=True), strict=True)

    def _chunks(self, step: int) -> Iterator[tuple[int, list[tuple[Part, Tensor]]]]:
        """Yield (step of the first, parts of batches) that are gathered together.

        Epochs may share a chunk.
        """
        held: list[tuple[Part, Tensor]] = []
        rows, cut = 0, self._order.virtual_workers > 1
        for window in self._windows(step):
            for batch in self._order.batches(window):
                full = rows + len(batch) > self._chunk_rows or len(held) >= self._chunk_batches
                if held and full:
                    yield step - len(held), held
                    held, rows = [], 0
                held.append(self._order.cut(batch, step) if cut else self._order.share(batch))
                rows, step = rows + len(batch), step + 1

    def _windows(self, step: int) -> Iterator[Tensor]:
        epoch, first = divmod(step, self._order.steps_per_epoch)
        while True:
            yield from self._order.windows(epoch, first)
            epoch, first = epoch + 1, 0

    def _gather(
        self, step: int, chunk: list[tuple[Part, Tensor]]
    ) -> tuple[list[Part], list[Sequence[Tensor]]]:
        parts, batches = [part for part, _ in chunk], [batch for _, batch in chunk]
        sizes = [len(batch) for batch in batches]
        whole = self._rows.gather(torch.cat(batches))
        gathered: list[Sequence[Tensor]] = [rows.split(sizes) for rows in whole]
        if self._change is None:
            return parts, gathered
        each = zip(itertools.count(step), parts, zip(*gathered, strict=True))
        changed: list[Sequence[Tensor]] = list(
            zip(*(self._changed(*one) for one in each), strict=True)
        )
        return parts, changed

    def _changed(self, step: int, part: Part, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what is trained on, changed by micro-batches, which any process may have."""
        assert self._change
        order = self._order
        if not isinstance(part, Cut):
            return self._change(rows, step * order.world_size + order.rank)
        leaves, sizes, _ = zip(*part.leaves, strict=True)
        cut = zip(*(tensor.split(sizes) for tensor in rows), strict=True)
        numbers = (step * order.virtual_workers + leaf for leaf in leaves)
        changed = itertools.starmap(self._change, zip(cut, numbers, strict=True))
        return tuple(torch.cat(pieces) for pieces in zip(*changed, strict=True))


def count_batches(rows: int, batch_size: int, least_rows: int) -> int:
    """Return the batches that a pass over the rows takes."""
    whole, left = divmod(rows, batch_size)
    return max(1, whole + (left >= least_rows if left else 0))


def choose_window(rows: Rows, batch_size: int) -> int:
    """Return how many rows to gather at a time: whole batches within 256 MB, at least one."""
    return max(batch_size, min(rows.count, _WINDOW_BYTES // max(1, rows.row_bytes)))


def _mix(seed: int, epoch: int) -> int:
    """Return a 63-bit generator seed; neighbouring seeds and epochs share nothing."""
    digest = hashlib.sha256(f"kubestill/order/1:{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
