"""How long a training run is, where its milestones fall, and what a step number means."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kubestill.runtime.training.batches import count_batches
from kubestill.runtime.training.finish import ITERATIONS
from kubestill.runtime.training.settings import TrainingSettings

_MILESTONES = 30
"""How many the first-order steps have where the user says nothing."""
_FINISH_MILESTONES = 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a training run: first-order ones on batches, then those of the finish."""

    rows: int
    settings: TrainingSettings
    least_rows: int = 1
    """See `Order`."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches that a pass over the rows takes."""
        return count_batches(self.rows, self.settings.batch_size, self.least_rows)

    @property
    def finish_from(self) -> int:
        """How many first-order steps there are."""
        epochs = self.settings.epochs * self.steps_per_epoch
        return self.settings.steps or max(1, round(epochs))

    @property
    def steps(self) -> int:
        """Total number of steps, first-order and L-BFGS."""
        return self.finish_from + self.settings.finish_steps

    def next_milestone(self, step: int) -> int:
        """Return the step of the milestone after `step`: multiples of a distance, and the ends.

        The first-order steps end with one, and the finish has its own.
        """
        settings = self.settings
        if step >= self.finish_from:
            every = max(1, settings.finish_steps // _FINISH_MILESTONES)
            done = step - self.finish_from
            return min(self.finish_from + (done // every + 1) * every, self.steps)
        unit = {
            "epochs": self.steps_per_epoch,
            "steps": 1,
            "examples": 1 / settings.batch_size,
        }[settings.milestone_unit]
        distance = settings.milestone_every * unit or self.finish_from / _MILESTONES
        # Milestone n is at n * distance, halves rounded up: half a step before it at the earliest.
        passed = math.floor((step + 0.5) / distance - 1e-9)
        mark = math.floor((passed + 1) * distance + 0.5)
        return min(max(mark, step + 1), self.finish_from)

    def epochs(self, step: int) -> float:
        """Return the passes over the data of the first `step` steps.

        An iteration of the finish counts as one.
        """
        first, second = self._parts(step)
        return first / self.steps_per_epoch + ITERATIONS * second

    def examples(self, step: int) -> int:
        """Return the rows trained on in the first `step` steps."""
        first, second = self._parts(step)
        epochs, batches = divmod(first, self.steps_per_epoch)
        passes = epochs + ITERATIONS * second
        return passes * self.rows + min(batches * self.settings.batch_size, self.rows)

    def _parts(self, step: int) -> tuple[int, int]:
        first = min(step, self.finish_from)
        return first, step - first
