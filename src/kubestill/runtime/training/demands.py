"""What the network and the settings ask of each other, found out before any step."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from kubestill.errors import InvalidInput, Problem, Problems, nearest
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.training.blocks import find_blocks
from kubestill.runtime.training.settings import TrainingSettings


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Take parameters out of training by their names; `0.*` matches many.

    A frozen parameter keeps its bits: it gets no gradient, no weight decay and no optimizer state,
    and its moving average is itself. The running statistics of batch norm are no parameters, and
    follow the rows.

    Raises:
        InvalidInput: A pattern matches no parameter, or nothing is left to learn.
    """
    problems = Problems()
    named = dict(network.named_parameters())
    for i, pattern in enumerate(patterns):
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            remedy = f"matches no parameter of the network; {nearest(pattern, named)}"
            problems.add(f"settings.freeze[{i}]", pattern, remedy)
        for name in matched:
            named[name].requires_grad_(False)
    if patterns and not problems and not any(p.requires_grad for p in named.values()):
        remedy = "leaves nothing to learn; name fewer parameters"
        problems.add("settings.freeze", list(patterns), remedy)
    problems.raise_if_any()


def check_demands(
    network: nn.Module, features: Tensor, settings: TrainingSettings, *, rows: int
) -> int:
    """Return how many rows the network needs together: 2 with batch norm, where it may get one.

    Args:
        network: To be trained.
        features: One or two rows [n, F], only looked at.
        settings: Of the training run.
        rows: Rows of the dataset.

    Raises:
        InvalidInput: It needs two rows, and there is one, or a batch or micro-batch has one; it
            cannot take the finish; or it mixes rows of different processes.
    """
    if settings.finish_steps and "dropout" not in settings.network_args and _drops(network):
        steps = settings.finish_steps
        remedy = "the network drops units by default, and L-BFGS needs the same loss for the same "
        remedy += "weights; set network_args.dropout to 0, or use 0"
        raise InvalidInput([Problem("settings.finish_steps", steps, remedy)])
    if settings.finish_steps and (refused := _why_no_finish(network, features)):
        steps = settings.finish_steps
        raise InvalidInput([Problem("settings.finish_steps", steps, f"{refused}; use 0")])
    for field in ("recompute", "shard"):
        if asked := getattr(settings, field):
            find_blocks(network, asked, field=f"settings.{field}")
    batch_size = settings.batch_size
    smallest = min(rows, rows % batch_size or batch_size)
    leaves = settings.virtual_workers
    if leaves > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in network.modules()):
        remedy = "SyncBatchNorm mixes the rows of different processes; use BatchNorm, or 1"
        raise InvalidInput([Problem("settings.virtual_workers", leaves, remedy)])
    if smallest > 1 and leaves == Ranks.current().world == 1:
        return 1
    two = torch.cat([features, features])[:2]
    if _learns_from(network, two[:1]) or not _learns_from(network, two):
        return 1
    if min(rows, batch_size) == 1:
        field, value = ("dataset", "1 row") if rows == 1 else ("batch_size", 1)
        remedy = "the network normalises over the rows of a batch; use 2 or more"
        raise InvalidInput([Problem(field, value, remedy)])
    if batch_size < 2 * leaves:
        remedy = (
            "the network normalises over the rows of a micro-batch, which needs 2; use at most "
            f"{1 << (batch_size // 2).bit_length() - 1}, or larger batches"
        )
        raise InvalidInput([Problem("settings.virtual_workers", leaves, remedy)])
    return 2


def _learns_from(network: nn.Module, features: Tensor) -> bool:
    """Return whether the network gives finite answers to rows while it is training."""
    probe = deepcopy(network).train()  # a look must not move running statistics
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return bool(probe(features).isfinite().all())
        except ValueError:  # how torch's batch norm refuses
            return False


def _drops(network: nn.Module) -> bool:
    """Return whether a forward pass in training is random."""
    return any(isinstance(layer, nn.Dropout) and layer.p for layer in network.modules())


def _why_no_finish(network: nn.Module, features: Tensor) -> str:
    """Return why second-order steps do not suit the network, or nothing."""
    if any(parameter.is_complex() for parameter in network.parameters()):
        return "the network has complex parameters, and the finish is in float64"
    if any(name.endswith("running_mean") for name, _ in network.named_buffers()):
        return "the finish moves weights, and not the running statistics of batch norm"
    probe = deepcopy(network).double().eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            probe(features.double())
        except RuntimeError as error:
            return f"the network does not run in float64, as the finish does: {error}"
    return ""
