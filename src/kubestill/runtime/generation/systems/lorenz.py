"""A chaotic system of ordinary differential equations."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from kubestill.errors import Problems
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Continuous
from kubestill.runtime.generation.systems.system import Axis, Output, System

SIGMA, BETA = 10.0, 8 / 3
STEPS_A_UNIT = 2000

Floats = NDArray[np.float64]


class Lorenz(System):
    """x' = 10 (y - x), y' = x (rho - z) - y, z' = xy - 8/3 z (Lorenz 1963, eqs. 25-27).

    From a state and rho to the trajectory that follows. Neighbouring trajectories diverge as
    exp(0.9 t): beyond a few units of time no finite number of rows covers the domain, and the
    default of one unit is well within. Solved by classical Runge-Kutta with 2,000 steps a unit;
    the reference is DOP853 (Hairer et al. 1993) at a tolerance of 1e-12.

    Args:
        time: Length of the trajectory, above 0.
        samples: Number of states along it, evenly spaced, the last at `time`.
    """

    name = "lorenz"

    def __init__(self, time: float = 1.0, samples: int = 20) -> None:
        problems = Problems()
        if not 0 < time <= 20:
            problems.add("time", time, "give a number above 0 and up to 20")
        if samples < 1:
            problems.add("samples", samples, "give at least one")
        problems.raise_if_any()
        self._times = time * (1 + np.arange(samples)) / samples
        self.domain = Domain(
            [
                Continuous(name="x", low=-20.0, high=20.0),
                Continuous(name="y", low=-25.0, high=25.0),
                Continuous(name="z", low=0.0, high=50.0),
                Continuous(name="rho", low=24.0, high=32.0),
            ]
        )
        self.output = Output(
            name="trajectory",
            axes=(
                Axis(name="time", values=tuple(map(float, self._times))),
                Axis(name="component", values=(0.0, 1.0, 2.0)),
            ),
        )

    def solve(self, inputs: pd.DataFrame) -> Floats:
        """Return trajectories [N, samples, 3]."""
        state, rho = self._read(inputs)
        every = max(1, int(np.ceil(STEPS_A_UNIT * self._times[0])))
        step = float(self._times[0]) / every
        result = np.empty((len(inputs), len(self._times), 3))
        for sample in range(len(self._times)):
            for _ in range(every):
                a = _slope(state, rho)
                b = _slope(state + step / 2 * a, rho)
                c = _slope(state + step / 2 * b, rho)
                d = _slope(state + step * c, rho)
                state = state + step / 6 * (a + 2 * (b + c) + d)
            result[:, sample] = state.T
        return result

    def reference(self, inputs: pd.DataFrame) -> Floats:  # pyright: ignore
        """Return trajectories [N, samples, 3], a row at a time."""
        states, rhos = self._read(inputs)
        result = np.empty((len(inputs), len(self._times), 3))
        for row in range(len(inputs)):
            rho = rhos[row : row + 1]
            found = solve_ivp(
                lambda _, state, rho=rho: _slope(state[:, None], rho)[:, 0],
                (0.0, float(self._times[-1])),
                states[:, row],
                method="DOP853",
                t_eval=self._times,
                rtol=1e-12,
                atol=1e-12,
            )
            result[row] = found.y.T
        return result

    def _read(self, inputs: pd.DataFrame) -> tuple[Floats, Floats]:
        state = np.stack([inputs[name].to_numpy(np.float64) for name in ("x", "y", "z")])
        return state, inputs["rho"].to_numpy(np.float64)


def _slope(state: Floats, rho: Floats) -> Floats:
    """Return the time derivative of states [3, N]."""
    x, y, z = state
    return np.stack([SIGMA * (y - x), x * (rho - z) - y, x * y - BETA * z])
