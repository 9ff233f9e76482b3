"""Robertson's chemical reaction: a stiff system of ordinary differential equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.integrate import LSODA, Radau, solve_ivp

from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Continuous
from kubestill.runtime.generation.systems.system import Axis, Output, System

TOLERANCE = 1e-11
"""Relative error of a step."""
SMALLEST = (1e-13, 1e-17, 1e-13)
"""Absolute error of a step for each species: the second never exceeds some 1e-4."""

Floats = NDArray[np.float64]


class Robertson(System):
    """Three species A, B, C: A turns into B, B with B into C and B, B with C into A and C.

    Robertson 1966, "The solution of a set of reaction rate equations", in the form of Hairer &
    Wanner 1996, "Solving ordinary differential equations II", section IV.1: with rates of 0.04,
    3e7 and 1e4, scales of time lie nine orders of magnitude apart. All starts as A; the output is
    the three concentrations at `time`. Solved by LSODA, whose stiff steps are backward
    differentiation formulas (Hindmarsh 1983); the reference is Radau IIA, an implicit Runge-Kutta
    method.
    """

    name = "robertson"

    def __init__(self) -> None:
        self.domain = Domain(
            [
                Continuous(name="time", low=1e-3, high=1e4, mapping="log", unit="s"),
                Continuous(name="decay", low=0.02, high=0.08, mapping="log", unit="1 / s"),
                Continuous(name="pairing", low=1e7, high=1e8, mapping="log", unit="1 / s"),
                Continuous(name="return", low=3e3, high=3e4, mapping="log", unit="1 / s"),
            ]
        )
        species = Axis(name="species", values=(1.0, 2.0, 3.0))
        self.output = Output(name="concentration", axes=(species,), unit="of the whole")

    def solve(self, inputs: pd.DataFrame) -> Floats:
        """Return concentrations [N, 3]."""
        return self._solve(inputs, LSODA, TOLERANCE)

    def reference(self, inputs: pd.DataFrame) -> Floats:  # pyright: ignore
        """Return concentrations [N, 3] by Radau IIA."""
        return self._solve(inputs, Radau, 10 * TOLERANCE)

    def _solve(self, inputs: pd.DataFrame, method: Any, tolerance: float) -> Floats:
        rows = inputs[list(self.domain.names)].to_numpy(np.float64)
        return np.stack([_integrate(*row, method=method, tolerance=tolerance) for row in rows])


def _integrate(
    time: float, decay: float, pairing: float, back: float, *, method: Any, tolerance: float
) -> Floats:
    """Return the three concentrations at a time."""

    def rates(_: float, y: Floats) -> Floats:
        lost, gained, paired = decay * y[0], back * y[1] * y[2], pairing * y[1] ** 2
        return np.array([gained - lost, lost - gained - paired, paired])

    def slopes(_: float, y: Floats) -> Floats:
        one, two, pairs = back * y[2], back * y[1], 2 * pairing * y[1]
        return np.array([[-decay, one, two], [decay, -one - pairs, -two], [0.0, pairs, 0.0]])

    solved = solve_ivp(
        rates, (0.0, time), [1.0, 0.0, 0.0], method, jac=slopes, rtol=tolerance, atol=SMALLEST
    )
    if not solved.success:
        raise ArithmeticError(f"the integration stopped: {solved.message}")
    return solved.y[:, -1]
