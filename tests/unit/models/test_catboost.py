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
