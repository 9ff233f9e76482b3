"""Learning rates as a function of the step alone.

The schedules are torch's own, run ahead on a throw-away optimizer and read off into a table. So the
loop pays nothing for them, and a resumed training needs no schedule state: step 1,234 has one
learning rate, whoever computes it.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler

from kubestill.errors import Problems, nearest

CONSTANT = "constant"
_CHUNK = 1024
EXCLUDED = {
    "ChainedScheduler": "is made of other schedules",
    "LambdaLR": "needs a function",
    "LRScheduler": "is what all of them inherit from",
    "MultiplicativeLR": "needs a function",
    "ReduceLROnPlateau": "follows a metric, and these follow the step alone",
    "SequentialLR": "is made of other schedules",
}
"""Why torch has a schedule of that name that training cannot use."""


def names() -> list[str]:
    """Return the schedules by name: torch's that follow from the step alone, and `constant`."""
    classes = [
        name
        for name, value in vars(lr_scheduler).items()
        if not name.startswith("_")
        and inspect.isclass(value)
        and issubclass(value, lr_scheduler.LRScheduler)
    ]
    return [CONSTANT, *sorted(set(classes) - EXCLUDED.keys())]


def check_arguments(schedule: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments the schedule does not have, or that break it.

    Raises:
        InvalidInput: Naming each, with the nearest that exist.
    """
    problems = Problems()
    known = _parameters(schedule)
    for key, value in arguments.items():
        if key not in known:
            problems.add(
                f"schedule_args.{key}",
                value,
                f"{schedule} has no such argument; {nearest(key, known)}",
            )
    if arguments.get("cycle_momentum"):
        problems.add(
            "schedule_args.cycle_momentum",
            True,
            "only the learning rate can follow a schedule; use false",
        )
    if arguments and not problems:
        try:
            rate = LearningRates(schedule, arguments, peak=1.0, steps=_CHUNK).at(1)
            refused = "" if math.isfinite(rate) else f"the learning rate becomes {rate}"
        except Exception as error:  # whatever torch stumbles over: a step_size of 0, say
            refused = f"{type(error).__name__}: {error}"
        if refused:
            remedy = f"{schedule} refuses them: {refused}; see torch.optim.lr_scheduler.{schedule}"
            problems.add("schedule_args", dict(arguments), remedy)
    problems.raise_if_any()


class LearningRates:
    """The learning rate of every step, computed a chunk at a time.

    Args:
        schedule: Name of the schedule.
        arguments: Its arguments; numbers that arrive as whole floats become integers where the
            schedule's own default is one.
        peak: Learning rate that the schedule scales.
        steps: Length of the training run, steps.
        warmup: Steps of linear rise, from 0 to the rate that the schedule starts with: its peak, or
            less where the schedule rises by itself (`OneCycleLR`).
        steps_per_tick: Steps between two ticks of the schedule (1, or the steps of an epoch).
    """

    def __init__(
        self,
        schedule: str,
        arguments: Mapping[str, Any],
        *,
        peak: float,
        steps: int,
        warmup: int = 0,
        steps_per_tick: int = 1,
    ):
        self._peak = peak
        self._warmup = min(warmup, steps)
        self._steps_per_tick = steps_per_tick
        self._ticks: list[float] = []
        self._scheduler: lr_scheduler.LRScheduler | None = None
        if schedule != CONSTANT:
            ticks = max(1, -(-(steps - self._warmup) // steps_per_tick))
            self._scheduler = _build(schedule, arguments, peak=peak, ticks=ticks)

    def at(self, step: int) -> float:
        """Return the learning rate of the step that follows `step` finished ones."""
        if step < self._warmup:
            return self._scheduled(0) * (step + 1) / self._warmup
        return self._scheduled((step - self._warmup) // self._steps_per_tick)

    def _scheduled(self, tick: int) -> float:
        if self._scheduler is None:
            return self._peak
        while tick >= len(self._ticks):
            self._extend(self._scheduler)
        return self._ticks[tick]

    def _extend(self, scheduler: lr_scheduler.LRScheduler) -> None:
        group = scheduler.optimizer.param_groups[0]
        with warnings.catch_warnings():
            # torch expects optimizer.step() between ticks and a known end; here only the rate is
            # read.
            warnings.simplefilter("ignore")
            for _ in range(_CHUNK):
                self._ticks.append(float(group["lr"]))
                try:
                    scheduler.step()
                except ValueError:
                    # OneCycleLR refuses to go past its end; its last rate holds from there on.
                    self._ticks.extend([self._ticks[-1]] * _CHUNK)
                    return


def _parameters(schedule: str) -> list[str]:
    if schedule == CONSTANT:
        return []
    signature = inspect.signature(getattr(lr_scheduler, schedule))
    return [
        name for name in signature.parameters if name not in ("optimizer", "last_epoch", "verbose")
    ]


def _build(
    schedule: str, arguments: Mapping[str, Any], *, peak: float, ticks: int
) -> lr_scheduler.LRScheduler:
    cls = getattr(lr_scheduler, schedule)
    filled = {
        name: value
        for name, value in {
            "T_max": ticks,
            "T_0": ticks,
            "total_steps": ticks,
            "total_iters": ticks,
            "step_size": max(1, ticks // 3),
            "milestones": [ticks // 2, 3 * ticks // 4],
            "gamma": 0.1 if schedule != "ExponentialLR" else 0.05 ** (1 / ticks),
            "max_lr": peak,
            "base_lr": peak / 10,
            "cycle_momentum": False,
        }.items()
        if name in _parameters(schedule)
    }
    for name, value in arguments.items():
        filled[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    if schedule == "OneCycleLR" and "epochs" in arguments:
        del filled["total_steps"]
    return cls(_Rate(peak), **filled)


class _Rate(torch.optim.Optimizer):
    """An optimizer that is nothing but a learning rate.

    The base class's constructor is left out on purpose: it imports torch's compiler, for 2 seconds.
    """

    def __init__(self, rate: float):
        self.param_groups = [{"lr": rate, "params": []}]
        self.defaults = {"lr": rate}

    def step(self, closure: object = None) -> None:  # pyright: ignore
        pass
