"""Turn a domain into boxes: ranges of its continuous inputs, for every choice of the others.

Boxes are rows of arrays, so that thousands of them are split and bounded at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import Problems
from kubestill.runtime.certification.proof.bounds import HUGE
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Choice, Continuous, Floats, Integer, Levels
from kubestill.runtime.generation.systems.taylor import centred

MOST_CHOICES = 100_000
"""Combinations of discrete inputs; each is a domain of its own."""


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """N boxes."""

    low: Floats
    """[N, d], of the continuous inputs."""
    high: Floats
    """[N, d]"""
    choice: NDArray[np.int64]
    """[N], which combination of the discrete inputs."""

    def __len__(self) -> int:
        return len(self.choice)

    def take(self, rows: NDArray[Any]) -> Boxes:
        """Return some of them, by a mask or by indices."""
        return Boxes(**{name: values[rows] for name, values in vars(self).items()})

    @staticmethod
    def join(parts: list[Boxes]) -> Boxes:
        """Return all boxes of several."""
        names = ("low", "high", "choice")
        return Boxes(**{name: np.concatenate([vars(p)[name] for p in parts]) for name in names})

    @property
    def centred(self) -> tuple[Floats, Floats]:
        """Centres and radii: [N, d], [N, d]."""
        return centred(self.low, self.high)


class Space:
    """The domain of a proof.

    Args:
        domain: What the inputs are.
        breaks: Where boxes are cut first, by name of the input.

    Raises:
        InvalidInput: Unbounded inputs, fields, no continuous input, too many discrete
            combinations; all of them.
    """

    def __init__(self, domain: Domain, breaks: Mapping[str, Any] | None = None):
        problems = Problems()
        varying: list[Continuous] = []
        levels: dict[str, NDArray[Any]] = {}
        for given in domain.inputs:
            match given:
                case Continuous(mapping="linear" | "log"):
                    varying.append(given)
                    if max(map(abs, given.bounds)) > HUGE:
                        remedy = "float32, which networks read, overflows there; rescale the input"
                        problems.add(f"input {given.name!r}", given.bounds, remedy)
                case Continuous():
                    remedy = "unbounded: a proof needs finite bounds and the mapping linear or log"
                    problems.add(f"input {given.name!r}", given.mapping, remedy)
                case Integer() | Levels() | Choice():
                    every = np.arange(given.levels)
                    levels[given.name] = np.asarray(given.on_grid(every, given.levels))
                case _:
                    remedy = "nothing is proven over fields; ask for the assurance 'sampled'"
                    problems.add(f"input {given.name!r}", type(given).__name__, remedy)
        count = math.prod(len(values) for values in levels.values())
        if count > MOST_CHOICES:
            remedy = f"combinations of discrete inputs; {MOST_CHOICES:,} can be proven one by one"
            problems.add("domain", count, remedy)
        if not varying and not len(problems):
            remedy = "has no continuous input; ask for the assurance 'enumerated'"
            problems.add("domain", domain.describe(), remedy)
        problems.raise_if_any()
        self.domain = domain
        self.varying = tuple(varying)
        """The continuous inputs, in the order of the columns of boxes."""
        self.names = tuple(given.name for given in varying)
        combined = list(itertools.product(*levels.values()))
        self._levels = {
            name: np.asarray([choice[place] for choice in combined])
            for place, name in enumerate(levels)
        }
        self._breaks = [np.asarray((breaks or {}).get(name, ()), np.float64) for name in self.names]
        self._log = np.array([given.mapping == "log" for given in varying])

    @property
    def whole(self) -> Boxes:
        """The domain itself, one box for every combination of the discrete inputs."""
        choices = max(1, len(next(iter(self._levels.values()), ())))
        ends = np.array([given.bounds for given in self.varying], np.float64)
        low, high = (np.tile(ends[:, side], (choices, 1)) for side in (0, 1))
        return Boxes(low=low, high=high, choice=np.arange(choices))

    def chosen(self, boxes: Boxes) -> dict[str, NDArray[Any]]:
        """Return the values of the discrete inputs, [N], by name."""
        return {name: values[boxes.choice] for name, values in self._levels.items()}

    def columns(self, points: Floats, boxes: Boxes) -> dict[str, NDArray[Any]]:
        """Return the inputs, [N] by name, at points [N, d] of these boxes."""
        found = dict(zip(self.names, points.T, strict=True)) | self.chosen(boxes)
        return {name: found[name] for name in self.domain.names}

    def frame(self, points: Floats, boxes: Boxes) -> pd.DataFrame:
        """Return points [N, d] of these boxes as rows of inputs."""
        return pd.DataFrame(self.columns(points, boxes))

    def extents(self, boxes: Boxes) -> Floats:
        """Return edges as shares of the domain's, on the scale that an input is covered: [N, d]."""
        ends = np.array([given.bounds for given in self.varying], np.float64)
        linear = (boxes.high - boxes.low) / (ends[:, 1] - ends[:, 0])
        if not self._log.any():
            return linear
        with np.errstate(all="ignore"):
            spread = np.log(ends[:, 1]) - np.log(ends[:, 0])
            log = (np.log(boxes.high) - np.log(boxes.low)) / spread
        return np.where(self._log, log, linear)

    def room(self, boxes: Boxes) -> Floats:
        """Return the extents along which boxes can be cut, 0 along the others: [N, d]."""
        inside = np.nextafter(boxes.low, np.inf) < boxes.high
        return np.where(inside, self.extents(boxes), 0.0)

    def halves(self, boxes: Boxes, along: NDArray[np.int64]) -> Boxes:
        """Cut every box in two, along one dimension each: [2 N]."""
        rows = np.arange(len(boxes))
        low, high = boxes.low[rows, along], boxes.high[rows, along]
        middle = low / 2 + high / 2
        # Of a wide range that is covered by its logarithm.
        wide = self._log[along] & (high > 2 * low)
        with np.errstate(all="ignore"):
            middle = np.where(wide, np.sqrt(low) * np.sqrt(high), middle)
        for place, breaks in enumerate(self._breaks):
            if len(breaks):
                middle = np.where(along == place, _next_break(breaks, low, middle, high), middle)
        middle = np.clip(middle, low, high)
        left, right = boxes.high.copy(), boxes.low.copy()
        left[rows, along], right[rows, along] = middle, middle
        return Boxes.join(
            [
                Boxes(low=boxes.low, high=left, choice=boxes.choice),
                Boxes(low=right, high=boxes.high, choice=boxes.choice),
            ]
        )


def _next_break(breaks: Floats, low: Floats, middle: Floats, high: Floats) -> Floats:
    """Return the break that is closest to the middle; the middle itself where none is inside."""
    above = np.searchsorted(breaks, middle)
    either = [breaks[np.clip(above - side, 0, len(breaks) - 1)] for side in (0, 1)]
    # What is not inside is infinitely far.
    far = [np.where((b > low) & (b < high), np.abs(b - middle), np.inf) for b in either]
    nearest = np.where(far[0] <= far[1], *either)
    return np.where(np.isinf(np.minimum(*far)), middle, nearest)
