"""Rivals take turns, so that a noisy machine disturbs all of them alike.

A figure is the median over the rounds of a ratio within one round.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from bench.results import Measure

Clocked = Callable[[], float]
"""Does its work once and returns the seconds that count."""


def clock(work: Callable[[], object]) -> Clocked:
    """Return `work` such that all the seconds it takes count."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


@dataclass(frozen=True)
class Turns:
    """What each rival took in each round, in seconds."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, above: str, below: str) -> list[float]:
        """Return how many times as long as `below` `above` took, a round each."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return [a / b for a, b in pairs]

    def ratio(self, above: str, below: str) -> float:
        return statistics.median(self.ratios(above, below))


def take_turns(rivals: Mapping[str, Clocked], rounds: int, *, warm_up: int = 1) -> Turns:
    """Let every rival work once a round, in a new order each; the first rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    order, dice = list(rivals), random.Random(0)
    for number in range(1 - warm_up, rounds + 1):
        dice.shuffle(order)
        taken = {name: rivals[name]() for name in order}
        line = "  ".join(f"{name} {taken[name]:.3g} s" for name in rivals)
        print(
            f"round {number} of {rounds}: {line}" if number > 0 else f"warm-up: {line}", flush=True
        )
        if number > 0:
            for name, value in taken.items():
                seconds[name].append(value)
    return Turns(seconds)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the median by order statistics; of few values, the extremes."""
    ranked = sorted(values)
    rank = max(int(stats.binom.ppf(0.025, len(ranked), 0.5)), 1)
    return ranked[rank - 1], ranked[-rank]


def slow_down(name: str, turns: Turns, *, bar: float, peer: str) -> list[Measure]:
    """Return by how many percent the rival `with` is slower than `without`, and its interval."""
    percent = [100 * (ratio - 1) for ratio in turns.ratios("with", "without")]
    low, high = interval(percent)
    name, pairs = f"{name}: slow-down", f"95% of the median of {len(percent)} pairs"
    return [
        Measure(
            name=name,
            value=statistics.median(percent),
            bar=bar,
            at_least=False,
            unit="%",
            peer=peer,
        ),
        Measure(name=f"{name}, low end of its interval", value=low, unit="%", peer=pairs),
        Measure(name=f"{name}, high end of its interval", value=high, unit="%", peer=pairs),
    ]


def paired_gains(
    name: str, errors: Mapping[str, Sequence[float]], *, unit: str, control: str = "soft targets"
) -> list[Measure]:
    """Return how much less each other arm errs than the control, seed by seed, in percent.

    The interval is Student's of the mean of the differences: wide, since the seeds are few.
    """
    found: list[Measure] = []
    for arm, values in errors.items():
        gains = [100 * (a - b) for a, b in zip(errors[control], values, strict=True)]
        if arm == control or len(gains) < 2:
            continue
        mean, spread = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
        half = float(stats.t.ppf(0.975, len(gains) - 1)) * spread
        peer = f"{control} alone; {len(gains)} paired seeds, 95% of their mean: "
        peer += f"{mean - half:+.2f} to {mean + half:+.2f}"
        found.append(Measure(name=f"{name}: {arm} errs less by", value=mean, unit=unit, peer=peer))
    return found
