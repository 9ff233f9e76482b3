"""A fitted model in a program becomes the file that import-model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from foreign_samples import dataset, features, table
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from kubestill.api import _write_teacher
from kubestill.errors import InvalidInput
from kubestill.local import typed_modules
from kubestill.runtime.base.settings import validate
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.match import Options

NUMBERS = ["amount", "code"]


def fitted(kind: str) -> tuple[Any, dict[str, Any]]:
    rows, labels = features().filter(NUMBERS).fillna(0.0), table()["label"]
    codes = (labels == "ok").to_numpy(np.int64)
    if kind == "lightgbm":
        return lightgbm.LGBMClassifier(n_estimators=4, n_jobs=1, verbose=-1).fit(rows, labels), {}
    if kind == "booster":
        given = {"objective": "binary", "verbose": -1, "num_threads": 1}
        booster = lightgbm.train(given, lightgbm.Dataset(rows, codes), 4)
        return booster, {"classes": ["bad", "ok"]}
    if kind == "xgboost":
        model = xgboost.XGBClassifier(n_estimators=4, n_jobs=1).fit(rows, codes)
        return model, {"classes": ["bad", "ok"]}
    if kind == "catboost":
        model = pytest.importorskip("catboost").CatBoostClassifier(
            iterations=4, verbose=0, thread_count=1, allow_writing_files=False
        )
        return model.fit(rows, labels), {}
    return RandomForestClassifier(4, random_state=0).fit(rows, labels), {}


@pytest.mark.parametrize("kind", ["lightgbm", "booster", "xgboost", "catboost", "sklearn"])
def test_a_fitted_model_is_written_in_its_own_format(kind: str, tmp_path: Path) -> None:
    model, options = fitted(kind)
    path, told = _write_teacher(model, str(tmp_path))
    if kind != "sklearn":  # skops writes addresses in memory
        assert _write_teacher(model, str(tmp_path)) == (path, told)
    filled = dataset(tmp_path / "rows", rows=table().fillna({"amount": 0.0}))
    found = bring(path, filled, Options(**(told | options)))
    assert found is not None
    rows = features().fillna({"amount": 0.0})
    answers = found.predictor(rows)
    if hasattr(model, "predict_proba"):
        truth = pd.DataFrame(model.predict_proba(rows[NUMBERS]), columns=["p_bad", "p_ok"])
        np.testing.assert_allclose(answers[["p_bad", "p_ok"]], truth.clip(1e-7, 1), atol=1e-6)


def marked(mark: float) -> pd.DataFrame:
    """Return the rows with a number in place of some, beside those that are NaN."""
    rows = table()
    return rows.assign(amount=rows["amount"].mask(np.arange(len(rows)) % 3 == 0, mark))


@pytest.mark.parametrize(
    ("mark", "booster"), [(-999.0, "gbtree"), (0.0, "dart"), (-999.0, "gblinear")]
)
def test_what_is_missing_to_a_wrapper_of_xgboost_is_missing_here(
    mark: float, booster: str, tmp_path: Path
) -> None:
    rows, coded = marked(mark), booster != "gblinear"
    given = rows[["amount", "shop"]].astype({"shop": "category"}) if coded else rows[["amount"]]
    kind = {"enable_categorical": coded, "booster": booster, "n_jobs": 1}
    model = xgboost.XGBRegressor(n_estimators=8, missing=mark, **kind).fit(given, rows["price"])
    path, told = _write_teacher(model, str(tmp_path))
    assert told == {"missing": mark}
    filled = dataset(tmp_path / "rows", "price", rows)
    found = bring(path, filled, Options(**told))
    assert found is not None
    assert not [note for note in found.notes if "missing" in note]
    found.write(str(tmp_path / "model"))
    expected = model.predict(given)
    said = load_model(str(tmp_path / "model"))(rows)["prediction"]
    np.testing.assert_allclose(said, expected, rtol=1e-5, atol=1e-6)
    unsaid = bring(path, filled, Options())
    assert unsaid is not None
    assert np.abs(unsaid.predictor(rows)["prediction"] - expected).max() > 0.01
    looked = "'amount' hold -999, which is read as a number"
    assert [note for note in unsaid.notes if looked in note] == list(unsaid.notes)[: mark != 0]


def test_a_wrapper_of_xgboost_answers_with_the_best_round_of_early_stopping(tmp_path: Path) -> None:
    rows, price = features()[["amount"]], table()["price"]
    model = xgboost.XGBRegressor(n_estimators=60, early_stopping_rounds=2, n_jobs=1)
    model.fit(rows[:400], price[:400], eval_set=[(rows[400:], price[400:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    path, told = _write_teacher(model, str(tmp_path))
    found = bring(path, dataset(tmp_path / "rows", "price"), Options(**told))
    assert found is not None
    said = found.predictor(features())["prediction"]
    np.testing.assert_allclose(said, model.predict(rows), rtol=1e-5, atol=1e-6)


def test_labels_that_an_encoder_of_scikit_learn_has_not_learned_are_told(tmp_path: Path) -> None:
    filled = dataset(tmp_path / "rows")

    def fit(column: str, labels: Any) -> str:
        encoder = OneHotEncoder(handle_unknown="ignore")
        model = make_pipeline(make_column_transformer((encoder, [column])), LogisticRegression())
        model.fit(labels.to_frame(column), table()["label"])
        return _write_teacher(model, str(tmp_path))[0]

    other = bring(fit("code", table()["code"].astype(float).astype(str)), filled, Options())
    same = bring(fit("code", table()["code"].replace(7, 13)), filled, Options())
    assert other is not None
    assert same is not None
    assert "3 of 3 labels of 'code' are none" in other.notes[0]
    assert "1 of 3 labels of 'code' are none" in same.notes[0]
    with pytest.raises(InvalidInput, match="import the rows with kinds={'flag': 'categorical'}"):
        bring(fit("flag", table()["flag"].astype(str)), filled, Options())


def test_what_another_kind_of_teacher_is_told_is_refused(tmp_path: Path) -> None:
    model, options = fitted("booster")
    path, _ = _write_teacher(model, str(tmp_path))
    told = Options(**options, missing=-1, args={"limit": 2}, weights="w.bin")
    with pytest.raises(InvalidInput) as caught:
        bring(path, dataset(tmp_path / "rows"), told)
    said = [(one.field, one.remedy) for one in caught.value.problems]
    assert [field for field, _ in said] == ["missing", "args", "weights"]
    assert all("and this is lightgbm" in remedy for _, remedy in said)
    with pytest.raises(InvalidInput, match="missing = inf"):
        validate(Options, {"missing": float("inf")})


def test_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="teacher = 'dict': is no fitted model"):
        _write_teacher({}, str(tmp_path))


def test_a_teacher_that_a_run_names_is_vouched_for() -> None:
    named = {"teacher": "my_pkg.teach:MiniLM", "dataset": "gs://a/b", "student_network": "mlp"}
    assert typed_modules(named) == ["my_pkg.teach"]
    assert typed_modules({"teacher": "gs://bucket/model.txt"}) == []
    assert typed_modules({"teacher": "http://host:8080/v2/models/m"}) == ["http://host:8080"]
    members = [{"source": "my_pkg.teach:Rule"}, {"source": "a.txt"}, {}]
    assert typed_modules({"teacher_options": {"several": {"teachers": members}}}) == [
        "my_pkg.teach"
    ]
