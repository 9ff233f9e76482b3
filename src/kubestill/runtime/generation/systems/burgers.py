"""Burgers' equation in one dimension, from a random initial condition."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import Problems
from kubestill.runtime.base.random import normals
from kubestill.runtime.generation.systems.domain import Domain, stacked
from kubestill.runtime.generation.systems.inputs import Field
from kubestill.runtime.generation.systems.system import Axis, Output, System

MODES = 64
"""Modes of the initial condition; the amplitude of mode 64 is 1/3000 of the mean's."""
FINE = 8
"""Factor by which the grid of the reference is finer."""

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]


class Burgers(System):
    """u_t + u u_x = nu u_xx on the periodic unit interval: u at time 0 to u at `time`.

    The initial condition is a Gaussian random field with covariance 625 (-d^2/dx^2 + 25)^-2, as in
    Li et al. 2020, "Fourier neural operator", section 5.1, drawn by its Karhunen-Loeve series.
    Solved pseudo-spectrally: fourth-order Runge-Kutta with the diffusion integrated exactly
    (Kassam & Trefethen 2005, section 2, IFRK4), aliasing removed by the two-thirds rule. The
    reference is the exact solution of Cole 1951 and Hopf 1950: with u = -2 nu phi_x / phi, phi
    obeys the heat equation, once the mean velocity is taken off by a moving frame.

    Args:
        points: Points of the grid: a power of two, 64 or more.
        viscosity: nu, above 0.
        time: Time of the solution, above 0.
        steps: Steps of the integration.
    """

    name = "burgers"
    parallel = True

    def __init__(
        self, points: int = 256, viscosity: float = 0.1, time: float = 1.0, steps: int = 512
    ) -> None:
        problems = Problems()
        if points < 64 or points & (points - 1):
            problems.add("points", points, "give a power of two from 64 on")
        for field, value in (("viscosity", viscosity), ("time", time), ("steps", steps)):
            if not value > 0:
                problems.add(field, value, "must be above 0")
        problems.raise_if_any()
        self._points, self._viscosity, self._time, self._steps = points, viscosity, time, steps
        self.domain = Domain(
            [Field(name="u0", shape=(points,), numbers=2 * MODES - 1, draw=self._draw)]
        )
        places = tuple(float(x) for x in np.arange(points) / points)
        self.output = Output(name="u", axes=(Axis(name="x", values=places),))

    def solve(self, inputs: pd.DataFrame) -> Floats:
        """Return velocities [N, points]."""
        u = np.fft.rfft(self._read(inputs), axis=1)
        wave = 2j * np.pi * np.arange(u.shape[1])
        kept = np.arange(u.shape[1]) <= self._points // 3
        step = self._time / self._steps
        half = np.exp(self._viscosity * (wave**2).real * step / 2)

        def advection(v: Complex) -> Complex:
            return -0.5 * wave * kept * np.fft.rfft(np.fft.irfft(v, axis=1) ** 2, axis=1)

        for _ in range(self._steps):
            a = step * advection(u)
            b = step * advection(half * (u + a / 2))
            c = step * advection(half * u + b / 2)
            d = step * advection(half * half * u + half * c)
            u = half * half * u + (half * half * a + 2 * half * (b + c) + d) / 6
        return np.fft.irfft(u, axis=1)

    def reference(self, inputs: pd.DataFrame) -> Floats:  # pyright: ignore
        """Return velocities [N, points] by the Cole-Hopf transformation."""
        u = np.fft.rfft(self._read(inputs), axis=1)
        count = FINE * self._points
        mean = u[:, :1].real / self._points
        fine = np.zeros((len(u), count // 2 + 1), complex)
        fine[:, 1 : u.shape[1]] = u[:, 1:] * FINE
        wave = 2j * np.pi * np.arange(count // 2 + 1)
        potential = np.zeros_like(fine)
        potential[:, 1:] = fine[:, 1:] / wave[1:]
        phi = np.exp(-np.fft.irfft(potential, axis=1) / (2 * self._viscosity))
        decay = np.exp(self._viscosity * (wave**2).real * self._time)
        # In the frame that moves with the mean velocity, then back.
        shifted = np.fft.rfft(phi, axis=1) * decay * np.exp(-wave * mean * self._time)
        slope = np.fft.irfft(wave * shifted, axis=1)
        u = mean - 2 * self._viscosity * slope / np.fft.irfft(shifted, axis=1)
        return u[:, ::FINE]

    def _draw(self, unit: Floats) -> Floats:
        """Turn unit numbers [N, 2 MODES - 1] into fields [N, points]."""
        gauss = normals(unit)
        k = np.arange(MODES)
        spread = 25.0 / ((2 * np.pi * k) ** 2 + 25.0)
        x = np.arange(self._points) / self._points
        angle = 2 * np.pi * k[:, None] * x[None, :]
        # Elementwise sums: a matrix product would depend on how many rows there are.
        field = gauss[:, :1] * spread[0] * np.ones((1, self._points))
        for mode in range(1, MODES):
            scale = np.sqrt(2) * spread[mode]
            field += scale * gauss[:, 2 * mode - 1 : 2 * mode] * np.cos(angle[mode])
            field += scale * gauss[:, 2 * mode : 2 * mode + 1] * np.sin(angle[mode])
        return field

    def _read(self, inputs: pd.DataFrame) -> Floats:
        return stacked(inputs["u0"]).reshape(len(inputs), self._points).astype(np.float64)
