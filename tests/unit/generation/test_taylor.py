"""Taylor models: against mpmath at points, against sampling and the reference solvers on boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from kubestill.runtime.generation.systems import System, load_system
from kubestill.runtime.generation.systems.taylor import (
    Taylor,
    boxed,
    exp,
    gaussian_tail,
    log,
    normal_cdf,
    rounded_kink,
    sin,
    split,
    sqrt,
)

FORMULAS: dict[str, tuple[Callable[[Taylor, Taylor], Taylor], Callable[..., Any]]] = {
    "sum": (lambda x, y: 0.1 + x - y + 3, lambda x, y: mpmath.mpf(1) / 10 + x - y + 3),
    "product": (lambda x, y: 0.3 * x * y * y, lambda x, y: mpmath.mpf(3) / 10 * x * y * y),
    "power": (lambda x, y: x**3 / y**1, lambda x, y: x**3 / y),
    "quotient": (lambda x, y: x / y - 2 / x, lambda x, y: x / y - 2 / x),
    "exp": (lambda x, y: exp(x * -y), lambda x, y: mpmath.exp(-x * y)),
    "log": (lambda x, y: log(x) * y, lambda x, y: mpmath.log(x) * y),
    "sqrt": (lambda x, y: sqrt(x * y), lambda x, y: mpmath.sqrt(x * y)),
    "sin": (lambda x, y: sin(7.0 * x) * y, lambda x, y: mpmath.sin(7 * x) * y),
    "normal_cdf": (lambda x, y: normal_cdf(x - y), lambda x, y: mpmath.ncdf(x - y)),
    "gaussian_tail": (
        lambda x, y: gaussian_tail(x - y),
        lambda x, y: (
            mpmath.exp(-((x - y) ** 2)) / mpmath.sqrt(mpmath.pi) - (x - y) * mpmath.erfc(x - y)
        ),
    ),
    "rounded_kink": (
        lambda x, y: rounded_kink(x - y),
        lambda x, y: (
            mpmath.exp(-((x - y) ** 2)) / mpmath.sqrt(mpmath.pi) + (x - y) * mpmath.erf(x - y)
        ),
    ),
}
EDGES = ("x", "y")


def boxes_of(low: np.ndarray, high: np.ndarray, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes of every size inside of another: [n, d], [n, d]."""
    random = np.random.default_rng(0)
    ends: list[tuple[np.ndarray, np.ndarray]] = []
    for size in (1.0, 0.3, 0.1, 0.01, 1e-4, 1e-9, 0.0):
        start = low + (high - low) * random.random((count, len(low))) * (1 - size)
        ends.append((start, np.minimum(start + (high - low) * size, high)))
    return np.concatenate([a for a, _ in ends]), np.concatenate([b for _, b in ends])


def model(found: Taylor, shift: np.ndarray) -> np.ndarray:
    bent = np.einsum("bi,bij,bj->b", shift, found.hessian, shift) / 2
    return found.value + (found.gradient * shift).sum(1) + bent


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_stays_within_its_model(name: str) -> None:
    formula, exact = FORMULAS[name]
    low, high = boxes_of(np.array([0.05, 0.05]), np.array([4.0, 3.0]))
    inputs = boxed(dict(zip(EDGES, low.T, strict=True)), dict(zip(EDGES, high.T, strict=True)))
    with np.errstate(all="ignore"):
        found = formula(inputs["x"], inputs["y"])
    random, centre = np.random.default_rng(1), low / 2 + high / 2
    with mpmath.workdps(40):
        for corner in (True, False):
            share = random.random(low.shape)
            points = low + (high - low) * (np.round(share) if corner else share)
            points = np.clip(points, low, high)
            told = model(found, points - centre)
            for row, point in enumerate(points):
                truth = exact(*(mpmath.mpf(float(number)) for number in point))
                assert abs(truth - mpmath.mpf(told[row])) <= found.remainder[row] * (1 + 1e-12)
                assert found.low[row] <= truth <= found.high[row]
    # Third order: a box a hundred times smaller leaves out far less, down to rounding.
    size = (high - low).max(1)
    small = (size > 0) & (size < 1e-3)
    assert found.remainder[small].max() < 1e-6
    assert found.remainder[size < 1e-8].max() < 1e-11


@pytest.mark.parametrize("width", [1, 2])
def test_a_number_for_each_box_is_a_factor(width: int) -> None:
    """As a label looks one up: a material, its conductivity."""
    low, high = boxes_of(np.full(width, 0.05), np.full(width, 3.0), count=4)
    edges = EDGES[:width]
    inputs = boxed(dict(zip(edges, low.T, strict=True)), dict(zip(edges, high.T, strict=True)))
    factor = np.arange(1.0, len(low) + 1)
    x = inputs[edges[-1]]
    for found, truth in (
        (factor * x - factor, lambda at: factor * at - factor),
        (x / factor, lambda at: at / factor),
        (factor / x, lambda at: factor / at),
    ):
        assert found.gradient.shape == x.gradient.shape
        for share in (0.0, 0.3, 1.0):
            points = low + (high - low) * share
            told = model(found, points - (low / 2 + high / 2))
            assert (np.abs(truth(points[:, -1]) - told) <= found.remainder + 1e-12).all()


@pytest.mark.parametrize("name", ["heat", "black-scholes"])
def test_systems_enclose_their_reference_solver(name: str) -> None:
    system: System = load_system(name)
    assert system.expand is not None
    assert system.reference is not None
    names = system.domain.names
    ends = np.array([given.bounds for given in system.domain.inputs])  # pyright: ignore
    low, high = boxes_of(ends[:, 0], ends[:, 1])
    lower, upper = (dict(zip(names, side.T, strict=True)) for side in (low, high))
    with np.errstate(all="ignore"):
        found = system.expand(boxed(lower, upper))
    assert isinstance(found, Taylor)
    assert np.isfinite(found.remainder).all()
    random, frame = np.random.default_rng(2), system.domain.at(np.full((len(low), len(names)), 0.5))
    for corner in (True, False, True):
        share = random.random(low.shape)
        points = np.clip(low + (high - low) * (np.round(share) if corner else share), low, high)
        frame[list(names)] = points
        told = model(found, points - (low / 2 + high / 2))
        for solver, slack in ((system.solve, 0.0), (system.reference, 1e-12)):
            solved = np.asarray(solver(frame))
            assert (np.abs(solved - told) <= found.remainder + slack).all()
            assert (solved >= found.low - slack).all()
            assert (solved <= found.high + slack).all()


def test_what_has_no_bounds_is_infinite_not_wrong() -> None:
    ends = {"x": np.array([-1.0, 0.0, 0.5])}, {"x": np.array([1.0, 1.0, 1.0])}
    x = boxed(*ends)["x"]
    for found in (log(x), 1 / x):
        assert np.isinf(found.remainder[:2]).all()
        assert np.isfinite(found.remainder[2])
    apart = x.value > 0.6
    merged = split(apart, log(x.take(apart)), (x * 2.0).take(~apart))
    assert merged.value[:2].tolist() == [0.0, 1.0]
