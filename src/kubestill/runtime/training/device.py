"""Which device trains, in which arithmetic, and everything that decides the bits of a result."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kubestill import __version__
from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.base.device import choose_device
from kubestill.runtime.training.kernels import set_deterministic
from kubestill.runtime.training.nodes import leads_pods
from kubestill.runtime.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a training runs."""

    device: torch.device
    precision: str
    """`float32`, `bf16` or `fp16`, resolved."""

    def describe(self) -> str:
        """Return one line for people."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}"
        return f"CPU, {torch.get_num_threads()} threads, {self.precision}"


def choose_machine(settings: TrainingSettings) -> Machine:
    """Resolve `device` and `precision`.

    Raises:
        InvalidInput: See `choose_device`; or fp16 on a CPU.
    """
    device, precision = choose_device(settings.device), settings.precision
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        # Whole numbers times a scale are exact in float32 alone.
        precision = "bf16" if native and not settings.quantise_aware else "float32"
    if precision == "fp16" and device.type == "cpu":
        raise InvalidInput(
            [Problem("precision", precision, "fp16 needs a GPU; use bf16 or float32")]
        )
    return Machine(device=device, precision=precision)


@contextmanager
def arithmetic(settings: TrainingSettings) -> Generator[None, None, None]:
    """Set threads and deterministic kernels while a training run lasts, and put them back."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    # cuBLAS is deterministic only with a fixed workspace, read when its handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if count := settings.threads or _threads_of_a_share(settings):
        torch.set_num_threads(count)
    if settings.deterministic:
        set_deterministic(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        set_deterministic(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def _threads_of_a_share(settings: TrainingSettings) -> int:
    """Return the threads of a process that may share CPUs with others; 0 where it cannot.

    Their number changes bits, and must not follow from how many processes there are.
    """
    if settings.virtual_workers < 2 or leads_pods(settings):
        return 0
    return 1 if choose_device(settings.device).type == "cpu" else 0


def numerics_key(
    machine: Machine, *, step_path: str, world_size: int, processors: Iterable[str]
) -> dict[str, str]:
    """Return everything besides settings and data that changes the bits of a result.

    `processors` are those of all processes, as `describe_processor` names them.
    """
    key = {
        "kubestill": __version__,
        "torch": torch.__version__,
        "device": machine.device.type,
        "precision": machine.precision,
        "processor": "; ".join(sorted(set(processors))),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": str(torch.get_num_threads()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "step_path": step_path,
        "world_size": str(world_size),
    }
    if machine.device.type == "cuda":
        key |= {
            "gpu": torch.cuda.get_device_name(machine.device),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "tf32": f"{torch.backends.cuda.matmul.allow_tf32}/{torch.backends.cudnn.allow_tf32}",
        }
    return key
