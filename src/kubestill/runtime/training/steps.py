"""One optimizer step, in two ways.

`AutogradStep` works for any network. `FusedStep` runs plain MLPs: for students, autograd's own
bookkeeping costs more than the arithmetic, so the backward is written out over one flat parameter
vector and buffers that are used again. It calls the kernels that autograd calls, in the same order:
where hidden layers are multiples of 16 wide the bits are the same, clipped or not. A kernel rounds
the last few numbers of a tensor, which fill no vector of the CPU, in another way than the others,
and in one flat vector those are others: any other width agrees to rounding.

Where several processes share a batch, each takes its own rows. Gradients and losses are means over
a process's rows, and the mean over processes weighs them by `part`: the rows that a process has,
in units of an equal share. So every row of a batch counts the same, whoever has it. `micro_batches`
does so with the same bits for any number of processes, by calling `gradient` and `update` here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.training.batches import Cut, Part
from kubestill.runtime.training.distributed import average_, share_buffers
from kubestill.runtime.training.kernels import foreach_div_, foreach_mul_, gradients
from kubestill.runtime.training.losses import Loss
from kubestill.runtime.training.optimizers import ELEMENTWISE, Rate, build_optimizer

aten = torch.ops.aten

Batch = tuple[Tensor, ...]


class Step(Protocol):
    """Trains a network in place, a batch at a time."""

    def __call__(self, batch: Batch, learning_rate: float, part: Part = 1.0) -> Tensor:
        """Apply one update by (features [b, ...], *targets); return the loss before it []."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the live optimizer state by `<parameter name>/<slot>`, and the scaler's if any."""
        ...

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Copy saved state into the live one. Call it before the parameters are restored.

        Raises:
            InvalidInput: The state belongs to another optimizer.
        """
        ...


class SplitStep(Step, Protocol):
    """A step whose two halves can be taken one by one."""

    def gradient(self, batch: Batch, weight: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """Return the loss [] and its gradients, both times `weight`.

        The next call may overwrite the gradients.
        """
        ...

    def update(self, gradients: list[Tensor], learning_rate: float) -> None:
        """Move the parameters by the gradients of a whole batch, which it may change."""
        ...


class AutogradStep(SplitStep):
    """Forward, backward and update of any network by autograd.

    Args:
        network: Trained in place.
        loss: What to minimise.
        optimizer: Name in `torch.optim`.
        optimizer_args: Its arguments.
        clip: Largest L2 norm of the gradient; 0 leaves it alone.
        precision: `float32`, `bf16` or `fp16` (forward and backward; parameters stay float32).
        world_size: Processes whose gradients are averaged.
        beside: What learns with the network and is no part of it, by name.
        around: Makes what stands around each forward pass.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        *,
        optimizer: str,
        optimizer_args: Mapping[str, Any],
        clip: float = 0.0,
        precision: str = "float32",
        world_size: int = 1,
        beside: Mapping[str, nn.Parameter] = {},
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        named |= beside
        self._network, self._loss, self._clip = network, loss, clip
        self._around = around
        self._names, self._parameters = list(named), list(named.values())
        self._optimizer = build_optimizer(optimizer, optimizer_args, self._parameters)
        self._world_size = world_size
        device = self._parameters[0].device
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._autocast: Callable[[], Any] = (
            (lambda: torch.autocast(device.type, dtype)) if dtype is not None else nullcontext
        )
        self._scaler = _Scaler(device) if precision == "fp16" else None

    @property
    def parameters(self) -> Sequence[Tensor]:
        """What is trained, in the order of the gradients."""
        return self._parameters

    @override
    def __call__(self, batch: Batch, learning_rate: float, part: Part = 1.0) -> Tensor:
        assert not isinstance(part, Cut)
        share_buffers(self._network, self._world_size)
        loss, found = self.gradient(batch, part)
        if self._world_size > 1:
            found = _averaged(found, self._world_size)
        self.update(found, learning_rate)
        return loss

    @override
    def gradient(self, batch: Batch, weight: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        features, *targets = batch
        with self._autocast(), self._around():
            outputs = self._network(features)
        # The loss brings its own gradient: autograd starts at the outputs.
        loss, upstream = weighted(weight, *self._loss(outputs.detach().float(), tuple(targets)))
        upstream = upstream.to(outputs.dtype)
        if self._scaler is not None:
            upstream = upstream * self._scaler.scale
        return loss, gradients(outputs, upstream, self._parameters)

    @override
    def update(self, gradients: list[Tensor], learning_rate: float) -> None:
        if self._scaler is None or self._scaler.unscale(gradients):
            _clip(gradients, self._clip)
            self._optimizer.step(gradients, learning_rate)

    @override
    def state(self) -> dict[str, Tensor]:
        named = {
            f"{name}/{slot}": tensor
            for name, own in zip(self._names, self._optimizer.state(), strict=True)
            for slot, tensor in own.items()
        }
        return named if self._scaler is None else named | self._scaler.state()

    @override
    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        self._optimizer.materialise()
        copy_state(self.state(), saved)


class FusedStep(SplitStep):
    """The whole step of a plain MLP, written out over one flat parameter vector.

    The network's own parameters become views of the flat vector, so it can be evaluated and saved
    as ever. Linear layers and their activations only: `fusible` says whether a network qualifies.
    """

    def __init__(
        self,
        network: nn.Sequential,
        loss: Loss,
        *,
        optimizer: str,
        optimizer_args: Mapping[str, Any],
        clip: float = 0.0,
        world_size: int = 1,
    ):
        named = dict(network.named_parameters())
        self._names, self._shapes = list(named), [p.shape for p in named.values()]
        self._flat = torch.cat([p.detach().flatten() for p in named.values()])
        self._gradient = torch.zeros_like(self._flat)
        for parameter, view in zip(named.values(), self._views(self._flat), strict=True):
            parameter.data = view
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        self._weights = [layer.weight.detach() for layer in linear]
        self._weights_t = [weight.t() for weight in self._weights]
        self._biases = [layer.bias.detach() for layer in linear]
        # In the order of the parameters: a norm over them is a sum, and its bits hang on the order.
        self._gradients = list(self._views(self._gradient))
        self._weight_gradients, self._bias_gradients = self._gradients[0::2], self._gradients[1::2]
        self._activations = [_activation(layer) for layer in list(network)[1::2]]
        self._loss, self._clip, self._world_size = loss, clip, world_size
        self._optimizer = build_optimizer(optimizer, optimizer_args, [self._flat])
        self._buffers: dict[int, _Buffers] = {}

    @property
    def weights(self) -> Tensor:
        """All parameters, flat and live."""
        return self._flat

    @torch.no_grad()
    @override
    def __call__(self, batch: Batch, learning_rate: Rate, part: Part = 1.0) -> Tensor:
        assert not isinstance(part, Cut)
        loss = self._differentiate(batch, part)
        average_(self._gradient, self._world_size)
        self._move([self._gradient], learning_rate)
        return loss

    @torch.no_grad()
    @override
    def gradient(self, batch: Batch, weight: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        return self._differentiate(batch, weight), [self._gradient]

    @torch.no_grad()
    @override
    def update(self, gradients: list[Tensor], learning_rate: Rate) -> None:
        self._move(gradients, learning_rate)

    def _differentiate(self, batch: Batch, weight: float) -> Tensor:
        """Return the loss times `weight`, and leave its gradient in the flat vector."""
        features, *targets = batch
        buffers = self._buffers.get(len(features))
        if buffers is None:
            buffers = _Buffers(len(features), self._weights, self._activations)
            self._buffers[len(features)] = buffers
        outputs = self._forward(features, buffers)
        loss, upstream = weighted(weight, *self._loss(outputs, tuple(targets)))
        self._backward(features, upstream, buffers)
        return loss

    def _move(self, gradients: list[Tensor], learning_rate: Rate) -> None:
        (whole,) = gradients
        if self._clip:
            parts = self._gradients if whole is self._gradient else list(self._views(whole))
            _clip(parts, self._clip)
        self._optimizer.step(gradients, learning_rate)

    def _forward(self, features: Tensor, buffers: _Buffers) -> Tensor:
        hidden, last = features, len(self._weights) - 1
        for i, weight_t in enumerate(self._weights_t):
            linear = torch.addmm(self._biases[i], hidden, weight_t, out=buffers.linear[i])
            hidden = (
                linear if i == last else self._activations[i].forward(linear, buffers.hidden[i])
            )
        return hidden

    def _backward(self, features: Tensor, upstream: Tensor, buffers: _Buffers) -> None:
        for i in range(len(self._weights) - 1, -1, -1):
            below = features if i == 0 else buffers.hidden[i - 1]
            torch.mm(upstream.t(), below, out=self._weight_gradients[i])
            torch.sum(upstream, 0, out=self._bias_gradients[i])
            if i:
                into = torch.mm(upstream, self._weights[i], out=buffers.upstream[i - 1])
                upstream = self._activations[i - 1].backward(
                    into, buffers.linear[i - 1], buffers.hidden[i - 1]
                )

    @override
    def state(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for own in self._optimizer.state():
            for slot, tensor in own.items():
                whole = tensor.numel() == self._flat.numel()
                parts = self._views(tensor) if whole else [tensor] * len(self._names)
                pairs = zip(self._names, parts, strict=True)
                named |= {f"{name}/{slot}": part for name, part in pairs}
        return named

    @override
    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        self._optimizer.materialise()
        copy_state(self.state(), saved)

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        sizes = [shape.numel() for shape in self._shapes]
        for part, shape in zip(flat.split(sizes), self._shapes, strict=True):
            yield part.view(shape)


def why_not_fusible(network: nn.Module, *, optimizer: str, precision: str) -> str:
    """Return what keeps training from the fused step, or an empty string where nothing does."""
    if precision != "float32":
        return f"precision is {precision}, and the fused step is float32"
    if optimizer not in ELEMENTWISE:
        return f"{optimizer} treats a parameter as a whole, and the fused step has one flat vector"
    if type(network) is not nn.Sequential or len(network) % 2 == 0:
        return "the network is not a plain MLP (Linear, activation, ..., Linear)"
    for i, layer in enumerate(network):
        if i % 2 == 0 and (type(layer) is not nn.Linear or layer.bias is None):  # pyright: ignore
            return f"layer {i} is {type(layer).__name__}, not a Linear with a bias"
        if i % 2 and _activation_or_none(layer) is None:
            return (
                f"layer {i} is {type(layer).__name__}, an activation without a written-out backward"
            )
    if not all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters()):
        return "some parameters are frozen or not float32"
    return ""


class _Buffers:
    """What one batch size needs between forward and backward."""

    def __init__(self, rows: int, weights: list[Tensor], activations: list[_Activation]):
        self.linear = [weight.new_empty(rows, len(weight)) for weight in weights]
        # Where the backward needs the output alone, the activation works in place and stays in
        # cache.
        self.hidden = [
            torch.empty_like(linear) if activation.keeps_input else linear
            for linear, activation in zip(self.linear, activations, strict=False)
        ]
        # A layer's outputs are done with once the backward is below it: gradients go there, which
        # keeps a student's whole step in a core's cache.
        self.upstream = [
            above if above is not None and above.shape == hidden.shape else torch.empty_like(hidden)
            for hidden, above in itertools.zip_longest(self.hidden, self.hidden[1:])
        ]


class _Activation(Protocol):
    keeps_input: bool

    def forward(self, linear: Tensor, out: Tensor) -> Tensor: ...

    def backward(self, upstream: Tensor, linear: Tensor, hidden: Tensor) -> Tensor:
        """Turn the gradient by the activation's output into that by its input, in place."""
        ...


class _Relu:
    keeps_input = False

    def forward(self, linear: Tensor, out: Tensor) -> Tensor:
        return torch.clamp_min(linear, 0, out=out)

    def backward(self, upstream: Tensor, linear: Tensor, hidden: Tensor) -> Tensor:
        return aten.threshold_backward.grad_input(upstream, hidden, 0, grad_input=upstream)


class _Tanh:
    keeps_input = False

    def forward(self, linear: Tensor, out: Tensor) -> Tensor:
        return torch.tanh(linear, out=out)

    def backward(self, upstream: Tensor, linear: Tensor, hidden: Tensor) -> Tensor:
        return aten.tanh_backward.grad_input(upstream, hidden, grad_input=upstream)


class _Sigmoid:
    keeps_input = False

    def forward(self, linear: Tensor, out: Tensor) -> Tensor:
        return torch.sigmoid(linear, out=out)

    def backward(self, upstream: Tensor, linear: Tensor, hidden: Tensor) -> Tensor:
        return aten.sigmoid_backward.grad_input(upstream, hidden, grad_input=upstream)


class _Gelu:
    keeps_input = True

    def __init__(self, approximate: str):
        self._approximate = approximate

    def forward(self, linear: Tensor, out: Tensor) -> Tensor:
        return aten.gelu.out(linear, approximate=self._approximate, out=out)

    def backward(self, upstream: Tensor, linear: Tensor, hidden: Tensor) -> Tensor:
        return aten.gelu_backward.grad_input(
            upstream, linear, approximate=self._approximate, grad_input=upstream
        )


class _Silu:
    keeps_input = True

    def forward(self, linear: Tensor, out: Tensor) -> Tensor:
        return aten.silu.out(linear, out=out)

    def backward(self, upstream: Tensor, linear: Tensor, hidden: Tensor) -> Tensor:
        return aten.silu_backward.grad_input(upstream, linear, grad_input=upstream)


def _activation_or_none(layer: nn.Module) -> _Activation | None:
    match layer:
        case nn.ReLU():
            return _Relu()
        case nn.Tanh():
            return _Tanh()
        case nn.Sigmoid():
            return _Sigmoid()
        case nn.GELU():
            return _Gelu(layer.approximate)
        case nn.SiLU():
            return _Silu()
        case _:
            return None


def _activation(layer: nn.Module) -> _Activation:
    activation = _activation_or_none(layer)
    assert activation is not None, "why_not_fusible comes first"
    return activation


class _Scaler:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018); its state is two tensors."""

    def __init__(self, device: torch.device):
        self.scale = torch.full((), 65536.0, device=device)
        self._good_steps = torch.zeros((), device=device)

    def unscale(self, gradients: list[Tensor]) -> bool:
        """Divide the gradients by the scale; False: they overflowed, and the step is skipped."""
        foreach_div_(gradients, self.scale)
        finite = bool(torch.stack([g.isfinite().all() for g in gradients]).all())
        self._good_steps.copy_(self._good_steps + 1 if finite else torch.zeros(()))
        if not finite:
            self.scale.mul_(0.5)
        elif int(self._good_steps) % 2000 == 0:
            self.scale.mul_(2.0)
        return finite

    def state(self) -> dict[str, Tensor]:
        return {"scaler/scale": self.scale, "scaler/good_steps": self._good_steps}


def copy_state(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved optimizer state; a scaler is taken over where both have one."""

    def slots(names: Iterable[str]) -> str:
        kept = {n.rpartition("/")[2] for n in names if not n.startswith("scaler/")}
        return " and ".join(sorted(kept)) or "nothing"

    if slots(live) != slots(saved):
        remedy = (
            f"this optimizer keeps {slots(live)} for a parameter: give it the optimizer_args of "
            "the one that was saved, or set keep_optimizer to false"
        )
        raise InvalidInput([Problem("saved optimizer state", slots(saved), remedy)])
    missing = sorted(n for n in live if n not in saved and not n.startswith("scaler/"))
    if missing:
        remedy = (
            f"there is none for {missing[0]}, which did not learn then: freeze it again, or set "
            "keep_optimizer to false"
        )
        raise InvalidInput([Problem("saved optimizer state", f"{len(missing)} missing", remedy)])
    for name, tensor in live.items():
        if name in saved:
            tensor.copy_(saved[name])


def _clip(gradients: list[Tensor], limit: float) -> None:
    if limit:
        norm = torch.nn.utils.get_total_norm(gradients)
        foreach_mul_(gradients, torch.clamp(limit / (norm + 1e-6), max=1.0))


def weighted(weight: float, loss: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss and its gradient, which may be overwritten, both times `weight`."""
    return (loss, gradient) if weight == 1.0 else (loss * weight, gradient.mul_(weight))


def _averaged(gradients: list[Tensor], world_size: int) -> list[Tensor]:
    """Average over processes, with one exchange for all gradients of a type."""
    averaged = list(gradients)
    for dtype in dict.fromkeys(g.dtype for g in gradients):
        alike = [i for i, g in enumerate(gradients) if g.dtype == dtype]
        flat = [real(gradients[i]).flatten() for i in alike]
        parts = average_(torch.cat(flat), world_size).split([len(part) for part in flat])
        for i, part in zip(alike, parts, strict=True):
            whole = part.view_as(real(gradients[i]))
            averaged[i] = torch.view_as_complex(whole) if dtype.is_complex else whole
    return averaged


def real(tensor: Tensor) -> Tensor:
    """Return a tensor, of complex numbers their parts [..., 2]."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
