"""Layers that compute with the numbers of an int8 runtime: quantisation-aware training.

What goes into a layer becomes one of 256 values between the ends of its range, which is a moving
average over the batches (Jacob et al. 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", section 3.1), and a weight a whole number of steps of
its output channel. A layer so gives

    y = s_x s_w sum((q_x - z_x) q_w) + b,  q_x = clamp(round(x / (e s_x)) + z_x, 0, 255)

in training, in evaluation, and, with whole numbers, in the ONNX file, which has these very scales.
Gradients pass rounding as if it were not there (Bengio et al. 2013, straight-through), and stop at
the ends of a range.

The factor e is one for each column that goes into a linear layer, and its inverse is in the weights
(Xiao et al. 2023, "SmoothQuant", eq. 4, alpha 0.5). It is 1 but where columns reach unequally far:
one heavy tail would otherwise leave the other columns a handful of values.

A layer keeps its name and its parameters, so that weights are the same with and without 8 bits.
"""

# onnx is only partly typed.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kubestill.runtime.models.embed import Bag
from kubestill.runtime.models.tabular import Members

if TYPE_CHECKING:
    from onnx import ModelProto

    from kubestill.runtime.models.model import Model

STEPS = 255
"""Of an activation, from the least of 8 bits without a sign to the largest."""
WEIGHT_STEPS = 64
"""Of a weight, to either side of 0. With 127, processors that add two products in 16 bits (AVX2
without VNNI) cut off sums of large ones, and a file gives other answers there."""
TABLE_STEPS = 127
"""Of an embedding, to either side of 0: nothing is multiplied by it."""
RATE = 0.01
"""What a batch counts for in a range."""
UNEVEN = 4.0
"""How many times further than the median a column reaches where a layer evens its columns out."""


class _Round(torch.autograd.Function):
    """x as one of the steps from `least` to `most`, as `QuantizeLinear` has it: half to even."""

    @staticmethod
    def forward(ctx, x, scale, zero, least, most):  # noqa: D102  # pyright: ignore
        steps = torch.round(x / scale) + zero
        kept = steps.clamp(least, most)
        ctx.save_for_backward(steps == kept)
        return (kept - zero) * scale

    @staticmethod
    def backward(ctx, upstream):  # noqa: D102  # pyright: ignore
        (inside,) = ctx.saved_tensors
        return upstream * inside, None, None, None, None


class Entry(nn.Module):
    """What goes into a layer, in 8 bits.

    Args:
        width: Columns that may be evened out; 0 where there are none.
    """

    low: Tensor
    high: Tensor
    even: Tensor | None

    def __init__(self, width: int = 0):
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("even", torch.ones(width) if width else None)
        self.waits = False
        """Whether numbers stay as they are in training, and ranges only follow."""
        self.seen: list[Tensor] | None = None
        """Takes the ends of each column, [2, width], while `fit_ranges` looks."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to the same in 8 bits."""
        if self.seen is not None:
            columns = x.reshape(-1, x.shape[-1]) if self.even is not None else x.reshape(-1, 1)
            self.seen.append(torch.stack(columns.aminmax(dim=0)))
            return x
        if torch.onnx.is_in_onnx_export():
            return self._exported(x)
        if self.even is not None:
            x = x / self.even
        if self.training:
            self._follow(x.detach())
        return self.settle(x, _Round.apply(x, *self.steps(), 0, STEPS))

    def steps(self) -> tuple[Tensor, Tensor]:
        """Return the size of a step, and the step that is zero."""
        scale = ((self.high - self.low) / STEPS).clamp(min=torch.finfo(torch.float32).tiny)
        return scale, torch.round(-self.low / scale).clamp(0, STEPS)

    def settle(self, plain: Tensor, rounded: Tensor) -> Tensor:
        """Return what counts now."""
        return plain if self.training and self.waits else rounded

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        low, high = x.aminmax()
        self.low.lerp_(low.clamp(max=0.0).float(), RATE)
        self.high.lerp_(high.clamp(min=0.0).float(), RATE)

    def pack(self) -> None:
        """Write down what the ONNX file holds of it."""
        scale, zero = self.steps()
        self._scale, self._zero = scale.clone(), zero.to(torch.uint8)
        uneven = self.even is not None and bool((self.even != 1).any())
        self._even = self.even.clone() if uneven and self.even is not None else None

    def _exported(self, x: Tensor) -> Tensor:
        x = x if self._even is None else x / self._even
        given = (self._scale, self._zero)
        steps = _node("QuantizeLinear", (x, *given), torch.uint8, x.shape)
        return _node("DequantizeLinear", (steps, *given), torch.float32, x.shape)


