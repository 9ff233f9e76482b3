"""Darcy flow through a random medium in two dimensions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu

from kubestill.errors import Problems
from kubestill.runtime.base.random import normals
from kubestill.runtime.generation.systems.domain import Domain, stacked
from kubestill.runtime.generation.systems.inputs import Field
from kubestill.runtime.generation.systems.system import Axis, Output, System

WAVES = 12
"""Cosines of the random field along each dimension; the shortest has 1/126 of the longest one's
spread."""

Floats = NDArray[np.float64]


class Darcy(System):
    """-div(a grad u) = 1 on the unit square, u = 0 on its edge: permeability a to pressure u.

    The permeability follows Li et al. 2020, "Fourier neural operator", section 5.2: a Gaussian
    random field with covariance (-Laplace + 9)^-2 and zero slopes at the edge, drawn by its
    Karhunen-Loeve series; `high` where it is positive and `low` elsewhere, or exp(9 times it).
    Solved by finite volumes, one for each point, with harmonic means of the permeability at their
    faces (Eymard et al. 2000, section 3.1) and a direct factorisation: exact for these equations to
    rounding. They approach the differential equation's solution with the square of the distance
    between points where the permeability is smooth.

    Args:
        points: Points along each side, at the centres of cells: 4 or more.
        medium: `two-phase`, or `log-normal`.
        low: Permeability of the tighter phase, above 0.
        high: Permeability of the other, not below `low`.
    """

    name = "darcy"
    parallel = True

    def __init__(
        self, points: int = 32, medium: str = "two-phase", low: float = 3.0, high: float = 12.0
    ) -> None:
        problems = Problems()
        if points < 4:
            problems.add("points", points, "give 4 or more")
        if medium not in ("two-phase", "log-normal"):
            problems.add("medium", medium, "give two-phase or log-normal")
        if not 0 < low <= high < np.inf:
            problems.add("low", low, f"must be above 0 and not above high, {high}")
        problems.raise_if_any()
        self._points, self._medium, self._low, self._high = points, medium, low, high
        self.domain = Domain(
            [
                Field(
                    name="permeability",
                    shape=(points, points),
                    numbers=WAVES**2 - 1,
                    draw=self._draw,
                )
            ]
        )
        places = tuple(float(x) for x in (np.arange(points) + 0.5) / points)
        axes = (Axis(name="y", values=places), Axis(name="x", values=places))
        self.output = Output(name="pressure", axes=axes)

    def solve(self, inputs: pd.DataFrame) -> Floats:
        """Return pressures [N, points, points]."""
        fields = stacked(inputs["permeability"]).astype(np.float64)
        fields = fields.reshape(len(inputs), self._points, self._points)
        return np.stack([_solve(field) for field in fields])

    def _draw(self, unit: Floats) -> Floats:
        """Turn unit numbers [N, WAVES^2 - 1] into permeabilities [N, points, points]."""
        waves = np.arange(WAVES)
        place = (np.arange(self._points) + 0.5) / self._points
        cosines = np.cos(np.pi * waves[:, None] * place) * np.where(waves[:, None], 2**0.5, 1.0)
        spread = 1 / (np.pi**2 * (waves[:, None] ** 2 + waves**2) + 9)
        # The mean is left out: it would make some fields all of one phase.
        drawn = np.concatenate([np.zeros((len(unit), 1)), normals(unit)], axis=1)
        drawn = drawn.reshape(-1, WAVES, WAVES) * spread
        field = np.zeros((len(unit), self._points, self._points))
        # Elementwise sums: a matrix product would depend on how many rows there are.
        for j in range(WAVES):
            along = np.zeros((len(unit), self._points))
            for i in range(WAVES):
                along += drawn[:, j, i, None] * cosines[i]
            field += cosines[j][:, None] * along[:, None, :]
        if self._medium == "log-normal":
            return np.exp(9 * field)
        return np.where(field > 0, self._high, self._low)


def _solve(permeability: Floats) -> Floats:
    """Return the pressure [n, n] of one medium: the flows out of each cell add up to its source."""
    points = len(permeability)
    size = points * points
    cell = np.arange(size).reshape(points, points)
    resistance = 1 / permeability
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    values: list[Floats] = []
    diagonal = np.zeros((points, points))
    for axis in (0, 1):
        before, after = _sides(axis)
        # The flow through a face, for a difference of 1: distances and lengths cancel.
        through = 2 / (resistance[before] + resistance[after])
        for here, there in ((before, after), (after, before)):
            diagonal[here] += through
            rows.append(cell[here].ravel())
            columns.append(cell[there].ravel())
            values.append(-through.ravel())
        # Half a cell to the edge, where the pressure is 0.
        for end in (0, -1):
            edge: tuple[slice | int, ...] = (end, slice(None)) if axis == 0 else (slice(None), end)
            diagonal[edge] += 2 * permeability[edge]
    rows.append(cell.ravel())
    columns.append(cell.ravel())
    values.append(diagonal.ravel())
    places = np.concatenate(rows), np.concatenate(columns)
    matrix = csc_array((np.concatenate(values), places), shape=(size, size))
    source = np.full(size, 1 / size)
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    return factors.solve(source).reshape(points, points)


def _sides(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where the cells on either side of each inner face across an axis lie."""
    before, after = slice(None, -1), slice(1, None)
    every = slice(None)
    return ((before, every), (after, every)) if axis == 0 else ((every, before), (every, after))
