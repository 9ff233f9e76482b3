"""MUNGE (Bucilă, Caruana, Niculescu-Mizil 2006, "Model compression", fig. 2).

Each row moves towards its nearest neighbour, attribute by attribute, so that new rows keep the
dependence between attributes. Two things differ from the paper, both so that rows can be made in
any order: a row moves towards its neighbour's *original* values while the neighbour stays, and
further passes over the data restart from the originals instead of piling up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kubestill.runtime.base.random import Draws, normals
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.generation.frame import Frame, Originals, Tensor
from kubestill.runtime.generation.neighbours import Neighbours


class MungeSettings(Settings):
    """How far rows move."""

    swap_probability: float = Field(default=0.5, ge=0, le=1)
    """The paper's p: how often an attribute takes (a draw around) its neighbour's value."""
    local_variance: float = Field(default=5.0, gt=0)
    """The paper's s: numbers are drawn from N(neighbour, |difference| / s)."""
    neighbour_pool: int = Field(default=65_536, ge=2)
    """Neighbours are searched among at most this many different rows, spread evenly."""


class Munge:
    """Moves each original towards its nearest neighbour."""

    keeps_label = False

    def __init__(self, originals: Originals, settings: MungeSettings, *, seed: int):
        """Prepare.

        Raises:
            InvalidInput: The originals are all the same.
        """
        self._originals = originals
        self._settings = settings
        self._seed = seed
        self._neighbours = Neighbours(originals, pool=settings.neighbour_pool)
        self.width = (
            2 * originals.numeric.shape[1]
            + originals.codes.shape[1]
            + sum(1 + 2 * tensor.values.shape[1] for tensor in originals.tensors)
        )

    def rows(self, start: int, stop: int) -> Frame:
        """Make synthetic rows `start` to `stop`."""
        originals = self._originals
        source = np.arange(start, stop) % len(originals)
        mine = originals.take(source)
        other = originals.take(self._neighbours.nearest(source))
        draws = Draws(self._seed, 0, start, stop, width=self.width)
        numeric = self._move(mine.numeric, other.numeric, draws)
        swapped = draws.take(mine.codes.shape[1]) < self._settings.swap_probability
        tensors = tuple(
            Tensor(
                values=spread.valid(self._move_whole(a, b, draws)).astype(np.float32), shape=a.shape
            )
            for a, b, spread in zip(
                mine.tensors, other.tensors, originals.tensor_spreads, strict=True
            )
        )
        return Frame(
            numeric=originals.numeric_spread.valid(numeric),
            codes=np.where(swapped, other.codes, mine.codes),
            tensors=tensors,
        )

    def _move(
        self, mine: NDArray[np.floating], other: NDArray[np.floating], draws: Draws
    ) -> NDArray[np.float64]:
        """Move values [N, D]; if one of a pair is missing, take the other."""
        swapped = draws.take(mine.shape[1]) < self._settings.swap_probability
        noise = normals(draws.take(mine.shape[1])) / self._settings.local_variance
        near = other + noise * np.abs(mine.astype(np.float64) - other)
        missing = np.isnan(mine) | np.isnan(other)
        return np.where(swapped, np.where(missing, other, near), mine)

    def _move_whole(self, mine: Tensor, other: Tensor, draws: Draws) -> NDArray[np.float64]:
        """Move the elements of a tensor; if one of a pair is missing, swap the whole tensor."""
        swapped = draws.take(1) < self._settings.swap_probability
        moved = self._move(mine.values, other.values, draws)
        missing = np.isnan(mine.values + other.values).any(axis=1, keepdims=True)
        return np.where(missing, np.where(swapped, other.values, mine.values), moved)
