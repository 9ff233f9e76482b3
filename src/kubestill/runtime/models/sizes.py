"""Hold what a model's spec claims against the weights that are there, before memory is taken.

A spec of a few bytes may ask for layers of any size. The network is therefore built twice: first on
the meta device, where tensors have shapes and no memory, and for real only once every shape is that
of a tensor in the file.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from kubestill.errors import CorruptData, InvalidInput

log = logging.getLogger(__name__)

Built = TypeVar("Built", bound=nn.Module)

_SPARE_PARAMETERS = 1000
"""What a factory may register besides what it keeps."""
_SPARE_NUMBERS = 1 << 25
"""Numbers that a network may hold besides its weights: masks, grids, frequencies. 128 MiB."""


def build_bounded(
    build: Callable[..., Built], weights: Mapping[str, Tensor], *, named: bool = True
) -> Built:
    """Build the module that these weights belong to, in little more memory than they take.

    A factory that cannot build on the meta device is called for real at once. Either way it is
    stopped at the first parameter or buffer that the weights leave no room for, and before torch's
    usual constructors make a tensor that alone would be too large; other tensors are not bounded.

    Args:
        build: Makes the module; with `prove=False` without sending a batch through it. Called
            twice.
        weights: Its whole state by name: what it is checked against, not loaded.
        named: Whether names have to be the same: a library may know those of its earlier versions.

    Raises:
        CorruptData: The module has other or larger tensors than the file.
        InvalidInput: `build` raises it.
    """
    try:
        with _bounded(weights), torch.device("meta"), _ShapesAlone():
            shapes = build(prove=False)
            if named:
                _check_shapes(shapes, weights)
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
    for name in expected.keys() & found.keys():
        if kind_of(state[name]) != kind_of(weights[name]):
            raise CorruptData(
                f"the model spec does not fit its weights ({name[:100]} holds "
                f"{kind_of(state[name])} numbers by the spec, {weights[name].dtype} in the file)"
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
    """Stop this thread's building of modules that hold far more than the weights."""
    meter = _Meter(weights)
    hooks = (
        register_module_parameter_registration_hook(meter.count_parameter),
        register_module_buffer_registration_hook(meter.count_buffer),
    )
    try:
        with meter:
            yield
    except (InvalidInput, _TooLarge):
        if not meter.excess:
            raise
    finally:
        for hook in hooks:
            hook.remove()
    if meter.excess:
        raise CorruptData(
            f"the model spec asks for more than {meter.excess}; the weights are "
            f"{_numbers(weights):,} in {len(weights):,}"
        )


class _TooLarge(Exception):
    """A factory asked for more than the weights can be."""


class _Meter(TorchFunctionMode):
    """Counts what modules register, and looks at the size of new tensors before they are made."""

    _CONSTRUCTORS = frozenset(
        getattr(torch, name) for name in "arange empty full ones rand randn zeros".split()
    )

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self.excess = ""
        """What was asked for, once it was too much."""
        # A factory may register as many again as it keeps.
        self._most = 2 * len(weights) + _SPARE_PARAMETERS
        self._room = 2 * _numbers(weights) + _SPARE_NUMBERS
        self._count = self._learned = self._held = 0
        self._thread = threading.get_ident()

    def count_parameter(self, module: nn.Module, name: str, parameter: object) -> None:
        """Add a parameter; a lazy one gets its shape later, from features of known width."""
        if isinstance(parameter, Tensor) and threading.get_ident() == self._thread:
            self._count += 1
            self._learned += 0 if is_lazy(parameter) else parameter.numel()
            if self._count > self._most or self._learned > self._room:
                self._stop(f"{self._learned:,} numbers in {self._count:,} parameters")

    def count_buffer(self, module: nn.Module, name: str, buffer: object) -> None:
        """Add a buffer, which is no parameter but in memory all the same."""
        if isinstance(buffer, Tensor) and threading.get_ident() == self._thread:
            self._held += 0 if is_lazy(buffer) else buffer.numel()
            if self._held > self._room:
                self._stop(f"{self._held:,} numbers besides its weights")

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Make the tensor, unless it alone would be too large for what the module may hold."""
        kwargs = kwargs or {}
        if func in self._CONSTRUCTORS and str(kwargs.get("device")) != "meta":
            size = _size_of_new(func, args, kwargs)
            if size > self._room:
                self._stop(f"{size:,} numbers in a tensor")
        return func(*args, **kwargs)

    def _stop(self, excess: str) -> NoReturn:
        self.excess = excess
        raise _TooLarge


def _size_of_new(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return how many numbers a tensor will hold; of `arange`, its largest whole argument."""
    if func is torch.arange:
        return max((abs(n) for n in (*args, *kwargs.values()) if type(n) is int), default=0)
    shape = kwargs.get("size", args)
    if args and (func is torch.full or isinstance(args[0], tuple | list)):
        shape = args[0]
    return math.prod(shape)


def kind_of(tensor: Tensor) -> str:
    """Return what loading may not change, as it may change the precision."""
    real = "floating" if tensor.is_floating_point() else "whole"
    return "complex" if tensor.is_complex() else real


def _numbers(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())
