"""Reading data: decoding against bare pyarrow, the decoded cache, memory, shuffled windows.

python -m bench.bench_data [--rows 1000000] [--rounds 15] [--big-rows 24000000]
    [--wide-rows 4000000] [--columns-only]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.harness import Clocked, clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout, decode, decode_features
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.training.batches import Order

FEATURES = 8
PIECE = 1 << 18
WIDE = 128
WIDE_PIECE = 1 << 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--big-rows", type=int, default=24_000_000)
    parser.add_argument("--wide-rows", type=int, default=4_000_000)
    parser.add_argument("--columns-only", action="store_true")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KUBESTILL_CACHE"] = f"{folder}/cache"
        if told.columns_only:
            write("data", many_columns(folder), keep=True)
            return
        dataset = make_dataset(f"{folder}/data", told.rows)
        measures = [
            *decoding(dataset, told.rounds),
            *writing(dataset, folder, max(told.rounds // 3, 1)),
            *memory(make_dataset(f"{folder}/big", told.big_rows)),
            training_memory(folder, told.wide_rows),
            *many_columns(folder),
        ]
    write("data", measures)


def make_dataset(root: str, rows: int) -> Dataset:
    schema = Schema(columns=tuple(Column(name=f"x{n}", kind="numeric") for n in range(FEATURES)))
    random = np.random.default_rng(0)
    with DatasetWriter(root, schema) as writer:
        for first in range(0, rows, PIECE):
            count = min(PIECE, rows - first)
            writer.write(table(random.standard_normal((FEATURES, count), np.float32)))
    return writer.dataset


def table(columns: np.ndarray) -> pa.Table:
    return pa.table({f"x{n}": column for n, column in enumerate(columns)})


def decoding(dataset: Dataset, rounds: int) -> list[Measure]:
    layout = RawLayout(dataset.schema)
    files = [os.path.join(dataset.root, part.path) for part in dataset.parts]
    load_decoded(dataset, layout)
    turns = take_turns(
        {
            "bare": clock(lambda: [pq.read_table(file) for file in files]),
            "decode": clock(lambda: decode_features(dataset, layout)),
            "checked bare": clock(
                lambda: [pq.read_table(file, page_checksum_verification=True) for file in files]
            ),
            "checked": clock(lambda: decode(dataset, layout, verify=True)),
            "cached": clock(lambda: touch(load_decoded(dataset, layout).raw)),
            "summed": clock(lambda: load_decoded(dataset, layout).raw.sum()),
            "copied": clock(lambda: np.array(load_decoded(dataset, layout).raw)),
        },
        rounds,
    )
    bare, own = "pyarrow read_table", "our own decoding"

    def faster(
        name: str, above: str, below: str, peer: str, *, bar: float | None = None
    ) -> Measure:
        unit = "times as fast"
        return Measure(name=name, value=turns.ratio(above, below), bar=bar, unit=unit, peer=peer)

    name = f"Parquet to row-major, {dataset.rows:,} x {FEATURES} float32"
    megabytes = dataset.rows * FEATURES * 4 / 1e6
    speed = megabytes / turns.median("decode")
    cached = "re-read from the decoded cache"
    return [
        faster(name, "bare", "decode", bare, bar=0.75),
        faster("the same, page checksums verified by both", "checked bare", "checked", bare),
        Measure(name="Parquet to row-major, speed", value=speed, unit="MB/s", peer=bare),
        faster(f"{cached}, every page touched", "decode", "cached", own, bar=8),
        faster(f"{cached}, every page touched", "bare", "cached", bare),
        faster(f"{cached}, every value summed", "decode", "summed", own),
        faster(f"{cached}, copied to memory", "decode", "copied", own),
    ]


def writing(dataset: Dataset, folder: str, rounds: int) -> list[Measure]:
    rows = dataset.to_table()

    def ours() -> None:
        with DatasetWriter(f"{folder}/again", dataset.schema) as writer:
            for piece in rows.to_batches(PIECE):
                writer.write(pa.Table.from_batches([piece]))

    def bare() -> None:
        pq.write_table(rows, f"{folder}/bare.parquet", use_dictionary=False)

    turns = take_turns({"bare": clock(bare), "ours": clock(ours)}, rounds)
    speed = rows.num_rows * FEATURES * 4 / 1e6 / turns.median("ours")
    peer, ratio = "pyarrow write_table, without digests", turns.ratio("bare", "ours")
    return [
        Measure(name="writing a dataset", value=ratio, unit="times as fast", peer=peer),
        Measure(name="writing a dataset, speed", value=speed, unit="MB/s", peer=peer),
    ]


def many_columns(folder: str) -> list[Measure]:
    """Import tables of 100 rows: time in all, and time a column as there are more of them."""
    return [one for what in ("numbers", "labels") for one in wide_tables(folder, what)]


def wide_tables(folder: str, what: str) -> list[Measure]:
    """Import two tables of columns that all hold numbers, or labels, turn by turn."""

    def imported(columns: int) -> Clocked:
        source = f"{folder}/{what}-{columns}.csv"
        random = np.random.default_rng(0)
        if what == "numbers":
            values = random.standard_normal((100, columns), np.float32)
        else:
            values = np.array(["red", "green", "blue", "dark grey"])[
                random.integers(0, 4, (100, columns))
            ]
        frame = pd.DataFrame(values).add_prefix("x")
        frame.assign(y=random.random(100)).to_csv(source, index=False)
        ports = ("dataset", "validation", "holdout", "report", "summary")

        def run() -> None:
            parts: dict[str, Any] = {n: LocalArtifact(f"{folder}/{columns}/{n}") for n in ports}
            import_dataset(source=source, target="y", **parts)

        return clock(run)

    turns = take_turns({"4,000": imported(4_000), "20,000": imported(20_000)}, 3)
    growth = turns.ratio("20,000", "4,000") / 5
    return [
        Measure(
            name=f"import of a CSV with 20,000 columns of {what} x 100 rows",
            value=turns.median("20,000"),
            unit="s",
            peer="",
            bar=20,
            at_least=False,
        ),
        Measure(
            name=f"import, time a column of {what}: of 20,000 over of 4,000",
            value=growth,
            unit="times",
            peer="ourselves",
            bar=1.5,
            at_least=False,
        ),
    ]


def memory(dataset: Dataset) -> list[Measure]:
    """Peak of memory that is this process's own while decoding and shuffling a large dataset."""
    layout = RawLayout(dataset.schema)
    size = dataset.rows * FEATURES * 4
    with AnonymousPeak() as decoding_peak:
        decoded = load_decoded(dataset, layout)
    window = 1 << 18
    order = Order(
        rows=decoded.rows, batch_size=window, seed=0, shuffle="blocks", window_rows=window
    )
    total = 0.0
    with AnonymousPeak() as shuffling_peak:
        start = time.perf_counter()
        for rows in order.windows(0):
            total += float(decoded.raw[rows.numpy()].sum())
        seconds = time.perf_counter() - start
    peer = f"{size / 1e9:.2f} GB decoded"
    epoch = "an epoch in shuffled windows"
    return [
        Measure(
            name="own memory while decoding",
            value=decoding_peak.bytes / size,
            bar=0.25,
            at_least=False,
            unit="of the data",
            peer=peer,
        ),
        Measure(
            name="own memory while decoding", value=decoding_peak.bytes / 1e6, unit="MB", peer=peer
        ),
        Measure(
            name=f"own memory, {epoch}", value=shuffling_peak.bytes / 1e6, unit="MB", peer=peer
        ),
        Measure(name=epoch, value=size / 1e6 / seconds, unit="MB/s", peer=peer),
    ]


