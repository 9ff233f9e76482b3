"""Write bounds: rounded to the nearest, a number in a sentence could promise too much."""

from __future__ import annotations

import math

__all__ = ["at_least", "at_most"]


def at_most(bound: float, digits: int = 2) -> str:
    """Write an upper bound, rounded up."""
    shown = f"{bound:.{digits}g}"
    if not math.isfinite(bound) or float(shown) >= bound:
        return shown
    unit = 10.0 ** (math.floor(math.log10(abs(bound))) - digits + 1)
    return f"{math.ceil(bound / unit) * unit:.{digits}g}"


def at_least(share: float, digits: int = 2) -> str:
    """Write a lower bound of a share as a percentage, rounded down: 99.98%."""
    unit = 10.0**digits
    return f"{math.floor(share * 100 * unit) / unit:.{digits}f}%"
