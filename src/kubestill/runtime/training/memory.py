"""How much memory a training run may take."""

from __future__ import annotations

import os

import torch

_CGROUP = "/sys/fs/cgroup"


def available_bytes(device: torch.device) -> int:
    """Return free memory of a GPU, or what this process may still take of the machine's.

    A container's limit counts where it is below the machine's free memory: a pod that goes over it
    is killed, whatever the node has left.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") + _page_cache()
    limit = _number("memory.max", "memory.limit_in_bytes")
    used = _number("memory.current", "memory.usage_in_bytes")
    return machine if limit is None else min(machine, max(0, limit - (used or 0)))


def _page_cache() -> int:
    """Memory that holds cached files, which the kernel gives up when asked."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = [line for line in file if line.startswith("Cached:")]
        return int(found[0].split()[1]) * 1024
    except (OSError, IndexError):
        return 0


def _number(name: str, first: str) -> int | None:
    """Read a number of this container's control group, by its name in version 2 or in version 1."""
    for path in (name, os.path.join("memory", first)):
        try:
            with open(os.path.join(_CGROUP, path), encoding="ascii") as file:
                text = file.read().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None
