"""European options in closed form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr

from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Continuous
from kubestill.runtime.generation.systems.system import Output, System
from kubestill.runtime.generation.systems.taylor import Taylor, exp, log, normal_cdf, sqrt

NODES = 400
DEVIATIONS = 10.0
SOLVER_ROUNDING = 1e-13
"""Bounds what `solve` loses in float64: d1 and d2 are within 10 roundings where they matter."""

Floats = NDArray[np.float64]


class BlackScholes(System):
    """The price of a call, in strikes (Black & Scholes 1973, eq. 13).

    The reference integrates the discounted payoff over the lognormal density of the final price by
    Gauss-Legendre, from the strike up.
    """

    name = "black-scholes"

    def __init__(self) -> None:
        self.domain = Domain(
            [
                Continuous(name="moneyness", low=0.5, high=2.0, unit="spot / strike"),
                Continuous(name="maturity", low=0.05, high=2.0, unit="years"),
                Continuous(name="rate", low=0.0, high=0.1, unit="1 / year"),
                Continuous(name="volatility", low=0.05, high=0.6, unit="1 / sqrt(year)"),
            ]
        )
        self.output = Output(name="price", unit="strikes")

    def solve(self, inputs: pd.DataFrame) -> Floats:
        """Return prices [N]."""
        spot, maturity, rate, volatility = self._read(inputs)
        deviation = volatility * np.sqrt(maturity)
        discount = np.exp(-rate * maturity)
        upper = (np.log(spot) + rate * maturity) / deviation + deviation / 2
        return spot * ndtr(upper) - discount * ndtr(upper - deviation)

    def reference(self, inputs: pd.DataFrame) -> Floats:  # pyright: ignore
        """Return prices [N] by quadrature."""
        spot, maturity, rate, volatility = self._read(inputs)
        deviation = volatility * np.sqrt(maturity)
        drift = np.log(spot) + (rate - volatility**2 / 2) * maturity
        # Standard normal z of the final log price from where the payoff starts.
        start = np.clip(-drift / deviation, -DEVIATIONS, DEVIATIONS + 2)
        stop = DEVIATIONS + 3 + np.zeros_like(start)
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        total = np.zeros_like(spot)
        for node, weight in zip(nodes, weights, strict=True):
            z = start + (stop - start) * (node + 1) / 2
            payoff = np.expm1(drift + deviation * z)
            density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
            total += weight * payoff * density
        return np.exp(-rate * maturity) * total * (stop - start) / 2

    def expand(self, inputs: Mapping[str, Taylor]) -> Taylor:  # pyright: ignore
        """Enclose prices, by the formula itself."""
        spot, maturity, rate, volatility = (inputs[name] for name in self.domain.names)
        deviation = volatility * sqrt(maturity)
        interest = rate * maturity
        upper = (log(spot) + interest) / deviation + deviation / 2.0
        price = spot * normal_cdf(upper) - exp(-interest) * normal_cdf(upper - deviation)
        return price.widened(SOLVER_ROUNDING)

    def _read(self, inputs: pd.DataFrame) -> tuple[Floats, Floats, Floats, Floats]:
        columns = (inputs[name].to_numpy(np.float64) for name in self.domain.names)
        spot, maturity, rate, volatility = columns
        return spot, maturity, rate, volatility
