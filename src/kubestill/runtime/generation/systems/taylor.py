"""Enclose formulas over boxes by Taylor models: quadratics, and bounds on what they leave out.

A system that can be written in these functions encloses itself (`System.expand`), tightly enough
for proofs: the bound on the rest shrinks with the third power of the box (Makino & Berz 2003,
"Taylor models and other validated functional inclusion methods").

Rounding: every operation adds to the remainder an a-priori bound of what float64 loses in it, under
the standard model fl(a op b) = (a op b)(1 + d), |d| <= u = 2^-53. Assumed of numpy and scipy: each
elementary function is within 32 u of its value, relatively (they are within 4).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, erfc, ndtr

Floats = NDArray[np.float64]

_U = 2.0**-53
_TINY = 2.0**-1000
"""Outweighs what is lost below the smallest normal numbers."""
_BELLS = 64 * _U
"""Absolute error of exp(-x^2): relatively x^2 u, and x^2 exp(-x^2) is below 1."""
_GROW = 1 + 2.0**-40
"""Outweighs rounding in sums of up to 4,000 terms that are not negative."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Taylor:
    """A function on B boxes: |f(x) - (value + gradient.dx + dx.hessian.dx / 2)| <= remainder.

    dx = x - centre of the box, for every x of the box, in d inputs. A plain number in a formula
    counts as rounded once: 0.1 stands for one tenth. So does an array [B] of one for each box.
    """

    __array_ufunc__ = None  # numpy's numbers leave the arithmetic to this class

    radius: Floats
    """[B, d], half of the box's edges."""
    value: Floats
    """[B]"""
    gradient: Floats
    """[B, d]"""
    hessian: Floats
    """[B, d, d], symmetric."""
    remainder: Floats
    """[B]"""
    low: Floats
    """[B]: the function is nowhere below."""
    high: Floats
    """[B]: it is nowhere above."""
    blame: Floats
    """[B, d], which inputs the remainder comes from, to split boxes by; nothing rests on it."""

    @cached_property
    def _linear(self) -> Floats:
        """How far the linear part reaches, by input: [B, d]."""
        return np.abs(self.gradient) * self.radius

    @cached_property
    def slope(self) -> Floats:
        """How far the linear part reaches: [B]."""
        return self._linear.sum(1) * _GROW

    @cached_property
    def bend(self) -> Floats:
        """How far quadratic part and remainder reach together: [B]."""
        bent = (np.abs(self.hessian) * self.radius[:, None]).sum(2) * self.radius
        return (bent.sum(1) / 2 + self.remainder) * _GROW

    @cached_property
    def reach(self) -> Floats:
        """How far the function is from `value` at most: [B]."""
        return np.maximum(self.high - self.value, self.value - self.low) * _GROW

    def __add__(self, other: Taylor | Floats | float) -> Taylor:
        if not isinstance(other, Taylor):
            value = self.value + other
            slack = 2 * _U * (np.abs(value) + self.reach + abs(other))
            return _made(
                self,
                value=value,
                remainder=self.remainder + slack,
                low=self.low + other - slack,
                high=self.high + other + slack,
            )
        value = self.value + other.value
        size = np.abs(self.value) + np.abs(other.value) + self.reach + other.reach
        slack = 4 * _U * (size + self.slope + self.bend + other.slope + other.bend)
        return _made(
            self,
            value=value,
            gradient=self.gradient + other.gradient,
            hessian=self.hessian + other.hessian,
            remainder=self.remainder + other.remainder + slack,
            low=self.low + other.low - slack,
            high=self.high + other.high + slack,
            blame=self.blame + other.blame,
        )

    def __mul__(self, other: Taylor | Floats | float) -> Taylor:
        if isinstance(other, np.ndarray):
            other = _constant(self, other)
        if not isinstance(other, Taylor):
            size = np.abs(self.value) + self.slope + self.bend + self.reach
            slack = 4 * _U * abs(other) * size
            ends = self.low * other, self.high * other
            return _made(
                self,
                value=self.value * other,
                gradient=self.gradient * other,
                hessian=self.hessian * other,
                remainder=abs(other) * self.remainder + slack,
                low=np.minimum(*ends) - slack,
                high=np.maximum(*ends) + slack,
                blame=self.blame * abs(other),
            )
        a, b = self.value, other.value
        cross = self.gradient[:, :, None] * other.gradient[:, None, :]
        local = self.slope * other.bend + self.bend * other.reach
        size = np.abs(a) + self.slope + self.bend + self.reach
        size = size * (np.abs(b) + other.slope + other.bend + other.reach)
        rest = np.abs(a) * other.remainder + np.abs(b) * self.remainder + local + 8 * _U * size
        ends = np.stack([p * q for p in (self.low, self.high) for q in (other.low, other.high)])
        carried = np.abs(a)[:, None] * other.blame + np.abs(b)[:, None] * self.blame
        return _made(
            self,
            value=a * b,
            gradient=a[:, None] * other.gradient + b[:, None] * self.gradient,
            hessian=a[:, None, None] * other.hessian
            + b[:, None, None] * self.hessian
            + cross
            + cross.transpose(0, 2, 1),
            remainder=rest,
            low=ends.min(0) - 2 * _U * size,
            high=ends.max(0) + 2 * _U * size,
            blame=carried + (local / 2)[:, None] * (self._shares + other._shares),
        )

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Taylor:
        return self * -1.0

    def __sub__(self, other: Taylor | Floats | float) -> Taylor:
        return self + (-other)

    def __rsub__(self, other: Floats | float) -> Taylor:
        return -self + other

    def __truediv__(self, other: Taylor | Floats | float) -> Taylor:
        return self * (_reciprocal(other) if isinstance(other, Taylor) else 1 / other)

    def __rtruediv__(self, other: Floats | float) -> Taylor:
        return _reciprocal(self) * other

    def __pow__(self, power: int) -> Taylor:
        """Multiply it by itself; powers that are no whole numbers are `exp(power * log(x))`."""
        if not isinstance(power, int) or power < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        return reduce(operator.mul, [self] * power)

    def apply(
        self,
        value: Floats,
        first: Floats,
        second: Floats,
        third: Callable[[Floats, Floats], Floats],
        bounds: Callable[[Floats, Floats], tuple[Floats, Floats]],
        *,
        slack: float = 0.0,
    ) -> Taylor:
        """Apply a smooth function of one variable, such as one that is missing here.

        Args:
            value: The function at `self.value`: [B].
            first: Its first derivative there.
            second: Its second derivative there.
            third: Bounds the size of its third derivative between two numbers: [B], [B] to [B];
                infinite where it has none.
            bounds: Returns the lowest and highest value between two numbers: [B], [B].
            slack: Bounds the absolute error of the first three as they were computed, besides 32 u
                of each, relatively.
        """
        slope, bend, reach = self.slope, self.bend, self.reach
        with np.errstate(all="ignore"):
            edge = third(self.low, self.high)
            local = np.abs(second) / 2 * bend * (slope + reach) + edge / 6 * reach**3
            size = np.abs(value) + np.abs(first) * reach + np.abs(second) * reach**2
            lost = 64 * _U * size + (slack + _TINY) * (1 + reach + reach**2)
            low, high = bounds(self.low, self.high)
            ends = 64 * _U * np.maximum(np.abs(low), np.abs(high)) + slack + _TINY
            outer = self.gradient[:, :, None] * self.gradient[:, None, :]
            curve = first[:, None, None] * self.hessian + second[:, None, None] * outer
            return _made(
                self,
                value=value,
                gradient=first[:, None] * self.gradient,
                hessian=curve,
                remainder=np.abs(first) * self.remainder + local + lost,
                low=low - ends,
                high=high + ends,
                blame=np.abs(first)[:, None] * self.blame + local[:, None] * self._shares,
            )

    def widened(self, by: Floats | float) -> Taylor:
        """Return it with a larger remainder."""
        return _made(self, remainder=self.remainder + by, low=self.low - by, high=self.high + by)

    def within(self, low: float, high: float, crossing: Floats) -> Taylor:
        """Return what is only between two numbers on some of the boxes.

        Args:
            low: The function is nowhere below.
            high: It is nowhere above.
            crossing: [B, d], above 0 for each input along which a box is too long for this formula;
                boxes without any keep it.
        """
        invalid = crossing.max(1) > 0
        return _made(
            self,
            remainder=np.where(invalid, np.inf, self.remainder),
            low=np.where(invalid, low, self.low),
            high=np.where(invalid, high, self.high),
            gradient=np.where(invalid[:, None], 0.0, self.gradient),
            blame=np.where(invalid[:, None], crossing, self.blame),
        )

    def take(self, boxes: NDArray[Any]) -> Taylor:
        """Return it on some of the boxes: a mask [B] or indices [n]."""
        return Taylor(**{name: getattr(self, name)[boxes] for name in _FIELDS})

    @property
    def _shares(self) -> Floats:
        """The share of each input in how far the function reaches: [B, d]."""
        parts = self._linear + self.blame
        return parts / np.maximum(parts.sum(1), 1e-300)[:, None]


