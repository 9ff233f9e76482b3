"""IDX files: the arrays of bytes in which MNIST and its kin are handed on (LeCun et al. 1998).

Two zero bytes, a type, the number of dimensions, each dimension as a big-endian 32-bit number, and
the values. Images lie in one file and their labels in another, which is found by its name.
"""

from __future__ import annotations

import math
import os
import re
from typing import IO

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import Problems
from kubestill.runtime.datasets.csvs import open_unpacked
from kubestill.runtime.datasets.files import DataFile
from kubestill.runtime.datasets.schema import MAX_WIDTH

_BYTES = 8
"""Type of unsigned bytes."""
_NAME = re.compile(r"^(.*?)([-_.]?)(images|labels)([-_.])idx\d(.*)$", re.IGNORECASE)


class Pair:
    """The images of one file, and the file of their labels."""

    def __init__(self, images: DataFile, labels: DataFile | None):
        self.images, self.labels = images, labels

    @property
    def name(self) -> str:
        """What both files' names begin with, such as `train`."""
        return _stem(self.images)[0]


def pair_up(files: list[DataFile], problems: Problems) -> list[Pair]:
    """Return the files of images, each with the file of its labels, by their names.

    A file of a single dimension that no images belong to is refused, and so are images without
    labels beside others that have some.
    """
    images = {_stem(file): file for file in files if _stem(file)[1] != "labels"}
    labels = {_stem(file)[0]: file for file in files if _stem(file)[1] == "labels"}
    pairs = [Pair(file, labels.pop(stem[0], None)) for stem, file in images.items()]
    for file in labels.values():
        remedy = "holds labels, and no file of images has its name; put that beside it"
        problems.add("source", file.name, remedy)
    if any(pair.labels for pair in pairs):
        for pair in pairs:
            if pair.labels is None:
                remedy = "has no file of labels beside it, and others have; give it one"
                problems.add("source", pair.images.name, remedy)
    return pairs


def read_idx(file: DataFile) -> NDArray[np.uint8]:
    """Return the array of an IDX file, packed by gzip or not.

    Raises:
        ValueError: It is no IDX file of bytes, or holds more or fewer values than its header says;
            the message is the remedy.
    """
    try:
        with open_unpacked(file.path) as source:
            shape = _header(source)
            size = math.prod(shape)
            content = bytearray()
            # A header may claim any number: memory follows what is there.
            while len(content) <= size and (piece := source.read(1 << 20)):
                content += piece
    except OSError as error:
        raise ValueError(f"cannot be unpacked: {error}") from error
    if len(content) != size:
        held = "more" if len(content) > size else f"{len(content):,}"
        raise ValueError(f"says {size:,} bytes and holds {held}; copy it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _header(source: IO[bytes]) -> tuple[int, ...]:
    start = source.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or not 1 <= start[3] <= 4:
        raise ValueError("is no IDX file; it begins with two zeros, a type and its dimensions")
    if start[2] != _BYTES:
        raise ValueError(f"holds values of type 0x{start[2]:02x}; only bytes, 0x08, are read")
    sizes = source.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise ValueError("is cut off in its header; copy it again")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    if math.prod(shape[1:]) > MAX_WIDTH:
        raise ValueError(f"says {list(shape[1:])} values a row; at most {MAX_WIDTH:,}")
    return shape


def _stem(file: DataFile) -> tuple[str, str]:
    """Return what a pair of files has in common, and which of the two it is."""
    folder, name = os.path.split(file.name)
    found = _NAME.match(name)
    if found is None:
        return file.name, "images"
    return os.path.join(folder, found[1]), found[3].lower()