class _Quantised(nn.Module):
    """A layer with weights of 8 bits."""

    _packed: Tensor
    _scales: Tensor

    def pack(self) -> None:
        """Write down the weights that the ONNX file holds."""
        raise NotImplementedError


class _Product(_Quantised):
    """A layer that multiplies: its entry is of 8 bits, too."""

    entry: Entry

    def rounded(self, weight: Tensor) -> Tensor:
        """Return weights [outputs, ...] in steps of their output."""
        scale = _step(weight.detach(), WEIGHT_STEPS, outputs=True)
        found = _Round.apply(weight, scale, 0.0, -WEIGHT_STEPS, WEIGHT_STEPS)
        return self.entry.settle(weight, found)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return x [..., inputs] times weight [outputs, inputs], as if both were of 8 bits."""
        x = self.entry(x)
        if self.entry.seen is not None:
            return F.linear(x, weight)
        if not torch.onnx.is_in_onnx_export():
            even = self.entry.even
            return F.linear(x, self.rounded(weight if even is None else weight * even))
        shape = self._packed.shape
        given = (self._packed, self._scales)
        return x @ _node("DequantizeLinear", given, torch.float32, shape, axis=1)

    def pack_matrix(self, weight: Tensor) -> None:
        """Write down weight [outputs, inputs] as a runtime multiplies by it, [inputs, outputs]."""
        weight = weight.detach()
        even = self.entry.even
        ints, scale = _steps_of(weight if even is None else weight * even, WEIGHT_STEPS)
        self._packed, self._scales = ints.t().contiguous(), scale.flatten()


class QuantisedLinear(_Product, nn.Linear):
    """A linear layer."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        products = self.multiply(input, self.weight)
        return products if self.bias is None else products + self.bias  # pyright: ignore

    @override
    def pack(self) -> None:
        self.pack_matrix(self.weight)


class QuantisedMembers(_Product, Members):
    """A layer of all members of an ensemble."""

    @override
    def matmul(self, hidden: Tensor, matrices: Tensor) -> Tensor:
        return self.multiply(hidden, matrices)

    @override
    def pack(self) -> None:
        self.pack_matrix(self.matrices() if self.shared else self.weight)


class _Convolution(_Product):
    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution with any weights."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, C, *grid] to [B, outputs, *grid]."""
        weight: Any = self.weight
        x = self.entry(input)
        if torch.onnx.is_in_onnx_export():
            given = (self._packed, self._scales)
            shape = self._packed.shape
            weight = _node("DequantizeLinear", given, torch.float32, shape, axis=0)
        elif self.entry.seen is None:
            weight = self.rounded(weight)
        return self.convolve(x, weight)

    @override
    def pack(self) -> None:
        weight: Any = self.weight
        self._packed, scale = _steps_of(weight.detach(), WEIGHT_STEPS)
        self._scales = scale.flatten()


class QuantisedConv1d(_Convolution, nn.Conv1d):
    """A convolution over a line."""

    @override
    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


class QuantisedConv2d(_Convolution, nn.Conv2d):
    """A convolution over a plane."""

    @override
    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


