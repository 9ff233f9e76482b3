"""Kernels of torch that it does not export by a public name: the only place that knows them.

The `_foreach` kernels update many tensors in one call; the fused ones are what `fused=True` of
`torch.optim.Adam`, `AdamW` and `SGD` runs.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Kernel = Callable[..., Any]

foreach_add_: Kernel = torch._foreach_add_
foreach_div_: Kernel = torch._foreach_div_
foreach_lerp_: Kernel = torch._foreach_lerp_
foreach_mul_: Kernel = torch._foreach_mul_

fused_adam_: Kernel | None = getattr(torch, "_fused_adam_", None)
fused_adamw_: Kernel | None = getattr(torch, "_fused_adamw_", None)
fused_sgd_: Kernel | None = getattr(torch, "_fused_sgd_", None)


def set_deterministic(on: bool) -> None:
    """Do what `torch.use_deterministic_algorithms` does, without importing the compiler (2 s)."""
    torch._C._set_deterministic_algorithms(on, warn_only=False)
