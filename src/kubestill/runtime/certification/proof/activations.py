"""Replace activation functions on intervals by quadratics, with a bound on the difference.

Every smooth function is known by its first four derivatives, so that one piece of code bounds all
of them: by Taylor's theorem where an interval is short, by the range of slopes or of values where
it is long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

U64, U32 = 2.0**-53, 2.0**-24
LONG, SMALL = 0.1, 1e-3
"""A reach, and what is left out, above which a line is tried instead of a quadratic."""
NODES = 17
_ROOT = 1 / math.sqrt(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """f(y) = value + slope (y - v) + bend (y - v)^2 / 2 + e, |e| <= remainder: all [n, B].

    The bend applies to the linear part of y - v alone, which is what the remainder accounts for.
    """

    value: Tensor
    slope: Tensor
    bend: Tensor | None
    """None where it is 0 everywhere."""
    remainder: Tensor


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """A function with four derivatives."""

    derivatives: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
    """The function and three derivatives."""
    second: float
    """Bounds the size of the second derivative."""
    third: float
    fourth: float
    """Infinite where the second derivative jumps at 0: a quadratic then serves either side only."""
    values: tuple[float, float] | None = None
    """Bounds of the function; None where it has none."""
    size: tuple[float, float] = (0.0, 1.0)
    """(a, b): float32 evaluates it within 8 u (a |x| + b)."""

    def over(self, value: Tensor, linear: Tensor, rest: Tensor) -> Quadratic:
        """Enclose it for arguments within `linear` + `rest` of `value`.

        Args:
            value: [n, B], argument at the centre of the box.
            linear: [n, B], how far the argument's linear part reaches.
            rest: [n, B], how far the rest of it does.
        """
        reach = linear + rest
        f, first, second, third = self.derivatives(value)
        if math.isinf(self.fourth):
            crossing = value.abs() < reach
            edge = torch.where(crossing, math.inf, self.third)
        else:
            edge = (third.abs() + self.fourth * reach).clamp_(max=self.third)
        curve = (second.abs() + edge * reach).clamp_(max=self.second)
        cubic = second.abs() * rest * (linear + rest / 2) + edge * reach**3 / 6
        square = curve * reach**2 / 2
        keep = cubic <= square
        bend = torch.where(keep, second, 0.0)
        remainder = torch.where(keep, cubic, square)
        # Where an interval is long, a line through its ends bends less than the function does.
        total = remainder + torch.where(keep, second.abs() * linear**2 / 4, 0.0)
        long = (reach > LONG) & (total > SMALL) & torch.isfinite(value) & torch.isfinite(reach)
        if long.any():
            middle, slope, half = self._chord(value[long], reach[long])
            better = half < total[long]
            for old, new in ((f, middle), (first, slope), (bend, 0.0 * half), (remainder, half)):
                old[long] = torch.where(better, new, old[long])
        own = (256 * U64) * (1 + value.abs()) * (1 + reach + reach**2)
        return Quadratic(value=f, slope=first, bend=bend, remainder=remainder + own)

    def _chord(self, value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the middle and slope of two parallel lines around it, and half of their distance.

        Between `NODES` points the function is within second / 8 times the square of their distance
        of its own chords.
        """
        share = torch.linspace(-1, 1, NODES, dtype=value.dtype)[:, None]
        f = self.derivatives(value + share * reach)[0]
        slope = (f[-1] - f[0]) / (2 * reach)
        above = f - slope * (share * reach)
        low, high = above.min(0).values, above.max(0).values
        between = (2 * reach / (NODES - 1)) ** 2 * (self.second / 8)
        half = (high - low) / 2 + between
        if self.values is not None:
            bottom, top = self.values
            flat = half > (top - bottom) / 2
            slope = torch.where(flat, 0.0, slope)
            half = half.clamp(max=(top - bottom) / 2)
            return torch.where(flat, (top + bottom) / 2, (low + high) / 2), slope, half
        return (low + high) / 2, slope, half


@dataclass(frozen=True, kw_only=True)
class Kink:
    """max(x, a x): a line on either side of 0."""

    below: float
    """a, in [0, 1)."""
    size: tuple[float, float] = (1.0, 0.0)

    def over(self, value: Tensor, linear: Tensor, rest: Tensor) -> Quadratic:
        """Enclose it as `Smooth.over` does: exactly on one side, between chord and kink on both."""
        reach = linear + rest
        low, high = value - reach, value + reach
        both = (low < 0) & (high > 0)
        above = (low >= 0).to(value.dtype)
        flat = self.below + (1 - self.below) * above
        slope = torch.where(both, self.below + (1 - self.below) * high / (high - low), flat)
        # The chord lies above by at most this, at 0.
        gap = torch.where(both, high * (1 - slope), 0.0)
        chord = torch.where(both, high + slope * (value - high), slope * value)
        own = (16 * U64) * (value.abs() + reach)
        return Quadratic(value=chord - gap / 2, slope=slope, bend=None, remainder=gap / 2 + own)


