"""CatBoost's own files, against what CatBoost itself predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from foreign_samples import dataset, features, table

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.boosters import CatBoost
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.match import Options

catboost: Any = pytest.importorskip("catboost")
GIVEN = {"iterations": 6, "depth": 3, "verbose": 0, "thread_count": 1}


def given() -> pd.DataFrame:
    return features().assign(flag=features()["flag"].astype(int))


def fitted(target: str, **options: Any) -> Any:
    kind = catboost.CatBoostRegressor if target == "price" else catboost.CatBoostClassifier
    told = {"cat_features": ["shop", "code"], "allow_writing_files": False, **GIVEN, **options}
    return kind(**told).fit(given(), table()[target])


@pytest.mark.parametrize(
    ("target", "options"),
    [("label", {}), ("label", {"loss_function": "MultiClass"}), ("grade", {}), ("price", {})],
    ids=["label", "label of several", "grade", "price"],
)
def test_a_model_answers_as_it_does_in_its_own_library(
    target: str, options: dict[str, Any], tmp_path: Path
) -> None:
    rows = dataset(tmp_path / "rows", target)
    own = fitted(target, **options)
    own.save_model(str(tmp_path / "model.cbm"))
    brought = bring(str(tmp_path / "model.cbm"), rows, Options())
    assert brought is not None
    brought.write(str(tmp_path / "model"))
    model = load_model(str(tmp_path / "model"))
    raw = decode_features(next(rows.iter_blocks()), model.layout)
    said = model.answers(raw)
    if target == "price":
        np.testing.assert_allclose(said["prediction"], own.predict(given()), rtol=1e-5)
        return
    expected = pd.DataFrame(own.predict_proba(given()), columns=list(map(str, own.classes_)))
    for name in expected:
        np.testing.assert_allclose(said[f"p_{name}"], expected[name], atol=1e-5)


SPELLINGS = {
    "as they are": lambda rows: rows,
    "flag: bool": lambda rows: rows.assign(flag=rows["flag"].astype(bool)),
    "flag: True": lambda rows: rows.assign(flag=rows["flag"].astype(bool).astype(str)),
    "flag: true": lambda rows: rows.assign(flag=rows["flag"].map({0: "false", 1: "true"})),
    "flag: YES": lambda rows: rows.assign(flag=rows["flag"].map({0: "NO", 1: "YES"})),
    "flag: 1.0": lambda rows: rows.assign(flag=rows["flag"].astype(float).astype(str)),
    "code: 7.0": lambda rows: rows.assign(code=rows["code"].astype(float).astype(str)),
    "all, and None": lambda rows: rows.assign(
        flag=rows["flag"].map({0: "n", 1: "y"}),
        code=rows["code"].astype(float).astype(str),
        shop=rows["shop"].where(rows["shop"].notna(), "None"),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("as_label", [False, True], ids=["boolean", "labels"])
def test_categories_are_read_as_they_were_spelled_in_the_fit(
    name: str, as_label: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    shops = np.array(["a", "b", None], object)
    flag, shop = rng.integers(0, 2, 600), rng.choice(shops, 600)
    if "None" not in name:
        shop = np.where(shop == None, "b", shop)  # noqa: E711
    rows = pd.DataFrame({"shop": shop, "code": rng.choice([7, 11, 13], 600), "flag": flag})
    rows["price"] = flag + (rows["code"] == 7) * 2.0 + rows["shop"].isna() * 4.0
    spelled = SPELLINGS[name](rows.drop(columns="price"))
    own = catboost.CatBoostRegressor(cat_features=[0, 1, 2], allow_writing_files=False, **GIVEN)
    own.fit(spelled, rows["price"]).save_model(str(tmp_path / "model.cbm"))
    columns = (
        Column(name="shop", kind="categorical", categories=("a", "b")),
        Column(name="code", kind="categorical", categories=("7", "11", "13")),
        Column(name="flag", kind="categorical", categories=("false", "true"))
        if as_label
        else Column(name="flag", kind="boolean"),
        Column(name="price", kind="numeric", role="target"),
    )
    schema = Schema(columns=columns, task="regression")
    held = rows.assign(flag=rows["flag"].astype(bool))
    with DatasetWriter(str(tmp_path / "rows"), schema) as writer:
        writer.write(held)
    brought = bring(str(tmp_path / "model.cbm"), writer.dataset, Options())
    assert brought is not None
    brought.write(str(tmp_path / "model"))
    said = load_model(str(tmp_path / "model"))(held)["prediction"]
    np.testing.assert_allclose(said, own.predict(spelled), rtol=1e-5, atol=1e-6)
    plain = "as they are", "flag: bool"
    assert bool(brought.notes) == (name not in (("flag: true",) if as_label else plain))


def test_a_spelling_that_nobody_can_tell_is_told(tmp_path: Path) -> None:
    both = given().assign(
        flag=[str(one) if at % 2 else f"{one > 0}" for at, one in enumerate(given()["flag"])]
    )
    other = given().assign(flag=np.where(given()["flag"] == 1, "on", "off"))
    price = table()["price"] + 3 * given()["flag"]
    for rows, said in ((both, "also knows 'True'"), (other, "never seen")):
        own = catboost.CatBoostRegressor(
            cat_features=["shop", "code", "flag"], allow_writing_files=False, **GIVEN
        )
        own.fit(rows, price).save_model(str(tmp_path / "model.cbm"))
        brought = bring(str(tmp_path / "model.cbm"), dataset(tmp_path / "rows", "price"), Options())
        assert brought is not None
        assert [note for note in brought.notes if "'flag'" in note and said in note]


def test_classes_are_matched_by_name_and_inputs_have_to_be_there(tmp_path: Path) -> None:
    own = fitted("label")
    own.save_model(str(tmp_path / "model.cbm"))
    other = dataset(tmp_path / "grade", "grade")
    with pytest.raises(InvalidInput, match="1 outputs for a row"):
        bring(str(tmp_path / "model.cbm"), other, Options())
    renamed = given().rename(columns={"amount": "amuont"})
    wrong = catboost.CatBoostClassifier(cat_features=["shop", "code"], **GIVEN)
    wrong.set_params(allow_writing_files=False).fit(renamed, table()["label"])
    wrong.save_model(str(tmp_path / "wrong.cbm"))
    with pytest.raises(InvalidInput, match="did you mean 'amount'"):
        bring(str(tmp_path / "wrong.cbm"), dataset(tmp_path / "rows"), Options())


@pytest.mark.parametrize("loss", ["Poisson", "MultiClassOneVsAll"])
def test_a_loss_whose_outputs_mean_something_else_is_refused(loss: str, tmp_path: Path) -> None:
    if loss == "Poisson":
        kind, target = catboost.CatBoostRegressor, table()["price"].clip(lower=0)
    else:
        kind, target = catboost.CatBoostClassifier, table()["grade"]
    own = kind(loss_function=loss, cat_features=["shop", "code"], **GIVEN)
    own.set_params(allow_writing_files=False).fit(given(), target)
    own.save_model(str(tmp_path / "model.cbm"))
    with pytest.raises(InvalidInput, match="is a loss whose outputs are not known here"):
        CatBoost((tmp_path / "model.cbm").read_bytes())


def test_a_damaged_file_is_refused_or_answers(tmp_path: Path) -> None:
    fitted("label").save_model(str(tmp_path / "model.cbm"))
    content = (tmp_path / "model.cbm").read_bytes()
    for end in range(0, len(content), 400):
        with pytest.raises(CorruptData):
            CatBoost(content[:end])
    with pytest.raises(InvalidInput, match="catboost"):
        bring(str(tmp_path / "model.cbm"), dataset(tmp_path / "rows"), Options(format="onnx"))
