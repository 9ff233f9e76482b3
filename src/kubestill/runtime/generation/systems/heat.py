"""Solve the heat equation in a rod whose ends are kept cold."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import erfc

from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Continuous
from kubestill.runtime.generation.systems.system import Output, System
from kubestill.runtime.generation.systems.taylor import (
    Taylor,
    exp,
    gaussian_tail,
    rounded_kink,
    sin,
    split,
    sqrt,
)

TERMS = 128
"""Odd modes n up to 255: what is left out is below exp(-(257 pi)^2 * 1e-4) = 1e-28."""
IMAGES = 12
"""Images on either side: what is left out is below erfc(12 / sqrt(4 * 1)) = 1e-16."""
EARLY = 0.03
"""Diffusivity times time below which images converge faster than modes."""
SOLVER_ROUNDING = 1e-13
"""Bounds what `solve` loses in float64: some 25 roundings of numbers below 1."""

Floats = NDArray[np.float64]


class Heat(System):
    """u_t = d u_xx on 0 < x < 1, with u = 0 at both ends and the tent 1 - |2x - 1| at the start.

    Solved by its Fourier series (Carslaw & Jaeger 1959, "Conduction of heat in solids", section
    3.3). The reference sums images instead: the tent's odd continuation is made of kinks |x - x_j|,
    and a kink under diffusion is z erf(z / s) + s exp(-z^2 / s^2) / sqrt(pi) with s^2 = 4 d t.
    """

    name = "heat"
    parallel = True

    def __init__(self) -> None:
        self.domain = Domain(
            [
                Continuous(name="position", low=0.0, high=1.0, unit="lengths of the rod"),
                Continuous(name="time", low=1e-3, high=0.5, mapping="log", unit="s"),
                Continuous(name="diffusivity", low=0.1, high=1.0, unit="lengths^2 / s"),
            ]
        )
        self.output = Output(name="temperature", unit="of the peak at the start")

    def solve(self, inputs: pd.DataFrame) -> Floats:
        """Return temperatures [N]."""
        position, spread = self._read(inputs)
        result = np.zeros(len(position))
        for k in range(TERMS):
            n = 2 * k + 1
            mode = np.sin(n * np.pi * position) * np.exp(-((n * np.pi) ** 2) * spread)
            result += (-1) ** k / n**2 * mode
        return 8 / np.pi**2 * result

    def reference(self, inputs: pd.DataFrame) -> Floats:  # pyright: ignore
        """Return temperatures [N] by images."""
        position, spread = self._read(inputs)
        scale = np.sqrt(4 * spread)
        result = 1 - np.abs(2 * position - 1)
        for m in range(-IMAGES, IMAGES + 1):
            distance = np.abs(position - 0.5 - m) / scale
            # How far diffusion lifts a kink |z| above itself.
            rise = np.exp(-(distance**2)) / np.sqrt(np.pi) - distance * erfc(distance)
            result += -2 * (-1) ** m * scale * rise
        return result

    def expand(self, inputs: Mapping[str, Taylor]) -> Taylor:  # pyright: ignore
        """Enclose temperatures: by images early on, by the Fourier series later."""
        position = inputs["position"]
        spread = inputs["diffusivity"] * inputs["time"]
        early = spread.value < EARLY
        images = _expand_images(position.take(early), spread.take(early))
        modes = _expand_modes(position.take(~early), spread.take(~early))
        return split(early, images, modes).widened(SOLVER_ROUNDING)

    def _read(self, inputs: pd.DataFrame) -> tuple[Floats, Floats]:
        columns = (inputs[name].to_numpy(np.float64) for name in self.domain.names)
        position, time, diffusivity = columns
        return position, diffusivity * time


def _expand_images(position: Taylor, spread: Taylor) -> Taylor:
    """Sum the images of up to two rods away; at 2.5 rods and more, each rises below its bell."""
    scale = sqrt(spread * 4.0)
    place = (position - 0.5) / scale
    result = 1.0 - 2.0 * scale * rounded_kink(place)
    for m in (1, 2):
        rod = m / scale
        rise = gaussian_tail(rod - place) + gaussian_tail(rod + place)
        result = result + (-1) ** (m + 1) * 2.0 * scale * rise
    widest = np.maximum(scale.high, 0.0)
    with np.errstate(divide="ignore"):
        left_out = 8 * widest * np.exp(-((2.5 / widest) ** 2))
    # The images further out are a geometric series, as long as these bells are narrow.
    return result.widened(np.where(widest < 1.5, left_out, np.inf))


def _expand_modes(position: Taylor, spread: Taylor) -> Taylor:
    """Sum the modes n < 11; what is left out is below the sum of 8 / (pi n)^2 times the largest."""
    result = position * 0.0
    for k in range(5):
        n = 2 * k + 1
        mode = sin(position * (n * math.pi)) * exp(spread * (-((n * math.pi) ** 2)))
        result = result + mode * ((-1) ** k / n**2 * (8 / math.pi**2))
    shortest = np.maximum(spread.low, 0.0)
    return result.widened(0.05 * np.exp(-((11 * np.pi) ** 2) * shortest))
