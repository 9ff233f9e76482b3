"""Smoothing a short noisy curve, and measuring its noise: plain Python, no arrays.

A curve is one value a milestone, in order of step; its values are losses or their logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

_TO_SIGMA = 1.4826
"""Median absolute value of a centred normal variable times this is its standard deviation."""
_POINTS_PER_LAG = 8
_LAGS = 3

DESPIKED = 8
"""Points from which single spikes are removed."""
STEEP_SHARE = 0.8
"""Part of a curve's fall that counts as its steep part."""


def half_window(count: int) -> int:
    """Return the points on either side that a smoothed point averages: a tenth of all together."""
    return max(1, round(count / 20))


def smooth(values: Sequence[float], half: int) -> list[float]:
    """Return the running mean over up to `2 * half + 1` points of the running median of three.

    The median removes single spikes. At the start the window shrinks, so that a steep descent is
    not flattened; at the end it becomes one-sided, so that the last points are no noisier.
    """
    return [fmean(window) for window in _windows(despike(values), half)]


def despike(values: Sequence[float]) -> list[float]:
    """Return the running median of three, which removes single spikes; short curves as they are."""
    return (
        [median(window) for window in _windows(values, 1)] if len(values) >= DESPIKED else [*values]
    )


def noise(values: Sequence[float]) -> float:
    """Return the standard deviation of the noise around whatever trend there is.

    From second differences, which cancel a slope (Gasser, Sroka & Jennen-Steinmetz 1986), by their
    median absolute value, so that neither spikes nor a bend inflate it. Noise that is correlated
    from one point to the next looks smaller than it is at distance one: with enough points,
    larger distances are measured too, and the largest answer counts.

    Args:
        values: At least three.
    """
    lags = max(1, min(_LAGS, len(values) // _POINTS_PER_LAG))
    return max(_noise_at(values, lag) for lag in range(1, lags + 1))


def settled_noise(values: Sequence[float]) -> float:
    """Return the noise of a falling curve after its steep part, whose bend would pass for noise.

    Args:
        values: At least five; smaller is better.
    """
    smoothed = smooth(values, half_window(len(values)))
    low = min(smoothed)
    steep = first_below(smoothed, smoothed[0] - STEEP_SHARE * (smoothed[0] - low))
    # Five points still give three triples.
    return noise(values[min(steep, len(values) - 5) :])


def first_below(values: Sequence[float], level: float) -> int:
    """Return the index of the first value that is not above `level`; there must be one."""
    return next(index for index, value in enumerate(values) if value <= level)


def _noise_at(values: Sequence[float], lag: int) -> float:
    triples = zip(values, values[lag:], values[2 * lag :], strict=False)
    return _TO_SIGMA * median(abs(a - 2 * b + c) for a, b, c in triples) / 6**0.5


def _windows(values: Sequence[float], half: int) -> list[Sequence[float]]:
    reaches = (min(half, index) for index in range(len(values)))
    return [values[index - reach : index + reach + 1] for index, reach in enumerate(reaches)]
