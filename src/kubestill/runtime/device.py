"""Which device computes."""

from __future__ import annotations

import os

import torch

from kubestill.errors import InvalidInput, Problem

__all__ = ["choose_device", "local_rank"]


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is a GPU where there is one.

    Raises:
        InvalidInput: No such kind of device, or a GPU was asked for and none is visible.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("auto", "cuda") and visible:
        return torch.device("cuda", local_rank())
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InvalidInput([Problem("device", name, "use auto, cpu, cuda or cuda:<index>")])
    if device.type == "cuda" and (device.index or 0) >= visible:
        remedy = (
            f"{visible} GPUs are visible here: check the accelerator request, the node selector "
            "and the image's CUDA build, or use device='auto'"
        )
        raise InvalidInput([Problem("device", name, remedy)])
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def local_rank() -> int:
    """Return the index of this process on its machine, which is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))
