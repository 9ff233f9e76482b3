"""Which device computes."""

from __future__ import annotations

import json
import os
import sys

import torch

from kubestill.errors import InvalidInput, Problem


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is a GPU where there is one.

    Raises:
        InvalidInput: No such kind of device, or a GPU was asked for and none is visible: by `name`,
            or by the accelerators that our pipelines give a task.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = (
        f"torch {torch.__version__} sees {visible} GPUs here: check the accelerator's name, the "
        "node selector and that gpu_image holds a CUDA build, or "
    )
    if name in ("auto", "cuda") and visible:
        return torch.device("cuda", local_rank())
    if name == "auto":
        if asked := _accelerators():
            remedy = missing + "leave accelerators empty for CPUs"
            raise InvalidInput([Problem("accelerators", asked, remedy)])
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InvalidInput([Problem("device", name, "use auto, cpu, cuda or cuda:<index>")])
    if device.type == "cuda" and (device.index or 0) >= visible:
        remedy = missing + "use device='auto'"
        raise InvalidInput([Problem("device", name, remedy)])
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def choose_devices(name: str) -> list[torch.device]:
    """Return every device that `name` stands for: `auto` and `cuda` are all visible GPUs.

    A process of several on its machine has one GPU, by its rank.

    Raises:
        InvalidInput: As of `choose_device`.
    """
    first = choose_device(name)
    if name not in ("auto", "cuda") or first.type != "cuda" or "LOCAL_RANK" in os.environ:
        return [first]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def local_rank() -> int:
    """Return the index of this process on its machine, which is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _accelerators() -> str:
    """Return how many accelerators the pipeline requested for this task; empty for none.

    Kubeflow hands each task, beside its own inputs, the pipeline's parameters that its resources
    name. It is the only trace of them in a pod: a node without GPUs leaves no other.
    """
    if "--executor_input" not in sys.argv:
        return ""
    executor_input = json.loads(sys.argv[sys.argv.index("--executor_input") + 1])
    given = executor_input.get("inputs", {}).get("parameterValues", {})
    return str(given.get("pipelinechannel--accelerators", ""))
