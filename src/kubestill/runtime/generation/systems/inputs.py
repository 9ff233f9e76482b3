"""Define the inputs of a system: name, type, bounds, and how unit numbers become values.

Every value is one that a dataset can hold, so that the label of a stored row is the solution at
exactly that row: rounding happens here, towards the inside of the bounds. A dataset holds float32,
but float64 of levels that float32 would change, and of numbers so far from zero that it would
merge them: models read these less what they have in common.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from typing_extensions import override

from kubestill.errors import Problems, nearest
from kubestill.runtime.base.random import normals
from kubestill.runtime.datasets.schema import Column

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Values = NDArray[Any]

Mapping = Literal["linear", "log", "normal", "exponential"]
MAPPINGS = ("linear", "log", "normal", "exponential")
MOST_WHOLE = 1 << 24
"""Float32 holds all whole numbers up to here."""
COARSE = 1e-4
"""Share of a range by which float32 may round its numbers, as for imported columns."""


def common(low: float, high: float) -> float:
    """Return what models read the numbers of a range less; 0 where float32 tells them apart."""
    rounding = max(abs(low), abs(high)) * 2.0**-24
    return low / 2 + high / 2 if rounding > COARSE * (high - low) > 0 else 0.0


def _stored(name: str, offset: float) -> Column:
    """Return the column of numbers that models read less `offset`."""
    return Column(name=name, kind="numeric", exact=bool(offset), offset=offset)


class Input(ABC):
    """The properties of an input that a domain needs."""

    name: str
    """Name of the column."""

    @property
    @abstractmethod
    def column(self) -> Column:
        """The column that stores it in a dataset."""
        ...

    @property
    def width(self) -> int:
        """Unit numbers that one value takes."""
        return 1

    @property
    def levels(self) -> int | None:
        """Number of values; None if the grid decides."""
        return None

    @abstractmethod
    def at(self, unit: Floats) -> Values:
        """Turn unit numbers [N, width] inside (0, 1) into values [N, ...]."""
        ...

    @abstractmethod
    def on_grid(self, index: Indices, points: int) -> Values:
        """Return points number `index` [N], from 0, of a grid of `points`, both ends included."""
        ...

    @abstractmethod
    def contains(self, values: Values) -> NDArray[np.bool_]:
        """Return which of the values [N, ...] are allowed: [N]."""
        ...

    @abstractmethod
    def check(self, problems: Problems) -> None:
        """Note what is wrong with the definition."""
        ...


@dataclass(frozen=True, kw_only=True)
class Continuous(Input):
    """A real number between two bounds.

    An input without bounds has to say how it is mapped: `normal` spreads unit numbers like a normal
    distribution, `exponential` from `low` upwards. Nothing else can cover it.
    """

    name: str
    """Name of the column."""
    low: float = -math.inf
    """Lowest value."""
    high: float = math.inf
    """Highest value."""
    mapping: Mapping = "linear"
    """How unit numbers are spread: `linear`, `log`, `normal` or `exponential`. Random points and
    shares of the domain follow it."""
    centre: float = 0.0
    """Mean of a `normal` mapping."""
    spread: float = 1.0
    """Standard deviation of a `normal` mapping, mean distance from `low` of an `exponential`."""
    unit: str = ""
    """Unit, for people."""

    @property
    @override
    def column(self) -> Column:
        return _stored(self.name, self.offset)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value; infinite if it is mapped."""
        return self.low, self.high

    @property
    def offset(self) -> float:
        """What values have in common, where float32 would merge them; else 0."""
        return common(*self._usual)

    @property
    def _usual(self) -> tuple[float, float]:
        """The range in which most values lie."""
        match self.mapping:
            case "linear" | "log":
                return self.low, self.high
            case "normal":
                return self.centre - self.spread, self.centre + self.spread
            case "exponential":
                return self.low, self.low + self.spread

    @override
    def at(self, unit: Floats) -> Floats:
        return self._rounded(self._mapped(unit[:, 0]))

    @override
    def on_grid(self, index: Indices, points: int) -> Floats:
        if self.mapping in ("normal", "exponential"):
            return self._rounded(self._mapped((index + 0.5) / points))
        share = index / (points - 1) if points > 1 else np.full(len(index), 0.5)
        return self._rounded(self._mapped(share))

    @override
    def contains(self, values: Values) -> NDArray[np.bool_]:
        numbers = values.astype(np.float64)
        return np.isfinite(numbers) & (numbers >= self.low) & (numbers <= self.high)

    @override
    def check(self, problems: Problems) -> None:
        field = f"input {self.name!r}"
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        if self.mapping not in MAPPINGS:
            problems.add(f"{field}.mapping", self.mapping, nearest(self.mapping, MAPPINGS))
        elif self.mapping in ("linear", "log") and not finite:
            remedy = (
                "unbounded: give finite bounds, or say how it is covered: mapping='normal' with "
                "centre and spread, or 'exponential' with low and spread"
            )
            problems.add(field, self.bounds, remedy)
        elif self.mapping == "exponential" and not math.isfinite(self.low):
            problems.add(f"{field}.low", self.low, "an exponential mapping starts at a finite low")
        if finite and not self.low < self.high:
            problems.add(field, self.bounds, "the lower bound must be below the upper one")
        if self.mapping == "log" and self.low <= 0:
            problems.add(f"{field}.low", self.low, "a log mapping needs bounds above 0")
        if not self.spread > 0:
            problems.add(f"{field}.spread", self.spread, "must be above 0")

    def _mapped(self, share: Floats) -> Floats:
        match self.mapping:
            case "linear":
                return self.low + share * (self.high - self.low)
            case "log":
                return self.low * (self.high / self.low) ** share
            case "normal":
                return self.centre + self.spread * normals(share)
            case "exponential":
                return self.low - self.spread * np.log1p(-share)

    def share(self, values: Floats) -> Floats:
        """Return where values lie in the range as it is mapped, 0 to 1: [N]."""
        match self.mapping:
            case "linear":
                share = (values - self.low) / (self.high - self.low)
            case "log":
                share = np.log(values / self.low) / math.log(self.high / self.low)
            case "normal":
                share = ndtr((values - self.centre) / self.spread)
            case "exponential":
                share = -np.expm1(-(values - self.low) / self.spread)
        return np.clip(share, 0.0, 1.0)

    def _rounded(self, values: Floats) -> Floats:
        low, high, offset = self.low, self.high, self.offset
        inside = (np.clip(values, low, high) - offset).astype(np.float32)
        below, above = np.float32(-np.inf), np.float32(np.inf)
        inside = np.where(inside > high - offset, np.nextafter(inside, below), inside)
        inside = np.where(inside < low - offset, np.nextafter(inside, above), inside)
        return np.clip(inside.astype(np.float64) + offset, low, high)


