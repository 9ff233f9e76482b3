"""Decode once: the matrices of a dataset, mapped from files on this machine's shelf.

Decoding Parquet costs tens of times more than mapping its result, and what is mapped may be larger
than memory. Entries are keyed by content and layout, so that they are right for ever.
"""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import Problems
from kubestill.runtime.datasets.decode import Decoded, RawLayout, decoded_shapes, stream_decoded
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.shelf import Shelf

_VERSION = "2"
"""Part of the key: raise it when decoding changes what it gives."""


def load_decoded(dataset: Dataset, layout: RawLayout, shelf: Shelf | None = None) -> Decoded:
    """Return the matrices of a dataset: raw, and target and soft where the dataset has them.

    The arrays are mapped copy-on-write: writable, private to this process, and paged in on demand.

    Args:
        dataset: Rows.
        layout: The model's layout.
        shelf: Where decoded data is kept; this user's default where None.

    Raises:
        InvalidInput: The dataset is empty or does not fit the layout.
        CorruptData: A part is missing or damaged.
    """
    problems = Problems()
    if not dataset.rows:
        problems.add("dataset", dataset.root, "is empty; give at least one row")
    problems.raise_if_any()
    wanted = [
        name
        for name in ("raw", "target", "soft")
        if name == "raw" or (getattr(layout.schema, name) and getattr(dataset.schema, name))
    ]
    text = "/".join([_VERSION, dataset.fingerprint, layout.digest, *wanted])
    key = f"decoded-{hashlib.sha256(text.encode()).hexdigest()[:40]}"
    shelf = shelf or Shelf.default()
    folder = shelf.entry(key, partial(_decode_to, dataset, layout, wanted))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in wanted}
    return Decoded(raw=arrays["raw"], target=arrays.get("target"), soft=arrays.get("soft"))


def _decode_to(dataset: Dataset, layout: RawLayout, wanted: list[str], folder: Path) -> None:
    files: dict[str, tuple[int, int]] = {}
    try:
        for name, (shape, dtype) in decoded_shapes(layout, wanted).items():
            files[name] = _create(folder / f"{name}.npy", (dataset.rows, *shape), np.dtype(dtype))

        def write(first: int, arrays: dict[str, NDArray[Any]]) -> None:
            # Written, not mapped: dirty pages belong to the kernel and never to this process.
            for name, array in arrays.items():
                file, start = files[name]
                _write_all(file, array, start + first * (array.nbytes // len(array)))

        stream_decoded(dataset, layout, wanted, write)
        for file, _ in files.values():
            os.fsync(file)
    finally:
        for file, _ in files.values():
            os.close(file)


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int]:
    """Create an `.npy` file of its full size; return (descriptor, where its data starts)."""
    start = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).offset
    return os.open(path, os.O_WRONLY), start


def _write_all(file: int, array: NDArray[Any], start: int) -> None:
    left = memoryview(array.data).cast("B")
    while left:
        written = os.pwrite(file, left, start)
        left, start = left[written:], start + written
