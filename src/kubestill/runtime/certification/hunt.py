"""Search for the point of a domain at which a surrogate is furthest from its solver."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.runtime.certification.plan import LOOKS, ROUNDS
from kubestill.runtime.certification.truth import Truth, row_errors

Floats = NDArray[np.float64]

_EDGE = 2.0**-53
"""Distance of unit numbers from 0 and 1, as in a covering."""
_RADII = (0.3, 0.15, 0.15, 0.07, 0.07, 0.03, 0.015, 0.005, 0.0015)
"""How far each round looks, as a share of the domain's sides."""
assert len(_RADII) == ROUNDS
_UPHILL = (0.3, 1.0, 3.0)
"""How far looks go along the slope of the error, in radii."""
_FACES = 4
"""Looks that go all the way, each along some of the inputs."""
_STEP = 1e-3
"""Distance over which the slope of the surrogate is taken."""


def hunt(
    truth: Truth, unit: Floats, errors: Floats, count: int, corners: int, *, seed: int
) -> tuple[pd.DataFrame, float]:
    """Return the worst point that a search finds [1 row], and its error.

    The search starts at corners of the domain and at the worst samples, and looks around them ever
    closer, along faces too. Most of its looks are random; others follow the slope of the error: the
    surrogate's own, which costs no solve, less the solver's as the looks before tell it. What it
    finds is no random sample: it says something about the maximum, and nothing about quantiles.

    Args:
        truth: The solver beside its surrogate.
        unit: Points that were compared, as unit numbers: [N, width].
        errors: Their errors: [N].
        count: Points around which to look; 0 returns the worst of the samples.
        corners: Corners of the domain that are compared, at most.
        seed: Of the random looks.
    """
    top = np.argsort(-errors)[: max(count, 1)]
    centre, best = unit[top], errors[top]
    if count:
        search = _Search(truth, np.random.default_rng(seed))
        corner = search.corners(centre.shape[1], corners)
        found = np.concatenate([best, search.errors(corner)[0]])
        which = np.argsort(-found, kind="stable")[: len(centre)]
        centre, best = np.concatenate([centre, corner])[which], found[which]
        for radius in _RADII:
            centre, best = search.look(centre, best, radius)
    first = int(best.argmax())
    return truth.system.domain.at(centre[first : first + 1]), float(best[first])


class _Search:
    """What the rounds have in common."""

    def __init__(self, truth: Truth, generator: np.random.Generator):
        self.truth, self.generator = truth, generator
        self.classes = bool(truth.system.output.classes)
        self._seen: tuple[Floats, Floats] | None = None
        """Looks of the round before, [C, LOOKS, width], and the solutions there."""

    def corners(self, width: int, count: int) -> Floats:
        """Return every corner of the unit cube; random ones if there are more than `count`."""
        if 2**width <= count:
            sides = np.array(list(product((0.0, 1.0), repeat=width)))
        else:
            sides = self.generator.integers(0, 2, (count, width)).astype(np.float64)
        return np.clip(sides, _EDGE, 1 - _EDGE)

    def errors(self, unit: Floats) -> tuple[Floats, Floats]:
        """Return errors [N], minus infinity where the solver fails, and solutions [N, T]."""
        inputs = self.truth.system.domain.at(unit)
        solved = self.truth.solve(inputs)
        errors = row_errors(solved, self.truth.predict(inputs), classes=self.classes)
        return np.where(np.isnan(errors), -np.inf, errors), solved

    def look(self, centre: Floats, best: Floats, radius: float) -> tuple[Floats, Floats]:
        """Look around each centre, [C, width]; return where each has come, and the errors there.

        Each goes its own way: together they would all end at the first hill.
        """
        moved = self._moved(centre, radius)
        if self._seen is not None and not self.classes:
            moved[:, : len(_UPHILL) + _FACES] = self._uphill(centre, radius)
        moved = np.clip(moved, _EDGE, 1 - _EDGE)
        errors, solved = self.errors(moved.reshape(-1, moved.shape[2]))
        errors = errors.reshape(moved.shape[:2])
        self._seen = moved, solved.reshape(*moved.shape[:2], -1)
        at = np.arange(len(centre)), errors.argmax(axis=1)
        better = errors[at] > best
        return np.where(better[:, None], moved[at], centre), np.where(better, errors[at], best)

    def _moved(self, centre: Floats, radius: float) -> Floats:
        """Return random looks: [C, LOOKS, width].

        Some coordinates move, the others stay; half of the time one of them goes all the way. Most
        worst points lie on a face, an edge or in a corner, where a step in every direction at once
        hardly ever ends.
        """
        generator = self.generator
        moved = np.repeat(centre[:, None], LOOKS, axis=1)
        moving = generator.random(moved.shape) < generator.random((*moved.shape[:2], 1))
        moved += radius * generator.uniform(-1, 1, moved.shape) * moving
        to_face = generator.permuted(np.arange(moved.shape[2]) == np.zeros(moved.shape), axis=2)
        to_face &= generator.random((*moved.shape[:2], 1)) < 0.5
        return np.where(to_face, np.where(moved < 0.5, 0.0, 1.0), moved)

    def _uphill(self, centre: Floats, radius: float) -> Floats:
        """Return looks along the slope of the error: [C, len(_UPHILL) + _FACES, width]."""
        assert self._seen is not None
        looks, solved = self._seen
        count, width = centre.shape
        steps = np.concatenate([np.eye(width), -np.eye(width), np.zeros((1, width))]) * _STEP
        ends = np.clip(centre[:, None] + steps, _EDGE, 1 - _EDGE)
        told = self.truth.predict(self.truth.system.domain.at(ends.reshape(-1, width)))
        told = told.reshape(count, len(steps), -1)
        slopes = np.zeros_like(centre)
        for place in range(count):
            known = ~np.isnan(solved[place, :, 0])
            if not known.any():
                continue
            # The solutions are as good as linear over a few radii; the shortest slope that fits
            # them where they are fewer than the inputs.
            away = looks[place, known] - centre[place]
            design = np.concatenate([away, np.full((len(away), 1), radius)], axis=1)
            fitted = np.linalg.lstsq(design, solved[place, known], rcond=1e-6)[0]
            apart = told[place, -1] - fitted[-1] * radius
            output = int(np.abs(apart).argmax())
            span = (ends[place, :width] - ends[place, width : 2 * width]).diagonal()
            mine = (told[place, :width] - told[place, width : 2 * width])[:, output] / span
            slopes[place] = np.sign(apart[output]) * (mine - fitted[:-1, output])
        largest = np.abs(slopes).max(1, keepdims=True)
        along = slopes / np.where(largest > 0, largest, 1.0)
        near = centre[:, None] + radius * np.array(_UPHILL)[:, None] * along[:, None]
        corner = np.where(along > 0, 1.0, np.where(along < 0, 0.0, centre))[:, None]
        share = np.arange(1, _FACES + 1)[:, None] / _FACES
        going = self.generator.random((count, _FACES, width)) < share
        return np.concatenate([near, np.where(going, corner, centre[:, None])], axis=1)
