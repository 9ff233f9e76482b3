"""How much memory a training may take."""

from __future__ import annotations

import os

import torch


def available_bytes(device: torch.device) -> int:
    """Return free memory of a GPU, or what this process may still take of the machine's.

    A container's limit counts where it is below the machine's free memory: a pod that goes over it
    is killed, whatever the node has left.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") + _page_cache()
    limit = _number("/sys/fs/cgroup/memory.max")
    used = _number("/sys/fs/cgroup/memory.current")
    return machine if limit is None else min(machine, max(0, limit - (used or 0)))


def _page_cache() -> int:
    """Memory that holds cached files, which the kernel gives up when asked."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = [line for line in file if line.startswith("Cached:")]
        return int(found[0].split()[1]) * 1024
    except (OSError, IndexError):
        return 0


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
