"""Whether the dataset covers the domain: every point of a grid, or every corner by samples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubestill.runtime.certification.certificate import Condition
from kubestill.runtime.certification.labels import row_hashes
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Continuous, Integer

__all__ = ["Coverage", "check_coverage", "grid_points"]

NAME = "the dataset covers the domain"
UNLIKELY = 1e-6
"""A gap that random samples leave with less probability is a hole."""
BINS = 8
_CHUNK = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How a domain is covered."""

    kind: str
    """`complete`: all inputs there are; `grid`; `samples`."""
    condition: Condition


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


def check_coverage(
    domain: Domain, raw: NDArray[np.float32], layout: RawLayout, points: dict[str, int] | None
) -> Coverage:
    """Look for holes, for rows outside, and for a domain that reaches further than its rows.

    Args:
        domain: What is to be covered.
        raw: Raw inputs of the dataset [N, R].
        layout: Of `raw`.
        points: Of the grid that it should be; None where it was sampled.
    """
    outside = _outside(domain, raw, layout)
    if outside is not None:
        return Coverage(kind="samples", condition=outside)
    if points is None:
        return Coverage(kind="samples", condition=_sampled(domain, raw, layout))
    kind = "complete" if domain.grid_rows is not None else "grid"
    return Coverage(kind=kind, condition=_gridded(domain, raw, layout, points))


def _outside(domain: Domain, raw: NDArray[np.float32], layout: RawLayout) -> Condition | None:
    for given in domain.inputs:
        if not isinstance(given, Continuous | Integer):
            continue
        values = raw[:, layout.slices[given.name].start].astype(np.float64)
        # Bounds are the user's float64, values the dataset's float32.
        slack = 1e-6 * max(abs(values.min()), abs(values.max()), 1e-30)
        wrong = ~((values >= given.low - slack) & (values <= given.high + slack))
        if wrong.any():
            return Condition(
                name=NAME,
                status="failed",
                code="outside",
                said=(
                    f"{int(wrong.sum()):,} rows have {given.name} outside of {given.low:g} to "
                    f"{given.high:g}, such as {values[wrong][0]:g}."
                ),
                remedy="Certify the domain that the rows were made for.",
            )
    return None


def _gridded(
    domain: Domain, raw: NDArray[np.float32], layout: RawLayout, points: dict[str, int]
) -> Condition:
    """Compare with every point of the grid, in whatever order the rows are."""
    total = int(np.prod(list(points.values()), dtype=np.int64))
    there = np.unique(row_hashes(raw))
    missing, example = 0, None
    for start in range(0, total, _CHUNK):
        frame = domain.grid(np.arange(start, min(start + _CHUNK, total)), points)
        wanted = row_hashes(decode_features(frame, layout))
        absent = there[np.minimum(np.searchsorted(there, wanted), len(there) - 1)] != wanted
        if absent.any() and example is None:
            example = frame.iloc[int(absent.argmax())].to_dict()
        missing += int(absent.sum())
    sides = " x ".join(f"{count:,}" for count in points.values())
    if missing:
        return Condition(
            name=NAME,
            status="failed",
            code="holes",
            said=f"{missing:,} of the {total:,} points of the grid {sides} are not in it, such as "
            f"{_point(example)}.",
            remedy="Generate them, or name the smaller domain.",
        )
    extra = len(there) - total
    if domain.grid_rows is not None and extra:
        return Condition(
            name=NAME,
            status="failed",
            code="outside",
            said=f"{extra:,} different inputs are no points of the grid {sides}.",
            remedy="Certify the domain that the rows were made for.",
        )
    if domain.grid_rows is not None:
        said = f"All {total:,} inputs there are, {sides}: complete."
    else:
        said = f"All {total:,} points of the grid {sides}, both ends included."
    return Condition(name=NAME, status="shown", said=said)


def _sampled(domain: Domain, raw: NDArray[np.float32], layout: RawLayout) -> Condition:
    """Look for ends, slabs and corners that samples as many as these would not have left empty."""
    shares = {
        given.name: share
        for given in domain.inputs
        if (share := _share(given, raw, layout)) is not None
    }
    rows = len(raw)
    for name, share in shares.items():
        ordered = np.sort(share)
        ends = {"below": ordered[0], "above": 1 - ordered[-1]}
        for side, gap in ends.items():
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
                "holes",
                f"No row has {name} in a stretch of {100 * gap:.3g}% of its range.",
                "Generate rows for it, or name the smaller domain.",
            )
    # A corner cell is empty with this probability, and there are so many.
    if rows > BINS**2 * 30:
        for one, other in itertools.combinations(list(shares)[:12], 2):
            cells = np.minimum((shares[one] * BINS).astype(int), BINS - 1) * BINS
            cells += np.minimum((shares[other] * BINS).astype(int), BINS - 1)
            empty = BINS**2 - len(np.unique(cells))
            if empty:
                return _failed(
                    "holes",
                    f"{empty} of {BINS**2} cells of {one} by {other} are empty.",
                    "Generate rows for them, or name the smaller domain.",
                )
    kept = (
        f"{rows:,} samples, none of {len(shares)} inputs with an empty end, slab or pair of ranges."
    )
    if len(shares) < len(domain.inputs):
        kept += " Fields and unbounded inputs are drawn, and cannot be looked at so."
    return Condition(name=NAME, status="shown", said=kept)


def _share(given: Any, raw: NDArray[np.float32], layout: RawLayout) -> NDArray[np.float64] | None:
    """Return where values lie between their bounds, 0 to 1 [N]; None where that means nothing."""
    if not isinstance(given, Continuous) or given.mapping not in ("linear", "log"):
        return None
    values = raw[:, layout.slices[given.name].start].astype(np.float64)
    if given.mapping == "log":
        values, low, high = np.log(values), np.log(given.low), np.log(given.high)
    else:
        low, high = given.low, given.high
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _failed(code: str, said: str, remedy: str) -> Condition:
    return Condition(name=NAME, status="failed", code=code, said=said, remedy=remedy)


def _point(inputs: Mapping[Any, Any] | None) -> str:
    shown = list((inputs or {}).items())[:6]
    return ", ".join(
        f"{name} = {value:g}" if isinstance(value, int | float) else f"{name} = {value}"
        for name, value in shown
    )
