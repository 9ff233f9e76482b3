"""Add up what challengers gained, window by window, until it is evidence.

A window with few events cannot show that a challenger is better, and neither can the next one. So
what each challenger gained on the rows that judged it is kept, and added to that of the next ones
until one is promoted. Each was judged by rows that it had not seen and that are newer than what it
learned (Dawid 1984, "The prequential approach"). No row is kept from learning for it, and none
judges twice: a challenger that knows the rows on both sides of old ones would be better there than
on the rows to come.

The sum is looked at in every window, and which windows are part of it follows from how the ones
before went. A limit for each look would not hold for such a sum. As long as no challenger is better
it is a supermartingale, and the limit here is one that those cross at any time with at most the
stated chance, by whatever rule they are continued or stopped (Robbins 1970, the normal mixture;
"Statistical methods related to the law of the iterated logarithm").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kubestill.errors import counted
from kubestill.runtime.metrics.catalog import Metric
from kubestill.runtime.metrics.intervals import (
    CARRIERS,
    EVENTS,
    LEAST_GROUPS,
    PAIRED,
    Interval,
    Measured,
    Moments,
    Spread,
    events,
    rarer,
)
from kubestill.runtime.retraining.history import Gain

MOST_ENTITIES = 5000
"""Of one window: so many tell enough by themselves, and the history stays small."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What challengers gained in several windows together, the newest one's included."""

    windows: int
    """1 where there is nothing to add to the newest one."""
    rows: int = 0
    gain: Interval = Interval(math.nan)
    """The mean over all rows; without bounds where they do not tell yet."""
    confidence: float = math.nan
    """Of the two-sided interval whose lower end is the limit that may be looked at every time."""

    @property
    def sentence(self) -> str:
        """How much it is, in words."""
        held = f"{counted(self.windows, 'window')} ({counted(self.rows, 'row')})"
        by = f"{abs(self.gain.value):.3g}"
        if self.gain.known:
            ends = f"{self.gain.low:.3g} to {self.gain.high:.3g}"
            by += f" ({100 * self.confidence:.4g}% interval of the gain {ends})"
        better = "better" if self.gain.value >= 0 else "worse"
        return f"Challengers of {held} together are {better} by {by}."


def gain_of(
    scores: Measured, model: str, other: str, metric: Metric, entities: Sequence[str] | None = None
) -> Gain | None:
    """Return what a challenger gained, as it is added up; None where it cannot be.

    Args:
        scores: Of both on rows that neither has seen.
        model: The challenger's name in `scores`.
        other: The champion's.
        metric: What the gain is measured in.
        entities: [G] names of the groups of `scores`; None where rows have none.
    """
    value = scores.improvement(model, other, metric).value
    if not math.isfinite(value) or not metric.decides:
        return None
    moved, outcome = scores.difference(model, other, metric), scores.outcomes[model]
    happened = events(outcome, scores.groups)
    rare = outcome.rows if math.isinf(happened) else int(happened)
    if entities is None or scores.groups is None:
        known = Moments.of(moved)
        return Gain(
            value=value,
            rows=outcome.rows,
            events=rare,
            second=known.second,
            third=known.third,
            fourth=known.fourth,
        )
    if len(entities) > MOST_ENTITIES:
        return None
    # Summed over the rows of an entity, as those of later windows will be.
    summed = moved * (outcome.rows / len(moved))
    named = {name: float(one) for name, one in zip(entities, summed, strict=True)}
    codes: list[int] = []
    if not math.isinf(happened):
        codes = np.unique(scores.groups[rarer(outcome)]).tolist()
    return Gain(
        value=value,
        rows=outcome.rows,
        events=rare,
        entities=named,
        rare=tuple(entities[code] for code in codes),
    )


def entity_name(value: object, window: str, place: int) -> str:
    """Return what an entity is called in the history: nobody has to read customers' names there.

    Args:
        value: What its column holds; None or NaN for a row that stands for itself.
        window: Where the row is from.
        place: Number of the row there.
    """
    alone = value is None or value != value
    text = f"{window}/{place}" if alone else f"={value}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pool(gains: Sequence[Gain], *, budget: float, most: float) -> Pool:
    """Add up gains, the newest last.

    Args:
        gains: Of windows that are no part of any earlier sum that ended.
        budget: Chance that the sum ever shows a gain although no challenger is better.
        most: Largest chance of that at one look.
    """
    rows = sum(gain.rows for gain in gains)
    value = sum(gain.value * gain.rows for gain in gains) / rows
    # In windows like the first one: known before anything is added to it.
    level = min(most, _level(rows / gains[0].rows, budget))
    confidence = 1 - 2 * level
    spread = _spread(gains, rows)
    named = {name for gain in gains for name in gain.rare}
    there = len(named) if named else sum(gain.events for gain in gains)
    found = Interval(value)
    if (
        there >= EVENTS
        and spread.carriers >= CARRIERS
        and (not gains[0].entities or spread.groups >= LEAST_GROUPS)
    ):
        found = Interval(value, *spread.range(value, confidence))
    return Pool(windows=len(gains), rows=rows, gain=found, confidence=confidence)


def _spread(gains: Sequence[Gain], rows: int) -> Spread:
    if not any(gain.entities for gain in gains):
        parts = [
            Moments(groups=gain.rows, second=gain.second, third=gain.third, fourth=gain.fourth)
            for gain in gains
        ]
        return Spread.together(parts, skewness=PAIRED)
    summed: dict[str, float] = {}
    for gain in gains:
        for name, moved in gain.entities.items():
            summed[name] = summed.get(name, 0.0) + moved
    moved = np.array(list(summed.values())) * (len(summed) / rows)
    return Spread.of(moved - moved.mean(), skewness=PAIRED)


def _level(windows: float, budget: float) -> float:
    """Return the one-sided level of a sum of so many windows that may be looked at every time.

    A sum of N normal gains, mixed over half-normal alternatives of the size that shows in one
    window, is the martingale 2 Φ(s) exp(s² / 2) / sqrt(1 + N) with s² = z² N / (1 + N).
    """
    from scipy.special import log_ndtr, ndtr

    wanted, s = -math.log(budget), 1.0
    for _ in range(20):  # converges within a few steps: Φ is nearly 1 there
        s = math.sqrt(
            max(0.0, 2 * (wanted - math.log(2) - float(log_ndtr(s))) + math.log1p(windows))
        )
    return float(ndtr(-s * math.sqrt(1 + 1 / windows)))
