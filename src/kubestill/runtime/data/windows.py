"""A shuffled order for data that is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kubestill.runtime.data.canonical import BLOCK_ROWS

__all__ = ["windows"]


def windows(rows: int, *, window_rows: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Yield one epoch's order of `range(rows)`, one window of shuffled row numbers at a time.

    A window is made of whole blocks of `BLOCK_ROWS` rows drawn at random from all over the data,
    read in long runs and then shuffled together. Every row comes exactly once. With `window_rows >=
    rows` that is a full shuffle. The order depends on the arguments alone.

    Args:
        rows: Rows of the data.
        window_rows: Rows that fit in memory at a time; at least one block is taken.
        seed: Of the training.
        epoch: Counted from 0.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    blocks = random.permutation(-(-rows // BLOCK_ROWS))
    step = max(window_rows // BLOCK_ROWS, 1) if window_rows < rows else max(len(blocks), 1)
    for first in range(0, len(blocks), step):
        starts = blocks[first : first + step] * BLOCK_ROWS
        runs = [np.arange(int(start), min(int(start) + BLOCK_ROWS, rows)) for start in starts]
        yield random.permutation(np.concatenate(runs))
