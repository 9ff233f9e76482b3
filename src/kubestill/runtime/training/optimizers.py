"""Optimizers by their torch names, on lists of plain tensors.

Adam, AdamW and SGD call torch's fused kernels straight: at the size of a student, `Optimizer.step`
costs more in bookkeeping (80 us) than the whole update (15 us). The kernels are the ones that
`fused=True` runs, so the bits are the same; a test says so. Every other optimizer, every unusual
argument and complex parameters, which these kernels do not take, go through torch's own class.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kubestill.errors import InvalidInput, Problem, Problems, nearest
from kubestill.runtime.training.kernels import (
    Kernel,
    fused_adam_,
    fused_adamw_,
    fused_sgd_,
)

EXCLUDED = {
    "LBFGS": "needs the loss several times a step; `finish_steps` ends a training run with it",
    "Muon": "takes nothing but matrices",
    "Optimizer": "is what all of them inherit from",
    "SparseAdam": "needs sparse gradients",
}
"""Why torch has an optimizer of that name that training cannot use."""

# On flat parameters only an update that treats every element alone stays the same update.
ELEMENTWISE = frozenset(
    {
        "ASGD",
        "Adadelta",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    }
)

_OF_ADAM = frozenset({"betas", "eps", "weight_decay"})
_KERNELS: dict[str, tuple[Kernel | None, frozenset[str]]] = {
    "Adam": (fused_adam_, _OF_ADAM),
    "AdamW": (fused_adamw_, _OF_ADAM),
    "SGD": (fused_sgd_, frozenset({"momentum", "weight_decay", "nesterov"})),
}
"""By optimizer, torch's kernel, if it has one, and the arguments that are known here."""


def names() -> list[str]:
    """Return the optimizers that training can use, by their names in `torch.optim`."""
    return sorted(
        name
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and name not in EXCLUDED
    )


def check_arguments(optimizer: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the optimizer does not have or does not accept.

    Raises:
        InvalidInput: Naming each, with the nearest that exist.
    """
    problems = Problems()
    cls = getattr(torch.optim, optimizer)
    known = [name for name in inspect.signature(cls).parameters if name != "params"]
    for key, value in arguments.items():
        if key == "lr":
            problems.add("optimizer_args.lr", value, "use the parameter 'learning_rate' instead")
        elif key not in known:
            problems.add(
                f"optimizer_args.{key}",
                value,
                f"{optimizer} has no such argument; {nearest(key, known)}",
            )
    if arguments and not problems:
        try:
            cls([torch.zeros(1)], **_canonical(arguments))
        except Exception as error:  # whatever torch stumbles over: [0.9] for two betas, say
            problems.add("optimizer_args", dict(arguments), f"{optimizer} refuses them: {error}")
    problems.raise_if_any()


Rate = float | Tensor
"""A learning rate; where `has_kernel` says so, also one that lies on the parameters' device []."""


class Optimizer(Protocol):
    """Updates a fixed list of parameters in place."""

    def step(self, gradients: Sequence[Tensor], learning_rate: Rate) -> None:
        """Apply one update; `gradients` match the parameters in order and shape."""
        ...

    def state(self) -> list[dict[str, Tensor]]:
        """Return the live state, the slots of each parameter; those named `step` are scalars []."""
        ...

    def materialise(self) -> None:
        """Make every slot exist, at the price of parameters and slots that now hold anything.

        A restore calls it before it overwrites both: torch's classes make their slots at the first
        step.
        """
        ...


def build_optimizer(
    name: str,
    arguments: Mapping[str, Any],
    parameters: Sequence[Tensor],
    *,
    among: Sequence[Tensor] = (),
) -> Optimizer:
    """Return the optimizer `torch.optim.<name>` over `parameters`.

    Args:
        name: Of the class.
        arguments: Its own.
        parameters: What it updates.
        among: All that are trained, where others update the rest: which kernels run depends on all.

    Raises:
        InvalidInput: Some parameters are complex, and torch's optimizer takes only real ones.
    """
    arguments = _canonical(arguments)
    if any(p.is_complex() for p in among or parameters):
        _check_complex(name, arguments)
        return _TorchOptimizer(parameters, getattr(torch.optim, name), arguments)
    if not has_kernel(name, arguments):
        return _TorchOptimizer(parameters, getattr(torch.optim, name), arguments)
    kernel, _ = _KERNELS[name]
    assert kernel
    if name == "SGD":
        return _FusedSGD(parameters, kernel, **arguments)
    options: dict[str, Any] = {"weight_decay": 1e-2 if name == "AdamW" else 0.0, **arguments}
    return _FusedAdam(parameters, kernel, **options)


def has_kernel(name: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether one kernel of torch makes the whole update of real parameters."""
    kernel, usual = _KERNELS.get(name, (None, frozenset[str]()))
    return kernel is not None and set(arguments) <= usual


def _check_complex(name: str, arguments: Mapping[str, Any]) -> None:
    """Take one step of a complex parameter: only torch knows which of its optimizers can."""
    probe = torch.zeros(2, 2, dtype=torch.complex64)
    try:
        _TorchOptimizer([probe], getattr(torch.optim, name), arguments).materialise()
    except RuntimeError as error:
        remedy = f"this network has complex parameters: {error}; use Adam, AdamW or SGD"
        raise InvalidInput([Problem("optimizer", name, remedy)]) from error


class _FusedAdam:
    """Adam and AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019) by torch's fused kernels."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        kernel: Kernel,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float,
    ):
        self._parameters = [p.detach() for p in parameters]
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [torch.zeros_like(p) for p in self._parameters]
        # All parameters take every step: one count is theirs together, where torch has one each.
        self._count = torch.zeros((), device=self._parameters[0].device)
        self._steps = [self._count] * len(self._parameters)
        self._kernel = kernel
        self._options: dict[str, Any] = {
            "beta1": float(betas[0]),
            "beta2": float(betas[1]),
            "eps": float(eps),
            "weight_decay": float(weight_decay),
            "amsgrad": False,
            "maximize": False,
        }

    def step(self, gradients: Sequence[Tensor], learning_rate: Rate) -> None:
        self._count.add_(1)
        self._kernel(
            self._parameters,
            gradients,
            self._first,
            self._second,
            [],
            self._steps,
            lr=learning_rate,
            **self._options,
        )

    def materialise(self) -> None:
        pass

    def state(self) -> list[dict[str, Tensor]]:
        slots = zip(self._steps, self._first, self._second, strict=True)
        return [
            {"step": step, "exp_avg": first, "exp_avg_sq": second} for step, first, second in slots
        ]


