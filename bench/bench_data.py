"""Reading data: decoding against bare pyarrow, the decoded cache, memory, shuffled windows.

Run: python bench/bench_data.py [--rows 1000000] [--rounds 15] [--big-rows 24000000]
Rivals are interleaved within every round; a result is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kubestill.runtime.data.cache import load_decoded
from kubestill.runtime.data.dataset import Dataset, DatasetWriter
from kubestill.runtime.data.decode import RawLayout, decode, decode_features
from kubestill.runtime.data.schema import Column, Schema
from kubestill.runtime.data.windows import windows

RESULTS = Path(__file__).parent / "results" / "data.json"
FEATURES = 8
PIECE = 1 << 18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--big-rows", type=int, default=24_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KUBESTILL_CACHE"] = f"{folder}/cache"
        dataset = write(f"{folder}/data", options.rows)
        results = [
            *decoding(dataset, options.rounds),
            *writing(dataset, folder, max(options.rounds // 3, 1)),
            *memory(write(f"{folder}/big", options.big_rows)),
        ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for result in results:
        verdict = {True: "holds", False: "MISSED", None: ""}[result["holds"]]
        print(f"{result['name']:58} {result['value']:9.3f} {result['unit']:12} {verdict}")


def write(root: str, rows: int) -> Dataset:
    schema = Schema(columns=tuple(Column(name=f"x{n}", kind="numeric") for n in range(FEATURES)))
    random = np.random.default_rng(0)
    with DatasetWriter(root, schema) as writer:
        for first in range(0, rows, PIECE):
            count = min(PIECE, rows - first)
            writer.write(table(random.standard_normal((FEATURES, count), np.float32)))
    return writer.dataset


def table(columns: np.ndarray) -> pa.Table:
    return pa.table({f"x{n}": column for n, column in enumerate(columns)})


def decoding(dataset: Dataset, rounds: int) -> list[dict[str, object]]:
    layout = RawLayout(dataset.schema)
    files = [os.path.join(dataset.root, part.path) for part in dataset.parts]
    load_decoded(dataset, layout)
    times = interleave(
        {
            "bare": lambda: [pq.read_table(file) for file in files],
            "decode": lambda: decode_features(dataset, layout),
            "checked bare": lambda: [
                pq.read_table(file, page_checksum_verification=True) for file in files
            ],
            "checked": lambda: decode(dataset, layout, verify=True),
            "cached": lambda: touch(load_decoded(dataset, layout).raw),
            "copied": lambda: np.array(load_decoded(dataset, layout).raw),
        },
        rounds,
    )
    size = dataset.rows * FEATURES * 4 / 1e6
    shape = f"{dataset.rows:,} x {FEATURES} float32"
    bare = "pyarrow read_table"
    return [
        result(
            f"Parquet to row-major, {shape}", ratio(times, "bare", "decode"), 0.75, "of peer", bare
        ),
        result(
            "the same with page checksums verified on both sides",
            ratio(times, "checked bare", "checked"),
            None,
            "of peer",
            bare,
        ),
        result("Parquet to row-major, speed", size / median(times["decode"]), None, "MB/s", bare),
        result("bare pyarrow decode, speed", size / median(times["bare"]), None, "MB/s", bare),
        result(
            "re-read from the decoded cache, every page touched",
            ratio(times, "decode", "cached"),
            8,
            "x decoding",
            "our own decoding",
        ),
        result(
            "the same against bare pyarrow",
            ratio(times, "bare", "cached"),
            None,
            "x decoding",
            bare,
        ),
        result(
            "re-read from the decoded cache, copied to memory",
            ratio(times, "decode", "copied"),
            None,
            "x decoding",
            "our own decoding",
        ),
    ]


def writing(dataset: Dataset, folder: str, rounds: int) -> list[dict[str, object]]:
    rows = dataset.to_table()

    def ours() -> None:
        with DatasetWriter(f"{folder}/again", dataset.schema) as writer:
            for piece in rows.to_batches(PIECE):
                writer.write(pa.Table.from_batches([piece]))

    times = interleave(
        {
            "bare": lambda: pq.write_table(rows, f"{folder}/bare.parquet", use_dictionary=False),
            "ours": ours,
        },
        rounds,
    )
    size = rows.num_rows * FEATURES * 4 / 1e6
    peer = "pyarrow write_table, without digests"
    return [
        result(
            "writing a dataset, against pyarrow",
            ratio(times, "bare", "ours"),
            None,
            "of peer",
            peer,
        ),
        result("writing a dataset, speed", size / median(times["ours"]), None, "MB/s", peer),
    ]


def memory(dataset: Dataset) -> list[dict[str, object]]:
    """Peak of memory that is this process's own while decoding and shuffling a large dataset."""
    layout = RawLayout(dataset.schema)
    size = dataset.rows * FEATURES * 4
    with AnonymousPeak() as decoding_peak:
        decoded = load_decoded(dataset, layout)
    total = 0.0
    with AnonymousPeak() as shuffling_peak:
        start = time.perf_counter()
        for rows in windows(decoded.rows, window_rows=1 << 18, seed=0, epoch=0):
            total += float(decoded.raw[rows].sum())
        seconds = time.perf_counter() - start
    name = f"{size / 1e9:.2f} GB decoded"
    return [
        result(
            f"own memory while decoding {name}", decoding_peak.bytes / size, 0.25, "of the data", ""
        ),
        result("own memory, decoding", decoding_peak.bytes / 1e6, None, "MB", ""),
        result(
            "own memory, an epoch in shuffled windows", shuffling_peak.bytes / 1e6, None, "MB", ""
        ),
        result("an epoch in shuffled windows", size / 1e6 / seconds, None, "MB/s", ""),
    ]


class AnonymousPeak:
    """Samples RssAnon: memory that the kernel cannot drop, unlike mapped files."""

    bytes = 0

    def __enter__(self) -> AnonymousPeak:
        self._base = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, anonymous() - self._base)


def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def touch(raw: np.ndarray) -> float:
    """Read one number of every page, as training would first meet it."""
    return float(raw.reshape(-1)[::1024].sum())


def interleave(rivals: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name, work in rivals.items():
            start = time.perf_counter()
            work()
            if number:  # The first round warms up.
                times[name].append(time.perf_counter() - start)
    return times


def median(values: list[float]) -> float:
    return statistics.median(values)


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    return median([a / b for a, b in zip(times[above], times[below], strict=True)])


def result(name: str, value: float, bar: float | None, unit: str, peer: str) -> dict[str, object]:
    lower_is_better = unit == "of the data"
    holds = None if bar is None else value <= bar if lower_is_better else value >= bar
    return {
        "name": name,
        "value": round(value, 4),
        "bar": bar,
        "unit": unit,
        "peer": peer,
        "holds": holds,
    }


if __name__ == "__main__":
    main()