@dataclass(frozen=True, kw_only=True)
class Integer(Input):
    """A whole number, both bounds included."""

    name: str
    """Name of the column."""
    low: int
    """Lowest number."""
    high: int
    """Highest number."""
    unit: str = ""
    """Unit, for people."""

    @property
    @override
    def column(self) -> Column:
        return _stored(self.name, self.offset)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return self.low, self.high

    @property
    def offset(self) -> float:
        """What values have in common, where float32 would merge them; else 0."""
        far = max(abs(self.low), abs(self.high)) > MOST_WHOLE
        return float((self.low + self.high) // 2) if far else 0.0

    @property
    @override
    def levels(self) -> int:
        return self.high - self.low + 1

    @override
    def at(self, unit: Floats) -> Floats:
        return self.low + np.floor(unit[:, 0] * self.levels)

    @override
    def on_grid(self, index: Indices, points: int) -> Floats:
        # A thinned grid keeps both ends and whole numbers.
        steps = index * (self.levels - 1) / max(points - 1, 1)
        return self.low + np.rint(steps)

    @override
    def contains(self, values: Values) -> NDArray[np.bool_]:
        numbers = values.astype(np.float64)
        return (numbers == np.rint(numbers)) & (numbers >= self.low) & (numbers <= self.high)

    @override
    def check(self, problems: Problems) -> None:
        if self.low > self.high:
            problems.add(f"input {self.name!r}", self.bounds, "low must not be above high")
        if self.levels > 2 * MOST_WHOLE or max(abs(self.low), abs(self.high)) > 1 << 53:
            remedy = (
                "float32, which models read, tells 2^25 whole numbers in a row apart, and float64 "
                "those up to 2^53; rescale it, or make it continuous"
            )
            problems.add(f"input {self.name!r}", self.bounds, remedy)


@dataclass(frozen=True, kw_only=True)
class Levels(Input):
    """One of several numbers, such as the points of a table along one of its axes."""

    name: str
    """Name of the column."""
    values: tuple[float, ...]
    """The values in ascending order, without duplicates."""
    unit: str = ""
    """Unit, for people."""

    @property
    @override
    def column(self) -> Column:
        exact = bool((self._read + self.offset != self.every).any())
        return Column(name=self.name, kind="numeric", exact=exact, offset=self.offset)

    @property
    @override
    def levels(self) -> int:
        return len(self.values)

    @property
    def offset(self) -> float:
        """What values have in common, where float32 would merge them; else 0."""
        return common(self.values[0], self.values[-1])

    @override
    def at(self, unit: Floats) -> Floats:
        return self.every[(unit[:, 0] * self.levels).astype(np.int64)]

    @override
    def on_grid(self, index: Indices, points: int) -> Floats:
        return self.every[np.rint(index * (self.levels - 1) / max(points - 1, 1)).astype(int)]

    @override
    def contains(self, values: Values) -> NDArray[np.bool_]:
        read = (values.astype(np.float64) - self.offset).astype(np.float32)
        return read == self._read[self.index(values)]

    def index(self, values: Values) -> Indices:
        """Return which level each of these values is: [N]."""
        edges = (self.every[1:] + self.every[:-1]) / 2
        return np.searchsorted(edges, values.astype(np.float64)).astype(np.int64)

    @override
    def check(self, problems: Problems) -> None:
        if not len(self.values) or not np.isfinite(self.values).all():
            problems.add(f"input {self.name!r}", self.values, "list at least one finite number")
        elif not (np.diff(self._read) > 0).all():
            remedy = "list its numbers in ascending order, each once and apart in float32"
            problems.add(f"input {self.name!r}", self.values, remedy)

    @property
    def _read(self) -> NDArray[np.float32]:
        """Its numbers as models read them."""
        return (self.every - self.offset).astype(np.float32)

    @property
    def every(self) -> Floats:
        """Its numbers; a dataset holds them in float64 where float32 would change them."""
        return np.asarray(self.values, np.float64)


@dataclass(frozen=True, kw_only=True)
class Choice(Input):
    """One of several labels."""

    name: str
    """Name of the column."""
    choices: tuple[str, ...]
    """The labels, each once."""

    @property
    @override
    def column(self) -> Column:
        return Column(name=self.name, kind="categorical", categories=self.choices)

    @property
    @override
    def levels(self) -> int:
        return len(self.choices)

    @override
    def at(self, unit: Floats) -> Values:
        return np.asarray(self.choices)[(unit[:, 0] * self.levels).astype(np.int64)]

    @override
    def on_grid(self, index: Indices, points: int) -> Values:
        return np.asarray(self.choices)[index]

    @override
    def contains(self, values: Values) -> NDArray[np.bool_]:
        return np.isin(values.astype(str), self.choices)

    @override
    def check(self, problems: Problems) -> None:
        if not self.choices or len(set(self.choices)) < len(self.choices):
            problems.add(f"input {self.name!r}", self.choices, "list its labels, each once")


@dataclass(frozen=True, kw_only=True)
class Field(Input):
    """A whole field, such as an initial condition, drawn from a few unit numbers."""

    name: str
    """Name of the column."""
    shape: tuple[int, ...]
    """Shape of one field, and of each cell of the column."""
    numbers: int
    """Unit numbers it takes."""
    draw: Callable[[Floats], Floats]
    """Turns unit numbers [N, numbers] into fields [N, *shape]."""

    @property
    @override
    def width(self) -> int:
        return self.numbers

    @property
    @override
    def column(self) -> Column:
        return Column(name=self.name, kind="tensor", shape=self.shape)

    @override
    def at(self, unit: Floats) -> Floats:
        return self.draw(unit).astype(np.float32).astype(np.float64)

    @override
    def on_grid(self, index: Indices, points: int) -> Values:
        raise AssertionError("`Domain.points` refuses grids over fields")

    @override
    def contains(self, values: Values) -> NDArray[np.bool_]:
        finite: NDArray[np.bool_] = np.isfinite(values.reshape(len(values), -1))
        return np.logical_and.reduce(finite, axis=1)

    @override
    def check(self, problems: Problems) -> None:
        if self.numbers < 1 or not self.shape or min(self.shape) < 1:
            value = (self.numbers, self.shape)
            problems.add(f"input {self.name!r}", value, "numbers and shape must be 1 and more")
