"""What the surrogate saves: bytes against the packed table, seconds against the solver."""

from __future__ import annotations

import lzma
import os
import statistics
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from kubestill.runtime.base.random import uniforms
from kubestill.runtime.base.values import parse_json, read_file
from kubestill.runtime.certification.certificate import Size, Speed, TimedBatch
from kubestill.runtime.certification.truth import Truth
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.models.identity import SPEC_FILE, weights_file

_PACKABLE = 64 << 20
"""A larger table is packed by zlib alone: xz takes a second for every 2 to 10 MB."""


def packed_table(values: NDArray[Any]) -> tuple[int, str]:
    """Pack a table's answers as a user would who ships them: return bytes and packer.

    Args:
        values: Classes int64 [N], or numbers float32 [N, T], in the order of their points.
    """
    if values.dtype.kind == "i":
        most = int(values.max(initial=0))
        values = values.astype(np.uint8 if most < 256 else np.uint16 if most < 65536 else np.uint32)
    content = np.ascontiguousarray(values).tobytes()
    found = [(len(zlib.compress(content, 9)), "zlib")]
    if len(content) <= _PACKABLE:
        found.append((len(lzma.compress(content)), "xz"))
    return min(found)


def size_of(
    weights: int, exceptions: int, packed: tuple[int, str] | None, *, table: str, stated: int
) -> Size:
    """Compare bytes.

    Args:
        weights: Of the network.
        exceptions: Of the points that it gets wrong, where they are stored.
        packed: Bytes and packer of the table in its place; None where there is no table.
        table: What is packed, or why there is nothing.
        stated: Size of the unpacked table, as user or system state it; 0 if neither does.
    """
    ours = weights + exceptions
    bytes_of_table = packed[0] if packed else stated or None
    if packed:
        table = f"{table}, packed by {packed[1]}"
    elif stated:
        table = "the table as stated, unpacked"
    return Size(
        surrogate_bytes=ours,
        weights_bytes=weights,
        exceptions_bytes=exceptions,
        table=table,
        table_bytes=bytes_of_table,
        stated_bytes=stated,
        ratio=bytes_of_table / ours if bytes_of_table else None,
    )


def weights_bytes(folder: str) -> int:
    """Return the size of the exported weights, or of a foreign model's own file."""
    place = os.path.join(folder, SPEC_FILE)
    form = parse_json(read_file(place, what="model"), source=place, what="model")
    return os.path.getsize(os.path.join(folder, weights_file(form)))


def speed_ratio(truth: Truth, batch: int, repeats: int, known: pd.DataFrame | None = None) -> Speed:
    """Time solver and surrogate in turns, on one thread, each from rows in the form that it takes.

    The solver gets a table of inputs in memory, the surrogate a matrix of them: neither is charged
    for parsing.

    Args:
        truth: Both of them.
        batch: Rows at a time, besides one alone.
        repeats: How often each is timed.
        known: Inputs that the solver answers, where it fails on others; None for random ones.
    """
    measured: list[TimedBatch] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rows in sorted({1, batch}):
            if known is None:
                unit = uniforms(0, 0, 0, rows, width=truth.system.domain.width)
                inputs = truth.system.domain.at(unit)
            else:
                inputs = known.iloc[np.arange(rows) % len(known)].reset_index(drop=True)
            raw = np.ascontiguousarray(decode_features(inputs, truth.predictor.layout))
            solver, surrogate = _in_turns(
                lambda inputs=inputs: truth.system.solve(inputs),
                lambda raw=raw: truth.predictor.logits(raw),
                repeats,
            )
            truth.timed += rows * (repeats + 1)
            ratio = solver / surrogate
            measured.append(TimedBatch(batch=rows, solver=solver, surrogate=surrogate, ratio=ratio))
    finally:
        torch.set_num_threads(threads)
    return Speed(batches=tuple(measured), ratio=measured[-1].ratio, batch=batch, threads=1)


def _in_turns(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Return median seconds of each, run alternately after one run to warm up."""
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for which, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            which()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