class _FusedSGD:
    """Stochastic gradient descent with momentum by torch's fused kernel."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        kernel: Kernel,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        self._parameters = [p.detach() for p in parameters]
        self._buffers = [torch.zeros_like(p) for p in self._parameters] if momentum else []
        self._kernel = kernel
        self._options: dict[str, Any] = {
            "momentum": float(momentum),
            "weight_decay": float(weight_decay),
            "nesterov": bool(nesterov),
            "dampening": 0.0,
            "maximize": False,
            # Zero buffers make the first step v = g, which is what torch's first step does.
            "is_first_step": False,
        }

    def step(self, gradients: Sequence[Tensor], learning_rate: Rate) -> None:
        self._kernel(self._parameters, gradients, self._buffers, lr=learning_rate, **self._options)

    def materialise(self) -> None:
        pass

    def state(self) -> list[dict[str, Tensor]]:
        if not self._buffers:
            return [{} for _ in self._parameters]
        return [{"momentum_buffer": buffer} for buffer in self._buffers]


class _TorchOptimizer:
    """Any other `torch.optim` class, kept behind the same three verbs."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        cls: type[torch.optim.Optimizer],
        arguments: Mapping[str, Any],
    ):
        self._parameters = [torch.nn.Parameter(p.detach()) for p in parameters]
        self._optimizer = cls(self._parameters, **arguments)

    def step(self, gradients: Sequence[Tensor], learning_rate: Rate) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()

    def materialise(self) -> None:
        self.step([torch.zeros_like(p) for p in self._parameters], 0.0)

    def state(self) -> list[dict[str, Tensor]]:
        return [
            {k: v for k, v in self._optimizer.state[parameter].items() if isinstance(v, Tensor)}
            for parameter in self._parameters
        ]


def _canonical(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Undo what JSON and the runner do to arguments: pairs that became lists."""
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }
