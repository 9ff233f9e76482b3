"""Students of text: how much of a teacher's lead unlabelled texts give to a small network.

The texts are the first paragraphs of docstrings of installed packages; which package one comes from
is what is asked. The teacher is scikit-learn's TF-IDF and logistic regression on 16,000 labelled
texts that nobody else sees. Its student has 1,000 labelled texts, and 20,000 without a label that
the teacher answers. It is held against the same network on the labels alone, and against
scikit-learn's own hashed n-grams on the same data.

    python -m bench.bench_text [--seeds 0 1 2] [--rounds 200]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
import torch
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from bench.harness import clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.import_model import import_model
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student

PACKAGES = (
    *("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch"),
    "transformers",
)
TAUGHT, LABELLED, UNLABELLED = 16_000, 1_000, 20_000
"""Texts with a label for the teacher, with one for the student, without one; the rest judges."""
STUDENT = {"text_buckets": 8192, "text_dim": 16, "hidden": [32]}
RECOVERED = 0.7
"""Share of the teacher's lead over hard labels that the student has to make up for."""
_DOCSTRING = re.compile(r':[ \t]*\n[ \t]+[rR]?"""(.+?)"""', re.S)


def corpus() -> pd.DataFrame:
    """Return different paragraphs of 5 to 80 words, without the package's name, and the package."""
    site = Path(sysconfig.get_paths()["purelib"])
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted((site / package).rglob("*.py")):
            if "tests" in path.parts or path.stat().st_size > 300_000:
                continue
            for text in _DOCSTRING.findall(path.read_text(encoding="utf-8", errors="replace")):
                words = re.sub(package, "it", text.split("\n\n")[0], flags=re.I).split()
                if 5 <= len(words) <= 80:
                    found.setdefault(" ".join(words), set()).add(package)
    rows = [(text, *packages) for text, packages in sorted(found.items()) if len(packages) == 1]
    return pd.DataFrame(rows, columns=["body", "package"])


class Trial:
    """One seed: its texts, its teacher and the students."""

    def __init__(self, root: Path, texts: pd.DataFrame, seed: int):
        self.root, self.seed = root, seed
        texts = texts.sample(frac=1, random_state=seed)
        edges = np.cumsum([TAUGHT, LABELLED, UNLABELLED])
        cut = [texts.iloc[a:b] for a, b in zip([0, *edges], [*edges, len(texts)], strict=True)]
        self.taught, self.labelled, self.unlabelled, self.judged = cut
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        columns = make_column_transformer((words, "body"))
        self.teacher = make_pipeline(columns, LogisticRegression(C=20, max_iter=100))
        self.teacher.fit(self.taught[["body"]], self.taught["package"])
        skops.io.dump(self.teacher, root / "teacher.skops")

    def score(self, answers: Any) -> float:
        """Return the share of the judged texts that are answered rightly."""
        return float((np.asarray(answers) == self.judged["package"].to_numpy()).mean())

    def student(self, *, hard: bool) -> Any:
        """Train the student on labels alone, or on the teacher's answers to unlabelled texts."""
        rows = self._import("labelled", self.labelled, target="package")
        if not hard:
            teacher = self._port("teacher")
            import_model(
                dataset=rows,
                source=str(self.root / "teacher.skops"),
                model=teacher,
                **self._ports("import", "metrics", "report", "summary"),
            )
            texts = pd.concat([self.unlabelled, self.labelled]).filter(["body"])
            unlabelled = self._import("unlabelled", texts)
            rows = self._port("soft")
            label_with_teacher(model=teacher, dataset=unlabelled, labelled=rows)
        ports = self._ports(f"{hard}", "model", "ledger", "metrics", "report", "summary")
        train_student(
            dataset=rows,
            mode="hard" if hard else "distil",
            network="mlp",
            network_args=STUDENT,
            epochs=20 if hard else 6,
            seed=self.seed,
            device="cpu",
            **({} if hard else {"temperature": 1.0, "hard_weight": 0.0}),
            **ports,
        )
        return load_model(ports["model"].path)

    def peer(self, *, hard: bool) -> Pipeline:
        """Fit scikit-learn's hashed n-grams on the same: the teacher's answers are labels to it."""
        rows = self.labelled
        if not hard:
            texts = pd.concat([self.unlabelled, self.labelled]).filter(["body"])
            rows = texts.assign(package=self.teacher.predict(texts))
        hashed = HashingVectorizer(ngram_range=(1, 2), n_features=STUDENT["text_buckets"])
        return make_pipeline(hashed, LogisticRegression(C=20, max_iter=100)).fit(
            rows["body"], rows["package"]
        )

    def _import(self, name: str, frame: pd.DataFrame, **options: Any) -> LocalArtifact:
        frame.to_parquet(self.root / f"{name}.parquet", index=False)
        ports = self._ports(name, "dataset", "validation", "holdout", "report", "summary")
        import_dataset(
            source=str(self.root / f"{name}.parquet"),
            kinds={"body": "text"},
            settings={"text": {"body": {"length": 96}}},
            validation_fraction=0.0,
            holdout_fraction=0.0,
            **options,
            **ports,
        )
        return ports["dataset"]

    def _port(self, name: str) -> LocalArtifact:
        return LocalArtifact(str(self.root / name), metadata={})

    def _ports(self, prefix: str, *names: str) -> dict[str, Any]:
        return {name: self._port(f"{prefix}-{name}") for name in names}


