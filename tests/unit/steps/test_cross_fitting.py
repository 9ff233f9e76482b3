"""Answers for rows that a teacher was fitted on come from one that has not seen them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from kubestill.errors import InvalidInput, Problems
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import RawLayout, decode_features, decode_soft
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.folds import assign_folds
from kubestill.runtime.steps.cross_fitting import plan_folds
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_teacher import train_teacher

FOLDS = 3
ROWS = 240


def schema(*, grouped: bool = False) -> Schema:
    columns = [
        Column(name="size", kind="numeric"),
        Column(name="colour", kind="categorical", categories=("blue", "red")),
        Column(name="y", kind="categorical", role="target", categories=("a", "b", "c")),
    ]
    if grouped:
        columns.append(Column(name="shop", kind="categorical", role="group"))
    return Schema(columns=tuple(columns), task="multiclass")


def frame() -> pd.DataFrame:
    random = np.random.default_rng(0)
    size = random.normal(0, 2, ROWS).astype(np.float32)
    size[:20] = size[20:40]  # some rows are there twice
    return pd.DataFrame(
        {
            "size": size,
            "colour": np.where(np.arange(ROWS) % 2, "blue", "red"),
            "y": np.asarray(["a", "b", "c"], dtype=object)[random.integers(0, 3, ROWS)],
            "shop": [f"shop {number}" for number in random.integers(0, 12, ROWS)],
        }
    )


def write(folder: Path, form: Schema, rows: Any) -> LocalArtifact:
    with DatasetWriter(str(folder), form) as writer:
        writer.write(rows[list(form.names)])
    return LocalArtifact(str(folder), metadata={"kind": "dataset"})


def train(folder: Path, dataset: LocalArtifact, **options: Any) -> LocalArtifact:
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: Any = {name: LocalArtifact(str(folder / name)) for name in names}
    train_teacher(
        dataset=dataset,
        **ports,
        network_args={"hidden": [8]},
        steps=40,
        batch_size=32,
        learning_rate=0.05,
        checkpoint_uri=str(folder / "kept"),
        settings={"threads": 1},
        **options,
    )
    return ports["model"]


def label(folder: Path, model: LocalArtifact, dataset: LocalArtifact, **options: Any) -> Dataset:
    out = LocalArtifact(str(folder / f"labelled-{len(list(folder.iterdir()))}"))
    label_with_teacher(model=model, dataset=dataset, labelled=out, **options)
    return Dataset.open(out.path)


def soft(rows: Dataset) -> np.ndarray:
    found = decode_soft(rows, RawLayout(rows.schema))
    assert found is not None
    return np.asarray(found)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("fitted")
    rows = write(root / "rows", schema(), frame())
    return {"root": root, "rows": rows, "model": train(root, rows, cross_fit=FOLDS)}


class Ours(BaseEstimator):
    """Our teacher as scikit-learn sees one: X holds the numbers of rows."""

    def __init__(self, root: Path | None = None):
        self.root = root

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Ours":
        assert self.root is not None
        folder = self.root / f"theirs-{int(X.sum())}"
        rows = write(folder / "rows", schema(), frame().iloc[X[:, 0]])
        self.model_ = load_model(train(folder, rows).path)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        raw = decode_features(frame().iloc[X[:, 0]][["size", "colour"]], self.model_.layout)
        return self.model_.logits(raw)


def test_answers_are_those_of_scikit_learns_cross_val_predict(fitted) -> None:
    rows = Dataset.open(fitted["rows"].path)
    fold = assign_folds(rows, RawLayout(rows.schema), FOLDS)
    assert set(fold) == set(range(FOLDS))
    wanted: Any = cross_val_predict(
        Ours(fitted["root"]),
        np.arange(ROWS)[:, None],
        frame()["y"].to_numpy(),
        cv=PredefinedSplit(fold),
    )
    found = soft(label(fitted["root"], fitted["model"], fitted["rows"]))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    whole = load_model(fitted["model"].path)
    raw = decode_features(frame()[["size", "colour"]], whole.layout)
    assert np.abs(found - whole.logits(raw)).max() > 0.1


def test_generated_rows_are_answered_by_the_whole_teacher_and_shards_change_nothing(
    fitted, capsys
) -> None:
    asked = {"method": "munge", "rows": 20_000, "seed": 1}
    made = label(fitted["root"], fitted["model"], fitted["rows"], **asked)
    assert f"{ROWS} rows of {made.rows:,} answered by teachers that have not seen them" in (
        capsys.readouterr().out
    )
    parts = [
        label(fitted["root"], fitted["model"], fitted["rows"], **asked, shard=shard, shards=2)
        for shard in (0, 1)
    ]
    found = soft(made)
    np.testing.assert_array_equal(found, np.concatenate([soft(one) for one in parts]))
    real = soft(label(fitted["root"], fitted["model"], fitted["rows"]))
    np.testing.assert_array_equal(found[:ROWS], real)
    whole = load_model(fitted["model"].path)
    raw = np.concatenate([decode_features(one, whole.layout) for one in made.iter_blocks()])
    np.testing.assert_allclose(found[ROWS:], whole.logits(raw)[ROWS:], atol=1e-6)


def test_rows_that_no_teacher_has_learned_from_are_answered_by_the_whole_one(
    fitted, tmp_path: Path
) -> None:
    others = write(tmp_path / "others", schema(), frame().assign(size=lambda f: f["size"] + 0.5))
    found = label(tmp_path, fitted["model"], others)
    whole = load_model(fitted["model"].path)
    (block,) = found.iter_blocks()
    raw = decode_features(block, whole.layout)
    np.testing.assert_allclose(soft(found), whole.logits(raw), atol=1e-6)


def test_groups_and_equal_rows_and_copies_stay_in_one_fold(tmp_path: Path) -> None:
    grouped = Dataset.open(write(tmp_path / "g", schema(grouped=True), frame()).path)
    fold = assign_folds(grouped, RawLayout(grouped.schema), FOLDS, "shop")
    shops: Any = pd.Series(fold).groupby(frame()["shop"]).nunique()
    assert shops.max() == 1
    plain = write(tmp_path / "p", schema(), frame())
    rows = Dataset.open(plain.path)
    alone = assign_folds(rows, RawLayout(rows.schema), FOLDS)
    twice = frame().duplicated(["size", "colour"], keep=False).to_numpy()
    assert twice.sum() >= 20
    keys = frame()["size"].astype(str) + frame()["colour"]
    equal: Any = pd.Series(alone).groupby(keys).nunique()
    assert equal.max() == 1
    out = LocalArtifact(str(tmp_path / "augmented"))
    generate_synthetic(dataset=out, original=plain, method="jitter", rows=500)
    plan = plan_folds(out, FOLDS, {}, Problems())
    assert plan is not None
    # Each copy is made from the row that is as many numbers before it, over and over again.
    for copy in range(ROWS, ROWS + 500):
        assert plan.fold[copy] == alone[(copy - ROWS) % ROWS]


def test_labels_of_rows_that_the_teacher_was_fitted_on_are_spoken_of(
    tmp_path: Path, capsys
) -> None:
    rows = write(tmp_path / "rows", schema(), frame())
    model = train(tmp_path, rows)
    label(tmp_path, model, rows)
    assert f"the teacher has learned from these {ROWS} rows" in capsys.readouterr().out
    label(tmp_path, model, write(tmp_path / "more", schema(), frame().head(100)))
    assert "has learned from" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cross_fit": 1}, "cross_fit = 1: use 2 to 20 folds"),
        ({"cross_fit": -2}, "cross_fit = -2"),
        ({"cross_fit": 5, "teacher_uri": "x.txt"}, "was fitted elsewhere"),
        ({"cross_fit": 20}, "too few different rows among 3 rows"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    rows = write(tmp_path / "rows", schema(), frame().head(3))
    with pytest.raises(InvalidInput, match=told):
        train(tmp_path, rows, **options)
    assert not (tmp_path / "kept").exists()
