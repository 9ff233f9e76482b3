"""Whether a process keeps the memory that it has freed."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Their numbers in mallopt(3)."""
_NEVER = -1
_HEAP = 1 << 26
"""Bytes of the heaps that threads other than the first allocate from."""


def keep_freed_memory() -> None:
    """Have the C library keep freed memory of this process for the next step or block of rows.

    One allocates and frees the same activations as the one before. Linux's C library gives large
    blocks back to the system meanwhile, which then clears every page of them anew: a tenth of the
    step of a small transformer, an eighth of a block on another thread. Tensors begin where they
    would otherwise, so no bit changes.
    """
    _tell(_TRIM_THRESHOLD, _NEVER)
    # A heap of a thread's goes back as soon as nothing is in it, unless this much may be spare.
    _tell(_TOP_PAD, _HEAP)
    # Libraries before 2.35 take no more than half of 64 MB.
    if not _tell(_MMAP_THRESHOLD, 1 << 30):
        _tell(_MMAP_THRESHOLD, 1 << 25)


def return_large_blocks() -> None:
    """Have large blocks of memory returned to the system once they are freed, after all.

    Gradients of a network in shards come and go, and leave holes between what stays: a fifth of a
    process's memory. It costs a fiftieth of a step to clear their pages again; activations are
    mostly smaller. Nor may a thread have much more than it uses.
    """
    _tell(_MMAP_THRESHOLD, 1 << 21)
    _tell(_TOP_PAD, 1 << 17)


def _tell(option: int, value: int) -> bool:
    """Set an option of the C library's allocator; return whether there is one that takes it."""
    with suppress(OSError, AttributeError, TypeError):
        return bool(ctypes.CDLL(None).mallopt(option, value))
    return False
