"""Random numbers that belong to a row: Philox(seed, stream, row), in any order and any batch.

Philox is counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): word k
is a pure function of (key, k). A row that needs `width` numbers owns a fixed stretch of the
counter, so that a block of rows is one vectorised call and a single row is the same numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORDS_PER_STEP = 4
"""Philox4x64 yields four 64-bit words for each value of its counter."""

MAX_SEED = 2**63 - 1


def uniforms(seed: int, stream: int, start: int, stop: int, *, width: int) -> NDArray[np.float64]:
    """Return the numbers of rows `start` to `stop`, each inside the open interval (0, 1).

    Args:
        seed: 0 to `MAX_SEED`.
        stream: Which independent use of the seed this is, 0 or more.
        start: First global row.
        stop: One past the last global row.
        width: How many numbers each row owns; with another width they are other numbers.

    Returns:
        [stop - start, width].
    """
    steps = -(-width // WORDS_PER_STEP)
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=start * steps)
    words = generator.random_raw((stop - start) * steps * WORDS_PER_STEP)
    words = words.reshape(stop - start, steps * WORDS_PER_STEP)[:, :width]
    # The upper 52 bits, in the middle of their bin, which float64 still holds exactly.
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normals(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn uniforms in (0, 1) into standard normals, one for one (by the inverse distribution)."""
    from scipy.special import ndtri  # every step imports this module, and few draw normals

    values: NDArray[np.float64] = ndtri(uniform)
    return values


class Draws:
    """The numbers of a run of rows, dealt out from left to right."""

    def __init__(self, seed: int, stream: int, start: int, stop: int, *, width: int):
        self._numbers = uniforms(seed, stream, start, stop, width=width)
        self._dealt = 0

    def take(self, count: int) -> NDArray[np.float64]:
        """Return the next uniforms [N, count] of every row."""
        self._dealt += count
        return self._numbers[:, self._dealt - count : self._dealt]
