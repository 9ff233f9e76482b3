"""Mean and standard deviation in one pass, whatever the blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CONSTANT = 1e-7
"""A spread below this share of the mean is float32 rounding: the channel is constant."""

_TINY = np.finfo(np.float64).tiny

TILE = 1 << 16
"""Numbers taken in at once, so that their float64 form stays in the cache."""


class Moments:
    """Running moments, one a channel, merged block by block (Chan et al. 1979, eq. 2.1)."""

    def __init__(self, channels: int):
        self._count = np.zeros(channels)
        self._mean = np.zeros(channels)
        self._m2 = np.zeros(channels)
        self._nan = np.zeros(channels, bool)
        self._inf = np.zeros(channels, bool)

    def update(
        self, block: NDArray[np.float32], weights: NDArray[np.floating[Any]] | None = None
    ) -> None:
        """Take in block [N, W], whose W elements are the channels one after the other.

        Args:
            block: Rows.
            weights: How many rows each row counts for, [N]; one of weight 0 is not there at all.
        """
        if weights is not None:
            there = weights > 0
            block, weights = block[there], weights[there].astype(np.float64)
        rows = max(1, TILE // max(1, block.shape[1]))
        for start in range(0, len(block), rows):
            tile = block[start : start + rows]
            held = None if weights is None else weights[start : start + rows, None, None]
            values = tile.reshape(len(tile), len(self._count), -1).astype(np.float64)
            self._merge(values, held)

    def _merge(self, values: NDArray[np.float64], weights: NDArray[np.float64] | None) -> None:
        """Merge values [N, C, W], which are overwritten, with weights [N, 1, 1] if any."""
        # One sum tells whether there is anything to mask: usually not.
        finite = None if np.isfinite(values.sum()) else np.isfinite(values)
        if finite is not None:
            self._nan |= np.isnan(values).any(axis=(0, 2))
            self._inf |= np.isinf(values).any(axis=(0, 2))
            values[~finite] = 0.0
        if weights is not None:
            there = np.ones(values.shape, bool) if finite is None else finite
            count = (there * weights).sum(axis=(0, 2))
            mean = (values * weights).sum(axis=(0, 2)) / np.maximum(count, _TINY)
        else:
            each = values.shape[0] * values.shape[2]
            count = np.full(len(self._count), each) if finite is None else finite.sum(axis=(0, 2))
            mean = values.sum(axis=(0, 2)) / np.maximum(count, 1)
        values -= mean[:, None]
        if finite is not None:
            values[~finite] = 0.0
        values *= values
        if weights is not None:
            values *= weights
        total = self._count + count
        share = count / np.maximum(total, _TINY)
        step = mean - self._mean
        self._m2 += values.sum(axis=(0, 2)) + step**2 * self._count * share
        self._mean += step * share
        self._count = total

    def __getitem__(self, channels: slice) -> Moments:
        """Return the moments of some of the channels."""
        part = Moments(0)
        for name, values in vars(self).items():
            setattr(part, name, values[channels])
        return part

    @property
    def missing(self) -> bool:
        """Whether a value was NaN."""
        return bool(self._nan.any())

    @property
    def infinite(self) -> bool:
        """Whether a value was infinite."""
        return bool(self._inf.any())

    @property
    def empty(self) -> bool:
        """Whether some channel never had a value."""
        return not self._count.all()

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the values that are there, one a channel."""
        return tuple(self._mean.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Population standard deviation, one a channel; 1 where the channel is constant."""
        std = np.sqrt(self._m2 / np.maximum(self._count, _TINY))
        return tuple(np.where(std > CONSTANT * np.abs(self._mean), std, 1.0).tolist())
