"""Compute implied volatility from the logarithm of a price, however small the price."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx

Floats = NDArray[np.float64]

ROOT_2_PI = float(np.sqrt(2 * np.pi))
STEPS = 14
"""Newton steps: each squares the error, and the start is close if prices are small."""


def implied_deviation(log_strike: Floats, log_price: Floats) -> Floats:
    """Return volatility times the square root of maturity, of any shape.

    With k = |log strike| >= 0 and s the deviation, the price over sqrt(strike) is (Jaeckel 2015,
    "Let's be rational", eq. 6.1, rewritten by erfcx)

        b(s) = exp(-k^2/2s^2 - s^2/8) (erfcx(q) - erfcx(q + s/sqrt(2))) / 2, q = (k/s - s/2)/sqrt(2)

    for calls, and a put is a call of the reciprocal strike. log b is concave in log s, so that
    Newton steps from below the root stay below and converge.

    Args:
        log_strike: Strike over forward.
        log_price: Of the option out of the money, in forwards: a call for log_strike >= 0.
    """
    k = np.abs(log_strike)
    wanted = log_price - log_strike / 2
    with np.errstate(divide="ignore"):
        # Both are lower bounds of s.
        s = np.maximum(k / np.sqrt(-2 * np.minimum(wanted, -1e-300)), np.exp(wanted) * ROOT_2_PI)
    for _ in range(STEPS):
        q = (k / s - s / 2) / np.sqrt(2)
        difference = erfcx(q) - erfcx(q + s / np.sqrt(2))
        log_b = -((k / s) ** 2) / 2 - s * s / 8 + np.log(difference / 2)
        # d log b / d log s, with db/ds the density.
        slope = 2 * s / (ROOT_2_PI * difference)
        s = s * np.exp((wanted - log_b) / slope)
    return s