_FIELDS = tuple(field.name for field in fields(Taylor))


def _made(like: Taylor, **changed: Floats) -> Taylor:
    """Return a function whose two enclosures have learned from each other."""
    found = Taylor(**{**{name: getattr(like, name) for name in _FIELDS}, **changed})
    with np.errstate(all="ignore"):
        remainder = found.remainder * _GROW
        away = (found.slope + found.bend + 4 * _U * np.abs(found.value)) * _GROW
        away = np.where(np.isfinite(found.value) & (away >= 0), away, np.inf)
        value = np.where(np.isfinite(found.value), found.value, 0.0)
        low = np.fmax(found.low, value - away)
        high = np.fmin(found.high, value + away)
        low = np.where(np.isnan(low), -np.inf, low)
        high = np.where(np.isnan(high), np.inf, high)
        half = (high - low) / 2
        # Where the range is known better than the quadratic, it takes its place.
        worse = ~(remainder <= half)
        if not worse.any():
            return replace(found, remainder=remainder, low=low, high=high)
        middle = low / 2 + high / 2
        known = np.isfinite(middle)
        half = np.where(known, half + 4 * _U * np.maximum(np.abs(low), np.abs(high)), np.inf)
        parts = np.nan_to_num(found._linear + found.blame, nan=1e99, posinf=1e99)  # pyright: ignore
        shares = parts / np.maximum(parts.sum(1), 1e-300)[:, None]
        return Taylor(
            radius=found.radius,
            value=np.where(worse, np.where(known, middle, 0.0), value),
            gradient=np.where(worse[:, None], 0.0, found.gradient),
            hessian=np.where(worse[:, None, None], 0.0, found.hessian),
            remainder=np.where(worse, half, remainder),
            low=low,
            high=high,
            blame=np.where(worse[:, None], shares * np.minimum(half, 1e99)[:, None], found.blame),
        )


