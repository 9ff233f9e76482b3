"""Hold what a model's spec claims against the weights that are there, before memory is taken.

A spec of a few bytes may ask for layers of any size. The network is therefore built twice: first on
the meta device, where tensors have shapes and no memory, and for real only once every shape is that
of a tensor in the file.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from kubestill.errors import CorruptData, InvalidInput

__all__ = ["build_bounded"]

log = logging.getLogger(__name__)

Built = TypeVar("Built", bound=nn.Module)

_SPARE_PARAMETERS = 1000
"""What a factory may register besides what it keeps."""
_SPARE_NUMBERS = 1 << 25
"""Numbers that a network may hold besides its weights: masks, grids, frequencies. 128 MiB."""


def build_bounded(build: Callable[..., Built], weights: Mapping[str, Tensor]) -> Built:
    """Build the module that these weights belong to, in little more memory than they take.

    A factory that cannot build on the meta device is called for real at once, and stopped at the
    first parameter that the weights leave no room for.

    Args:
        build: Makes the module; with `prove=False` without sending a batch through it. Called
            twice.
        weights: Its whole state by name: what it is checked against, not loaded.

    Raises:
        CorruptData: The module has other or larger tensors than the file.
        InvalidInput: `build` raises it.
    """
    try:
        with _bounded(weights), torch.device("meta"), _ShapesAlone():
            _check_shapes(build(prove=False), weights)
    except CorruptData:
        raise
    except Exception as error:  # a factory may not know the meta device; building it tells
        log.debug("no shapes without memory: %s", error)
    with _bounded(weights):
        return build()


def _check_shapes(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    state = module.state_dict()
    # What is not known until a batch has passed is bounded while it is built for real.
    open_ended = {name for name, tensor in state.items() if is_lazy(tensor)}
    expected = {name: tuple(state[name].shape) for name in state.keys() - open_ended}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted((expected.keys() | found.keys()) - open_ended):
        if expected.get(name) != found.get(name):
            raise CorruptData(
                f"the model spec does not fit its weights (size mismatch of {name[:100]}: "
                f"{expected.get(name, 'absent')} by the spec, {found.get(name, 'absent')} in the "
                "file)"
            )
    held = sum(buffer.numel() for buffer in module.buffers() if not is_lazy(buffer))
    if held > _numbers(weights) + _SPARE_NUMBERS:
        raise CorruptData(f"the model spec asks for {held:,} numbers besides its weights")


class _ShapesAlone(TorchFunctionMode):
    """Leaves out what only gives tensors their first values.

    To "compute" random numbers the meta device imports its Python kernels: a second and 150 MB.
    """

    _FILL = frozenset(
        "add_ bernoulli_ cauchy_ clamp_ copy_ div_ erfinv_ exponential_ fill_ log_normal_ mul_ "
        "normal_ random_ sub_ uniform_ zero_ __setitem__".split()
    )

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the tensor as it is, where `func` would fill it."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._FILL:
            return next(iter((*args, *kwargs.values())))
        if func in (torch.rand, torch.randn):
            kwargs.pop("generator", None)
            return torch.empty(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def _bounded(weights: Mapping[str, Tensor]) -> Generator[None]:
    """Stop this thread's building of modules that have far more parameters than the weights."""
    most, room = 2 * len(weights) + _SPARE_PARAMETERS, 2 * _numbers(weights) + _SPARE_NUMBERS
    count = numbers = 0
    thread = threading.get_ident()

    def register(module: nn.Module, name: str, parameter: object) -> None:
        nonlocal count, numbers
        if threading.get_ident() != thread or not isinstance(parameter, Tensor):
            return
        count += 1
        # A lazy layer has no shape yet, and gets it from features of a known width.
        numbers += 0 if is_lazy(parameter) else parameter.numel()
        if count > most or numbers > room:
            raise _TooLarge

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    except (InvalidInput, _TooLarge) as error:
        if count > most or numbers > room:
            raise CorruptData(
                f"the model spec asks for more than {numbers:,} numbers in {count:,} parameters; "
                f"the weights are {_numbers(weights):,} in {len(weights):,}"
            ) from error
        raise
    finally:
        hook.remove()


class _TooLarge(Exception):
    """A factory registered more parameters than the weights can be."""


def _numbers(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())
