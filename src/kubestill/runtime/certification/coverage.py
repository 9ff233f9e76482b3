"""Whether the dataset covers the domain: every point of a grid, or no hole that a search finds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import KDTree

from kubestill.runtime.certification.certificate import Box, Condition, Levels, LookedAt
from kubestill.runtime.certification.labels import row_hashes
from kubestill.runtime.datasets.columns import centred
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.generation.systems import inputs as given_by
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Choice, Continuous, Integer
from kubestill.runtime.generation.systems.left_out import as_point, shown_number, shown_point

NAME = "the dataset covers the domain"
UNLIKELY = 1e-6
"""A gap that random samples leave with less probability is a hole."""
BINS = 8
PAIR_ROWS = BINS**2 * 30
"""From so many rows on an empty cell of a pair of inputs means something."""
_PAIRED = 12
"""Inputs of which every pair is examined."""
_CHUNK = 1 << 17
_NAMED = 10
"""Levels without a row that are named."""
_PLACES, _STARTS, _NEAREST = 2048, 48, 128
"""Of the search for empty boxes: random places, those that it starts from, and the points that are
looked at before all others."""

Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How a domain is covered."""

    kind: str
    """`complete`: all inputs there are; `grid`; `samples`."""
    condition: Condition
    looked_at: LookedAt | None = None
    """Of samples; None for grids."""


def numbers(raw: NDArray[np.float32], layout: RawLayout, name: str) -> NDArray[np.float64]:
    """Return an input, as the system knows it, of raw rows [N, R]: numbers or codes [N]."""
    read = raw[:, layout.slices[name].start].astype(np.float64)
    return read + layout.schema.column(name).offset


def _as_read(values: Any, layout: RawLayout, name: str) -> NDArray[np.float64]:
    """Return numbers as `numbers` gives them once a model has read them."""
    offset = layout.schema.column(name).offset
    return centred(np.asarray(values, np.float64), offset).astype(np.float64) + offset


def grid_points(domain: Domain, provenance: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the points of the grid that the dataset should be; None where it was sampled."""
    if domain.grid_rows is not None:
        return domain.points(rows=domain.grid_rows)
    if provenance.get("method") != "grid":
        return None
    points = provenance.get("settings", {}).get("points") or {}
    if set(points) != set(domain.names):
        return None
    return {name: int(count) for name, count in points.items()}


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """Inputs of the domain that no dataset can hold: the solver fails on them."""

    raw: NDArray[np.float32]
    """Those that were met [n, R]."""
    density: int
    """Random points of the whole domain that were solved to find them."""
    fails: Callable[[pd.DataFrame], NDArray[np.bool_]]
    """Solves inputs [M], and says on which of them the solver fails: [M]."""


def check_coverage(
    domain: Domain,
    raw: NDArray[np.float32],
    layout: RawLayout,
    points: dict[str, int] | None,
    unanswered: Unanswered | None = None,
) -> Coverage:
    """Look for holes, for rows outside, and for a domain that reaches further than its rows.

    Args:
        domain: What is to be covered.
        raw: Raw inputs of the dataset [N, R].
        layout: Of `raw`.
        points: Of the grid that it should be; None where it was sampled.
        unanswered: What need not be covered; None where the solver answers every input.
    """
    outside = _outside(domain, raw, layout)
    if outside is not None:
        return Coverage(kind="samples", condition=outside)
    if points is None:
        condition, looked_at = _sampled(domain, raw, layout, unanswered)
        return Coverage(kind="samples", condition=condition, looked_at=looked_at)
    kind = "complete" if domain.grid_rows is not None else "grid"
    return Coverage(kind=kind, condition=_gridded(domain, raw, layout, points, unanswered))


def _outside(domain: Domain, raw: NDArray[np.float32], layout: RawLayout) -> Condition | None:
    for given in domain.inputs:
        if isinstance(given, given_by.Field):
            continue
        column = numbers(raw, layout, given.name)
        if isinstance(given, Continuous):
            # Bounds are the user's float64, values those that a model reads: a bound counts as
            # inside when it is read, and nothing beyond does.
            low, high = _as_read(given.bounds, layout, given.name).tolist()
            wrong = ~((column >= min(low, given.low)) & (column <= max(high, given.high)))
        elif isinstance(given, Choice):
            wrong = ~(column >= 0)
        elif isinstance(given, given_by.Levels):
            wrong = ~np.isin(column, _as_read(given.every, layout, given.name))
        else:
            wrong = ~given.contains(column)
        if wrong.any():
            first = float(column[wrong][0])
            allowed = f"{given.levels} values" if given.levels else "its range"
            if isinstance(given, Continuous | Integer):
                allowed = f"{shown_number(given.low)} to {shown_number(given.high)}"
            return _failed(
                "outside",
                f"{int(wrong.sum()):,} rows have {given.name} outside of {allowed}, such as "
                f"{shown_number(first)}.",
                "Certify the domain that the rows were made for.",
            )
    return None


def _gridded(
    domain: Domain,
    raw: NDArray[np.float32],
    layout: RawLayout,
    points: dict[str, int],
    unanswered: Unanswered | None,
) -> Condition:
    """Compare with every point of the grid, in whatever order the rows are."""
    total = int(np.prod(list(points.values()), dtype=np.int64))
    there = np.unique(row_hashes(raw))
    missing, example, left_out = 0, None, 0
    for start in range(0, total, _CHUNK):
        frame = domain.grid(np.arange(start, min(start + _CHUNK, total)), points)
        wanted = row_hashes(decode_features(frame, layout))
        absent = there[np.minimum(np.searchsorted(there, wanted), len(there) - 1)] != wanted
        if unanswered is not None and absent.any():
            left = unanswered.fails(frame.loc[absent])
            left_out += int(left.sum())
            absent[np.flatnonzero(absent)[left]] = False
        if absent.any() and example is None:
            example = as_point(frame.iloc[int(absent.argmax())].to_dict())
        missing += int(absent.sum())
    sides = " x ".join(f"{count:,}" for count in points.values())
    if missing:
        return _failed(
            "holes",
            f"{missing:,} of the {total:,} points of the grid {sides} are not in it, such as "
            f"{shown_point(example or {})}.",
            "Generate them, or name the smaller domain.",
        )
    extra = len(there) - (total - left_out)
    but = f", but for {left_out:,} on which the solver fails" if left_out else ""
    if domain.grid_rows is not None and extra:
        return _failed(
            "outside",
            f"{extra:,} different inputs are no points of the grid {sides}.",
            "Certify the domain that the rows were made for.",
        )
    if domain.grid_rows is not None:
        said = f"All {total:,} inputs there are, {sides}{but}: complete."
    else:
        said = f"All {total:,} points of the grid {sides}{but}, both ends included."
    return Condition(name=NAME, status="shown", said=said)


def _sampled(
    domain: Domain, raw: NDArray[np.float32], layout: RawLayout, unanswered: Unanswered | None
) -> tuple[Condition, LookedAt]:
    """Look for ends, gaps, pairs, boxes and levels that random rows would not have left empty."""
    rows, known = len(raw), len(raw)
    if unanswered is not None:
        # Inputs on which the solver fails count as rows: where they lie no row can be. The rows of
        # the other inputs may lie closer together than they do, and what is looked for is a gap
        # that neither would leave.
        raw = np.concatenate([raw, unanswered.raw])
        rows = min(len(raw), unanswered.density)
    columns = {given.name: numbers(raw, layout, given.name) for given in domain.inputs}
    shares = {
        given.name: given.share(columns[given.name])
        for given in domain.inputs
        if isinstance(given, Continuous)
    }
    levels = {
        given.name: _levels(given, columns[given.name])
        for given in domain.inputs
        if given.levels is not None
    }
    together = np.stack(list(shares.values()), 1) if shares else None
    pairs = rows >= PAIR_ROWS and 2 <= len(shares) <= _PAIRED
    box = None if together is None else _empty_box(together, domain)
    looked_at = LookedAt(
        ends=tuple(shares),
        pairs=pairs,
        empty_box=box,
        levels=levels,
        never=tuple(g.name for g in domain.inputs if isinstance(g, given_by.Field)),
    )
    hole = _ends(shares, rows) or (_pair(shares) if pairs else None)
    hole = hole or _large(box, rows, len(shares)) or _undrawn(levels, rows)
    said = f"{known:,} rows"
    if unanswered is not None:
        said += f" and {len(unanswered.raw):,} inputs on which the solver fails"
    seen = f"{said}. {_seen(looked_at)}".rstrip()
    return hole or Condition(name=NAME, status="shown", said=seen), looked_at


def _ends(shares: Mapping[str, Shares], rows: int) -> Condition | None:
    for name, share in shares.items():
        ordered = np.sort(share)
        for side, gap in {"below": ordered[0], "above": 1 - ordered[-1]}.items():
            if (1 - gap) ** rows < UNLIKELY:
                return _failed(
                    "extrapolated",
                    f"The domain reaches further than the rows: {100 * gap:.3g}% of {name} lies "
                    f"{side} all of them.",
                    "Generate rows for this domain, or certify the smaller one.",
                )
        gap = float(np.diff(ordered).max(initial=0.0))
        if rows * (1 - gap) ** rows < UNLIKELY:
            return _failed(
                "holes", f"No row has {name} in a stretch of {100 * gap:.3g}% of its range."
            )
    return None


def _pair(shares: Mapping[str, Shares]) -> Condition | None:
    cells = {name: np.minimum((s * BINS).astype(int), BINS - 1) for name, s in shares.items()}
    for one, other in itertools.combinations(shares, 2):
        empty = BINS**2 - len(np.unique(cells[one] * BINS + cells[other]))
        if empty:
            return _failed("holes", f"{empty} of {BINS**2} cells of {one} by {other} are empty.")
    return None


def _large(box: Box | None, rows: int, dimensions: int) -> Condition | None:
    """Refuse a box so large that random rows would not leave any of its size empty.

    An empty box that cannot grow has a row on each of its 2d sides, or the domain's own. There are
    at most (N + 2)^2d such boxes, each of which all other rows miss with probability (1 - v)^N.
    """
    if box is None or box.share >= 1:
        return None
    boxes = 2 * dimensions * math.log(rows + 2)
    if boxes + max(rows - 2 * dimensions, 0) * math.log1p(-box.share) >= math.log(UNLIKELY):
        return None
    inside = ", ".join(
        f"{name} {shown_number(box.low[name])} to {shown_number(box.high[name])}"
        for name in list(box.low)[:6]
    )
    return _failed("holes", f"A box of {100 * box.share:.3g}% of the domain has no row: {inside}.")


def _undrawn(levels: Mapping[str, Levels], rows: int) -> Condition | None:
    for name, found in levels.items():
        missing = found.of - found.drawn
        # Each level is missed with probability (1 - 1/L)^N.
        if missing and found.of * (1 - 1 / found.of) ** rows < UNLIKELY:
            return _failed("holes", f"{_never(name, found)} without a row.")
    return None


def _never(name: str, found: Levels) -> str:
    more = found.of - found.drawn - len(found.never)
    listed = ", ".join(found.never) + (f" and {more:,} more" if more > 0 else "")
    return f"{found.of - found.drawn:,} of the {found.of:,} values of {name} ({listed}) are"


def _seen(looked_at: LookedAt) -> str:
    """Say what was looked at, in which dimensions, and what was not."""
    said: list[str] = []
    if looked_at.ends:
        named = ", ".join(looked_at.ends)
        said.append(f"{named}: no end and no stretch of the range is empty beyond chance.")
    if len(looked_at.ends) > 1:
        told = "every cell has rows" if looked_at.pairs else "nobody looked"
        reach = f" (from {PAIR_ROWS:,} rows on, for up to {_PAIRED} inputs)"
        said.append(f"Pairs of them: {told}{'' if looked_at.pairs else reach}.")
    box = looked_at.empty_box
    if box is not None and len(box.low) > 1:
        said.append(
            f"All {len(box.low)} together: the largest empty box that a search found is "
            f"{100 * box.share:.2g}% of the domain; there may be a larger one."
        )
    for name, found in looked_at.levels.items():
        if found.drawn == found.of:
            said.append(f"All {found.of:,} values of {name} have rows.")
        else:
            said.append(f"{_never(name, found)} without a row: fewer rows than it takes.")
    if len(looked_at.levels) > 1 or (looked_at.levels and looked_at.ends):
        said.append("Nobody looked at the discrete inputs together with the others.")
    if looked_at.never:
        said.append(f"Nobody looked at {', '.join(looked_at.never)}.")
    return " ".join(said)


def _levels(given: Any, column: NDArray[np.float64]) -> Levels:
    """Return which values of a discrete input have rows."""
    names: Sequence[str] | range
    if isinstance(given, Choice):
        names, codes = given.choices, column.astype(np.int64)
    elif isinstance(given, Integer):
        names, codes = range(given.low, given.high + 1), column.astype(np.int64) - given.low
    else:
        names, codes = [shown_number(value) for value in given.values], given.index(column)
    drawn = np.unique(codes)
    never = np.setdiff1d(np.arange(len(names)), drawn)[:_NAMED]
    named = tuple(str(names[int(code)]) for code in never)
    return Levels(drawn=len(drawn), of=len(names), never=named)


def _empty_box(shares: Shares, domain: Domain) -> Box:
    low, high = largest_empty_box(shares)
    sides = [given for given in domain.inputs if isinstance(given, Continuous)]
    return Box(
        share=float(np.prod(high - low)),
        low={g.name: float(_value(g, at)) for g, at in zip(sides, low, strict=True)},
        high={g.name: float(_value(g, at)) for g, at in zip(sides, high, strict=True)},
    )


def _value(given: Continuous, share: float) -> np.float64:
    inside = np.array([[np.clip(share, 2.0**-53, 1 - 2.0**-53)]])
    return given.at(inside)[0]


def largest_empty_box(points: Shares) -> tuple[Shares, Shares]:
    """Search for a large axis-parallel box of the unit cube with no point [N, d] inside.

    Starts are the random places that are farthest from any point. From each the box shrinks from
    the whole cube: the nearest point that is still inside cuts off the side that costs least. To
    find the very largest box is NP-hard in the number of dimensions (Backer & Keil 2010); what is
    returned is empty, and large.

    Returns:
        low: [d]
        high: [d]
    """
    width = points.shape[1]
    tree = KDTree(points)
    places = np.random.default_rng(0).random((_PLACES, width))
    apart, near = tree.query(places, k=min(_NEAREST, len(points)), p=np.inf)
    near = near.reshape(_PLACES, -1)
    order = np.argsort(-apart.reshape(_PLACES, -1)[:, 0])[:_STARTS]
    best_low, best_high, best = np.zeros(width), np.zeros(width), 0.0
    for start, close in zip(places[order], near[order], strict=True):
        low, high = np.zeros(width), np.ones(width)
        # The nearest points cut off nearly all others before those are looked at.
        for inside in (points[close], points):
            _shrink(low, high, start, inside)
        volume = float(np.prod(high - low))
        if volume > best:
            best_low, best_high, best = low, high, volume
    return best_low, best_high


def _shrink(low: Shares, high: Shares, start: Shares, inside: Shares) -> None:
    """Cut the box, in place, until none of the points is inside."""
    while True:
        inside = inside[((inside > low) & (inside < high)).all(axis=1)]
        if not len(inside):
            return
        scale = high - low
        at = inside[np.argmin(np.abs((inside - start) / scale).max(axis=1))]
        # What each side would keep, of those that leave the start inside.
        kept = np.where(at > start, (at - low) / scale, (high - at) / scale)
        side = int(kept.argmax())
        if at[side] > start[side]:
            high[side] = at[side]
        else:
            low[side] = at[side]


def _failed(
    code: str, said: str, remedy: str = "Generate rows for it, or name the smaller domain."
) -> Condition:
    return Condition(name=NAME, status="failed", code=code, said=said, remedy=remedy)
