"""Numbers that float32 would swallow: learned, scored and served against the originals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import mean_squared_error, r2_score

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.decode import RawLayout, decode_soft
from kubestill.runtime.evaluation.evaluate import evaluate
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.certify_surrogate import certify_surrogate
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher
from kubestill.runtime.training.record import read_training

ROWS = 512
KEY = np.random.default_rng(0).permutation(ROWS)
OPTIONS: dict[str, Any] = {
    "network_args": {"hidden": [32]},
    "learning_rate": 0.01,
    "epochs": 30.0,
    "batch_size": 64,
}


def imported(folder: Path, frame: pd.DataFrame, **options: Any) -> dict[str, LocalArtifact]:
    frame.to_parquet(folder / "rows.parquet")
    names = ("dataset", "validation", "holdout", "report", "summary")
    ports = {name: LocalArtifact(str(folder / name)) for name in names}
    settings = {"target": "y", "task": "regression", **options}
    import_dataset(**ports, source=str(folder / "rows.parquet"), **settings)
    return {name: ports[name] for name in ("dataset", "validation", "holdout")}


def trained(folder: Path, made: dict[str, LocalArtifact], run: Any = train_teacher, **more: Any):
    names = ("model", "ledger", "metrics", "report", "summary")
    ports = {name: LocalArtifact(str(folder / "out" / name)) for name in names}
    ports["model"].metadata["kind"] = "model"
    inputs = {name: made[name] for name in ("dataset", "validation")}
    run(**inputs, **ports, **OPTIONS, checkpoint_uri=str(folder / "store"), **more)
    return ports


def test_a_target_of_little_change_far_from_zero_is_learned(tmp_path: Path) -> None:
    """Scores are those of scikit-learn on the original float64 numbers."""
    frame = pd.DataFrame({"key": KEY.astype(float), "y": 1.7e9 + KEY / 2})
    made = imported(tmp_path, frame)
    out = trained(tmp_path, made)
    model = load_model(out["model"].path)
    held = Dataset.open(made["holdout"].path)
    keys = held.to_pandas(["key"])
    truth = 1.7e9 + keys["key"].to_numpy(np.float64) / 2
    np.testing.assert_array_equal(held.to_pandas(["y"])["y"], truth)
    told = model(keys)["prediction"].to_numpy()
    assert told.dtype == np.float64
    scores = evaluate(model, held).metrics
    assert scores["rmse"] == pytest.approx(mean_squared_error(truth, told) ** 0.5, rel=1e-6)
    assert scores["r2"] == pytest.approx(r2_score(truth, told), rel=1e-6)
    assert scores["rmse"] < 2 < 64
    # What training followed is the same score of the same numbers.
    record = read_training(out["model"].path)
    assert record is not None
    chosen = next(p for p in record.curves.validation if p.step == record.chosen.step)
    followed = evaluate(model, Dataset.open(made["validation"].path)).metrics["rmse"]
    assert chosen.scores["rmse"] == pytest.approx(followed, rel=1e-4)
    # Row by row, as an application asks, it is the same.
    one = model({"key": 100.0})
    many = model(pd.DataFrame({"key": [100.0] * 20}))["prediction"][0]
    assert one["prediction"] == pytest.approx(many, abs=1e-3)
    assert abs(one["prediction"] - (1.7e9 + 50)) < 5


def test_shifted_numbers_train_the_very_same_network(tmp_path: Path) -> None:
    """Exact shifts of features and target change nothing but the offsets."""
    models = []
    for name, shift in (("near", 0.0), ("far", 2.0**31)):
        (tmp_path / name).mkdir()
        x = KEY.astype(float)
        frame = pd.DataFrame({"x": shift + x - 255.5, "y": shift + x / 2 - 127.75})
        made = imported(tmp_path / name, frame)
        out = trained(tmp_path / name, made)
        models.append(load_model(out["model"].path))
    near, far = models
    assert [column.offset for column in near.spec.schema.columns] == [0, 0]
    offsets = [column.offset for column in far.spec.schema.columns]
    assert offsets == [2.0**31, 2.0**31]
    torch.testing.assert_close(near.model.state_dict(), far.model.state_dict(), rtol=0, atol=0)
    grid = np.linspace(-200, 200, 33)
    np.testing.assert_array_equal(
        near(pd.DataFrame({"x": grid}))["prediction"].to_numpy(np.float64) + 2.0**31,
        far(pd.DataFrame({"x": grid + 2.0**31}))["prediction"],
    )


@pytest.mark.parametrize("kind", ["epoch", "field"])
def test_a_feature_far_from_zero_tells_rows_apart(tmp_path: Path, kind: str) -> None:
    y = np.cos(KEY / 160.0)
    moved = 1.7e9 + KEY
    x: Any = moved if kind == "epoch" else list(np.stack([moved, moved + 0.5], axis=1))
    made = imported(tmp_path, pd.DataFrame({"x": x, "y": y}))
    model = load_model(trained(tmp_path, made)["model"].path)
    assert evaluate(model, Dataset.open(made["holdout"].path)).metrics["r2"] > 0.95
    frame = pd.DataFrame({"x": x})
    few, many = model(frame[:8])["prediction"], model(frame)["prediction"]
    np.testing.assert_allclose(few, many[:8], atol=1e-5)


def test_a_teachers_predictions_far_from_zero_are_distilled(tmp_path: Path) -> None:
    frame = pd.DataFrame({"key": KEY.astype(float), "y": 1.7e9 + KEY / 2})
    made = imported(tmp_path, frame)
    teacher = trained(tmp_path, made)["model"]
    labelled = LocalArtifact(str(tmp_path / "labelled"))
    label_with_teacher(model=teacher, dataset=made["dataset"], labelled=labelled)
    soft = Dataset.open(labelled.path)
    told = load_model(teacher.path)(soft.to_pandas(["key"]))["prediction"]
    np.testing.assert_array_equal(decode_soft(soft, RawLayout(soft.schema))[:, 0], told)
    (tmp_path / "student").mkdir()
    student = trained(tmp_path / "student", {**made, "dataset": labelled}, train_student)
    found = evaluate(load_model(student["model"].path), Dataset.open(made["holdout"].path))
    assert found.metrics["rmse"] < 5


def test_a_certificate_is_held_against_the_original_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"key": np.arange(512.0), "y": 1.7e9 + np.arange(512) / 2})
    frame.to_parquet(tmp_path / "rows.parquet")
    system: dict[str, Any] = {
        "system": "table",
        "system_args": {"source": str(tmp_path / "rows.parquet"), "target": "y"},
    }
    dataset = LocalArtifact(str(tmp_path / "dataset"))
    generate_synthetic(dataset=dataset, **system)
    names = ("model", "ledger", "metrics", "report", "summary", "certificate")
    ports = {name: LocalArtifact(str(tmp_path / "out" / name)) for name in names}
    certificate = ports.pop("certificate")
    options = OPTIONS | {"epochs": 20.0, "checkpoint_uri": str(tmp_path / "store")}
    train_student(dataset=dataset, **ports, mode="overfit", **options)
    model = load_model(ports["model"].path)
    error = np.abs(model(frame)["prediction"].to_numpy() - frame["y"].to_numpy()).max()
    assert 0 < error < 64
    for tolerance, verdict in ((1.01 * error, "certified: enumerated"), (error / 1.01, "refused")):
        told = certify_surrogate(
            model=ports["model"],
            dataset=dataset,
            certificate=certificate,
            **{
                name: LocalArtifact(str(tmp_path / name))
                for name in ("metrics", "report", "summary")
            },
            **system,
            tolerance=tolerance,
            strict=False,
        )
        assert told[0] == verdict
    found = json.loads(Path(certificate.path, "certificate.json").read_text())
    assert found["errors"]["data"]["max"] == pytest.approx(error, rel=1e-9)
    assert "float64" in found["errors"]["data"]["against"]
