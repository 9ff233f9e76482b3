"""What bf16 gains and costs: the same trainings in both precisions, taking turns.

Three jobs through the components themselves, each seed with rows of its own: a teacher of
handwritten digits, scored by errors on real rows held out; a large teacher of a smooth function,
scored by RMSE as a share of the target's spread; and a surrogate of heat in a rod, overfitted on
purpose, scored by RMSE over its whole domain. float32 takes the step that the engine chooses by
itself there. The bar is for machines that multiply bf16 in hardware; elsewhere the ratio is told
without one.

    python -m bench.bench_precision [--seeds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.harness import Clocked, interval, take_turns
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher

PRECISIONS = ("float32", "bf16")
SPEED_UP = 2.2
FUNCTION_ROWS = 120_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    measures: list[Measure] = []
    for make in (Digits, Function, Heat):
        with tempfile.TemporaryDirectory() as folder:
            measures += measure(make(Path(folder)), seeds)
    write("precision", measures)


def measure(job: Job, seeds: int) -> list[Measure]:
    """Return the speed-up of one job, both errors, and their difference seed by seed."""
    turns = take_turns({name: job.clocked(name) for name in PRECISIONS}, seeds, warm_up=0)
    errors = job.errors
    differences = np.subtract(errors["bf16"], errors["float32"]).tolist()
    low, high = interval(differences)
    units = has_units()
    peer = f"{seeds} paired seeds"
    return [
        Measure(
            name=f"{job.name}: training in bf16 over float32",
            value=turns.ratio("float32", "bf16"),
            bar=SPEED_UP if units and job.judged else None,
            unit="times as fast",
            peer="float32" if units else "float32; no units for bf16 here",
        ),
        *(
            Measure(
                name=f"{job.name}: error in {precision}",
                value=statistics.mean(errors[precision]),
                unit=job.unit,
                peer=peer,
            )
            for precision in PRECISIONS
        ),
        Measure(
            name=f"{job.name}: bf16's error less float32's, low end of its interval",
            value=low,
            unit=job.unit,
            peer=peer,
        ),
        Measure(
            name=f"{job.name}: bf16's error less float32's, high end of its interval",
            value=high,
            unit=job.unit,
            peer=peer,
        ),
    ]


def has_units() -> bool:
    """Whether this machine multiplies bf16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


class Job(ABC):
    """One training, done once a seed and precision."""

    name: str
    unit: str
    judged: bool
    """Whether this is a teacher of the size that the bar is for."""
    component: Callable[..., object] = staticmethod(train_teacher)
    parameters: dict[str, Any]
    """Of the component."""

    def __init__(self, root: Path):
        self.root = root
        self.errors: dict[str, list[float]] = {name: [] for name in PRECISIONS}

    def clocked(self, precision: str) -> Clocked:
        """Return what trains on the next seed's split, and returns seconds a step."""

        def run() -> float:
            seed = len(self.errors[precision])
            root = self.root / str(seed)
            names = ("model", "ledger", "metrics", "report", "summary")
            ports: dict[str, Any] = {n: LocalArtifact(str(root / precision / n)) for n in names}
            with redirect_stdout(StringIO()):
                training, held_out = self.split(root, seed)
                self.component(
                    dataset=training,
                    validation=held_out,
                    seed=seed,
                    settings={"precision": precision, "choose": "last"},
                    **self.parameters,
                    **ports,
                )
            scores = ports["metrics"].metadata
            self.errors[precision].append(self.error(scores))
            return scores["seconds"] / scores["steps"]

        return run

    @abstractmethod
    def split(self, root: Path, seed: int) -> tuple[LocalArtifact, LocalArtifact | None]:
        """Return rows to train on and rows held out, if any; a second call gives the same."""

    @abstractmethod
    def error(self, scores: dict[str, float]) -> float: ...


class Digits(Job):
    """1,797 real digits and disturbed copies of them, as in the distillation pipeline."""

    name, unit, judged = "digits, 64-512-512-10, batch 128", "% error", False
    parameters = {"network_args": {"hidden": [512, 512]}, "batch_size": 128, "steps": 1500}

    def split(self, root: Path, seed: int) -> tuple[LocalArtifact, LocalArtifact]:
        training, validation, held_out = _imported("digits", root, seed)
        augmented = LocalArtifact(str(root / "augmented"), metadata={"kind": "dataset"})
        if not Path(augmented.path).exists():
            generate_synthetic(
                original=training, dataset=augmented, method="jitter", rows=16_384, seed=seed
            )
        return augmented, held_out

    def error(self, scores: dict[str, float]) -> float:
        return 100 * (1 - scores["accuracy"])


class Function(Job):
    """A sum of sines of eight variables."""

    name, unit, judged = "function, 8-512-512-512-1, batch 1024", "% of its spread", True
    parameters = {
        "network_args": {"hidden": [512, 512, 512]},
        "batch_size": 1024,
        "steps": 500,
    }

    def split(self, root: Path, seed: int) -> tuple[LocalArtifact, LocalArtifact]:
        source = root / "function.parquet"
        if not source.exists():
            source.parent.mkdir(parents=True)
            random = np.random.default_rng(seed)
            features = random.standard_normal((FUNCTION_ROWS, 8)).astype(np.float32)
            frame = pd.DataFrame(features, columns=[f"x{i}" for i in range(8)])
            frame.assign(y=np.sin(features).sum(1)).to_parquet(source)
        training, _, held_out = _imported(str(source), root, seed, target="y")
        return training, held_out

    def error(self, scores: dict[str, float]) -> float:
        return 100 * (1 - scores["r2"]) ** 0.5


class Heat(Job):
    """A small surrogate, trained until little but its arithmetic keeps it from the solver."""

    name, unit, judged = "surrogate of heat, 3-64-64-64-1, batch 1024", "% of the peak", False
    component = staticmethod(train_student)
    parameters = {
        "mode": "overfit",
        "network_args": {"hidden": [64, 64, 64], "activation": "silu"},
        "batch_size": 1024,
        "learning_rate": 0.005,
        "steps": 6000,
    }

    def split(self, root: Path, seed: int) -> tuple[LocalArtifact, None]:
        rows = LocalArtifact(str(root / "rows"), metadata={"kind": "dataset"})
        if not Path(rows.path).exists():
            generate_synthetic(dataset=rows, system="heat", method="sobol", rows=16_384, seed=seed)
        return rows, None

    def error(self, scores: dict[str, float]) -> float:
        return 100 * scores["rmse"]


def _imported(source: str, root: Path, seed: int, **options: Any) -> list[LocalArtifact]:
    names = ("dataset", "validation", "holdout", "report", "summary")
    ports = {n: LocalArtifact(str(root / n), metadata={"kind": "dataset"}) for n in names}
    if not Path(ports["dataset"].path).exists():
        import_dataset(source=source, holdout_fraction=0.3, seed=seed, **options, **ports)
    return [ports[name] for name in names[:3]]


if __name__ == "__main__":
    main()
