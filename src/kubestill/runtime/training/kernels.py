"""Kernels of torch that it does not export by a public name: the only place that knows them.

The `_foreach` kernels update many tensors in one call; the fused ones are what `fused=True` of
`torch.optim.Adam`, `AdamW` and `SGD` runs; `gradients` starts the engine behind
`torch.autograd.grad`; `holders` is what torch's CUDA graphs ask before they use memory again.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Any]

foreach_add_: Kernel = torch._foreach_add_
foreach_copy_: Kernel = torch._foreach_copy_
foreach_div_: Kernel = torch._foreach_div_
foreach_lerp_: Kernel = torch._foreach_lerp_
foreach_mul_: Kernel = torch._foreach_mul_

fused_adam_: Kernel | None = getattr(torch, "_fused_adam_", None)
fused_adamw_: Kernel | None = getattr(torch, "_fused_adamw_", None)
fused_sgd_: Kernel | None = getattr(torch, "_fused_sgd_", None)

_grad: Kernel = torch.autograd.grad
_run_backward: Kernel | None = getattr(torch.autograd.graph, "_engine_run_backward", None)


def gradients(output: Tensor, upstream: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return what `torch.autograd.grad` does, contiguous, and zeros for inputs that had no part.

    Its checks of arguments take a tenth of a student's step, and import a computer algebra system
    (0.7 s) before the first one.
    """
    if _run_backward is None:
        found = _grad(output, inputs, upstream, allow_unused=True)
    else:
        found = _run_backward(
            (output,), (upstream,), False, False, tuple(inputs), True, accumulate_grad=False
        )
    return [
        torch.zeros_like(given) if gradient is None else gradient.contiguous().resolve_conj()
        for gradient, given in zip(found, inputs, strict=True)
    ]


def backward(output: Tensor, upstream: Tensor, inputs: Sequence[Tensor]) -> None:
    """Do what `torch.autograd.backward` does: the inputs, which are leaves, get their gradients."""
    if _run_backward is None:
        torch.autograd.backward(output, upstream, inputs=inputs)
    else:
        given = (output,), (upstream,), False, False, tuple(inputs), True
        _run_backward(*given, accumulate_grad=True)


def holders(storage: torch.UntypedStorage) -> int:
    """Return how many hold a tensor's memory, the caller included."""
    return torch._C._storage_Use_Count(storage._cdata)


def set_deterministic(on: bool) -> None:
    """Do what `torch.use_deterministic_algorithms` does, without importing the compiler (2 s)."""
    torch._C._set_deterministic_algorithms(on, warn_only=False)
