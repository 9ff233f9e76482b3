"""Blocks of a network: which modules they are, and how their activations are recomputed.

Activation checkpointing (Chen et al. 2016) keeps of a block only what it was given, and runs it
again once the backward pass needs the rest. It runs with the random numbers that it drew the first
time, and with the buffers that it began with, which it leaves as they are: so it gives the same
bits, with dropout and batch norm, too.
"""

# Modules name their buffers, but only `_buffers` says where one that was replaced is kept.
# pyright: reportPrivateUsage=false
from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from kubestill.errors import Problems, nearest
from kubestill.runtime.models.build import Shaped

AUTO = "auto"

Forward = Callable[..., Any]


def find_blocks(
    network: nn.Module, asked: str | Sequence[str], *, field: str
) -> dict[str, nn.Module]:
    """Return modules by their names; of one inside another, only the outer.

    Args:
        network: Whose.
        asked: Names, where `layers.*` matches many, also as a user's network has them without what
            this package puts around it; or `auto`: the blocks of every list or sequence of modules
            in which a kind of module with parameters comes twice.
        field: The setting, for messages.

    Raises:
        InvalidInput: A name matches nothing (with the nearest), or what does not run by itself; or
            `auto` finds no blocks. All problems at once.
    """
    problems = Problems()
    known = module_names(network)
    found: dict[nn.Module, str] = {}
    if asked == AUTO:
        repeated = {*_repeated(network)}
        found = {module: name for name, module in known.items() if module in repeated}
        if not found:
            remedy = f"the network repeats no kind of module in a list; {nearest('', known)}"
            problems.add(field, asked, remedy)
    else:
        for i, pattern in enumerate([asked] if isinstance(asked, str) else asked):
            matched = [name for name in known if fnmatchcase(name, pattern)]
            if not matched:
                remedy = f"matches no module of the network; {nearest(pattern, known)}"
                problems.add(f"{field}[{i}]", pattern, remedy)
            elif all(not _runs(known[name]) for name in matched):
                remedy = f"is a list of modules, which does not run; use '{matched[0]}.*'"
                problems.add(f"{field}[{i}]", pattern, remedy)
            for name in matched:
                if _runs(known[name]):
                    found.setdefault(known[name], name)
    problems.raise_if_any()
    inner = {below for module in found for below in module.modules() if below is not module}
    return {name: module for module, name in found.items() if module not in inner}


def recomputing(
    network: nn.Module, asked: str | Sequence[str], *, field: str = "settings.recompute"
) -> Callable[[], AbstractContextManager[None]]:
    """Return what stands around a forward pass so that blocks are recomputed in the backward pass.

    Where `auto` finds single layers, they are recomputed in about the square root as many runs of
    neighbours, which keeps the least (Chen et al. 2016).

    Raises:
        InvalidInput: See `find_blocks`.
    """
    blocks = {*find_blocks(network, asked, field=field).values()}
    replaced: list[tuple[nn.Module, str, Forward]] = []
    for module in network.modules():
        layers = [*module.children()]
        own = blocks & {*layers}
        single = own and asked == AUTO and not any([*layer.children()] for layer in own)
        # Of one that does more than its layers one after the other nobody knows the runs.
        if single and type(module) is nn.Sequential:
            starts = [i for i, layer in enumerate(layers) if layer in own]
            every = math.isqrt(len(starts) - 1) + 1
            edges = [0, *starts[every::every], len(layers)]
            runs = [layers[a:b] for a, b in zip(edges, edges[1:], strict=False)]
            replaced.append((module, "forward", partial(_in_runs, runs)))
            blocks -= own
    for module in blocks:
        # With its hooks, which have work to do the second time, too.
        replaced.append((module, "_call_impl", partial(_recomputed, [module], module._call_impl)))
    return partial(_instead, replaced)


@contextmanager
def _instead(replaced: Sequence[tuple[nn.Module, str, Forward]]) -> Generator[None]:
    """Let modules run something else. Copies of the network made meanwhile would, too."""
    own = [vars(module).get(name) for module, name, _ in replaced]
    for module, name, forward in replaced:
        setattr(module, name, forward)
    try:
        yield
    finally:
        for (module, name, _), before in zip(replaced, own, strict=True):
            delattr(module, name) if before is None else setattr(module, name, before)


def _in_runs(runs: Sequence[Sequence[nn.Module]], features: Any) -> Any:
    for layers in runs:
        features = _recomputed(layers, partial(_one_after_the_other, layers), features)
    return features


def _one_after_the_other(layers: Sequence[nn.Module], features: Any) -> Any:
    for layer in layers:
        features = layer(features)
    return features


def _recomputed(modules: Sequence[nn.Module], forward: Forward, *given: Any, **named: Any) -> Any:
    """Run what modules do, and again in the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(
        # Names that are also options of `checkpoint` would not reach the module.
        partial(forward, **named),
        *given,
        use_reentrant=False,
        context_fn=partial(_contexts, modules),
    )


def _contexts(
    modules: Sequence[nn.Module],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what stands around the first run, and around the second."""
    begun: list[tuple[nn.Module, str, Tensor]] = []
    drawn: list[Any] = []

    @contextmanager
    def first() -> Generator[None]:
        drawn[:] = random.getstate(), np.random.get_state()
        before = [
            (module, name, tensor, tensor.clone(), tensor._version)
            for module, name, tensor in _buffers(modules)
        ]
        yield
        # The kernel of batch norm counts no version.
        begun[:] = [
            (module, name, kept)
            for module, name, tensor, kept, version in before
            if isinstance(module, _NormBase)
            or module._buffers[name] is not tensor
            or tensor._version != version
        ]

    @contextmanager
    def second() -> Generator[None]:
        now = random.getstate(), np.random.get_state()
        left = [(module, name, module._buffers[name]) for module, name, _ in begun]
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        for module, name, kept in begun:
            module._buffers[name] = kept
        try:
            yield
        finally:
            random.setstate(now[0])
            np.random.set_state(now[1])
            for module, name, tensor in left:
                module._buffers[name] = tensor

    return first(), second()


def _buffers(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in dict.fromkeys(below for each in modules for below in each.modules()):
        for name, tensor in module._buffers.items():
            if tensor is not None:
                yield module, name, tensor


def module_names(network: nn.Module) -> dict[str, nn.Module]:
    """Return every module below the network by its name, also by that within a user's network."""
    found = {name: module for name, module in network.named_modules() if name}
    for shaped in [module for module in network.modules() if isinstance(module, Shaped)]:
        found |= {name: module for name, module in shaped.network.named_modules() if name}
    return found


def _repeated(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of which the network has several in a row."""
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) and all(
        _runs(child) for child in children
    ):
        kinds = Counter(map(type, children))
        if max(kinds.values(), default=0) > 1:
            return children
    return [block for child in children for block in _repeated(child)]


def _runs(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward
