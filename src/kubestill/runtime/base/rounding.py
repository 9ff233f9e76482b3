"""Write bounds: rounded to the nearest, a number in a sentence could promise too much."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def at_most(bound: float, digits: int = 2) -> str:
    """Write an upper bound, rounded up: what is read back is never below it."""
    if not math.isfinite(bound):
        return f"{bound:g}"
    rounded = Context(prec=digits, rounding=ROUND_CEILING).create_decimal(repr(float(bound)))
    return f"{float(rounded):.{digits}g}"


def at_least(share: float, digits: int = 2) -> str:
    """Write a lower bound of a share as a percentage, rounded down: 99.98%."""
    place = Decimal(1).scaleb(-digits)
    return f"{(100 * Decimal(repr(float(share)))).quantize(place, ROUND_FLOOR):f}%"


def exact_percent(share: float) -> str:
    """Write a share as a percentage with every digit it has: 95%, 99.95%."""
    return f"{(100 * Decimal(repr(float(share)))).normalize():f}%"
