"""CRC-32C at the speed of memory, without holding Python's lock.

Why two checksums. A training run that resumes reads what it wrote itself, and only accidents can
have changed it: torn writes, lost blocks, flipped bits. CRC-32C finds those (every burst up to 32
bits, and all but one in four billion of anything else) about as fast as memory is copied. SHA-256
also withstands somebody who changes bytes on purpose, but at a fraction of a gigabyte a second
where the processor has no instruction for it: then hashing, not reading, is what a preempted run
waits for. So `Checkpointer.restore` checks size and CRC-32C, below a manifest that the ledger pins
by SHA-256. Whatever takes a state from one place to another (`load_state`: selection, fine-tuning,
export) and `verify` check SHA-256.

Why ctypes. The binding of google-crc32c holds Python's lock and wants a copy as `bytes`. Of the
wheels that do not, awscrt is slower (7 GB a second of processor time, against 12 here), and crc32c
is faster (14) but under the LGPL: a question of licences for a few per cent of a save.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.util import find_spec

from kubestill.runtime.stores import crc32c

_CHUNK = 1 << 20


def extend(crc: int, view: memoryview) -> int:
    """Return the CRC-32C of what has checksum `crc`, followed by the bytes of `view`."""
    if _native is not None and not view.readonly and len(view):
        return _native(crc, ctypes.byref(ctypes.c_char.from_buffer(view)), len(view))
    for start in range(0, len(view), _CHUNK):
        crc = crc32c.extend(crc, bytes(view[start : start + _CHUNK]))
    return crc


def _load_native() -> Callable[..., int] | None:
    """Find the library's C function, which the Python binding only calls with the lock held."""
    binding = find_spec("google_crc32c._crc32c")
    if binding is None or binding.origin is None:
        return None
    try:
        function = ctypes.CDLL(binding.origin).crc32c_extend
    except (AttributeError, OSError):
        return None
    function.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    function.restype = ctypes.c_uint32
    return function


_native = _load_native()