class _Table(_Quantised):
    weight: Tensor

    def table(self) -> Tensor:
        """Return the embeddings in steps of one size."""
        weight = self.weight
        scale = _step(weight.detach(), TABLE_STEPS)
        return _Round.apply(weight, scale, 0.0, -TABLE_STEPS, TABLE_STEPS)

    def look_up(self, places: Tensor) -> Tensor:
        """Return the embeddings at places [...], [..., width]."""
        if not torch.onnx.is_in_onnx_export():
            return F.embedding(places, self.table())
        found = F.embedding(places, self._packed)
        given = (found, self._scales)
        return _node("DequantizeLinear", given, torch.float32, found.shape)

    @override
    def pack(self) -> None:
        scale = _step(self.weight.detach(), TABLE_STEPS)
        steps = torch.round(self.weight.detach() / scale)
        self._packed, self._scales = steps.to(torch.int8), scale.reshape(())


class QuantisedEmbedding(_Table, nn.Embedding):
    """Embeddings of a column of labels."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        return self.look_up(input)


class QuantisedBag(_Table, Bag):
    """Embeddings of a text's n-grams."""


_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantisedLinear,
    nn.Conv1d: QuantisedConv1d,
    nn.Conv2d: QuantisedConv2d,
    nn.Embedding: QuantisedEmbedding,
    Bag: QuantisedBag,
    Members: QuantisedMembers,
}


def quantise_layers(network: nn.Module) -> list[str]:
    """Have the layers of a network compute in 8 bits, in place.

    Returns:
        Names of the weights that stay as they are: those of layers of another kind.
    """
    # Their kernels read weights past the layers that hold them.
    apart = {
        id(inner)
        for module in network.modules()
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer)
        for inner in module.modules()
    }
    for module in network.modules():
        form = _FORMS.get(type(module))
        if form is None or id(module) in apart:
            continue
        module.__class__ = form
        if isinstance(module, _Product):
            width: Any = getattr(module, "in_features", 0)
            module.entry = Entry(width)
            module.entry.train(module.training)
    held = {id(module.weight) for module in network.modules() if isinstance(module, _Quantised)}
    return [
        name
        for name, one in network.named_parameters()
        if one.dim() > 1
        and id(one) not in held
        and not name.endswith((".below", ".above", ".bias"))
    ]


def restore_layers(network: nn.Module) -> None:
    """Have the layers compute as they did before `quantise_layers`, in place."""
    back = {form: plain for plain, form in _FORMS.items()}
    for module in [*network.modules()]:
        if plain := back.get(type(module)):
            module.__class__ = plain
            if isinstance(getattr(module, "entry", None), Entry):
                del module.entry


def without_ranges(model: Model) -> Model:
    """Return a copy of a model whose layers compute in float32."""
    made = deepcopy(model)
    restore_layers(made.network)
    network = {name: value for name, value in made.spec.network.items() if name != "quantised"}
    made.spec = replace(made.spec, network=network)
    return made


def is_quantised(network: nn.Module) -> bool:
    """Return whether any layer computes in 8 bits."""
    return any(isinstance(module, _Quantised) for module in network.modules())


def wait(network: nn.Module, waits: bool) -> None:
    """Let a network learn as it is while ranges follow, or no longer."""
    for entry in _entries(network):
        entry.waits = waits


@torch.no_grad()
def fit_ranges(network: nn.Module, features: Tensor) -> None:
    """Take the first ranges from rows that the network learns from.

    Args:
        network: Of `quantise_layers`; its weights are looked at, too.
        features: Rows [n, F].
    """
    training = network.training
    entries = [*_entries(network)]
    for entry in entries:
        entry.seen = []
    try:
        network.eval()(features)
        for layer in network.modules():
            if isinstance(layer, _Product) and layer.entry.seen:
                _fit(layer, torch.stack(layer.entry.seen))
    finally:
        for entry in entries:
            entry.seen = None
        network.train(training)


def _fit(layer: _Product, seen: Tensor) -> None:
    """Set the range of a layer's entry, and even out columns that reach unequally far."""
    low, high = seen[:, 0].amin(0).clamp(max=0.0), seen[:, 1].amax(0).clamp(min=0.0)
    entry = layer.entry
    reach = torch.maximum(-low, high)
    there = reach > 0
    if entry.even is not None and there.any():
        weight: Any = (
            layer.matrices() if isinstance(layer, Members) and layer.shared else layer.weight
        )
        strength = weight.detach().abs().amax(0)
        there &= strength > 0
        if there.any() and reach.max() > UNEVEN * reach[there].median():
            factor = (reach / strength).sqrt()
            # Other rows may reach further than these in a column that is nearly always 0.
            factor = (factor / factor[there].median()).clamp(min=1.0)
            entry.even.copy_(torch.where(there, factor, 1.0))
        low, high = low / entry.even, high / entry.even
    entry.low.copy_(low.min())
    entry.high.copy_(high.max())


