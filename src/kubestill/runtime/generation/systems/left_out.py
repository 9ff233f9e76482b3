"""Describe the inputs on which a solver fails: how many, which, why, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from kubestill.errors import counted
from kubestill.runtime.base.values import Number, Value, Whole
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Choice, Continuous, Integer, Levels

FIRST = 3
"""Inputs that are named of each reason."""
_REASONS = 5
"""Reasons that are reported one by one."""
_TOLD_APART = 100
"""Messages that are counted one by one; further ones count by their type."""
_SHOWN = 6
"""Inputs of a point that are shown."""


class Side(Value):
    """One input's side of a box."""

    low: Number
    high: Number
    start: Number
    """Share of the input's range, as it is mapped, that lies below the box: 0 to 1."""
    end: Number
    """Share of the range up to the end of the box."""


class Region(Value):
    """The inputs on which the solver fails in one way."""

    reason: str
    """What it does there."""
    rows: Whole
    """How many were met."""
    first: tuple[dict[str, Any], ...] = ()
    """The first of them."""
    box: dict[str, Side] = Field(default_factory=dict[str, Side])
    """The smallest box that holds them all, by numeric input."""
    labels: dict[str, tuple[str, ...]] = Field(default_factory=dict[str, tuple[str, ...]])
    """The labels that they have, by input; without those inputs of which they have every one."""

    @property
    def said(self) -> str:
        """All of it, in a sentence; an input whose whole range the box takes is not named."""
        share = float(np.prod([side.end - side.start for side in self.box.values()]))
        narrow = [
            f"{name} {shown_number(side.low)} to {shown_number(side.high)}"
            for name, side in self.box.items()
            if side.end - side.start < 0.95
        ]
        narrow += [f"{name} {' or '.join(labels)}" for name, labels in self.labels.items()]
        where = f"within {', '.join(narrow)}" if narrow else "all over the domain"
        if narrow and not self.labels:
            where += f" (a box of {100 * share:.3g}% of the domain)"
        named = "; ".join(shown_point(point) for point in self.first)
        return f"It {self.reason} on {self.rows:,}, {where}, such as {named}."


class LeftOut(Value):
    """The inputs that were left out, because the solver fails on them."""

    rows: Whole
    """How many."""
    of: Whole
    """How many it was asked for."""
    regions: tuple[Region, ...] = ()
    """Where they lie, by what the solver does there, the largest first."""

    @property
    def said(self) -> str:
        """All of it, in sentences."""
        if not self.rows:
            return f"The solver fails on none of {counted(self.of, 'input')}."
        share = 100 * self.rows / self.of
        start = f"The solver fails on {self.rows:,} of {counted(self.of, 'input')} ({share:.3g}%)."
        return " ".join([start, *(region.said for region in self.regions)])

    @staticmethod
    def join(parts: Sequence[LeftOut]) -> LeftOut:
        """Describe what several parts of one covering left out, in their order."""
        return LeftOut(
            rows=sum(part.rows for part in parts),
            of=sum(part.of for part in parts),
            regions=_largest([region for part in parts for region in part.regions]),
        )


