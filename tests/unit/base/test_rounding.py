"""Bounds in sentences never promise more than there is."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from kubestill.runtime.base.rounding import at_least, at_most, exact_percent


def numbers(count: int) -> list[float]:
    """Return numbers of all sizes, and those of few digits with their neighbours."""
    random = np.random.default_rng(0)
    some = 10.0 ** random.uniform(-30, 30, count)
    few = [float(f"{value:.{digits}g}") for value in some[:50] for digits in (1, 2, 3, 4)]
    near = [math.nextafter(value, end) for value in few for end in (0, math.inf)]
    return [*some.tolist(), *few, *near, 5e-324, 1.23456e-310, 1.79e308, 0.0]


@pytest.mark.parametrize("digits", [2, 3, 4])
def test_upper_bounds_read_back_as_no_less(digits: int) -> None:
    for value in numbers(500):
        assert float(at_most(value, digits)) >= value
        assert float(at_most(value, digits)) <= value * (1 + 10.0 ** (1 - digits)) * 1.001
    assert at_most(0.05, digits) == "0.05"
    assert at_most(math.inf, digits) == "inf"


@pytest.mark.parametrize("digits", [0, 2, 3])
def test_shares_are_rounded_down(digits: int) -> None:
    shares = np.random.default_rng(0).random(500)
    few = np.round(shares, digits + 2)
    for share in [*shares, *few, *np.nextafter(few, 0), 0.0, 1.0, math.nextafter(1, 0)]:
        shown = Fraction(at_least(share, digits)[:-1]) / 100
        assert float(shown) <= share
        assert Fraction(float(share)) - shown < Fraction(1, 10 ** (digits + 2)) + Fraction(
            1, 1 << 50
        )


def test_no_confidence_is_rounded_to_certainty() -> None:
    said = [exact_percent(share) for share in (0.95, 0.999, 0.9999999, 0.5, 1.0, 0.07)]
    assert said == ["95%", "99.9%", "99.99999%", "50%", "100%", "7%"]
