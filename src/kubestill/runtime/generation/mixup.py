"""mixup (Zhang, Cisse, Dauphin, Lopez-Paz 2018): convex combinations of two originals.

The label of such a row is left to the teacher. That is the function-matching use of mixup in
distillation (Beyer et al. 2022); a mixed one-hot label would be a second, worse teacher.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import betaincinv

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.base.random import Draws
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.generation.frame import Frame, Originals, Tensor


class MixupSettings(Settings):
    """How strongly rows mix."""

    alpha: float = Field(default=1.0, gt=0, le=100)
    """Shares are drawn from Beta(alpha, alpha): 1 is uniform, lower stays near the originals."""


class Mixup:
    """Mixes each original with another one, drawn at random."""

    keeps_label = False

    def __init__(self, originals: Originals, settings: MixupSettings, *, seed: int):
        """Prepare.

        Raises:
            InvalidInput: There are fewer than two originals.
        """
        if len(originals) < 2:
            remedy = "mixup combines different rows and needs at least 2"
            raise InvalidInput([Problem("original", f"{len(originals)} row", remedy)])
        self._originals = originals
        self._settings = settings
        self._seed = seed
        self.width = (
            2 + originals.numeric.shape[1] + originals.codes.shape[1] + len(originals.tensors)
        )

    def rows(self, start: int, stop: int) -> Frame:
        """Make synthetic rows `start` to `stop`."""
        originals = self._originals
        draws = Draws(self._seed, 0, start, stop, width=self.width)
        share = betaincinv(self._settings.alpha, self._settings.alpha, draws.take(1))
        step = 1 + (draws.take(1)[:, 0] * (len(originals) - 1)).astype(np.int64)
        source = np.arange(start, stop)
        mine = originals.take(source % len(originals))
        other = originals.take((source + step) % len(originals))
        numeric = _mix(mine.numeric, other.numeric, share, draws.take(mine.numeric.shape[1]))
        first = draws.take(mine.codes.shape[1]) < share
        tensors = tuple(
            Tensor(
                values=spread.valid(_mix(a.values, b.values, share, draws.take(1))).astype(
                    np.float32
                ),
                shape=a.shape,
            )
            for a, b, spread in zip(
                mine.tensors, other.tensors, originals.tensor_spreads, strict=True
            )
        )
        return Frame(
            numeric=originals.numeric_spread.valid(numeric),
            codes=np.where(first, mine.codes, other.codes),
            tensors=tensors,
        )


def _mix(
    mine: NDArray[np.floating],
    other: NDArray[np.floating],
    share: NDArray[np.float64],
    coin: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Combine values [N, D]; where one is missing, `coin` [N, D or 1] picks one of the two."""
    missing = np.isnan(mine) | np.isnan(other)
    if coin.shape[1] < mine.shape[1]:
        missing = missing.any(axis=1, keepdims=True)
    picked = np.where(coin < share, mine, other)
    return np.where(missing, picked, share * mine + (1 - share) * other)