def training_memory(folder: str, rows: int) -> Measure:
    """Peak of own memory of a whole training that streams, with as wide a validation set."""
    schema = Schema(
        columns=(
            Column(name="x", kind="tensor", shape=(FEATURES,)),
            Column(name="y", kind="tensor", role="target", shape=(WIDE,)),
        ),
        task="regression",
    ).with_soft("teacher", WIDE)

    def make(name: str, count: int) -> LocalArtifact:
        random = np.random.default_rng(0)
        with DatasetWriter(f"{folder}/{name}", schema) as writer:
            for first in range(0, count, WIDE_PIECE):
                size = min(WIDE_PIECE, count - first)
                writer.write(
                    pa.table({c.name: tensors(random, size, c.width) for c in schema.columns})
                )
        return LocalArtifact(f"{folder}/{name}", metadata={"kind": "dataset"})

    names = ("model", "ledger", "metrics", "report", "summary")
    ports: dict[str, Any] = {name: LocalArtifact(f"{folder}/out/{name}") for name in names}
    dataset, validation = make("wide", rows), make("held", rows // 4)
    with AnonymousPeak() as peak:
        train_student(
            dataset=dataset,
            validation=validation,
            **ports,
            epochs=1,
            batch_size=4096,
            network_args={"hidden": [32]},
            checkpoint_uri=f"{folder}/store",
            settings={"shuffle": "blocks"},
        )
    size = (rows + rows // 4) * 4 * (FEATURES + 2 * WIDE)
    return Measure(
        name="own memory, a training with wide targets and teacher outputs, streamed",
        value=peak.bytes / size,
        bar=0.25,
        at_least=False,
        unit="of the data",
        peer=f"{size / 1e9:.2f} GB decoded, windows of 256 MB",
    )


def tensors(random: np.random.Generator, rows: int, width: int) -> pa.FixedSizeListArray:
    values = random.standard_normal(rows * width, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), width)


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


if __name__ == "__main__":
    main()
