"""int8 students beside float32: score lost, size and latency, on real digits and on payments.

Students are trained on hard labels, quantised by both schemes with ranges from their training rows,
and scored on hold-out rows. How far a file shrinks depends on the network alone, so sizes are
measured for students from 2,500 to 600,000 parameters without training them.

    python -m bench.bench_int8 [--rows 200000] [--steps 4000] [--seeds 0]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from sklearn.metrics import average_precision_score

from bench.bench_teachers import Trial
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.quantised import SCHEMES
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.quantise_model import quantise_model
from kubestill.runtime.steps.train_student import train_student

LOST = 0.005
"""Score that may be lost: half a point of accuracy, AUC or average precision."""
SMALLER = 3
SIZES = ([32], [64], [128], [250], [512], [512, 512])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        digits = import_digits(Path(folder))
        write("int8", list(sizes(Path(folder), digits)), keep=True)
        for seed in told.seeds:
            write("int8", list(on_digits(Path(folder), digits, seed)), keep=True)
    for seed in told.seeds:
        with tempfile.TemporaryDirectory() as folder:
            write("int8", list(on_payments(Path(folder), seed, told)), keep=True)


def import_digits(root: Path) -> dict[str, Any]:
    parts = {name: port(root / name, "dataset") for name in ("dataset", "validation", "holdout")}
    with redirect_stdout(StringIO()):
        import_dataset(
            source="digits",
            validation_fraction=0.15,
            holdout_fraction=0.3,
            report=port(root / "report"),
            summary=port(root / "summary"),
            **parts,
        )
    return parts


def sizes(root: Path, parts: dict[str, Any]) -> Iterator[Measure]:
    """Yield how many times smaller int8 is, by the size of the network."""
    rows = Dataset.open(parts["dataset"].path)
    layout = RawLayout(rows.schema)
    encoder = Encoder.fit([decode_features(one, layout) for one in rows.iter_blocks()], layout)
    for hidden in SIZES:
        model = Model.create(
            rows.schema, encoder=encoder, decoder=Decoder(), network_args={"hidden": hidden}
        )
        folder = root / f"untrained-{len(hidden)}-{hidden[0]}"
        export_model(model, str(folder))
        for scheme in SCHEMES:
            record = quantise(folder, parts, scheme)
            yield Measure(
                name=f"digits, mlp {hidden}, {model.spec.parameters:,} parameters, {scheme}",
                value=record["times_smaller"],
                bar=SMALLER,
                unit="times smaller",
                peer="its float32 ONNX file",
            )


def on_digits(root: Path, parts: dict[str, Any], seed: int) -> Iterator[Measure]:
    place = root / f"digits-{seed}"
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: Any = {name: port(place / name) for name in names}
    with redirect_stdout(StringIO()):
        train_student(
            dataset=parts["dataset"],
            validation=parts["validation"],
            **ports,
            mode="hard",
            network_args={"hidden": [250]},
            steps=1500,
            learning_rate=0.004,
            seed=seed,
            checkpoint_uri=str(place / "kept"),
        )
    yield from judged(f"digits, seed {seed}", ports["model"].path, parts, "accuracy")


def on_payments(root: Path, seed: int, told: argparse.Namespace) -> Iterator[Measure]:
    with redirect_stdout(StringIO()):
        trial = Trial(root, told.rows, told.steps, seed)
        student = trial.student("control", None)
    name = f"payments, seed {seed}, {told.rows:,} rows"
    yield from judged(name, student, trial.parts, "AUC")
    exact = trial.precision(student)
    for scheme in SCHEMES:
        found = trial.precision(f"{student}-{scheme}-quantised")
        yield lost(f"{name}, {scheme}: average precision lost", exact - found, "average precision")
    assert average_precision_score(trial.truth, trial.holdout["chance"]) > exact


def judged(name: str, model: str, parts: dict[str, Any], metric: str) -> Iterator[Measure]:
    parameters = load_model(model).spec.parameters
    for scheme in SCHEMES:
        record = quantise(Path(model), parts, scheme)
        int8, plain = record["models"][f"int8 {scheme}"], record["models"]["float32"]
        what = f"{name}, {scheme}"
        yield lost(f"{what}: {metric} lost", -int8["gain"]["value"], metric)
        yield Measure(
            name=f"{what}: size",
            value=record["times_smaller"],
            bar=SMALLER,
            unit="times smaller",
            peer=f"its float32 ONNX file, {parameters:,} parameters",
        )
        for rows in ("1", "1024"):
            yield Measure(
                name=f"{what}: latency of {rows} rows",
                value=plain["seconds"][rows] / int8["seconds"][rows],
                unit="times faster",
                peer="its float32 ONNX file, one thread",
            )


def lost(name: str, value: float, metric: str) -> Measure:
    """Return a loss, which may be negative."""
    return Measure(
        name=name, value=value, bar=LOST, at_least=False, unit="", peer=f"{metric} of float32"
    )


def quantise(model: Path, parts: dict[str, Any], scheme: str) -> dict[str, Any]:
    names = ("quantised", "metrics", "report", "summary", "record")
    ports: Any = {name: port(Path(f"{model}-{scheme}-{name}")) for name in names}
    with redirect_stdout(StringIO()):
        quantise_model(
            model=port(model, "model"),
            calibration=parts["dataset"],
            dataset=parts["holdout"],
            scheme=scheme,
            **ports,
        )
    return read_record(ports["record"])


def port(path: Path, kind: str = "") -> Any:
    return LocalArtifact(str(path), metadata={"kind": kind} if kind else {})


if __name__ == "__main__":
    main()