class Failures:
    """Gathers the inputs on which a solver fails.

    Args:
        domain: That they are of.
    """

    def __init__(self, domain: Domain):
        self._domain = domain
        self._regions: dict[str, Region] = {}
        self.rows = 0
        """How many there are."""

    def note(self, inputs: pd.DataFrame, reasons: Sequence[str]) -> None:
        """Add inputs [N], and for each what the solver does."""
        self.rows += len(inputs)
        places: dict[str, list[int]] = {reason: [] for reason in self._regions}
        for place, reason in enumerate(reasons):
            # Messages may tell every input from every other.
            if reason not in places and len(places) >= _TOLD_APART:
                reason = reason.partition(":")[0]
            places.setdefault(reason, []).append(place)
        for reason, rows in places.items():
            if rows:
                region, known = self._region(reason, inputs.iloc[rows]), self._regions.get(reason)
                self._regions[reason] = _joined(known, region) if known else region

    def record(self, of: int) -> LeftOut:
        """Describe them, of so many inputs that were asked for."""
        choices = {g.name: g.choices for g in self._domain.inputs if isinstance(g, Choice)}
        regions = [
            region.model_copy(
                update={
                    "labels": {
                        name: found
                        for name, found in region.labels.items()
                        if len(found) < len(choices[name])
                    }
                }
            )
            for region in _largest(list(self._regions.values()))
        ]
        return LeftOut(rows=self.rows, of=of, regions=tuple(regions))

    def _region(self, reason: str, inputs: pd.DataFrame) -> Region:
        box: dict[str, Side] = {}
        labels: dict[str, tuple[str, ...]] = {}
        for given in self._domain.inputs:
            if isinstance(given, Choice):
                found = set(inputs[given.name].astype(str))
                labels[given.name] = tuple(label for label in given.choices if label in found)
            elif isinstance(given, Continuous | Integer | Levels):
                box[given.name] = _side(given, inputs[given.name].to_numpy(np.float64))
        named = range(min(len(inputs), FIRST))
        first = tuple(as_point(inputs.iloc[row].to_dict()) for row in named)
        return Region(reason=reason, rows=len(inputs), first=first, box=box, labels=labels)


def _largest(regions: Sequence[Region]) -> tuple[Region, ...]:
    """Join the regions of one reason, and of few inputs; return the others first."""
    by_type = len({region.reason for region in regions}) > _REASONS
    found: dict[str, Region] = {}
    for region in regions:
        reason = region.reason.partition(":")[0] if by_type else region.reason
        region = region.model_copy(update={"reason": reason})
        found[reason] = _joined(found[reason], region) if reason in found else region
    ordered = sorted(found.values(), key=lambda region: -region.rows)
    few, ordered = ordered[_REASONS:], ordered[:_REASONS]
    if few:
        others = few[0].model_copy(update={"reason": "fails in other ways"})
        ordered.append(reduce(_joined, few[1:], others))
    return tuple(ordered)


def _joined(known: Region, more: Region) -> Region:
    """Return a region with that of other inputs in it."""
    return Region(
        reason=known.reason,
        rows=known.rows + more.rows,
        first=(*known.first, *more.first)[:FIRST],
        box={name: _around(side, more.box.get(name, side)) for name, side in known.box.items()},
        labels={
            name: tuple(dict.fromkeys((*found, *more.labels[name])))
            for name, found in known.labels.items()
            if name in more.labels
        },
    )


def as_point(inputs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return one row of inputs as JSON; fields as their first numbers."""
    point: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            point[str(name)] = [float(number) for number in value.ravel()[:4]]
        else:
            point[str(name)] = value if isinstance(value, str) else float(value)
    return point


def shown_point(inputs: Mapping[Any, Any]) -> str:
    """Return the first inputs of a point for people."""
    shown = list(inputs.items())[:_SHOWN]
    return ", ".join(
        f"{name} = {shown_number(value) if isinstance(value, int | float) else value}"
        for name, value in shown
    )


def shown_number(value: float) -> str:
    """Return a number for people, with more digits where it is far from zero."""
    return f"{value:.{6 if abs(value) < 1e6 else 12}g}"


def _side(given: Continuous | Integer | Levels, values: Any) -> Side:
    """Return the side of the box around some values; of levels it takes whole ones."""
    low, high = float(values.min()), float(values.max())
    ends = np.array([low, high])
    if isinstance(given, Continuous):
        start, end = given.share(ends)
    else:
        place = ends - given.low if isinstance(given, Integer) else given.index(ends)
        start, end = (place + np.array([0, 1])) / given.levels
    return Side(low=low, high=high, start=float(start), end=float(end))


def _around(known: Side, side: Side) -> Side:
    return Side(
        low=min(known.low, side.low),
        high=max(known.high, side.high),
        start=min(known.start, side.start),
        end=max(known.end, side.end),
    )
