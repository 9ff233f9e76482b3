"""Which step a training run takes: any network's, the written-out one, or that as a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.training.blocks import recomputing
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.graphs import GraphedStep
from kubestill.runtime.training.losses import Loss
from kubestill.runtime.training.optimizers import has_kernel
from kubestill.runtime.training.settings import FUSED, TrainingSettings
from kubestill.runtime.training.steps import AutogradStep, FusedStep, SplitStep, why_not_fusible


def build_step(
    network: nn.Module,
    loss: Loss,
    settings: TrainingSettings,
    machine: Machine,
    *,
    path: str | None = None,
    world_size: int = 1,
    say: Callable[[str], None] = print,
) -> tuple[str, SplitStep]:
    """Return ("graph", "fused" or "autograd", the step that trains `network` as settings say).

    Args:
        network: Trained in place.
        loss: What to minimise.
        settings: Optimizer and its arguments, gradient clipping, `step_path`.
        machine: Precision.
        path: What an earlier attempt took; it overrides `settings.step_path` where it still fits:
            on a machine of another precision the fused step may not, and a graph needs a GPU.
        world_size: Processes whose gradients are averaged.
        say: Takes a line for the log.

    Raises:
        InvalidInput: The fused step, or a graph of it, was asked for and does not fit.
    """
    unfit = check_step_path(network, settings, machine, world_size=world_size)
    options: dict[str, Any] = {
        "optimizer": settings.optimizer,
        "optimizer_args": settings.optimizer_args,
        "clip": settings.gradient_clip,
        "world_size": world_size,
    }
    path = path or settings.step_path
    if unfit or path == "autograd":
        around = recomputing(network, settings.recompute) if settings.recompute else nullcontext
        options |= {"precision": machine.precision, "around": around}
        return "autograd", AutogradStep(network, loss, **options)
    step = FusedStep(network, loss, **options)  # pyright: ignore
    if path == "graph" and not _why_no_graph(settings, machine, world_size):
        return "graph", GraphedStep(step, say)
    return "fused", step


def check_step_path(
    network: nn.Module, settings: TrainingSettings, machine: Machine, *, world_size: int = 1
) -> str:
    """Return what keeps training from the fused step, or an empty string where nothing does.

    Args:
        network: What is to be trained.
        settings: How.
        machine: Device and precision.
        world_size: Processes that are there already, whatever the settings say of them.

    Raises:
        InvalidInput: Something does, and the settings ask for that step, or for a graph of it.
    """
    reason = why_not_fusible(network, optimizer=settings.optimizer, precision=machine.precision)
    if settings.shard:
        reason = "shard keeps weights apart, and the fused step has one flat vector"
    elif settings.recompute:
        reason = "recompute is a matter of autograd, which the fused step does without"
    asked = settings.step_path
    world_size = max(world_size, settings.processes)
    unfit = reason or (asked == "graph" and _why_no_graph(settings, machine, world_size))
    if unfit and asked in FUSED:
        raise InvalidInput([Problem("step_path", asked, f"{unfit}; use 'auto' or 'autograd'")])
    return reason


def _why_no_graph(settings: TrainingSettings, machine: Machine, processes: int) -> str:
    """Return what keeps a fused step from being recorded, or an empty string."""
    if machine.device.type != "cuda":
        return f"a CUDA graph needs a GPU, and the device is {machine.device.type}"
    if processes > 1 or settings.virtual_workers > 1:
        return "a graph is one process's, and this training run is cut into shares"
    if not has_kernel(settings.optimizer, settings.optimizer_args):
        return f"{settings.optimizer} with these arguments is more than one kernel"
    return ""
