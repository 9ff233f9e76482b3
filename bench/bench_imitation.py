"""What a student of text gains from more of its teacher than its answers: paired seeds.

The task and the texts are those of bench_text: which package a docstring is from. The teacher is a
network of this package on 16,000 labelled texts that nobody else sees; it answers 20,000 others.
Students of one architecture and number of steps learn from 1,000 labels, from those answers (soft
targets), and from those and one part of `settings.imitate` each, with the weight of its paper.
None is tuned. Attention compares grids, of which a text has none. Each seed draws its own texts and
trains its own teacher.

    python -m bench.bench_imitation [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.bench_text import LABELLED, STUDENT, TAUGHT, UNLABELLED, corpus
from bench.harness import paired_gains
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher

TEACHER = {"text_buckets": 32768, "text_dim": 64, "hidden": [256]}
_HIDDEN = {"1.1": "1.1"}
"""The one hidden layer, behind its activation."""
ARMS: dict[str, dict[str, Any]] = {
    "hard labels": {},
    "soft targets": {},
    "FitNets": {"features": {"weight": 1.0, "layers": _HIDDEN}},
    "RKD": {"relations": {"weight": 25.0}},
    "CRD": {"contrast": {"weight": 0.8, "layers": _HIDDEN}},
    "consistency": {"consistency": {"weight": 1.0}},
}
"""What a student imitates besides the answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    told = parser.parse_args()
    texts = corpus()
    errors: dict[str, list[float]] = {name: [] for name in ("teacher", *ARMS)}
    sizes: dict[str, int] = {}
    for seed in told.seeds:
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(Path(folder), texts, seed)
            errors["teacher"].append(trial.error(trial.teacher))
            print(f"seed {seed}: teacher {errors['teacher'][-1]:.2%}", flush=True)
            for arm in ARMS:
                begun = time.process_time()
                model = trial.student(arm)
                errors[arm].append(trial.error(model))
                sizes = {"teacher": trial.teacher.metadata["parameters"]} | {
                    "student": model.metadata["parameters"]
                }
                taken = time.process_time() - begun
                print(f"seed {seed}: {arm} {errors[arm][-1]:.2%} ({taken:.0f} s)", flush=True)
    write("imitation", figures(errors, sizes))


def figures(errors: dict[str, list[float]], sizes: dict[str, int]) -> list[Measure]:
    """Return the mean errors of each arm, and what each part gains."""
    peer = f"which of nine packages; {len(errors['teacher'])} seeds"
    means = [
        Measure(
            name=f"text: {'teacher' if arm == 'teacher' else f'student, {arm}'}",
            value=100 * statistics.mean(found),
            unit="% error",
            peer=peer,
        )
        for arm, found in errors.items()
    ]
    ratio = Measure(
        name="text: teacher's parameters over the student's",
        value=sizes["teacher"] / sizes["student"],
        unit="times",
        peer="mlp over hashed n-grams",
    )
    students = {arm: found for arm, found in errors.items() if arm != "teacher"}
    return [*means, ratio, *paired_gains("text", students, unit="% points of error")]


class Trial:
    """One seed: its texts, its teacher and its students."""

    def __init__(self, root: Path, texts: pd.DataFrame, seed: int):
        self._root, self._seed = root, seed
        texts = texts.sample(frac=1, random_state=seed)
        edges = np.cumsum([TAUGHT, LABELLED, UNLABELLED])
        cut = [texts.iloc[a:b] for a, b in zip([0, *edges], [*edges, len(texts)], strict=True)]
        taught, labelled, unlabelled, self._judged = cut
        self._labelled = self._import("labelled", labelled)
        self.teacher = self._port("teacher", "model")
        with redirect_stdout(StringIO()):
            train_teacher(
                dataset=self._import("taught", taught),
                network_args=TEACHER,
                epochs=6,
                seed=seed,
                **self._ports("teacher", self.teacher),
            )
            self._soft = self._port("soft", "dataset")
            others = self._import("others", pd.concat([unlabelled, labelled]))
            label_with_teacher(model=self.teacher, dataset=others, labelled=self._soft)

    def student(self, arm: str) -> LocalArtifact:
        """Return the student of an arm."""
        hard = arm == "hard labels"
        model = self._port(arm, "model")
        with redirect_stdout(StringIO()):
            train_student(
                dataset=self._labelled if hard else self._soft,
                teacher=self.teacher,
                mode="hard" if hard else "distil",
                network_args=STUDENT,
                epochs=20 if hard else 6,
                temperature=1.0,
                hard_weight=0.0,
                seed=self._seed,
                settings={"imitate": ARMS[arm]},
                **self._ports(arm, model),
            )
        return model

    def error(self, model: LocalArtifact) -> float:
        """Return the share of the judged texts that are answered wrongly."""
        answers = load_model(model.path)(self._judged[["body"]])["prediction"]
        return float((np.asarray(answers) != self._judged["package"].to_numpy()).mean())

    def _import(self, name: str, texts: pd.DataFrame) -> LocalArtifact:
        texts.to_parquet(self._root / f"{name}.parquet", index=False)
        made = self._port(name, "dataset")
        names = ("validation", "holdout", "report", "summary")
        rest: Any = {one: self._port(f"{name}-{one}", "dataset") for one in names}
        with redirect_stdout(StringIO()):
            import_dataset(
                source=str(self._root / f"{name}.parquet"),
                kinds={"body": "text"},
                target="package",
                settings={"text": {"body": {"length": 96}}},
                validation_fraction=0.0,
                holdout_fraction=0.0,
                dataset=made,
                **rest,
            )
        return made

    def _port(self, name: str, kind: str) -> LocalArtifact:
        return LocalArtifact(str(self._root / f"{kind}-{name}"), metadata={"kind": kind})

    def _ports(self, name: str, model: LocalArtifact) -> dict[str, Any]:
        names = ("ledger", "metrics", "report", "summary")
        return {"model": model} | {one: self._port(name, one) for one in names}


if __name__ == "__main__":
    main()
