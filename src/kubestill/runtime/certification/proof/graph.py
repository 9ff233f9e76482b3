"""Read a network as a graph of few operations that bounds are known for.

Networks are read module by module. What is not listed here is refused by name: nothing is traced
or guessed, since a bound of another function than the deployed one would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.certification.proof.activations import (
    ACTIVATIONS,
    Activation,
    InverseRoot,
    Kink,
)
from kubestill.runtime.models.build import Shaped
from kubestill.runtime.models.functions import FourierFeatures, ResidualBlock, Sine
from kubestill.runtime.models.networks import Residual
from kubestill.runtime.models.predict import Predictor

FLOAT = torch.float64
SMALLEST_EPSILON = 1e-30
"""Of a layer norm, far above what float32 loses below its smallest normal numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """W x + b."""

    of: int
    weight: Tensor
    """[m, n]"""
    bias: Tensor
    """[m]"""
    moment: int = 0
    """1 where it centres the input of a layer norm, 2 where it gives the variance; 0 elsewhere."""
    normed: int = 0
    """The input of that layer norm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """a x + b, element by element."""

    of: int
    weight: Tensor
    """[n]"""
    bias: Tensor
    """[n]"""
    size: Tensor
    """[n]: float32 evaluates it within `units` u (|a x| + size)."""
    units: float = 10.0
    """3 where a and b are the numbers that float32 computes with, and not rounded to them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Apply:
    """A function of one variable, element by element."""

    of: int
    function: Activation


@dataclass(frozen=True, kw_only=True, eq=False)
class Add:
    """x + y."""

    of: int
    other: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Multiply:
    """x y, element by element; y may be a single number."""

    of: int
    other: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat:
    """All elements of several."""

    parts: tuple[int, ...]


