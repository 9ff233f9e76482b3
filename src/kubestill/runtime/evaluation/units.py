"""Recognising a column that is measured in another unit than it was."""

# pandas comes without types.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kubestill.runtime.evaluation.profile import Floats, Sketch

LEAST_FACTOR = 1.4
"""Smaller factors are too easily growth; larger ones, with the shape intact, are not."""
LEAST_JUMP = 1.1
"""The same where rows that follow each other are known to differ by it."""
SHAPE = 0.05
"""Largest distance of the rescaled quantiles from the former ones, as a share of their spread."""
LEAP = 0.5
"""How much closer the rescaled neighbours must be than as they are."""
NEIGHBOURS = 500
"""Rows on either side of the beginning of a window that are held against each other."""
LEAST_NEIGHBOURS = 20

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


def change_of_unit(known: Sketch, column: pd.Series, last: pd.Series | None = None) -> str | None:
    """Return the change of unit that turns the former values into the present ones, or None.

    A change of unit keeps the shape of a distribution: new quantiles = factor × old ones, or one of
    the temperature scales; and it is there in the first rows as in the last. So far that may be a
    season, too, but it does not come from one row to the next. Where the rows before these are not
    known, only a factor that units have counts.

    Args:
        known: Sketch of the former values.
        column: The present values, in order of time.
        last: The sound values right before these; None where nobody knows them.
    """
    if not known.numeric:
        return None
    present = _numbers(column)
    if len(present) < 2 * len(known.quantiles):
        return None
    before = np.asarray(known.quantiles)
    neighbours = None if last is None else _numbers(last)
    for change in _candidates(before, present, jumps=neighbours is not None):
        parts = (present, *np.array_split(present, 2))
        if not all(_explained(before, part, change, SHAPE) for part in parts):
            continue
        if neighbours is None or _jumps(neighbours, present, change):
            return f"{change.told} Has its unit changed?"
    return None


@dataclass(frozen=True)
class _Change:
    """A change that there may have been."""

    factor: float
    offset: float
    told: str

    def undo(self, values: Floats) -> Floats:
        return (values - self.offset) / self.factor


def _candidates(before: Floats, present: Floats, *, jumps: bool) -> Iterator[_Change]:
    """Yield the changes that there may have been."""
    now = _grid(present, len(before))
    there = before[1:-1] != 0
    if not there.any():
        return
    factor = float(np.median(now[there] / before[1:-1][there]))
    least = LEAST_JUMP if jumps else LEAST_FACTOR
    if factor > 0 and not 1 / least < factor < least:
        named = _named(factor)
        if named or jumps:
            yield _Change(factor, 0.0, named or f"values are {_times(factor)} what they were.")
    for (scale, offset), name in _OFFSETS.items():
        yield _Change(scale, offset, f"values look converted from {name}.")


def _explained(before: Floats, values: Floats, change: _Change, shape: float) -> bool:
    """Return whether values have the quantiles `before` after this change, and not without it."""
    spread = float(before[-2] - before[1])
    if spread <= 0:
        return False
    # The ends are single rows: extreme values say nothing about a unit.
    now = _grid(values, len(before))
    misfit = np.abs(change.undo(now) - before[1:-1]).mean() / spread
    unchanged = np.abs(now - before[1:-1]).mean() / spread
    # Half as many rows scatter more.
    allowed = shape + 1.5 / np.sqrt(len(values))
    return bool(misfit <= min(allowed, unchanged / 3))


def _jumps(last: Floats, present: Floats, change: _Change) -> bool:
    """Return whether the rows right before and after differ by the change, and not less without."""
    few = min(NEIGHBOURS, len(last), len(present))
    if few < LEAST_NEIGHBOURS:
        return True
    grid = np.linspace(0.1, 0.9, 9)
    # Where few rows are many days, neighbours are months: those that are nearer must say the same.
    for count in (NEIGHBOURS, max(LEAST_NEIGHBOURS, few // 4)):
        before, now = np.quantile(last[-count:], grid), np.quantile(present[:count], grid)
        if np.abs(change.undo(now) - before).mean() > LEAP * np.abs(now - before).mean():
            return False
    return True


def _grid(values: Floats, quantiles: int) -> Floats:
    return np.quantile(values, np.linspace(0, 1, quantiles)[1:-1])


def _numbers(column: pd.Series) -> Floats:
    return column.dropna().to_numpy(np.float64)


def _named(factor: float) -> str | None:
    shown = f"values are {_times(factor)} what they were"
    for known, name in _FACTORS.items():
        if abs(factor / known - 1) < 0.05:
            return f"{shown}, as from {name}."
        if abs(factor * known - 1) < 0.05:
            return f"{shown}, the reverse of {name}."
    return None


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 100 else f"{factor:.3g} times"