@contextmanager
def whole_numbers(network: nn.Module) -> Generator[None]:
    """Have `torch.onnx.export` write whole numbers of 8 bits, inside the block."""
    for module in network.modules():
        if isinstance(module, Entry | _Quantised):
            module.pack()
    yield


def fold_norms(whole: ModelProto) -> None:
    """Put batch norms into the scales and biases of the convolutions before them, in place.

    A norm multiplies each channel, as its scale does: the whole numbers stay, but for their sign.
    Biases become whole numbers of the product of both scales, which runtimes need to convolve in 8
    bits.
    """
    from onnx import helper, numpy_helper

    graph = whole.graph
    made = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    held = {one.name: one for one in graph.initializer}

    def read(name: str) -> Any:
        return numpy_helper.to_array(held[name])

    def write(name: str, values: Any) -> None:
        held[name].CopyFrom(numpy_helper.from_array(values, name))

    for node in [one for one in graph.node if one.op_type == "Conv"]:
        entry, weights = (made.get(name) for name in node.input[:2])
        if not entry or not weights or weights.op_type != "DequantizeLinear":
            continue
        steps, scale = read(weights.input[0]), read(weights.input[1]).astype(np.float64)
        bias = np.zeros(len(scale))
        if len(node.input) > 2:
            bias = read(node.input[2]).astype(np.float64)
        norm = next((one for one in graph.node if node.output[0] in one.input), None)
        if norm and norm.op_type == "BatchNormalization" and uses[node.output[0]] == 1:
            gain, shift, mean, spread = (read(name).astype(np.float64) for name in norm.input[1:])
            least = next((one.f for one in norm.attribute if one.name == "epsilon"), 1e-5)
            factor = gain / np.sqrt(spread + least)
            bias = (bias - mean) * factor + shift
            signs = np.sign(factor).reshape(-1, *[1] * (steps.ndim - 1))
            write(weights.input[0], (steps * signs).astype(np.int8))
            scale = np.where(factor, scale * np.abs(factor), scale)
            write(weights.input[1], scale.astype(np.float32))
            node.output[0] = norm.output[0]
            graph.node.remove(norm)
        unit = (read(weights.input[1]) * read(entry.input[1])).astype(np.float32)
        limit = np.iinfo(np.int32).max
        counts = np.clip(np.rint(bias / unit.astype(np.float64)), -limit, limit).astype(np.int32)
        name = f"{node.output[0]}/bias"
        for part, values in (("", counts), ("/unit", unit)):
            graph.initializer.append(numpy_helper.from_array(values, name + part))
        widened = helper.make_node(
            "DequantizeLinear", [name, f"{name}/unit"], [f"{name}/b"], axis=0
        )
        graph.node.insert(list(graph.node).index(node), widened)
        node.input[:] = [*node.input[:2], f"{name}/b"]


def _entries(network: nn.Module) -> Iterator[Entry]:
    return (module for module in network.modules() if isinstance(module, Entry))


def _step(weight: Tensor, steps: int, *, outputs: bool = False) -> Tensor:
    """Return the size of a step, one for all or one for each output [outputs, 1, ...]."""
    reach = weight.abs()
    reach = reach.flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) if outputs else reach.max()
    return (reach / steps).clamp(min=torch.finfo(torch.float32).tiny)


def _steps_of(weight: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    scale = _step(weight, steps, outputs=True)
    return torch.round(weight / scale).clamp(-steps, steps).to(torch.int8), scale


def _node(
    name: str, given: tuple[Tensor, ...], dtype: torch.dtype, shape: Any, **told: Any
) -> Tensor:
    return torch.onnx.ops.symbolic(name, given, told, dtype=dtype, shape=shape)