Operation = Linear | Scale | Apply | Add | Multiply | Concat


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Operations in the order of their evaluation; number 0 is the features, -1 the answer."""

    operations: tuple[Operation, ...]
    """Operation k gives the values number k + 1."""


def read(predictor: Predictor) -> Graph:
    """Read the network and decoder of a model.

    Raises:
        InvalidInput: A layer that has no bounds, or weights that are not finite; all are listed.
    """
    reader = _Reader()
    model = predictor.model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _refuse(name, "not finite", "nothing can be proven of such a network")
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, FLOAT):
            raise _refuse(name, tensor.dtype, "bounds are known for float32 only")
    last = reader.add_module(model.network, "network", 0)
    if not model.decoder.identity:
        mean, std = (t.detach().to("cpu", FLOAT) for t in (model.decoder.mean, model.decoder.std))
        target = predictor.layout.schema.target
        offset = target.offset if target else 0.0
        # The offset is added in float64, whose rounding is 2^-29 of float32's.
        size = mean.abs() + abs(offset) * 2.0**-29
        reader.add(Scale(of=last, weight=std, bias=mean + offset, size=size, units=3.0))
    return Graph(operations=tuple(reader.operations))


class _Reader:
    """Appends the operations of modules; every method returns the number of its result."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._overwritten: dict[int, int] = {}
        """The results that took the place of values, by layers that work in place."""

    def add(self, operation: Operation) -> int:
        self.operations.append(operation)
        return len(self.operations)

    def add_module(self, module: nn.Module, name: str, of: int) -> int:
        if module._forward_hooks or module._forward_pre_hooks:  # pyright: ignore
            raise _refuse(name, "hook", "nothing is known of what it does to the layer")
        if "forward" in vars(module):
            raise _refuse(name, "forward", "the module replaces it: nothing is known of it")
        for kind, method in _MODULES.items():
            # Not `isinstance`: a subclass may compute anything.
            if type(module) is kind:
                return method(self, module, name, of)
        known = ", ".join(sorted(kind.__name__ for kind in _MODULES))
        remedy = f"no bounds are known for this layer; known are {known}"
        raise _refuse(name, type(module).__name__, remedy)

    def _sequential(self, module: nn.Sequential, name: str, of: int) -> int:
        for number, part in enumerate(module):
            of = self.add_module(part, f"{name}.{number}", of)
        return of

    def _shaped(self, module: Shaped, name: str, of: int) -> int:
        if len(module.shape) > 1:
            remedy = "bounds are known for flat features only"
            raise _refuse(name, module.shape, remedy)
        return self.add_module(module.network, f"{name}.network", of)

    def _skip(self, module: nn.Module, name: str, of: int) -> int:
        return of

    def _linear(self, module: nn.Linear, name: str, of: int) -> int:
        bias = torch.zeros(module.out_features) if module.bias is None else module.bias  # pyright: ignore
        return self._matrix(module.weight, bias, of)

    def _matrix(self, weight: Tensor, bias: Tensor, of: int) -> int:
        weight, bias = (t.detach().to("cpu", FLOAT) for t in (weight, bias))
        return self.add(Linear(of=of, weight=weight.contiguous(), bias=bias))

    def _scale(self, weight: Tensor, bias: Tensor, size: Tensor, of: int) -> int:
        weight, bias, size = (t.detach().to("cpu", FLOAT) for t in (weight, bias, size))
        return self.add(Scale(of=of, weight=weight, bias=bias, size=size))

    def _activation(self, module: nn.Module, name: str, of: int) -> int:
        function = ACTIVATIONS[_NAMES[type(module)]]
        if isinstance(module, nn.LeakyReLU):
            if not 0 <= module.negative_slope < 1:
                raise _refuse(f"{name}.negative_slope", module.negative_slope, "must be in [0, 1)")
            function = Kink(below=module.negative_slope)
        expected = {"alpha": 1.0, "beta": 1.0, "threshold": 20.0, "approximate": "none"}
        for argument, plain in expected.items():
            if (given := getattr(module, argument, plain)) != plain:
                remedy = f"bounds are known for {argument}={plain} only"
                raise _refuse(f"{name}.{argument}", given, remedy)
        return self._placed(module, of, Apply(of=of, function=function))

    def _mish(self, module: nn.Mish, name: str, of: int) -> int:
        soft = self.add(Apply(of=of, function=ACTIVATIONS["softplus"]))
        gate = self.add(Apply(of=soft, function=ACTIVATIONS["tanh"]))
        return self._placed(module, of, Multiply(of=of, other=gate))

    def _placed(self, module: nn.Module, of: int, operation: Operation) -> int:
        """Add what takes the place of its argument, if the module works in place."""
        result = self.add(operation)
        if getattr(module, "inplace", False):
            self._overwritten[of] = result
        return result

    def _now(self, value: int) -> int:
        """Return what stands where a value was, once the operations so far are done."""
        while value in self._overwritten:
            value = self._overwritten[value]
        return value

    def _sine(self, module: Sine, name: str, of: int) -> int:
        inner = self.add_module(module.linear, f"{name}.linear", of)
        zero = torch.zeros(module.linear.out_features)
        inner = self._scale(zero + module.frequency, zero, zero, inner)
        return self.add(Apply(of=inner, function=ACTIVATIONS["sine"]))

    def _fourier(self, module: FourierFeatures, name: str, of: int) -> int:
        angle = self._matrix(module.projection, torch.zeros(len(module.projection)), of)
        waves = [
            self.add(Apply(of=angle, function=ACTIVATIONS[wave])) for wave in ("cosine", "sine")
        ]
        return self.add(Concat(parts=(of, *waves)))

    def _residual(self, module: Residual, name: str, of: int) -> int:
        inner = self.add_module(module.block, f"{name}.block", of)
        return self.add(Add(of=self._now(of), other=inner))

    def _residual_block(self, module: ResidualBlock, name: str, of: int) -> int:
        inner = self.add_module(module.first, f"{name}.first", of)
        inner = self.add_module(module.activation, f"{name}.activation", inner)
        return self.add(Add(of=of, other=self.add_module(module.second, f"{name}.second", inner)))

    def _batch_norm(self, module: nn.BatchNorm1d, name: str, of: int) -> int:
        mean, variance = module.running_mean, module.running_var
        if mean is None or variance is None:
            raise _refuse(name, "BatchNorm1d", "it normalises by the other rows of a batch")
        mean, variance = mean.double(), variance.double()
        weight, bias = _affine(module.weight, module.bias, like=mean)
        scale = weight / (variance + module.eps).sqrt()
        return self._scale(scale, bias - mean * scale, bias.abs() + (mean * scale).abs(), of)

    def _layer_norm(self, module: nn.LayerNorm, name: str, of: int) -> int:
        if len(module.normalized_shape) != 1:
            raise _refuse(name, module.normalized_shape, "bounds are known for one dimension only")
        if not module.eps > SMALLEST_EPSILON:
            remedy = f"must be above {SMALLEST_EPSILON:.0e}: float32 may divide by 0"
            raise _refuse(f"{name}.eps", module.eps, remedy)
        width = module.normalized_shape[0]
        zeros, ones = torch.zeros(width, dtype=FLOAT), torch.ones(width, dtype=FLOAT)
        centring = torch.eye(width, dtype=FLOAT) - 1 / width
        centred = self.add(Linear(of=of, weight=centring, bias=zeros, moment=1, normed=of))
        squares = self.add(Apply(of=centred, function=ACTIVATIONS["square"]))
        epsilon = torch.tensor([module.eps], dtype=FLOAT)
        average = ones[None] / width
        variance = self.add(Linear(of=squares, weight=average, bias=epsilon, moment=2, normed=of))
        # A variance that float32 rounds below its epsilon stays above half of it.
        root = self.add(Apply(of=variance, function=InverseRoot(floor=module.eps / 2)))
        scaled = self.add(Multiply(of=centred, other=root))
        weight, bias = _affine(module.weight, module.bias, like=zeros)
        return self._scale(weight, bias, bias.abs(), scaled)


def _affine(weight: Tensor | None, bias: Tensor | None, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a norm that may have none."""
    return (
        torch.ones_like(like) if weight is None else weight.detach().to(like),
        torch.zeros_like(like) if bias is None else bias.detach().to(like),
    )


def _refuse(field: str, value: object, remedy: str) -> InvalidInput:
    remedy += "; ask for the assurance 'sampled' instead"
    return InvalidInput([Problem(field, value, remedy)])


_NAMES: dict[type[nn.Module], str] = {
    nn.ELU: "elu",
    nn.GELU: "gelu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Softplus: "softplus",
    nn.Tanh: "tanh",
}

_MODULES: dict[type[nn.Module], Callable[[_Reader, nn.Module, str, int], int]] = {
    nn.Sequential: _Reader._sequential,  # pyright: ignore
    Shaped: _Reader._shaped,  # pyright: ignore
    nn.Identity: _Reader._skip,  # pyright: ignore
    nn.Dropout: _Reader._skip,  # pyright: ignore
    nn.Linear: _Reader._linear,  # pyright: ignore
    nn.BatchNorm1d: _Reader._batch_norm,  # pyright: ignore
    nn.LayerNorm: _Reader._layer_norm,  # pyright: ignore
    nn.Mish: _Reader._mish,  # pyright: ignore
    Sine: _Reader._sine,  # pyright: ignore
    FourierFeatures: _Reader._fourier,  # pyright: ignore
    Residual: _Reader._residual,  # pyright: ignore
    ResidualBlock: _Reader._residual_block,  # pyright: ignore
    **dict.fromkeys(_NAMES, _Reader._activation),  # pyright: ignore
}
