"""Tell the three phases of a training run apart: high-level structure, detail, overfitting.

The rule, in the order it is applied (`RULE` says it in short):

1. Curves are taken on a log scale where they are positive, so that a fall from 1 to 0.1 counts as
   much as one from 0.1 to 0.01, and smoothed.
2. Phase 2 ends at the minimum of the smoothed validation loss, and phase 3 begins after it, once
   the mean of the last points lies above that minimum by `STANDARD_ERRORS` standard errors *and* by
   `LEAST_RISE` of the whole fall. The standard error comes from the noise of the curve itself,
   measured after the steep part. A bump that goes away again is no overfitting: only what lasts to
   the end of the curve counts. Nor is a rise that the training loss shares: that is instability.
   Phase 3 may be absent.
3. Phase 1 ends where the smoothed loss has made `STEEP_SHARE` of its fall, counted up to the end
   of phase 2: the validation loss, or the training loss where nothing was validated.

Four standard errors look like many, but the minimum was *chosen* as the lowest of all points. On
curves without overfitting the rule finds some in fewer than 1% of cases under independent noise,
heavy tails included, and in up to 5% where neighbouring points correlate by 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from kubestill.errors import InvalidInput, counted
from kubestill.runtime.curves.noise import (
    DESPIKED,
    STEEP_SHARE,
    despike,
    first_below,
    half_window,
    noise,
    settled_noise,
    smooth,
)
from kubestill.runtime.metrics.catalog import direction

Phase = Literal[1, 2, 3]

STANDARD_ERRORS = 4.0
"""How far the validation loss must have risen to call it overfitting."""
LEAST_RISE = 0.01
"""A rise below this part of the fall is not worth calling overfitting, however certain."""
LEAST_POINTS = 6
"""Validation points below which a rise cannot be distinguished from noise."""

MOST_WIDTHS, MOST_OPEN = 8, 16
"""Widths of smoothing that `boundary_candidates` tries, and newest points that it names."""

RULE = (
    f"phase 1 ends where the smoothed loss has made {STEEP_SHARE:.0%} of its fall on a log scale; "
    "phase 3 begins after the minimum of the smoothed validation loss, where the end of its curve "
    f"lies {STANDARD_ERRORS:g} standard errors above that while the training loss has not risen"
)


class Boundaries(BaseModel):
    """The last step of a phase; None where it has not been seen to end."""

    model_config = ConfigDict(frozen=True)

    structure: int | None
    """Last step of phase 1."""
    detail: int | None
    """Last step of phase 2: the minimum of the validation loss. None: no overfitting was seen."""


class Phases(BaseModel):
    """Where the phases lie; part of `training.json`."""

    model_config = ConfigDict(frozen=True)

    boundaries: Boundaries
    rule: str
    """How the phases are distinguished."""
    why: str
    """What the curves showed, in words and numbers."""


@dataclass(frozen=True)
class _Curve:
    """Finite points in order of step, smaller values better."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]

    def until(self, step: int | None) -> _Curve:
        count = len(self.steps) if step is None else sum(s <= step for s in self.steps)
        return _Curve(self.name, self.steps[:count], self.values[:count])


def detect_phases(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    metric: str = "",
    followed: str = "validation",
) -> Phases:
    """Find the three phases in the curves of a training run so far.

    Args:
        curves: `{"train": [{"step", "loss"}], "validation": [{"step", <metric>, ...}]}` as in
            `training.json`; either may be empty.
        metric: What the training run follows. It is read from the validation points where smaller
            is better, else the first loss they hold: overfitting shows in a loss long before it
            shows in an accuracy.
        followed: What those points are called in `why`: "whole-domain" where they are of all rows.
    """
    train = _curve("training loss", curves.get("train", ()), "loss", sign=1)
    validation = _validation_curve(curves.get("validation", ()), metric, followed)
    detail, why_detail = _end_of_detail(validation, train)
    source = validation if len(validation.steps) >= 3 else train
    structure, why_structure = _end_of_structure(source.until(detail))
    return Phases(
        boundaries=Boundaries(structure=structure, detail=detail),
        rule=RULE,
        why=f"{why_structure}; {why_detail}",
    )