@dataclass(frozen=True, kw_only=True)
class InverseRoot:
    """1 / sqrt(x) of numbers that are at least `floor`, as a variance plus epsilon is."""

    floor: float
    size: tuple[float, float] = (0.0, 0.0)
    """float32 evaluates it within 8 u of what it is, which is at most 1 / sqrt(floor)."""

    def over(self, value: Tensor, linear: Tensor, rest: Tensor) -> Quadratic:
        """Enclose it as `Smooth.over` does."""
        reach = linear + rest
        low = (value - reach).clamp_(min=self.floor)
        value = value.clamp(min=self.floor)
        f = value.rsqrt()
        first, second = -(f**3) / 2, f**5 * 0.75
        edge = low.rsqrt() ** 7 * 1.875
        remainder = second * rest * (linear + rest / 2) + edge * reach**3 / 6
        top = low.rsqrt()
        bottom = (value + reach).rsqrt()
        worse = remainder + second * linear**2 / 4 > (top - bottom) / 2
        f = torch.where(worse, (top + bottom) / 2, f)
        first, second = torch.where(worse, 0.0, first), torch.where(worse, 0.0, second)
        remainder = torch.where(worse, (top - bottom) / 2, remainder)
        own = 8 * U32 * top + 256 * U64 * top * torch.where(worse, 1.0, (1 + reach / low) ** 2)
        return Quadratic(value=f, slope=first, bend=second, remainder=remainder + own)


Activation = Smooth | Kink | InverseRoot


def _tanh(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f = torch.tanh(x)
    first = 1 - f * f
    second = -2 * f * first
    return f, first, second, first * (6 * f * f - 2)


def _sigmoid(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f = torch.sigmoid(x)
    first = f * (1 - f)
    return f, first, first * (1 - 2 * f), first * (1 - 6 * first)


def _silu(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f, first, second, third = _sigmoid(x)
    return x * f, f + x * first, 2 * first + x * second, 3 * second + x * third


def _gelu(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bell = torch.exp(-x * x / 2) * _ROOT
    share = torch.special.ndtr(x)
    return x * share, share + x * bell, bell * (2 - x * x), bell * x * (x * x - 4)


def _softplus(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f, first, second, _ = _sigmoid(x)
    return torch.logaddexp(x, torch.zeros_like(x)), f, first, second


def _sine(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f, first = torch.sin(x), torch.cos(x)
    return f, first, -f, -first


def _cosine(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f, second = torch.cos(x), torch.sin(x)
    return f, -second, -f, second


def _elu(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bell = torch.exp(x.clamp(max=0.0))
    below = torch.where(x < 0, bell, 0.0)
    return torch.where(x < 0, torch.expm1(x.clamp(max=0.0)), x), bell, below, below


def _square(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    zero = torch.zeros_like(x)
    return x * x, 2 * x, zero + 2, zero


ACTIVATIONS: dict[str, Activation] = {
    "elu": Smooth(derivatives=_elu, second=1, third=1, fourth=math.inf, size=(0.0, 1.0)),
    "gelu": Smooth(
        derivatives=_gelu,
        second=0.798,
        third=0.818,
        fourth=1.596,
        size=(1.0, 0.0),
    ),
    "leaky_relu": Kink(below=0.01),
    "relu": Kink(below=0.0, size=(0.0, 0.0)),
    "sigmoid": Smooth(
        derivatives=_sigmoid,
        second=0.09623,
        third=0.125,
        fourth=0.1277,
        values=(0, 1),
    ),
    "silu": Smooth(
        derivatives=_silu,
        second=0.5,
        third=0.3083,
        fourth=0.5,
        size=(1.0, 0.0),
    ),
    "softplus": Smooth(
        derivatives=_softplus,
        second=0.25,
        third=0.09623,
        fourth=0.125,
        size=(1.0, 1.0),
    ),
    "tanh": Smooth(
        derivatives=_tanh,
        second=0.7699,
        third=2.0,
        fourth=4.0859,
        values=(-1, 1),
    ),
    "sine": Smooth(derivatives=_sine, second=1, third=1, fourth=1, values=(-1, 1)),
    "cosine": Smooth(derivatives=_cosine, second=1, third=1, fourth=1, values=(-1, 1)),
    "square": Smooth(
        derivatives=_square,
        second=2,
        third=0,
        fourth=0,
        size=(0.0, 0.0),
    ),
}
"""Every function of one variable that a layer can apply; constants are rounded up."""
