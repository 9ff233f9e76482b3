"""Train on one batch with the real training step, until its loss is on the floor."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from kubestill.runtime.sanity.batch import Batch
from kubestill.runtime.sanity.findings import Trace
from kubestill.runtime.sanity.floor import Floor
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.losses import Loss, differentiable
from kubestill.runtime.training.schedules import LearningRates
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.runtime.training.step_choice import build_step

_LOOKS = 20
"""Steps between two looks at the loss."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all trials of one gate share."""

    loss: Loss
    settings: TrainingSettings
    machine: Machine
    steps: int
    near: float
    """Excess that counts as the floor."""
    deadline: float
    """Of `time.thread_time`: a starved pod must not be taken for a model that cannot learn."""


def memorise(name: str, network: nn.Module, batch: Batch, floor: Floor, setup: Setup) -> Trace:
    """Train a copy of the network on the batch, without regularisation, and look at every 20 steps.

    The optimizer, the schedule in miniature, clipping and precision are those of the real run.
    Dropout and weight decay are off: they are there to keep a network from doing this.
    """
    settings = _unregularised(setup.settings)
    network = without_regularisation(deepcopy(network)).train()
    _, step = build_step(network, setup.loss, settings, setup.machine)
    rates = LearningRates(
        settings.schedule,
        settings.schedule_args,
        peak=settings.learning_rate,
        steps=setup.steps,
        warmup=min(settings.warmup_steps, setup.steps // 10),
        steps_per_tick=1 if settings.schedule_unit == "step" else max(1, setup.steps // 20),
    )
    trace, begun = Trace(name=name, rows=batch.rows), time.monotonic()
    done, train_loss = 0, torch.zeros(())
    while True:
        excess = floor.excess(_answers_cost(network, batch, setup.loss))
        trace.steps.append(done)
        trace.excess.append(excess)
        if not math.isfinite(excess) or not math.isfinite(float(train_loss)):
            trace.excess[-1] = float("inf")
            trace.ended = "diverged"
        elif excess <= setup.near:
            trace.reached, trace.ended = done, "reached"
        elif done < setup.steps and time.thread_time() < setup.deadline:
            for _ in range(min(_LOOKS, setup.steps - done)):
                train_loss = step(batch.step_input, rates.at(done))
                done += 1
                if time.thread_time() > setup.deadline:
                    break
            continue
        elif done < setup.steps:
            trace.ended = "time"
        break
    trace.seconds = time.monotonic() - begun
    trace.final_train_loss = float(train_loss)
    return trace


def gradients(
    network: nn.Module, batch: Batch, setup: Setup, *, steps: tuple[int, ...] = (0, 1, 3, 10)
) -> list[dict[str, float | None]]:
    """Return the gradient norm of every parameter that may learn, after each of `steps` steps.

    None: the loss does not reach the parameter at all.
    """
    network = without_regularisation(deepcopy(network)).train()
    _, step = build_step(network, setup.loss, _unregularised(setup.settings), setup.machine)
    found: list[dict[str, float | None]] = []
    done = 0
    for wanted in steps:
        for _ in range(wanted - done):
            step(batch.step_input, setup.settings.learning_rate)
        done = wanted
        # A copy: a look must not move running statistics.
        found.append(_norms(deepcopy(network), batch, setup.loss))
    return found


def without_regularisation(network: nn.Module) -> nn.Module:
    """Turn every dropout layer off, in place."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
            module.p = 0.0
    return network


def _unregularised(settings: TrainingSettings) -> TrainingSettings:
    arguments = dict(settings.optimizer_args)
    if settings.optimizer == "AdamW" or "weight_decay" in arguments:
        arguments["weight_decay"] = 0.0
    return settings.model_copy(update={"optimizer_args": arguments})


def _norms(network: nn.Module, batch: Batch, loss: Loss) -> dict[str, float | None]:
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    outputs = network(batch.features)
    if not outputs.requires_grad:
        return dict.fromkeys(named)
    value = differentiable(loss, outputs, batch.targets)
    parts = cast(
        "tuple[Tensor | None, ...]",
        torch.autograd.grad(value, list(named.values()), allow_unused=True),
    )
    return {
        name: None if part is None else float(part.norm())
        for name, part in zip(named, parts, strict=True)
    }


@torch.no_grad()
def _answers_cost(network: nn.Module, batch: Batch, loss: Loss) -> float:
    network.eval()
    outputs: Tensor = network(batch.features).float()
    network.train()
    return float(loss(outputs, batch.targets)[0])
