"""Which processor computes: libraries below torch choose kernels by more than torch tells."""

from __future__ import annotations

import os
import platform
from pathlib import Path

IDENTIFYING = (
    "vendor_id",
    "cpu family",
    "model",
    "cache size",
    "CPU implementer",
    "CPU part",
    "CPU variant",
)
"""What Linux says of x86 and of Arm. MKL asks for the vendor, oneDNN for the caches."""

STEERING = (
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_BLOCK_FACTOR",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
)
"""Variables by which these libraries are told to take other kernels."""


def describe_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor as far as its kernels depend on it, and what they are told to be.

    Two processors of one name compute the same bits; of two names they may differ, although torch
    reports the same instructions (`torch.backends.cpu.get_cpu_capability`) for both.
    """
    try:
        first = cpuinfo.read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    said = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in first.splitlines())
    }
    parts = [f"{name} {said[name]}" for name in IDENTIFYING if name in said]
    parts = parts or [platform.machine(), platform.processor()]
    parts += [f"{name}={os.environ[name]}" for name in STEERING if name in os.environ]
    return ", ".join(parts)