def boundary_candidates(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    metric: str = "",
    followed: str = "validation",
    most: int = 0,
) -> frozenset[int]:
    """Return the steps of the milestones after which overfitting may yet turn out to begin.

    It begins at the minimum of a smoothed curve, which shows long after that minimum and moves as
    the curve grows: smoothing widens with the number of points, and the newest points are not
    averaged with their successors yet. So these are the minima at every width there may still be,
    and the points that are not final at those.

    Args:
        curves: As `detect_phases` takes them.
        metric: What the training run follows.
        followed: See `detect_phases`.
        most: Points that the validation curve may have in the end.
    """
    curve = _validation_curve(curves.get("validation", ()), metric, followed)
    count = len(curve.steps)
    if count < DESPIKED:
        # None of these points is averaged as it will be.
        return frozenset(curve.steps)
    values = _scaled(curve.values)
    least, widest = half_window(count), half_window(max(most, count))
    widths = {least + (widest - least) * n // MOST_WIDTHS for n in range(MOST_WIDTHS + 1)}
    open_from = max(0, count - 1 - widest)
    # A long tail is thinned; by number, so that what stays does not move as the curve grows.
    stride = -(-(count - open_from) // MOST_OPEN)
    found = {index - index % stride for index in range(open_from, count)}
    for half in widths:
        smoothed = smooth(values, half)
        final = range(count - 1 - half)
        if final:
            found.add(min(final, key=smoothed.__getitem__))
    return frozenset(curve.steps[index] for index in found)


def phase_of(phases: Phases, step: int) -> Phase:
    """Return the phase of a training run at `step`; a boundary belongs to the phase it ends."""
    structure, detail = phases.boundaries.structure, phases.boundaries.detail
    if detail is not None and step > detail:
        return 3
    return 2 if structure is not None and step > structure else 1


def _end_of_detail(validation: _Curve, train: _Curve) -> tuple[int | None, str]:
    count = len(validation.steps)
    if count < LEAST_POINTS:
        return None, f"too few points ({count}) to see overfitting"
    values = _scaled(validation.values)
    smoothed = smooth(values, half_window(count))
    lowest = min(range(count), key=smoothed.__getitem__)
    if lowest == count - 1:
        return None, f"no overfitting: {validation.name} is still falling at the end"
    step = validation.steps[lowest]
    rise, error = _rise_after(values, smoothed, lowest)
    least = LEAST_RISE * (smoothed[0] - smoothed[lowest])
    shown = f"{validation.name} ends {_errors(rise, error)} above its minimum at step {step}"
    if rise <= max(STANDARD_ERRORS * error, least):
        return None, f"no overfitting: {shown}"
    if _rises_after(train, step):
        return None, f"instability, not overfitting: {shown}, but the training loss rose as well"
    return step, f"overfitting after step {step}: {shown}"


def _rises_after(curve: _Curve, step: int) -> bool:
    index = sum(s <= step for s in curve.steps) - 1
    if len(curve.steps) < LEAST_POINTS or not 0 <= index < len(curve.steps) - 1:
        return False
    values = _scaled(curve.values)
    rise, error = _rise_after(values, smooth(values, half_window(len(values))), index)
    return rise > STANDARD_ERRORS * error


def _rise_after(
    values: Sequence[float], smoothed: Sequence[float], index: int
) -> tuple[float, float]:
    """Return how far the end of the curve lies above point `index`, and its standard error."""
    window = 2 * half_window(len(values)) + 1
    after = despike(values)[index + 1 :][-window:]
    error = settled_noise(values) * math.sqrt(1 / window + 1 / len(after))
    return fmean(after) - smoothed[index], error


def _end_of_structure(curve: _Curve) -> tuple[int | None, str]:
    if len(curve.steps) < 3:
        return None, f"phase 1 cannot be determined from {counted(len(curve.steps), 'point')}"
    values = _scaled(curve.values)
    half = half_window(len(values))
    smoothed = smooth(values, half)
    fall = smoothed[0] - min(smoothed)
    error = noise(values) * math.sqrt(1 + 1 / (2 * half + 1))
    if fall <= STANDARD_ERRORS * error:
        return None, f"still in phase 1: {curve.name} has not fallen beyond its noise"
    step = curve.steps[first_below(smoothed, smoothed[0] - STEEP_SHARE * fall)]
    return step, f"{curve.name} had made {STEEP_SHARE:.0%} of its fall by step {step}"


def _validation_curve(points: Sequence[Mapping[str, Any]], metric: str, followed: str) -> _Curve:
    recorded = sorted(filter(_falls, {name for point in points for name in point}))
    if metric in recorded:
        return _curve(f"{followed} {metric}", points, metric, sign=1)
    if recorded:
        return _curve(f"{followed} {recorded[0]}", points, recorded[0], sign=1)
    return _curve(f"{followed} {metric} (negated)", points, metric, sign=-1)


def _falls(name: str) -> bool:
    try:
        return direction(name) == "min"
    except InvalidInput:
        return False


def _curve(name: str, points: Iterable[Mapping[str, Any]], key: str, *, sign: int) -> _Curve:
    finite = {
        int(point["step"]): sign * float(point[key])
        for point in points
        if key in point and math.isfinite(point[key])
    }
    steps = sorted(finite)
    return _Curve(name, steps, [finite[step] for step in steps])


def _scaled(values: Sequence[float]) -> list[float]:
    return [math.log(value) for value in values] if min(values) > 0 else list(values)


def _errors(rise: float, error: float) -> str:
    return f"{rise / error:.1f} standard errors" if error else "beyond any noise"
