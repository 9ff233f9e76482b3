"""Labelling a Parquet dataset against the bare inference loop over tensors in memory.

Both do the same batches of 8,192 rows with the same threads. The bare loop neither reads nor
writes; labelling reads Parquet, hashes and writes Parquet.

    python -m bench.bench_labelling [--rows 1000000] [--rounds 5] [--device cpu]
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import pandas as pd
import torch

from bench.harness import clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import BLOCK_ROWS, Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.generation.labelling import TeacherCopy, label
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor

FEATURES = 8
HIDDEN = [512, 512, 512]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(f"{folder}/rows", told.rows)
        predictor = make_teacher(dataset, told.device)
        raw = torch.from_numpy(decode_features(dataset, predictor.layout))
        turns = take_turns(
            {
                "bare": clock(lambda: bare_loop(predictor, raw)),
                "labelling": clock(
                    lambda: label([TeacherCopy(predictor)], dataset, f"{folder}/labelled")
                ),
            },
            told.rounds,
        )
    name = f"labelling {told.rows:,} x {FEATURES} rows by {FEATURES}-512-512-512-1"
    peer = "bare batched inference loop"
    speed = told.rows / turns.median("labelling")
    write(
        "labelling",
        [
            Measure(
                name=name,
                value=turns.ratio("bare", "labelling"),
                bar=0.9,
                unit="of peer",
                peer=peer,
            ),
            Measure(name=f"{name}, speed", value=speed, unit="rows/s", peer=peer),
        ],
    )


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


if __name__ == "__main__":
    main()
