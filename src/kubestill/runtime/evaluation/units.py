"""Recognising a column that is measured in another unit than it was."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kubestill.runtime.evaluation.profile import Sketch

__all__ = ["change_of_unit"]

LEAST_FACTOR = 1.4
"""Smaller factors are too easily growth; larger ones, with the shape intact, are not."""
SHAPE = 0.05
"""Largest distance of the rescaled quantiles from the former ones, as a share of their spread."""

_FACTORS: dict[float, str] = {
    1.609344: "miles to kilometres",
    3.28084: "metres to feet",
    10.76391: "square metres to square feet",
    2.54: "inches to centimetres",
    25.4: "inches to millimetres",
    2.204623: "kilograms to pounds",
    1.852: "knots to kilometres an hour",
    3.6: "metres a second to kilometres an hour",
    3.785412: "gallons to litres",
    28.349523: "ounces to grams",
    60.0: "hours to minutes, or minutes to seconds",
    3600.0: "hours to seconds",
    24.0: "days to hours",
    10.0: "a decimal place to the next",
    100.0: "a share to per cent, or metres to centimetres",
    1000.0: "a unit to its thousandth",
    1e6: "a unit to its millionth",
}
_OFFSETS: dict[tuple[float, float], str] = {
    (5 / 9, -160 / 9): "Fahrenheit to Celsius",
    (9 / 5, 32.0): "Celsius to Fahrenheit",
    (1.0, 273.15): "Celsius to kelvin",
    (1.0, -273.15): "kelvin to Celsius",
}


def change_of_unit(known: Sketch, column: pd.Series) -> str | None:
    """Return the change of unit that turns the former values into the present ones, or None.

    A change of unit keeps the shape of a distribution: new quantiles = factor × old ones, or one of
    the temperature scales. The factor is one that units have: a season may stretch sunshine or
    demand by any other, and is no fault of the data.
    """
    present = column.dropna()
    if not known.numeric or len(present) < 2 * len(known.quantiles):
        return None
    # The ends are single rows: extreme values say nothing about a unit.
    before = np.asarray(known.quantiles)[1:-1]
    grid = np.linspace(0, 1, len(known.quantiles))[1:-1]
    now = np.quantile(present.to_numpy(np.float64), grid)
    spread = float(before[-1] - before[0])
    if spread <= 0 or not before.any():
        return None

    def misfit(factor: float, offset: float = 0.0) -> float:
        return float(np.abs((now - offset) / factor - before).mean()) / spread

    factor = float(np.median(now[before != 0] / before[before != 0]))
    material = factor > 0 and not 1 / LEAST_FACTOR < factor < LEAST_FACTOR
    named = _named(factor) if material else None
    if named and misfit(factor) <= min(SHAPE, misfit(1.0) / 3):
        return f"{named} Has its unit changed?"
    for (scale, offset), name in _OFFSETS.items():
        if misfit(scale, offset) <= min(SHAPE, misfit(1.0) / 3):
            return f"values look converted from {name}. Has its unit changed?"
    return None


def _named(factor: float) -> str | None:
    times = f"{factor:,.0f} times" if factor >= 100 else f"{factor:.3g} times"
    shown = f"values are {times} what they were"
    for known, name in _FACTORS.items():
        if abs(factor / known - 1) < 0.05:
            return f"{shown}, as from {name}."
        if abs(factor * known - 1) < 0.05:
            return f"{shown}, the reverse of {name}."
    return None
