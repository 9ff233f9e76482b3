"""The points on which a network and its table disagree, small enough to ship beside the network."""

from __future__ import annotations

import lzma
import math
import struct

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, Problem

MAGIC = b"KSX2"
_HEAD = "<QBIII"
MOST = 1 << 22
"""Exceptions that are read unless more are asked for."""
_MOST_POINTS = 1 << 62
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
        if math.prod(map(len, self.levels)) > _MOST_POINTS:
            sizes = " x ".join(f"{len(values):,}" for values in self.levels)
            remedy = (
                f"{sizes} levels are more than 2^62 points and cannot be numbered; use a tolerance"
            )
            raise InvalidInput([Problem("exceptions", True, remedy)])
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
        parts = [
            lzma.compress(part, format=lzma.FORMAT_RAW, filters=_FILTERS)
            for part in (levels, _groups(distances), classes)
        ]
        sizes = (len(self.levels), len(parts[0]), len(parts[1]))
        return MAGIC + struct.pack(_HEAD, len(self), wide, *sizes) + b"".join(parts)

    @classmethod
    def from_bytes(cls, content: bytes, *, most: int = MOST) -> Exceptions:
        """Read what `to_bytes` wrote.

        Args:
            content: The stored form.
            most: Refuse more exceptions than this, before they take memory.

        Raises:
            CorruptData: It is something else, is damaged, or holds more.
        """
        made = cls.__new__(cls)
        try:
            if content[:4] != MAGIC:
                raise ValueError("not a table of exceptions")
            count, wide, width, first, second = struct.unpack_from(_HEAD, content, 4)
            if max(count, width) > most:
                raise ValueError(f"it says that it holds {max(count, width):,}; at most {most:,}")
            start = 4 + struct.calcsize(_HEAD)
            ends = (start + first, start + first + second)
            made.levels = _read_levels(_Packed(content[start : ends[0]]), count, width)
            packed = _Packed(content[ends[0] : ends[1]])
            made.numbers = np.cumsum(_numbers(packed.read(9 * count), count) + 1) - 1
            packed.end()
            points = math.prod(len(values) for values in made.levels)
            if (made.numbers >= points).any():
                raise ValueError(f"a number is beyond its {points:,} points")
            packed = _Packed(content[ends[1] :])
            codes = np.frombuffer(packed.read((1 + bool(wide)) * count), "<u2" if wide else "<u1")
            packed.end()
            if len(codes) != count:
                raise ValueError("its numbers and classes differ in length")
        except (ValueError, struct.error, lzma.LZMAError) as error:
            raise CorruptData(f"exceptions: {error}") from error
        made.codes = codes.astype(np.int64)
        return made


_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


class _Packed:
    """Unpacks no more than is asked for: a few kilobytes can stand for gigabytes."""

    def __init__(self, content: bytes):
        self._left = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS)
        self._content = content

    def read(self, most: int) -> bytes:
        """Return what follows, up to so many bytes."""
        content, self._content = self._content, b""
        return b"" if self._left.eof else self._left.decompress(content, max_length=most)

    def end(self) -> None:
        """Refuse what is longer than what was read, or cut off."""
        if self.read(1) or not self._left.eof:
            raise ValueError("it is cut off, or holds more than it says")


def _read_levels(packed: _Packed, count: int, width: int) -> tuple[NDArray[np.float32], ...]:
    counts = struct.unpack(f"<{width}I", packed.read(4 * width))
    points = 1
    for levels in counts:
        points *= levels
        # Every level is one of an exception; that points can be numbered bounds their sum.
        if not bool(count) <= levels <= count or points > _MOST_POINTS:
            raise ValueError("its levels are not those that its exceptions can have")
    values = np.frombuffer(packed.read(4 * sum(counts)), "<f4")
    packed.end()
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


def _numbers(content: bytes, count: int) -> NDArray[np.int64]:
    """Read so many numbers, each of up to nine groups and below 2^62."""
    data = np.frombuffer(content, np.uint8)
    last = np.flatnonzero(data < 128)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    most = int((last - first).max(initial=0))
    if len(last) != count or most > 8 or (len(data) and data[-1] > 127):
        raise ValueError("its numbers are damaged, or differ in length from its classes")
    numbers = np.zeros(len(last), np.int64)
    for place in range(most + 1):
        has = last - first >= place
        numbers[has] |= (data[first[has] + place].astype(np.int64) & 127) << (7 * place)
    if (numbers >= _MOST_POINTS).any():
        raise ValueError("one of its numbers takes more than 62 bits")
    return numbers
