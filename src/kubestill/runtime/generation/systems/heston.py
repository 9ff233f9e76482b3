"""The Heston model's surface of implied volatilities."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.implied import implied_deviation
from kubestill.runtime.generation.systems.inputs import Continuous
from kubestill.runtime.generation.systems.system import Axis, Output, System

STRIKES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
"""Strikes, in units of the spot."""
MATURITIES = (0.1, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.0)
"""Maturities, in years."""
TILE_ROWS = 32
"""Rows solved at a time, always: intermediate results stay in the cache, and a row's bits do not
depend on how many stand beside it."""

LEAST_DISTANCE, MOST_DISTANCE = -4.0, 14.0
"""Where to search for the saddle: logarithm of its distance from the pole."""
SEARCH_STEPS = 16
LEAST_ANGLE = np.pi / 3
"""Angle of the contour to the real axis: below pi/4 a Gaussian bell would rise along it."""
DEPTH, LEAST_END, MOST_END = 40.0, 4.0, 9.0
"""Fall of the integrand at which the quadrature ends: e^-40."""

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]


class Heston(System):
    """dS = sqrt(V) S dW, dV = kappa (theta - V) dt + sigma sqrt(V) dZ, dW dZ = rho dt; Heston 1993.

    Domain, strikes and maturities are those of Horvath, Muguruza, Tomas 2019, "Deep learning
    volatility", section 4.2: five parameters to 8 x 11 implied volatilities; spot 1, no rates.

    Out-of-the-money prices come from the characteristic function phi of log S, as

        1/pi Int_0^inf Re[e^{-iuk} phi(u - i(a + 1)) / ((a + iu)(a + 1 + iu))] du e^{-ak}

    (Lee 2004, theorem 4.3) on the contour a through the saddle point (Lord & Kahl 2007), where the
    integrand is a bell without oscillation. So even a price of 1e-300 keeps its digits, and with
    it the wings of the surface. phi is in the form without branch cuts of Albrecher et al. 2007.

    Args:
        nodes: Nodes of the quadrature, the trapezoidal rule after u = width sinh(s).
    """

    name = "heston"
    parallel = True

    def __init__(self, nodes: int = 48) -> None:
        self.domain = Domain(
            [
                Continuous(name="v0", low=1e-4, high=0.04, unit="variance / year"),
                Continuous(name="rho", low=-0.95, high=-0.1),
                Continuous(name="sigma", low=0.01, high=1.0, unit="volatility of variance"),
                Continuous(name="theta", low=0.01, high=0.2, unit="variance / year"),
                Continuous(name="kappa", low=1.0, high=10.0, unit="1 / year"),
            ]
        )
        self.output = Output(
            name="implied_volatility",
            axes=(
                Axis(name="maturity", values=MATURITIES, unit="years"),
                Axis(name="strike", values=STRIKES, unit="spots"),
            ),
            unit="1 / sqrt(year)",
        )
        self._nodes = nodes

    def solve(self, inputs: pd.DataFrame) -> Floats:
        """Return implied volatilities [N, 8, 11]."""
        rows = np.stack([inputs[name].to_numpy(np.float64) for name in self.domain.names], axis=1)
        padded = np.resize(rows, (-(-len(rows) // TILE_ROWS) * TILE_ROWS, rows.shape[1]))
        result = np.empty((len(padded), *self.output.shape))
        for start in range(0, len(padded), TILE_ROWS):
            result[start : start + TILE_ROWS] = self._solve(padded[start : start + TILE_ROWS])
        return result[: len(rows)]

    def _solve(self, rows: Floats) -> Floats:
        model = _Model(rows, np.asarray(MATURITIES)[None, :, None])
        log_strike = np.log(STRIKES)[None, None, :]
        contour, width = _saddle(model, log_strike)
        log_price = _log_price(model, log_strike, contour, width, self._nodes)
        deviation = implied_deviation(np.broadcast_to(log_strike, log_price.shape), log_price)
        return deviation / np.sqrt(np.asarray(MATURITIES)[None, :, None])


class _Model:
    """Parameters of N rows and M maturities, shaped to meet K strikes: [N, 1, 1], [1, M, 1]."""

    def __init__(self, rows: Floats, maturity: Floats):
        columns = (column[:, None, None] for column in rows.T)
        self.v0, self.rho, self.sigma, self.theta, self.kappa = columns
        self.maturity = maturity

    def log_moment(self, p: Floats) -> Floats:
        """Return log E[S^p] for real p [N, M, K]; infinite beyond the moments that exist.

        cosh(x) + beta/d sinh(x), x = dT/2, turns into cos and sin where d is imaginary; the moment
        has exploded by T where that is no longer positive (Andersen & Piterbarg 2007, prop. 3.1).
        """
        beta = self.kappa - self.rho * self.sigma * p
        square = beta**2 - self.sigma**2 * (p * p - p)
        root = np.sqrt(np.abs(square))
        half = root * self.maturity / 2
        with np.errstate(all="ignore"):
            decay = np.exp(-2 * half)
            hyperbolic = (1 + decay + beta / root * (1 - decay)) / 2
            circular = np.cos(half) + beta / root * np.sin(half)
            real = square > 0
            exploded = np.where(real, hyperbolic <= 0, (half >= np.pi) | (circular <= 0))
            log_term = np.where(real, half + np.log(hyperbolic), np.log(circular))
            slope = np.where(
                real, (1 - decay) / (2 * root * hyperbolic), np.sin(half) / (root * circular)
            )
            level = self.kappa * self.theta / self.sigma**2 * (beta * self.maturity - 2 * log_term)
            moment = level + self.v0 * (p * p - p) * slope
        return np.where(exploded | ~np.isfinite(moment), np.inf, moment)

    def log_characteristic(self, z: Complex) -> Complex:
        """Return log E[S^z] for complex z [N, M, K] in the strip of existing moments."""
        beta = self.kappa - self.rho * self.sigma * z
        root = np.sqrt(beta * beta - self.sigma**2 * (z * z - z))
        # (beta - root) / sigma^2 without the cancellation at a small sigma.
        rate = (z * z - z) / (beta + root)
        g = self.sigma**2 * rate / (beta + root)
        gone = -np.expm1(-root * self.maturity)
        log_term = np.log1p(g * gone / (1 - g)) / self.sigma**2
        slope = rate * gone / (1 - g * (1 - gone))
        return self.kappa * self.theta * (rate * self.maturity - 2 * log_term) + self.v0 * slope


def _saddle(model: _Model, log_strike: Floats) -> tuple[Floats, Floats]:
    """Return the contour a [N, M, K] through the saddle point, and the integrand's width there.

    The logarithm of the integrand is convex in a beyond either pole (calls above 0, puts below -1)
    and infinite where moments have exploded: golden section in the logarithm of the distance from
    the pole. Any contour gives the same price, so a rough minimum will do.
    """
    side = np.where(log_strike >= 0, 1.0, -1.0)

    def height(log_distance: Floats) -> Floats:
        return _height(model, log_strike, _contour(side, np.exp(log_distance)))

    shape = (len(model.v0), model.maturity.shape[1], log_strike.shape[2])
    low, high = np.full(shape, LEAST_DISTANCE), np.full(shape, MOST_DISTANCE)
    golden = (np.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = height(left), height(right)
    for _ in range(SEARCH_STEPS):
        # Where both are infinite the minimum is to the left.
        down = at_left <= at_right
        low, high = np.where(down, low, left), np.where(down, right, high)
        fresh = np.where(down, high - golden * (high - low), low + golden * (high - low))
        at_fresh = height(fresh)
        left, right = np.where(down, fresh, right), np.where(down, left, fresh)
        at_left, at_right = np.where(down, at_fresh, at_right), np.where(down, at_left, at_fresh)
    distance = np.exp(left)
    step = 1e-3 * distance
    around = [_height(model, log_strike, _contour(side, distance + i * step)) for i in (-1, 0, 1)]
    curvature = (around[0] - 2 * around[1] + around[2]) / step**2
    usable = np.isfinite(curvature) & (curvature > 0)
    width = np.where(usable, 1 / np.sqrt(np.where(usable, curvature, 1.0)), distance)
    return _contour(side, distance), width


def _contour(side: Floats, distance: Floats) -> Floats:
    return np.where(side > 0, distance, -1.0 - distance)


def _height(model: _Model, log_strike: Floats, a: Floats) -> Floats:
    """Return the logarithm of the integrand at u = 0."""
    return model.log_moment(a + 1) - a * log_strike - np.log(a * (a + 1))


def _log_price(model: _Model, log_strike: Floats, a: Floats, width: Floats, nodes: int) -> Floats:
    """Return log prices [N, M, K] of calls from the spot up and of puts below it."""
    top = model.log_characteristic((a + 1).astype(np.complex128)).real
    # Far out the exponent is linear, z (-r - ik) with the two rates below: the contour's asymptote
    # is the direction in which it falls without oscillation.
    far = (model.v0 + model.kappa * model.theta * model.maturity) / model.sigma
    across, along = far * model.rho + log_strike, far * np.sqrt(1 - model.rho**2)
    angle = np.clip(np.arctan2(along, across), LEAST_ANGLE, np.pi - LEAST_ANGLE)
    fall = np.hypot(across, along)
    last = np.clip(np.arcsinh(DEPTH / (fall * width)), LEAST_END, MOST_END)
    spacing = last / (nodes - 1)
    total = np.zeros_like(a)
    for node in range(nodes):
        y = node * spacing
        rise, run = np.sin(angle), np.cos(angle)
        shift = width * (run * (np.cosh(y) - 1) + 1j * rise * np.sinh(y))
        # dz / (i dy); twice the real part stands for the lower half of the contour.
        turn = width * (rise * np.cosh(y) - 1j * run * np.sinh(y))
        bell = model.log_characteristic(a + 1 + shift) - top - shift * log_strike
        pole = a * (a + 1) / ((a + shift) * (a + 1 + shift))
        weight = 0.5 if node == 0 else 1.0
        total += weight * (np.exp(bell) * pole * turn).real
    return top - a * log_strike - np.log(a * (a + 1)) + np.log(total * spacing / np.pi)
