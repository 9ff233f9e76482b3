"""Write numbers as reports show them: short, with the unit, never with a bare exponent."""

from __future__ import annotations

import math

from kubestill.runtime.metrics.catalog import METRICS


def count(value: float) -> str:
    """Write a count: 950, 4.8k, 16.8k, 1.24M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{_digits(value / limit)}{unit}"
    return f"{value:,.0f}" if value == round(value) else _digits(value)


def known_count(value: float) -> str:
    """Write a count, and a dash for 0: what a foreign model does not tell."""
    return count(value) if value else "–"


def size(value: float) -> str:
    """Write a number of bytes: 640 B, 66 kB, 2.4 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= limit:
            return f"{_digits(value / limit)} {unit}"
    return f"{value:,.0f} B"


def duration(seconds: float) -> str:
    """Write a time: 38 µs, 4.2 ms, 12 s, 3 min 20 s, 2 h 05 min."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 1e-3:
        return f"{_digits(seconds * 1e6)} µs"
    if seconds < 1:
        return f"{_digits(seconds * 1e3)} ms"
    if seconds < 120:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float, digits: int = 1) -> str:
    """Write a share as a percentage, with another digit where it would read 0 or 100 and is not."""
    if not math.isfinite(share):
        return "–"
    inside = share not in (0, 1)
    while inside and digits < 4 and f"{share:.{digits}%}" in (f"{0:.{digits}%}", f"{1:.{digits}%}"):
        digits += 1
    return f"{share:.{digits}%}"


def score_text(metric: str, value: float) -> str:
    """Write a score of the named metric."""
    if not math.isfinite(value):
        return "–"
    known = METRICS.get(metric)
    if known and known.unit == "share":
        return f"{value:.1%}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 or value == 0 else f"{value:.3g}"


def range_text(metric: str, low: float, high: float) -> str:
    """Write an interval of the named metric; empty where it is not defined."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    ends = (score_text(metric, low), score_text(metric, high))
    return f"{ends[0].removesuffix('%')} to {ends[1]}"


def gain_text(metric: str, gain: float) -> str:
    """Write how much better or worse a score is: a sign would say less than a word."""
    if not math.isfinite(gain):
        return "–"
    return f"{_difference(metric, abs(gain))} {'better' if gain >= 0 else 'worse'}"


def gain_range(metric: str, low: float, high: float) -> str:
    """Write an interval of such differences; empty where it is not defined."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if low >= 0 or high <= 0:
        near, far = sorted((abs(low), abs(high)))
        return f"{_difference(metric, near)} to {gain_text(metric, far if low >= 0 else -far)}"
    return f"{gain_text(metric, low)} to {gain_text(metric, high)}"


def _difference(metric: str, size: float) -> str:
    known = METRICS.get(metric)
    # Of two shares, a difference in percent would be taken for a ratio.
    share = known is not None and known.unit == "share"
    return f"{100 * size:.1f} points" if share else score_text(metric, size)


def _digits(value: float) -> str:
    """Three significant digits without trailing zeros: 4.82, 16.8, 250, 1."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")
