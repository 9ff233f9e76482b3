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
from typing import Any

from pydantic import BaseModel, ConfigDict

from kubestill.runtime.base.values import Flag, Number, Whole

SHORTEST_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class SaveCost:
    """What one save took, in seconds."""

    blocked: float
    """How long training stood still."""
    behind: float
    """From then until the commit, while training goes on."""
    stolen: float
    """Processor seconds the saver used meanwhile, divided by the processors there are."""


class SavingReport(BaseModel):
    """How often state was saved, what that cost and what a kill costs; part of `training.json`.

    Only what is known is set: nothing is expected of a schedule that has saved nothing yet.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    saves: Whole = 0
    """Checkpoints of any kind that this attempt wrote."""
    interval_seconds: Number | None = None
    """Between two recovery checkpoints; None where they are off."""
    auto: Flag = False
    """Whether the interval is chosen from what saves cost."""
    blocked_seconds: Number = 0.0
    """How long training stood still for all saves together."""
    blocked_share: Number = 0.0
    """The same as a share of the attempt's time."""
    seconds_per_save: Number | None = None
    """How long training stands still for one save: the median of the last few."""
    seconds_behind: Number | None = None
    """From then until the commit, while training continues: the median of the last few."""
    expected_overhead: Number | None = None
    """Share of the time that saving at this interval takes."""
    expected_lost_seconds_per_kill: Number | None = None
    """Training time that a kill undoes on average."""
    expected_lost_share: Number | None = None
    """Share of the time that kills undo, at the configured rate of interruptions."""
    lost_seconds: Number | None = None
    """Training time that the attempt before this one lost, as far as its last heartbeat tells;
    None where no attempt came before."""
    near: SavingReport | None = None
    """The same of the states on the node's own disk; None without `checkpoints.near`."""


def best_interval(cost: float, mean_seconds_between_failures: float) -> float:
    """Return the interval that wastes least (Daly 2006, eq. 37), in seconds.

    Args:
        cost: What one save costs the training run, in seconds.
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

    def hurry(self) -> None:
        """Make the next save due at once."""
        self._last = -math.inf

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

    def report(self, now: float) -> SavingReport:
        """Return what was chosen, what it should cost and what it did cost."""
        interval, elapsed = self.interval, max(now - self._started, 1e-9)
        report: dict[str, Any] = {
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
        return SavingReport(**report)

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
