"""What soft targets are worth on real handwriting: paired seeds, equal steps, equal tuning.

Each seed draws its own split and trains a teacher on the real rows and disturbed copies of them, as
the distillation pipeline does. Three students follow, of one architecture and one number of steps:
on the teacher's soft outputs (generated rows and real ones), on the real rows' labels, and on the
teacher's argmax for the very rows the first one sees. Learning rates are tuned for each arm over
one grid on seeds that are not used again.

    python -m bench.bench_digits [--seeds 20]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout, decode
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher

ARMS = ("soft", "labels", "argmax")
RATES = (0.002, 0.008, 0.032)
STEPS = 3000
TEACHER = {"hidden": [512, 512]}
STUDENT = {"hidden": [250]}
TUNING_SEEDS = (1000, 1001, 1002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--method", default="jitter")
    told = parser.parse_args()
    rates = tune(told.method)
    print("learning rates, tuned on other seeds:", rates, flush=True)
    errors: dict[str, list[float]] = {name: [] for name in ("teacher", *ARMS)}
    for seed in range(told.seeds):
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            trial = Trial(Path(folder), seed, told.method)
            errors["teacher"].append(trial.error(trial.teacher, "holdout"))
            for arm in ARMS:
                errors[arm].append(trial.error(trial.student(arm, rates[arm]), "holdout"))
        line = "  ".join(f"{name} {values[-1]:.2%}" for name, values in errors.items())
        print(f"seed {seed:2}: {line}", flush=True)
    write("digits", figures(errors, Trial.sizes))


def tune(method: str) -> dict[str, float]:
    """Return each arm's learning rate with the lowest mean validation error."""
    found: dict[tuple[str, float], list[float]] = {}
    for seed in TUNING_SEEDS:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            trial = Trial(Path(folder), seed, method)
            for arm in ARMS:
                for rate in RATES:
                    error = trial.error(trial.student(arm, rate), "validation")
                    found.setdefault((arm, rate), []).append(error)
    return {arm: min(RATES, key=lambda rate: statistics.mean(found[arm, rate])) for arm in ARMS}


def figures(errors: dict[str, list[float]], sizes: dict[str, int]) -> list[Measure]:
    """Return error rates, the paired improvement and the recovered gap."""
    mean = {name: statistics.mean(values) for name, values in errors.items()}
    count = len(errors["soft"])

    def lower_bound(control: str) -> float:
        gains = np.subtract(errors[control], errors["soft"])
        half = stats.t.ppf(0.975, count - 1) * gains.std(ddof=1) / math.sqrt(count)
        return float(gains.mean() - half)

    peer = f"{count} paired seeds"
    percent: dict[str, Any] = {"unit": "% error", "peer": peer}
    return [
        *(Measure(name=f"digits: {n}", value=100 * value, **percent) for n, value in mean.items()),
        Measure(
            name="digits: improvement over real labels, lower end of the 95% interval",
            value=100 * lower_bound("labels"),
            bar=1e-9,
            unit="% points",
            peer="same student on real labels",
        ),
        Measure(
            name="digits: improvement over the teacher's argmax, lower end of the 95% interval",
            value=100 * lower_bound("argmax"),
            unit="% points",
            peer="same student on argmax labels",
        ),
        Measure(
            name="digits: pooled share of the gap recovered",
            value=(mean["labels"] - mean["soft"]) / (mean["labels"] - mean["teacher"]),
            bar=0.5,
            unit="share",
            peer=peer,
        ),
        Measure(
            name="digits: teacher's parameters over the student's",
            value=sizes["teacher"] / sizes["student"],
            bar=10.0,
            unit="times",
            peer="student 64-250-10",
        ),
    ]


class Trial:
    """One seed: its split, its teacher, its students."""

    sizes: dict[str, int] = {}

    def __init__(self, root: Path, seed: int, method: str):
        self.root, self.seed = root, seed
        names = ("dataset", "validation", "holdout", "report", "summary")
        self.split = {name: self._port(name) for name in names}
        import_dataset(source="digits", holdout_fraction=0.3, seed=seed, **self.split)
        augmented, ports = self._port("augmented"), self._ports("teacher")
        generate_synthetic(
            original=self.split["dataset"],
            dataset=augmented,
            method="jitter",
            rows=16_384,
            seed=seed,
        )
        train_teacher(
            dataset=augmented,
            validation=self.split["validation"],
            network_args=TEACHER,
            steps=1500,
            seed=seed,
            **ports,
        )
        self.teacher = ports["model"]
        self.sizes["teacher"] = self.teacher.metadata["parameters"]
        generated, self.soft = self._port("generated"), self._port("soft")
        generate_synthetic(
            original=self.split["dataset"], dataset=generated, method=method, rows=32_768, seed=seed
        )
        label_with_teacher(model=self.teacher, dataset=generated, labelled=self.soft)
        self.argmax = self._argmax()

    def student(self, arm: str, rate: float) -> LocalArtifact:
        ports = self._ports(f"{arm}-{rate}")
        data = {"soft": self.soft, "labels": self.split["dataset"], "argmax": self.argmax}[arm]
        train_student(
            dataset=data,
            validation=self.split["validation"],
            mode="distil" if arm == "soft" else "hard",
            temperature=4.0,
            hard_weight=0.0,
            network_args=STUDENT,
            steps=STEPS,
            learning_rate=rate,
            seed=self.seed,
            **ports,
        )
        self.sizes["student"] = ports["model"].metadata["parameters"]
        return ports["model"]

    def error(self, model: LocalArtifact, rows: str) -> float:
        """Return the share of real rows that a model gets wrong."""
        dataset = Dataset.open(self.split[rows].path)
        decoded = decode(dataset, RawLayout(dataset.schema), ("raw", "target"))
        return float(
            (load_model(model.path).logits(decoded.raw).argmax(1) != decoded.target).mean()
        )

    def _argmax(self) -> LocalArtifact:
        """Write the rows of the soft dataset with the teacher's argmax as their label."""
        soft = Dataset.open(self.soft.path)
        frame, target = soft.to_pandas(), soft.schema.target
        assert target
        assert soft.schema.soft
        winners = np.stack(frame[soft.schema.soft.name].to_list()).argmax(1)
        frame[target.name] = [soft.schema.classes[winner] for winner in winners]
        kept = tuple(column for column in soft.schema.columns if column.role != "soft")
        port = self._port("argmax")
        schema: Schema = replace(soft.schema, columns=kept)
        with DatasetWriter(port.path, schema, provenance={"labels": "argmax"}) as writer:
            writer.write(frame[[column.name for column in kept]])
        return port

    def _port(self, name: str) -> LocalArtifact:
        return LocalArtifact(str(self.root / name), metadata={"kind": "dataset"})

    def _ports(self, name: str) -> dict[str, LocalArtifact]:
        names = ("model", "ledger", "metrics", "report", "summary")
        return {n: LocalArtifact(str(self.root / f"{name}-{n}")) for n in names}


if __name__ == "__main__":
    main()
