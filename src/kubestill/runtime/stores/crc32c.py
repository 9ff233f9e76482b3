"""CRC-32C of a whole from those of its pieces, so that pieces can be checked as they pass."""

from __future__ import annotations

import base64
from collections.abc import Callable

import google_crc32c

# The library is chosen at import, compiled or not, in a way that type checkers cannot follow.
_extend: Callable[[int, bytes], int] = google_crc32c.extend  # pyright: ignore
_POLYNOMIAL = 0x82F63B78


def extend(crc: int, chunk: bytes) -> int:
    """Return the checksum of what has checksum `crc`, followed by `chunk`."""
    return _extend(crc, chunk)


def combine(first: int, second: int, length: int) -> int:
    """Return the checksum of a concatenation.

    Args:
        first: The checksum of the front.
        second: The checksum of the back.
        length: Bytes in the back.

    Appending a zero bit to a message is a linear map of its checksum over GF(2); `length` zero
    bytes are that map squared again and again (M. Adler's `crc32_combine` in zlib).
    """
    operator = [_POLYNOMIAL] + [1 << bit for bit in range(31)]
    bits = 8 * length
    while bits:
        if bits & 1:
            first = _apply(operator, first)
        operator = [_apply(operator, column) for column in operator]
        bits >>= 1
    return first ^ second


def from_base64(text: str) -> int:
    """Read a checksum the way Cloud Storage and S3 write it: base64 of four big-endian bytes."""
    return int.from_bytes(base64.b64decode(text), "big")


def to_base64(checksum: int) -> str:
    """Write a checksum the way `from_base64` reads it."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def _apply(operator: list[int], vector: int) -> int:
    result = 0
    for column in operator:
        if vector & 1:
            result ^= column
        vector >>= 1
    return result
