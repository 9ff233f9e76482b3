"""The points on which a network and its table disagree, small enough to ship beside the network."""

from __future__ import annotations

import lzma
import math
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, Problem

__all__ = ["Exceptions"]

MAGIC = b"KSX2"
_HEAD = "<QBIII"
_MOST = 1 << 62
"""Combinations of levels that can be numbered."""


class Exceptions:
    """Points of a finite domain and their right classes; with the network they are the whole table.

    A point is what the network reads: its raw features. Each feature takes one of the levels listed
    here, so that a point has a number (mixed radix, the last feature fastest) that depends on
    nothing but its values. Numbers are stored as distances from one to the next, in 7-bit groups
    (LEB128), classes a byte each (two where there are more than 256), levels as float32; all are
    packed by LZMA, which finds that exceptions sit in runs along the borders between classes.

    Args:
        points: Raw features float32 [E, R], in any order, each once.
        codes: Right class of each, int64 [E].

    Raises:
        InvalidInput: The levels have more than 2^62 combinations.
    """

    def __init__(self, points: NDArray[np.float32], codes: NDArray[np.int64]):
        # Adding zero turns -0 into 0.
        self.levels = tuple(np.unique(column + np.float32(0)) for column in points.T)
        _check_count(self.levels)
        numbers = self._number(points)[0] if len(points) else np.zeros(0, np.int64)
        order = np.argsort(numbers)
        self.numbers, self.codes = numbers[order], np.asarray(codes, np.int64)[order]

    def __len__(self) -> int:
        return len(self.numbers)

    def correct(self, points: NDArray[np.float32], codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the codes [N] that the network gave for raw features [N, R], put right."""
        if not len(self):
            return codes
        numbers, known = self._number(points)
        at = np.minimum(np.searchsorted(self.numbers, numbers), len(self) - 1)
        return np.where(known & (self.numbers[at] == numbers), self.codes[at], codes)

    def _number(self, points: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return each point's number [N], and whether all of its values are levels [N]."""
        numbers, known = np.zeros(len(points), np.int64), np.ones(len(points), bool)
        for column, levels in zip(points.T, self.levels, strict=True):
            at = np.minimum(np.searchsorted(levels, column), len(levels) - 1)
            # A missing value is a level, too: NaN, the last one.
            known &= (levels[at] == column) | (np.isnan(levels[at]) & np.isnan(column))
            numbers = numbers * len(levels) + at
        return numbers, known

    def to_bytes(self) -> bytes:
        """Return the stored form; its length is what counts in the size."""
        distances = np.diff(self.numbers, prepend=-1) - 1
        wide = bool(len(self)) and int(self.codes.max()) > 255
        classes = self.codes.astype("<u2" if wide else "<u1").tobytes()
        counts = struct.pack(f"<{len(self.levels)}I", *(len(values) for values in self.levels))
        levels = counts + b"".join(values.astype("<f4").tobytes() for values in self.levels)
        parts = [_pack(part) for part in (levels, _groups(distances), classes)]
        sizes = (len(self.levels), len(parts[0]), len(parts[1]))
        return MAGIC + struct.pack(_HEAD, len(self), wide, *sizes) + b"".join(parts)

    @classmethod
    def from_bytes(cls, content: bytes) -> Exceptions:
        """Read what `to_bytes` wrote.

        Raises:
            CorruptData: It is something else, or damaged.
        """
        try:
            if content[:4] != MAGIC:
                raise ValueError("not a table of exceptions")
            count, wide, width, first, second = struct.unpack_from(_HEAD, content, 4)
            start = 4 + struct.calcsize(_HEAD)
            ends = (start + first, start + first + second)
            levels = _levels(_unpack(content[start : ends[0]]), width)
            distances = _numbers(_unpack(content[ends[0] : ends[1]]))
            codes = np.frombuffer(_unpack(content[ends[1] :]), "<u2" if wide else "<u1")
            if not len(distances) == len(codes) == count:
                raise ValueError("its numbers and classes differ in length")
        except (ValueError, struct.error, lzma.LZMAError) as error:
            raise CorruptData(f"exceptions: {error}") from error
        made = cls.__new__(cls)
        made.levels, made.numbers = levels, np.cumsum(distances + 1) - 1
        made.codes = codes.astype(np.int64)
        return made


def _check_count(levels: Sequence[NDArray[np.float32]]) -> None:
    if math.prod(len(values) for values in levels) > _MOST:
        sizes = " x ".join(f"{len(values):,}" for values in levels)
        remedy = f"{sizes} levels are more than 2^62 points and cannot be numbered; use a tolerance"
        raise InvalidInput([Problem("exceptions", True, remedy)])


_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


def _pack(content: bytes) -> bytes:
    return lzma.compress(content, format=lzma.FORMAT_RAW, filters=_FILTERS)


def _unpack(content: bytes) -> bytes:
    return lzma.decompress(content, format=lzma.FORMAT_RAW, filters=_FILTERS)


def _levels(content: bytes, width: int) -> tuple[NDArray[np.float32], ...]:
    counts = struct.unpack_from(f"<{width}I", content)
    values = np.frombuffer(content, "<f4", offset=4 * width)
    if len(values) != sum(counts):
        raise ValueError("its levels differ in number from what it says")
    return tuple(np.split(values, np.cumsum(counts)[:-1]))


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
