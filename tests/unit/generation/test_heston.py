"""The pricer against textbook formulas and another contour."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from kubestill.runtime.generation.systems.heston import MATURITIES, STRIKES, Heston
from kubestill.runtime.generation.systems.implied import implied_deviation

ROWS = [
    {"v0": 0.02, "rho": -0.5, "sigma": 0.3, "theta": 0.09, "kappa": 3.0},
    {"v0": 0.04, "rho": -0.9, "sigma": 0.9, "theta": 0.15, "kappa": 1.5},
    {"v0": 0.01, "rho": -0.2, "sigma": 0.05, "theta": 0.04, "kappa": 8.0},
]


def lewis(row: dict[str, float], log_strike: float, maturity: float) -> float:
    """Price a call on the line a = -1/2 (Lewis 2000, eq. 3.11) by adaptive quadrature."""
    v0, rho, sigma, theta, kappa = row.values()

    def integrand(u: float) -> float:
        z = 0.5 + 1j * u
        beta = kappa - rho * sigma * z
        root = np.sqrt(beta * beta - sigma**2 * (z * z - z))
        g, gone = (beta - root) / (beta + root), np.exp(-root * maturity)
        level = (beta - root) * maturity - 2 * np.log((1 - g * gone) / (1 - g))
        slope = (beta - root) * (1 - gone) / (1 - g * gone)
        log_phi = (kappa * theta * level + v0 * slope) / sigma**2
        return float((np.exp(log_phi - 1j * u * log_strike)).real / (u * u + 0.25))

    total = sum(
        quad(integrand, a, a + 50, epsabs=1e-15, epsrel=1e-13, limit=400)[0]
        for a in range(0, 400, 50)
    )
    return 1 - np.exp(log_strike / 2) / np.pi * total


@pytest.mark.parametrize("row", ROWS, ids=["mild", "skewed", "calm"])
def test_prices_agree_with_another_contour(row: dict[str, float]) -> None:
    surface = Heston().solve(pd.DataFrame([row]))[0]
    compared = 0
    for place, maturity in [(0, MATURITIES[0]), (3, MATURITIES[3]), (7, MATURITIES[7])]:
        for column in (3, 5, 7):
            log_strike = float(np.log(STRIKES[column]))
            call = lewis(row, log_strike, maturity)
            price = call if log_strike >= 0 else call - 1 + np.exp(log_strike)
            if price < 1e-6:
                continue
            deviation = implied_deviation(np.array(log_strike), np.array(np.log(price)))
            expected = float(deviation) / np.sqrt(maturity)
            assert surface[place, column] == pytest.approx(expected, rel=2e-6)
            compared += 1
    assert compared >= 5


def test_more_nodes_change_nothing_a_dataset_can_hold() -> None:
    domain = Heston().domain
    unit = np.random.default_rng(0).uniform(size=(32, 5))
    inputs = domain.at(unit)
    once, twice = Heston().solve(inputs), Heston(nodes=96).solve(inputs)
    np.testing.assert_allclose(once, twice, rtol=6e-8)


@pytest.mark.parametrize("deviation", [0.005, 0.05, 0.5, 2.0])
@pytest.mark.parametrize("strike", [0.5, 0.97, 1.0, 1.4])
def test_an_implied_deviation_gives_the_price_back(strike: float, deviation: float) -> None:
    k = float(np.log(strike))
    upper = -k / deviation + deviation / 2
    sign = 1.0 if k >= 0 else -1.0
    price = sign * (ndtr(sign * upper) - strike * ndtr(sign * (upper - deviation)))
    if price < 1e-12:
        pytest.skip("cancelled away in this textbook form")
    found: Any = implied_deviation(np.array(k), np.array(np.log(price)))
    assert float(found) == pytest.approx(deviation, rel=1e-3 * 1e-12 / price + 1e-9)


def test_prices_too_small_for_any_float_still_have_a_volatility() -> None:
    found = implied_deviation(np.array(0.4), np.array(-4000.0))
    # log price = -k^2 / (2 s^2) to leading order.
    assert float(found) == pytest.approx(0.4 / np.sqrt(8000), rel=1e-2)