def split(mask: NDArray[np.bool_], chosen: Taylor, others: Taylor) -> Taylor:
    """Put together what was computed apart, on the boxes of the mask [B] and on all others."""
    merged: dict[str, Floats] = {}
    for name in _FIELDS:
        values = getattr(chosen, name)
        merged[name] = np.empty((len(mask), *values.shape[1:]))
        merged[name][mask], merged[name][~mask] = values, getattr(others, name)
    return Taylor(**merged)


def boxed(lower: Mapping[str, Floats], upper: Mapping[str, Floats]) -> dict[str, Taylor]:
    """Return every input of B boxes, by its name, as a function of all of them.

    Args:
        lower: The lower ends of an input, [B], by its name.
        upper: The upper ends; equal to the lower ones where the input is fixed.
    """
    low, high = (np.stack(list(ends.values()), 1) for ends in (lower, upper))
    centre, radius = centred(low, high)
    boxes, width = centre.shape
    return {
        name: Taylor(
            radius=radius,
            value=centre[:, place],
            gradient=np.broadcast_to(np.eye(width)[place], (boxes, width)),
            hessian=np.zeros((boxes, width, width)),
            remainder=np.zeros(boxes),
            low=low[:, place],
            high=high[:, place],
            blame=np.zeros((boxes, width)),
        )
        for place, name in enumerate(lower)
    }


def _constant(like: Taylor, values: Floats) -> Taylor:
    """Return a number of each box, [B], that was rounded once, as a function on the same boxes."""
    values = values.astype(np.float64)
    slack = 2 * _U * np.abs(values)
    zero = np.zeros_like(like.gradient)
    return Taylor(
        radius=like.radius,
        value=values,
        gradient=zero,
        hessian=np.zeros_like(like.hessian),
        remainder=slack,
        low=values - slack,
        high=values + slack,
        blame=zero,
    )