def learn(trial: Trial) -> tuple[dict[str, float], Any]:
    """Return the accuracy of everyone, and the student."""
    with redirect_stdout(StringIO()):
        hard, student = trial.student(hard=True), trial.student(hard=False)
    texts = trial.judged[["body"]]
    answers = {
        "teacher": trial.teacher.predict(texts),
        "hard labels": hard(texts)["prediction"],
        "student": student(texts)["prediction"],
        "peer, hard labels": trial.peer(hard=True).predict(texts["body"]),
        "peer, teacher's labels": trial.peer(hard=False).predict(texts["body"]),
    }
    return {name: trial.score(one) for name, one in answers.items()}, student


def costs(trial: Trial, student: Any, rounds: int) -> Iterator[Measure]:
    """Yield sizes, and the time that one text and many take, of the student and the teacher."""
    size = os.path.getsize(trial.root / "teacher.skops")
    yield Measure(
        name="size of the student",
        value=student.model.bytes / size,
        unit="of teacher",
        peer=f"skops file of the teacher, {size / 1e6:.1f} MB",
    )
    one = trial.judged[["body"]].iloc[:1]
    many = trial.judged[["body"]].iloc[:4096]
    for what, rows, times in (("one text", one, rounds), (f"{len(many):,} texts", many, 5)):
        turns = take_turns(
            {
                "student": clock(lambda rows=rows: student(rows)),
                "teacher": clock(lambda rows=rows: trial.teacher.predict_proba(rows)),
            },
            times,
        )
        yield Measure(
            name=f"time for {what}",
            value=turns.ratio("student", "teacher"),
            unit="of teacher",
            peer=f"scikit-learn's own, {1e3 * turns.median('teacher'):.3g} ms",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=200, help="of timing one text")
    told = parser.parse_args()
    texts = corpus()
    print(f"{len(texts):,} texts of {len(PACKAGES)} packages", flush=True)
    scores: list[dict[str, float]] = []
    measures: list[Measure] = []
    for seed in told.seeds:
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(Path(folder), texts, seed)
            found, student = learn(trial)
            print(
                f"seed {seed}: " + "  ".join(f"{n} {v:.4f}" for n, v in found.items()), flush=True
            )
            scores.append(found)
            if seed == told.seeds[-1]:
                with redirect_stdout(StringIO()):
                    measures += costs(trial, student, told.rounds)
    mean = {name: statistics.mean(one[name] for one in scores) for name in scores[0]}
    lead = [(s["student"] - s["hard labels"]) / (s["teacher"] - s["hard labels"]) for s in scores]
    peer = f"{len(scores)} seeds; teacher: TF-IDF and logistic regression on {TAUGHT:,} texts"
    measures = [
        Measure(
            name="text: share of the teacher's lead that the student recovers",
            value=statistics.mean(lead),
            bar=RECOVERED,
            unit="of lead",
            peer=peer,
        ),
        Measure(
            name="text: student against hashed n-grams of scikit-learn on the teacher's labels",
            value=mean["student"] - mean["peer, teacher's labels"],
            bar=0.0,
            unit="accuracy",
            peer="HashingVectorizer and logistic regression, as many buckets",
        ),
        *(
            Measure(name=f"text: accuracy of {name}", value=value, unit="accuracy", peer=peer)
            for name, value in mean.items()
        ),
        *measures,
    ]
    write("text", measures)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
