"""Labelling a Parquet dataset against the bare inference loop over tensors in memory.

    python bench/bench_labelling.py [--rows 1000000] [--rounds 5]

Both do the same batches of 8,192 rows with the same threads, in turn. The bare loop neither reads
nor writes; labelling reads Parquet, hashes and writes Parquet. The bar is a ratio of at least 0.9.
Writes bench/results/labelling.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kubestill.runtime.data.decode import RawLayout, decode_features
from kubestill.runtime.data.manifest import BLOCK_ROWS, Dataset
from kubestill.runtime.data.schema import Column, Schema
from kubestill.runtime.data.writer import DatasetWriter
from kubestill.runtime.labelling import label
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor

FEATURES = 8
HIDDEN = [512, 512, 512]
BAR = 0.9
RESULTS = Path(__file__).parent / "results" / "labelling.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(f"{folder}/rows", options.rows)
        predictor = make_teacher(dataset, options.device)
        raw = torch.from_numpy(decode_features(dataset, predictor.layout))
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds + 1):
            bare = timed(lambda: bare_loop(predictor, raw))
            full = timed(lambda: label(predictor, dataset, f"{folder}/labelled"))
            if number:  # The first round warms caches and threads up.
                rounds.append({"bare": bare, "labelling": full, "ratio": bare / full})
                print(f"bare {bare:.2f} s  labelling {full:.2f} s  ratio {bare / full:.3f}")
    ratio = statistics.median(found["ratio"] for found in rounds)
    report = {
        "what": "label() over Parquet against a bare batched inference loop",
        "rows": options.rows,
        "network": [FEATURES, *HIDDEN, 1],
        "batch_rows": BLOCK_ROWS,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "rounds": rounds,
        "median_ratio": ratio,
        "rows_per_second": options.rows / statistics.median(r["labelling"] for r in rounds),
        "bar": BAR,
        "passed": ratio >= BAR,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(f"median ratio {ratio:.3f} (bar {BAR}) -> {RESULTS.name}")


def make_dataset(root: str, rows: int) -> Dataset:
    names = [f"x{number}" for number in range(FEATURES)]
    columns = tuple(Column(name=name, kind="numeric") for name in names)
    target = Column(name="y", kind="categorical", role="target", categories=("no", "yes"))
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(rows, FEATURES)).astype(np.float32), columns=names)
    frame["y"] = pd.Categorical.from_codes(random.integers(0, 2, rows), ["no", "yes"])
    with DatasetWriter(root, Schema(columns=(*columns, target), task="binary")) as writer:
        writer.write(frame)
    return writer.dataset


def make_teacher(dataset: Dataset, device: str) -> Predictor:
    layout = RawLayout(dataset.schema)
    head = decode_features(next(dataset.iter_blocks()), layout)
    encoder = Encoder.fit([head], layout)
    model = Model.create(
        dataset.schema, encoder=encoder, decoder=Decoder(), network_args={"hidden": HIDDEN}
    )
    return Predictor(model.to(torch.device(device)))


def bare_loop(predictor: Predictor, raw: torch.Tensor) -> None:
    """The loop one would write by hand, over rows that are in memory already."""
    device = predictor.model.encoder.mean.device
    out = torch.empty(len(raw), predictor.layout.outputs)
    with torch.inference_mode():
        for start in range(0, len(raw), BLOCK_ROWS):
            batch = raw[start : start + BLOCK_ROWS].to(device)
            out[start : start + BLOCK_ROWS] = predictor.model(batch)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
