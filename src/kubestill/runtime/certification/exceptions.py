"""The rows on which a network and its table disagree, small enough to ship beside the network."""

from __future__ import annotations

import lzma
import struct

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import CorruptData

__all__ = ["Exceptions"]

MAGIC = b"KSX1"


class Exceptions:
    """Row numbers and their right classes; network and exceptions together are the whole table.

    Row numbers are stored as distances from one to the next, in 7-bit groups (LEB128), classes a
    byte each (two where there are more than 256), and both are packed by LZMA, which finds that
    exceptions sit in runs along the borders between classes.

    Args:
        rows: int64 [E], ascending.
        codes: Right class of each, int64 [E].
    """

    def __init__(self, rows: NDArray[np.int64], codes: NDArray[np.int64]):
        self.rows, self.codes = rows, codes

    def __len__(self) -> int:
        return len(self.rows)

    def correct(self, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the codes [N] that the network gave for `rows` [N], put right."""
        if not len(self.rows):
            return codes
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[at] == rows, self.codes[at], codes)

    def to_bytes(self) -> bytes:
        """Return the stored form; its length is what counts in the size."""
        distances = np.diff(self.rows, prepend=-1) - 1
        wide = bool(len(self.codes)) and int(self.codes.max()) > 255
        classes = self.codes.astype("<u2" if wide else "<u1").tobytes()
        packed = [_pack(part) for part in (_groups(distances), classes)]
        return MAGIC + struct.pack("<QBI", len(self.rows), wide, len(packed[0])) + b"".join(packed)

    @classmethod
    def from_bytes(cls, content: bytes) -> Exceptions:
        """Read what `to_bytes` wrote.

        Raises:
            CorruptData: It is something else, or damaged.
        """
        try:
            if content[:4] != MAGIC:
                raise ValueError("not a table of exceptions")
            count, wide, split = struct.unpack_from("<QBI", content, 4)
            start = 4 + struct.calcsize("<QBI")
            distances = _numbers(_unpack(content[start : start + split]))
            codes = np.frombuffer(_unpack(content[start + split :]), "<u2" if wide else "<u1")
            if not len(distances) == len(codes) == count:
                raise ValueError("its two halves differ in length")
        except (ValueError, struct.error, lzma.LZMAError) as error:
            raise CorruptData(f"exceptions: {error}") from error
        return cls(np.cumsum(distances + 1) - 1, codes.astype(np.int64))


_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


def _pack(content: bytes) -> bytes:
    return lzma.compress(content, format=lzma.FORMAT_RAW, filters=_FILTERS)


def _unpack(content: bytes) -> bytes:
    return lzma.decompress(content, format=lzma.FORMAT_RAW, filters=_FILTERS)


def _groups(numbers: NDArray[np.int64]) -> bytes:
    """Write numbers as LEB128: seven bits a byte, the eighth says that more follow."""
    size = np.ones(len(numbers), np.int64)
    for power in range(1, 9):
        size += numbers >= 1 << (7 * power)
    ends = np.cumsum(size)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(int(size.max()) if len(size) else 0):
        has = size > place
        more = (size[has] > place + 1).astype(np.uint8) << 7
        out[(ends - size)[has] + place] = ((numbers[has] >> (7 * place)) & 127) | more
    return out.tobytes()


def _numbers(content: bytes) -> NDArray[np.int64]:
    data = np.frombuffer(content, np.uint8)
    last = np.flatnonzero(data < 128)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    numbers = np.zeros(len(last), np.int64)
    for place in range(int((last - first).max(initial=-1)) + 1):
        has = last - first >= place
        numbers[has] |= (data[first[has] + place].astype(np.int64) & 127) << (7 * place)
    return numbers