def centred(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Return centres, and radii that reach both ends however the centres were rounded."""
    centre = low / 2 + high / 2
    radius = np.nextafter(np.maximum(high - centre, centre - low), np.inf)
    return centre, np.where(high > low, radius, 0.0)


def exp(x: Taylor) -> Taylor:
    """Return e^x."""
    with np.errstate(all="ignore"):
        value = np.exp(x.value)
    return x.apply(value, value, value, lambda low, high: np.exp(high) * _GROW, _rising(np.exp))


def log(x: Taylor) -> Taylor:
    """Return the natural logarithm; without bounds where a box reaches 0."""
    with np.errstate(all="ignore"):
        value, one = np.log(x.value), 1 / x.value

    def third(low: Floats, high: Floats) -> Floats:
        return np.where(low > 0, 2 / low**3 * _GROW, np.inf)

    return x.apply(value, one, -(one**2), third, _rising(np.log))


def sqrt(x: Taylor) -> Taylor:
    """Return the square root; without bounds where a box reaches 0."""
    with np.errstate(all="ignore"):
        value = np.sqrt(x.value)
        first, second = 0.5 / value, -0.25 / (value * x.value)

    def third(low: Floats, high: Floats) -> Floats:
        return np.where(low > 0, 0.375 / (low**2 * np.sqrt(low)) * _GROW, np.inf)

    return x.apply(value, first, second, third, _rising(np.sqrt))


def sin(x: Taylor) -> Taylor:
    """Return the sine."""
    value, first = np.sin(x.value), np.cos(x.value)

    def third(low: Floats, high: Floats) -> Floats:
        return np.minimum(1.0, np.abs(first) + (high - low)) * _GROW

    def bounds(low: Floats, high: Floats) -> tuple[Floats, Floats]:
        return np.full_like(low, -1.0), np.full_like(high, 1.0)

    return x.apply(value, first, -value, third, bounds)


def normal_cdf(x: Taylor) -> Taylor:
    """Return the distribution function of the standard normal distribution."""
    first = np.exp(-(x.value**2) / 2) / math.sqrt(2 * math.pi)

    def curve(at: Floats) -> Floats:
        return np.abs(at**2 - 1) * np.exp(-(at**2) / 2) / math.sqrt(2 * math.pi)

    peaks = (0.0, math.sqrt(3), -math.sqrt(3))
    third = _largest(curve, peaks)
    return x.apply(ndtr(x.value), first, -x.value * first, third, _rising(ndtr), slack=_BELLS)


def gaussian_tail(x: Taylor) -> Taylor:
    """Return exp(-x^2) / sqrt(pi) - x erfc(x), the integral of erfc from x to infinity."""
    bell = np.exp(-(x.value**2)) / math.sqrt(math.pi)
    tail = erfc(x.value)

    def bounds(low: Floats, high: Floats) -> tuple[Floats, Floats]:
        return _tail(high), _tail(low)

    # The two parts of the value cancel, which both are below 1 for x > 0 and grow with -x below.
    found = x.apply(_tail(x.value), -tail, 2 * bell, _BELL, bounds, slack=_BELLS)
    return found.widened(64 * _U * (bell + np.maximum(np.abs(x.value), -x.low) * tail))


def rounded_kink(x: Taylor) -> Taylor:
    """Return x erf(x) + exp(-x^2) / sqrt(pi): |x| after diffusion has rounded it."""
    bell = np.exp(-(x.value**2)) / math.sqrt(math.pi)

    def bounds(low: Floats, high: Floats) -> tuple[Floats, Floats]:
        ends = _kink(low), _kink(high)
        bottom = np.where(low * high > 0, np.minimum(*ends), _kink(np.zeros(1)))
        return bottom, np.maximum(*ends)

    return x.apply(_kink(x.value), erf(x.value), 2 * bell, _BELL, bounds, slack=_BELLS)


def _kink(x: Floats) -> Floats:
    return x * erf(x) + np.exp(-(x**2)) / math.sqrt(math.pi)


def _tail(x: Floats) -> Floats:
    return np.exp(-(x**2)) / math.sqrt(math.pi) - x * erfc(x)


def _rising(
    function: Callable[[Floats], Floats],
) -> Callable[[Floats, Floats], tuple[Floats, Floats]]:
    """Return the bounds of a function that only rises."""
    return lambda low, high: (function(low), function(high))


def _reciprocal(x: Taylor) -> Taylor:
    with np.errstate(all="ignore"):
        value = 1 / x.value

    def third(low: Floats, high: Floats) -> Floats:
        closest = np.minimum(np.abs(low), np.abs(high))
        return np.where(low * high > 0, 6 / closest**4 * _GROW, np.inf)

    def bounds(low: Floats, high: Floats) -> tuple[Floats, Floats]:
        apart = low * high > 0
        return np.where(apart, 1 / high, -np.inf), np.where(apart, 1 / low, np.inf)

    return x.apply(value, -(value**2), 2 * value**3, third, bounds)


def _largest(
    curve: Callable[[Floats], Floats], peaks: tuple[float, ...]
) -> Callable[[Floats, Floats], Floats]:
    """Return what bounds a curve between two numbers, whose only maxima are `peaks`."""

    def bound(low: Floats, high: Floats) -> Floats:
        found = np.maximum(curve(low), curve(high))
        for peak in peaks:
            inside = (low <= peak + 1e-12) & (high >= peak - 1e-12)
            found = np.where(inside, np.maximum(found, curve(np.asarray(peak))), found)
        return found * (1 + 1e-9)

    return bound


_BELL = _largest(
    lambda at: 4 / math.sqrt(math.pi) * np.abs(at) * np.exp(-(at**2)),
    (math.sqrt(0.5), -math.sqrt(0.5)),
)
