"""That a process keeps the memory it has."""

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
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _NEVER)
        # A heap of a thread's goes back as soon as nothing is in it, unless this much may be spare.
        mallopt(_TOP_PAD, _HEAP)
        # Libraries before 2.35 take no more than half of 64 MB.
        if not mallopt(_MMAP_THRESHOLD, 1 << 30):
            mallopt(_MMAP_THRESHOLD, 1 << 25)
