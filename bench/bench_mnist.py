"""Distillation on the full MNIST after Hinton, Vinyals & Dean 2015, section 3.

A large net with dropout, on images jittered by up to two pixels, teaches a net of two hidden layers
of 800 units, which sees the 60,000 training images alone. Published test errors of 10,000: teacher
67, student on hard labels 146, student on soft targets at T = 20 74.

    python -m bench.bench_mnist --data FOLDER_OF_IDX_FILES [--scale full|small] [--seeds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout, decode
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher

SCHEMA = Schema(
    columns=(
        Column(name="image", kind="tensor", shape=(28, 28)),
        Column(name="digit", kind="categorical", role="target", categories=tuple("0123456789")),
    ),
    task="multiclass",
)
SCALES: dict[str, dict[str, Any]] = {
    "full": {
        "rows": 60_000,
        "jittered": 480_000,
        "teacher": 1200,
        "student": 800,
        "teacher_epochs": 60,
        "student_epochs": 60,
    },
    "small": {
        "rows": 6_000,
        "jittered": 24_000,
        "teacher": 400,
        "student": 100,
        "teacher_epochs": 100,
        "student_epochs": 60,
    },
}


class Teacher(nn.Sequential):
    """784-W-W-10 with dropout of a fifth of the pixels and half of the hidden units."""

    reads = "rows"

    def __init__(self, in_features: int, out_features: int, width: int):
        super().__init__(
            nn.Dropout(0.2),
            nn.Linear(in_features, width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(width, out_features),
        )

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four IDX files")
    parser.add_argument("--scale", choices=sorted(SCALES), default="full")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    told = parser.parse_args()
    scale = SCALES[told.scale]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), told.data, scale, told.device)
        teacher, errors = bench.teach()
        soft = [bench.student(teacher, seed, "distil") for seed in range(told.seeds)]
        hard = [bench.student(teacher, seed, "hard") for seed in range(told.seeds)]
    published = told.scale == "full"
    peer = "Hinton et al. 2015" if published else "none: scaled down"
    peer += f"; students: {told.seeds} seeds"
    recovered = (statistics.mean(hard) - statistics.mean(soft)) / (statistics.mean(hard) - errors)

    def errors_of(name: str, value: float, bar: int) -> Measure:
        return Measure(
            name=f"MNIST {told.scale}: test errors, {name}",
            value=value,
            bar=bar if published else None,
            unit="of 10,000",
            peer=peer,
            at_least=False,
        )

    measures = [
        errors_of("teacher", errors, 67),
        errors_of("student on hard labels", statistics.mean(hard), 146),
        errors_of("student on soft targets, T = 20", statistics.mean(soft), 74),
        Measure(
            name=f"MNIST {told.scale}: share of the gap recovered",
            value=recovered,
            bar=0.91 if published else 0.5,
            unit="share",
            peer=peer,
        ),
    ]
    write("mnist" if published else f"mnist-{told.scale}", measures)


class Bench:
    """Datasets and trainings below one folder."""

    def __init__(self, root: Path, data: Path, scale: dict[str, Any], device: str):
        self.root, self.scale, self.device = root, scale, device
        self.train = self._import(data, "train", scale["rows"])
        self.test = self._import(data, "t10k", 10_000)

    def teach(self) -> tuple[LocalArtifact, int]:
        jittered = self._port("jittered")
        generate_synthetic(
            original=self.train,
            dataset=jittered,
            method="jitter",
            rows=self.scale["jittered"],
            settings={"shift": 2.0, "rotation": 0.0, "pixel_noise": 0.0},
        )
        epochs = (
            self.scale["teacher_epochs"]
            * self.scale["rows"]
            / (self.scale["rows"] + self.scale["jittered"])
        )
        ports = self._ports("teacher")
        train_teacher(
            dataset=jittered,
            network="bench.bench_mnist:Teacher",
            network_args={"width": self.scale["teacher"]},
            epochs=epochs,
            batch_size=256,
            device=self.device,
            settings={"ema_decay": 0.999},
            **ports,
        )
        return ports["model"], self._errors(ports["model"])

    def student(self, teacher: LocalArtifact, seed: int, mode: str) -> int:
        dataset = self.train
        if mode == "distil":
            dataset = self._port(f"labelled-{seed}")
            label_with_teacher(
                model=teacher, dataset=self.train, labelled=dataset, device=self.device
            )
        ports = self._ports(f"{mode}-{seed}")
        train_student(
            dataset=dataset,
            mode=mode,
            temperature=20.0,
            hard_weight=0.1,
            network_args={"hidden": [self.scale["student"]] * 2},
            epochs=self.scale["student_epochs"],
            batch_size=128,
            seed=seed,
            device=self.device,
            settings={"optimizer_args": {"weight_decay": 0.0}, "precision": "float32"},
            **ports,
        )
        return self._errors(ports["model"])

    def _errors(self, model: LocalArtifact) -> int:
        predictor = load_model(model.path)
        rows = decode(Dataset.open(self.test.path), RawLayout(SCHEMA), ("raw", "target"))
        return int((predictor.logits(rows.raw).argmax(1) != rows.target).sum())

    def _import(self, data: Path, name: str, rows: int) -> LocalArtifact:
        images = np.fromfile(data / f"{name}-images-idx3-ubyte", np.uint8, offset=16)
        labels = np.fromfile(data / f"{name}-labels-idx1-ubyte", np.uint8, offset=8)[:rows]
        pixels = images.reshape(-1, 784)[:rows].astype(np.float32) / 255
        table = pa.table(
            {
                "image": pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 784),
                "digit": pa.array([str(label) for label in labels]),
            }
        )
        port = self._port(name)
        with DatasetWriter(port.path, SCHEMA, provenance={"source": "MNIST"}) as writer:
            writer.write(table)
        return port

    def _port(self, name: str) -> LocalArtifact:
        return LocalArtifact(str(self.root / name), metadata={"kind": "dataset"})

    def _ports(self, name: str) -> dict[str, LocalArtifact]:
        names = ("model", "ledger", "metrics", "report", "summary")
        return {n: LocalArtifact(str(self.root / f"{name}-{n}")) for n in names}


if __name__ == "__main__":
    main()
