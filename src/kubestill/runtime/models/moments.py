"""Mean and standard deviation in one pass, whatever the blocks."""

from __future__ import annotations

import numpy as np

__all__ = ["Moments"]

CONSTANT = 1e-7
"""A spread below this share of the mean is float32 rounding: the column is constant."""


class Moments:
    """Running moments, one a channel, merged block by block (Chan et al. 1979, eq. 2.1)."""

    def __init__(self, channels: int = 1):
        self.missing = False
        self.infinite = False
        self._count = np.zeros(channels)
        self._mean = np.zeros(channels)
        self._m2 = np.zeros(channels)

    def update(self, block: np.ndarray) -> None:
        """Take in block [N, W] float32, whose W elements are the channels one after the other."""
        values = block.reshape(len(block), len(self._count), -1).astype(np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            self.missing = self.missing or bool(np.isnan(values).any())
            self.infinite = self.infinite or bool(np.isinf(values).any())
            values = np.where(finite, values, 0.0)
        count = finite.sum(axis=(0, 2))
        mean = values.sum(axis=(0, 2)) / np.maximum(count, 1)
        deviation = np.where(finite, values - mean[:, None], 0.0)
        total = self._count + count
        share = count / np.maximum(total, 1)
        step = mean - self._mean
        self._m2 += (deviation**2).sum(axis=(0, 2)) + step**2 * self._count * share
        self._mean += step * share
        self._count = total

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
        """Population standard deviation, one a channel; 1 where the column is constant."""
        std = np.sqrt(self._m2 / np.maximum(self._count, 1))
        return tuple(np.where(std > CONSTANT * np.abs(self._mean), std, 1.0).tolist())
