"""The limits a model must keep, as users write them: `{"accuracy": {"min": 0.95}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from kubestill.errors import Problems, nearest
from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.metrics.catalog import metrics_of


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """One limit on one metric."""

    metric: str
    kind: Literal["min", "max"]
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {'≥' if self.kind == 'min' else '≤'} {self.limit:g}"

    def met(self, value: float) -> bool:
        """Return whether `value` keeps the limit; NaN never does."""
        return value >= self.limit if self.kind == "min" else value <= self.limit


def parse_thresholds(thresholds: Mapping[str, Any], task: Task) -> tuple[Threshold, ...]:
    """Validate what the user wrote against the metrics of the task.

    Raises:
        InvalidInput: Unknown metrics or bounds (nearest names offered), values that are no
            numbers, limits that no model can meet, a minimum above the maximum: all together.
    """
    problems = Problems()
    found: list[Threshold] = []
    for name, bounds in thresholds.items():
        field = f"thresholds.{name}"
        if name not in metrics_of(task):
            remedy = f"no {task} metric of this name; {nearest(name, metrics_of(task))}"
            problems.add(field, bounds, remedy)
        elif not isinstance(bounds, Mapping) or not bounds:
            remedy = 'give bounds as {"min": number} or {"max": number}, or both'
            problems.add(field, bounds, remedy)
        else:
            own = _limits(name, cast("Mapping[str, Any]", bounds), problems)
            _contradictions(name, own, task, problems)
            found += own
    problems.raise_if_any()
    return tuple(found)


def _limits(name: str, bounds: Mapping[str, Any], problems: Problems) -> list[Threshold]:
    found: list[Threshold] = []
    for kind, limit in bounds.items():
        field = f"thresholds.{name}.{kind}"
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if kind not in ("min", "max"):
            problems.add(
                field, limit, f"a limit is 'min' or 'max'; {nearest(kind, ('min', 'max'))}"
            )
        elif not number or not math.isfinite(limit):
            problems.add(field, limit, "give a finite number")
        else:
            found.append(Threshold(metric=name, kind=kind, limit=float(limit)))
    return found


def _contradictions(name: str, own: list[Threshold], task: Task, problems: Problems) -> None:
    low, high = metrics_of(task)[name].bounds
    limits = {threshold.kind: threshold.limit for threshold in own}
    for kind, limit in limits.items():
        if (kind == "min" and limit > high) or (kind == "max" and limit < low):
            remedy = f"no model can meet this: {name} lies between {low:g} and {high:g}"
            problems.add(f"thresholds.{name}.{kind}", limit, remedy)
    if len(limits) == 2 and limits["min"] > limits["max"]:
        remedy = f"contradiction: the minimum {limits['min']:g} is above the maximum"
        problems.add(f"thresholds.{name}.max", limits["max"], remedy)
