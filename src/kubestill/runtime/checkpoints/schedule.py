"""When to take a recovery checkpoint: every so many seconds, or as often as it pays.

A save that costs C seconds of training, taken every T seconds on a machine that is lost once in M
seconds on average, wastes C/T + T/(2M) of the time. The minimum is at T = sqrt(2 C M) (Young 1974;
Daly 2006 gives the correction used here where C is not small beside M).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from kubestill.runtime.checkpoints.ledger import Json

SHORTEST_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class SaveCost:
    """What one save took, in seconds."""

    blocked: float
    """How long training stood still."""
    behind: float
    """From then until the commit, behind the training's back."""
    stolen: float
    """Processor seconds the saver used meanwhile, divided by the processors there are."""


def best_interval(cost: float, mean_seconds_between_failures: float) -> float:
    """Return the interval that wastes least (Daly 2006, eq. 37), in seconds.

    Args:
        cost: What one save costs the training, in seconds.
        mean_seconds_between_failures: M above.
    """
    failures = mean_seconds_between_failures
    if cost >= 2 * failures:
        return failures
    root = math.sqrt(cost / (2 * failures))
    return math.sqrt(2 * cost * failures) * (1 + root / 3 + root * root / 9) - cost


class RecoverySchedule:
    """Decides from the time that passed and what the last saves cost."""

    def __init__(
        self,
        *,
        seconds: float,
        auto: bool,
        budget: float,
        interruptions_per_hour: float,
        now: float,
    ):
        self._seconds = seconds
        self._auto = auto
        self._budget = budget
        self._rate = interruptions_per_hour / 3600
        self._costs: deque[SaveCost] = deque(maxlen=9)
        self._started = self._last = now
        self._interval = self._choose()
        self._blocked = 0.0
        self._saves = 0

    @property
    def interval(self) -> float:
        """Seconds between two recovery checkpoints; infinite where they are off."""
        return self._interval

    def due(self, now: float) -> bool:
        """Say whether the interval has passed since the last save of any kind."""
        return now - self._last >= self._interval

    def saved(self, now: float) -> None:
        """Note that a state was copied."""
        self._last = now

    def measured(self, cost: SaveCost) -> None:
        """Note what a save cost."""
        self._costs.append(cost)
        self._blocked += cost.blocked
        self._saves += 1
        self._interval = self._choose()

    def report(self, now: float) -> Json:
        """Say what was chosen, what it should cost and what it did cost, in seconds and shares."""
        interval, elapsed = self.interval, max(now - self._started, 1e-9)
        report: Json = {
            "saves": self._saves,
            "interval_seconds": interval if math.isfinite(interval) else None,
            "auto": self._auto,
            "blocked_seconds": self._blocked,
            "blocked_share": self._blocked / elapsed,
        }
        if self._costs:
            behind = median(c.behind for c in self._costs)
            report["seconds_per_save"] = median(c.blocked for c in self._costs)
            report["seconds_behind"] = behind
            if math.isfinite(interval):
                # A kill falls anywhere in the interval, and finds the last commit still under way.
                lost = interval / 2 + behind
                report["expected_overhead"] = self._typical_cost() / interval
                report["expected_lost_seconds_per_kill"] = lost
                report["expected_lost_share"] = lost * self._rate
        return report

    def _typical_cost(self) -> float:
        return median(c.blocked + c.stolen for c in self._costs)

    def _choose(self) -> float:
        if not self._auto:
            return self._seconds or math.inf
        if not self._costs:
            # The first save is early: its cost is what the choice rests on.
            return min(self._seconds or 30.0, 30.0)
        cost = self._typical_cost()
        cheapest = max(best_interval(cost, 1 / self._rate), cost / self._budget)
        behind = median(c.blocked + c.behind for c in self._costs)
        return max(cheapest, behind, SHORTEST_SECONDS)
