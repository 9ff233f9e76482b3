"""Models of other libraries answer here as they do there, or are refused with a remedy."""

from __future__ import annotations

import functools
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import onnx
import onnx.numpy_helper
import pandas as pd
import pytest
import skops.io
import torch
import xgboost
from foreign_samples import dataset, features, table
from model_samples import make_model
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder
from sklearn.svm import LinearSVC

from kubestill.datasets import write_dataset
from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.bring import Brought, bring
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.foreign.model import ForeignPredictor
from kubestill.runtime.models.foreign.onnx_file import OnnxFile
from kubestill.runtime.models.foreign.recognise import recognise
from kubestill.runtime.models.foreign.runtime import Block
from kubestill.runtime.models.foreign.skops_file import HARMLESS
from kubestill.runtime.models.foreign.spec import Input
from kubestill.runtime.models.serve import SPEC_KEY

Truth = np.ndarray


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset(tmp_path_factory.mktemp("rows"))


def frame() -> pd.DataFrame:
    return features().assign(shop=pd.Categorical(features()["shop"]))


def labels(one: str = "bad") -> np.ndarray:
    return (table()["label"] == one).to_numpy(np.int64)


def fit_lightgbm(target: np.ndarray, **params: Any) -> lightgbm.Booster:
    given = {"objective": "binary", "verbose": -1, "num_threads": 1} | params
    return lightgbm.train(given, lightgbm.Dataset(frame(), target), 8)


def lightgbm_text() -> str:
    return fit_lightgbm(labels()).model_to_string()


def brought(source: Path | str, rows: Dataset, **options: Any) -> Brought:
    found = bring(str(source), rows, Options(**options))
    assert found is not None
    return found


def loaded(found: Brought, folder: Path, **options: Any) -> ForeignPredictor:
    """Return the model as a later step gets it: from its folder."""
    digest = found.write(str(folder))
    predictor = load_model(str(folder), **options)
    assert isinstance(predictor, ForeignPredictor)
    assert predictor.digest == digest
    return predictor


def save_lightgbm(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    booster = fit_lightgbm(labels())
    booster.save_model(path / "model.txt")
    return path / "model.txt", {"classes": ["ok", "bad"]}, np.asarray(booster.predict(frame()))


def save_lightgbm_forest(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    sampled = {"bagging_fraction": 0.5, "bagging_freq": 1}
    booster = fit_lightgbm(labels(), boosting="rf", **sampled)
    booster.save_model(path / "model.txt")
    return path / "model.txt", {"classes": ["ok", "bad"]}, np.asarray(booster.predict(frame()))


def save_xgboost(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    model = xgboost.XGBClassifier(n_estimators=8, enable_categorical=True, n_jobs=1)
    model.fit(frame(), labels())
    model.save_model(path / "model.json")
    return path / "model.json", {"classes": ["ok", "bad"]}, model.predict_proba(frame())[:, 1]


def save_xgboost_ubj(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    source, options, truth = save_xgboost(path)
    booster = xgboost.Booster(model_file=source)
    booster.save_model(path / "model.ubj")
    return path / "model.ubj", options, truth


def save_xgboost_stopped(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    model = xgboost.XGBClassifier(
        n_estimators=60, enable_categorical=True, n_jobs=1, early_stopping_rounds=5
    )
    held = [(frame()[400:], labels()[400:])]
    model.fit(frame()[:400], labels()[:400], eval_set=held, verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    model.save_model(path / "model.json")
    return path / "model.json", {"classes": ["ok", "bad"]}, model.predict_proba(frame())[:, 1]


def save_skops(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encoder, ["shop", "code"]), remainder="passthrough")
    model = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=8))
    model.fit(features(), table()["label"])
    skops.io.dump(model, path / "model.skops")
    return path / "model.skops", {}, model.predict_proba(features())[:, 0]


def save_skops_categories(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    given = frame().assign(code=pd.Categorical(features()["code"]))
    model = HistGradientBoostingClassifier(max_iter=8).fit(given, table()["label"])
    skops.io.dump(model, path / "model.skops")
    return path / "model.skops", {}, model.predict_proba(given)[:, 0]


def save_skops_nested(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    """Codes are numbers to an encoder within a calibrated pipeline."""
    given = features().filter(["shop", "code"])
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["shop", "code"]))
    model = CalibratedClassifierCV(make_pipeline(columns, LogisticRegression()), cv=2)
    model.fit(given, table()["label"])
    skops.io.dump(model, path / "model.skops")
    return path / "model.skops", {}, model.predict_proba(given)[:, 0]


def save_skops_unnamed(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    matrix = table()[["code", "amount"]].to_numpy(np.float32)
    model = RandomForestClassifier(8, random_state=0).fit(matrix, table()["label"])
    skops.io.dump(model, path / "model.skops")
    chances = np.clip(model.predict_proba(matrix)[:, 0], 1e-7, 1 - 1e-7)
    return path / "model.skops", {"inputs": ["code", "amount"]}, chances


def save_onnx_columns(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((encoder, ["shop", "code"]), (SimpleImputer(), ["amount"]))
    model = make_pipeline(columns, LogisticRegression())
    model.fit(features()[["shop", "code", "amount"]], table()["label"])
    kinds: Any = [("shop", StringTensorType([None, 1])), ("code", Int64TensorType([None, 1]))]
    kinds.append(("amount", FloatTensorType([None, 1])))
    made = to_onnx(model, initial_types=kinds)
    (path / "model.onnx").write_bytes(made.SerializeToString())  # pyright: ignore
    return path / "model.onnx", {}, model.predict_proba(features())[:, 0]


def save_onnx_matrix(path: Path) -> tuple[Path, dict[str, Any], Truth]:
    matrix = table()[["code", "flag"]].to_numpy(np.float32)
    model = LogisticRegression().fit(matrix, table()["label"])
    made = to_onnx(model, matrix[:1], options={"zipmap": False})
    (path / "model.onnx").write_bytes(made.SerializeToString())  # pyright: ignore
    return path / "model.onnx", {"inputs": ["code", "flag"]}, model.predict_proba(matrix)[:, 0]


def save_python(path: Path) -> tuple[str, dict[str, Any], Truth]:
    (path / "scale").write_text("0.5")
    amount = features()["amount"].fillna(0).to_numpy(np.float64)
    score = 0.5 * 4 * (amount + (features()["shop"] == "a").to_numpy())
    options = {"weights": str(path / "scale"), "args": {"sharp": 4.0}}
    return "foreign_teachers:Rule", options, 1 / (1 + np.exp(-score))


SAVERS = [
    save_lightgbm,
    save_lightgbm_forest,
    save_xgboost,
    save_xgboost_ubj,
    save_xgboost_stopped,
    save_skops,
    save_skops_categories,
    save_skops_nested,
    save_skops_unnamed,
    save_onnx_columns,
    save_onnx_matrix,
    save_python,
]


@pytest.mark.parametrize("save", SAVERS, ids=lambda save: save.__name__.removeprefix("save_"))
def test_a_model_answers_here_as_in_its_own_library(
    save: Callable[[Path], tuple[Path, dict[str, Any], Truth]], tmp_path: Path, rows: Dataset
) -> None:
    source, options, truth = save(tmp_path)
    predictor = loaded(
        brought(source, rows, **options), tmp_path / "model", trust=("foreign_teachers",)
    )
    assert (predictor.spec.parameters > 0) == (save is not save_python)
    answers = predictor(features())
    np.testing.assert_allclose(answers["p_bad"], truth, atol=1e-6)
    # Cut elsewhere, the answers are the same.
    whole = predictor.logits(raw_of(predictor))
    parts = [predictor.logits(raw_of(predictor)[start : start + 7]) for start in (0, 7, 14)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[:21])


def raw_of(predictor: ForeignPredictor) -> np.ndarray:
    return decode_features(features(), predictor.layout)


@pytest.mark.parametrize("order", [["0", "1", "2"], ["2", "0", "1"]], ids=["same", "shuffled"])
@pytest.mark.parametrize("library", ["lightgbm", "lightgbm-ova", "xgboost"])
def test_classes_are_matched_by_name(order: list[str], library: str, tmp_path: Path) -> None:
    grades = dataset(tmp_path / "rows", "grade")
    target = table()["grade"].map(order.index).to_numpy()
    if library == "xgboost":
        model = xgboost.XGBClassifier(n_estimators=4, enable_categorical=True, n_jobs=1)
        model.fit(frame(), target).save_model(tmp_path / "model.json")
        source, truth = tmp_path / "model.json", model.predict_proba(frame())
    else:
        kind = "multiclassova" if library.endswith("ova") else "multiclass"
        booster = fit_lightgbm(target, objective=kind, num_class=3)
        booster.save_model(tmp_path / "model.txt")
        source, truth = tmp_path / "model.txt", np.asarray(booster.predict(frame()))
        truth = truth / truth.sum(axis=1, keepdims=True)
    found = loaded(brought(source, grades, classes=order), tmp_path / "model")
    answers = found(features())
    for place, name in enumerate(order):
        np.testing.assert_allclose(answers[f"p_{name}"], truth[:, place], atol=1e-6)


def test_another_number_of_classes_is_refused_before_the_model_answers(
    tmp_path: Path, rows: Dataset
) -> None:
    target = table()["grade"].astype(int).to_numpy()
    model = xgboost.XGBClassifier(n_estimators=2, enable_categorical=True, n_jobs=1)
    model.fit(frame(), target).save_model(tmp_path / "model.json")
    with pytest.raises(InvalidInput, match="3 outputs for a row.*target has 2 classes"):
        brought(tmp_path / "model.json", rows, classes=["ok", "bad"])
    text = (tmp_path / "model.json").read_text()
    wide = text.replace('"num_class":"3"', '"num_class":"2000000000"')
    assert wide != text
    (tmp_path / "model.json").write_text(wide)
    with pytest.raises((InvalidInput, CorruptData)):
        brought(tmp_path / "model.json", rows, classes=["ok", "bad"])
    narrow = text.replace('"num_feature":"4"', '"num_feature":"2000000000"')
    assert narrow != text
    (tmp_path / "model.json").write_text(narrow)
    with pytest.raises((InvalidInput, CorruptData)):
        brought(tmp_path / "model.json", dataset(tmp_path / "rows", "grade"))


def test_a_regression_gives_its_values(tmp_path: Path) -> None:
    prices = dataset(tmp_path / "rows", "price")
    target = table()["price"].to_numpy()
    booster = fit_lightgbm(np.exp(target), objective="gamma")
    booster.save_model(tmp_path / "model.txt")
    found = loaded(brought(tmp_path / "model.txt", prices), tmp_path / "model")
    truth = np.asarray(booster.predict(frame()))
    np.testing.assert_allclose(found(features())["prediction"], truth, rtol=1e-6)
    filled = features()[["amount"]].fillna(0)
    skops.io.dump(LinearRegression().fit(filled, target), tmp_path / "line.skops")
    with pytest.raises(InvalidInput, match="refuses 256 rows.*NaN"):
        brought(tmp_path / "line.skops", prices)


def test_a_model_of_numbers_far_from_zero_reads_and_gives_them_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    when = 1.7e9 + rng.permutation(600)
    given = pd.DataFrame({"when": when, "x": rng.normal(size=600)})
    target = 1.7e9 + (when - 1.7e9) / 100 + given["x"]
    line = LinearRegression().fit(given, target)
    skops.io.dump(line, tmp_path / "line.skops")
    made = write_dataset(given.assign(y=target), str(tmp_path / "rows"), target="y")
    assert [column.offset > 0 for column in made.schema.columns] == [True, False, True]
    answers = loaded(brought(tmp_path / "line.skops", made), tmp_path / "model")(given)
    truth = line.predict(given)
    np.testing.assert_allclose(answers["prediction"], truth, rtol=0, atol=1e-5)
    assert np.ptp(truth) > 1


def test_numbers_at_the_very_threshold_fall_where_they_fell_in_training(tmp_path: Path) -> None:
    """Boosting of scikit-learn compares in float64, and splits at numbers of the table."""
    rng = np.random.default_rng(0)
    given = pd.DataFrame({"amount": rng.lognormal(3, 1, 600).round(2), "x": rng.normal(size=600)})
    given["x"] = given["x"].round(4)
    target = np.log(given["amount"]) + given["x"]
    model = HistGradientBoostingRegressor(max_iter=20).fit(given, target)
    narrow = model.predict(given.astype(np.float32))
    truth = model.predict(given)
    assert np.mean(np.abs(narrow - truth) > 1e-3) > 0.05
    made = write_dataset(given.assign(y=target), str(tmp_path / "rows"), target="y")
    skops.io.dump(model, tmp_path / "model.skops")
    answers = loaded(brought(tmp_path / "model.skops", made), tmp_path / "model")(given)
    np.testing.assert_allclose(answers["prediction"], truth, rtol=1e-5)
    # Of one that was fitted on arrays, too.
    model.fit(given.to_numpy(), target)
    skops.io.dump(model, tmp_path / "model.skops")
    told = {"inputs": ["amount", "x"]}
    answers = loaded(brought(tmp_path / "model.skops", made, **told), tmp_path / "model")(given)
    np.testing.assert_allclose(answers["prediction"], model.predict(given.to_numpy()), rtol=1e-5)


@pytest.mark.parametrize("number", [0.0, 12.34, -0.1, 1e-12, 16777217.0, 3e38, np.nan, -np.inf])
def test_a_number_of_seven_digits_is_what_was_written(number: float) -> None:
    layout = RawLayout(
        Schema(
            columns=(
                Column(name="x", kind="numeric"),
                Column(name="y", kind="numeric", role="target"),
            ),
            task="regression",
        )
    )
    raw = np.array([[number]], np.float32)
    kept = Block(raw, layout, (Input(name="x", decimal=True),)).in_float64()
    wanted = raw.astype(np.float64) if number == 16777217.0 else [[number]]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "double",
        [onnx.helper.make_tensor_value_info("x", 11, ["rows", 1])],
        [onnx.helper.make_tensor_value_info("y", 11, ["rows", 1])],
    )
    opset = onnx.helper.make_opsetid("", 18)
    double = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    fed = OnnxFile(double.SerializeToString()).predict(kept)
    for found in (kept.matrix, kept.frame.to_numpy(), kept.numbers("x")[:, None], fed):
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, wanted)


def test_a_column_whose_name_has_blanks_is_found_in_a_file_that_has_none(tmp_path: Path) -> None:
    given = pd.DataFrame({"net price": np.arange(8.0, dtype=np.float32), "shop": list("abab" * 2)})
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((encoder, ["shop"]), (SimpleImputer(), ["net price"]))
    model = make_pipeline(columns, LinearRegression()).fit(given, given["net price"])
    kinds: Any = [("net price", FloatTensorType([None, 1])), ("shop", StringTensorType([None, 1]))]
    made = to_onnx(model, initial_types=kinds)
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())  # pyright: ignore
    rows = write_dataset(given.assign(y=given["net price"]), str(tmp_path / "rows"), target="y")
    found = loaded(brought(tmp_path / "model.onnx", rows), tmp_path / "model")
    np.testing.assert_allclose(found(given)["prediction"], given["net price"], atol=1e-5)
    numbered = write_dataset(
        given.assign(shop=np.arange(8.0), y=given["net price"]), str(tmp_path / "n"), target="y"
    )
    with pytest.raises(InvalidInput, match=r"takes it as a category.*kinds=\{'shop'"):
        brought(tmp_path / "model.onnx", numbered)


def test_labels_that_the_model_does_not_know_count_as_missing(
    tmp_path: Path, rows: Dataset
) -> None:
    shops = features()["shop"].replace("b", None)
    known = frame().assign(shop=pd.Categorical(shops, categories=["c", "a"]))
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1},
        lightgbm.Dataset(known, labels()),
        8,
    )
    booster.save_model(tmp_path / "model.txt")
    found = brought(tmp_path / "model.txt", rows, classes=["ok", "bad"])
    assert found.notes == (
        "1 of 3 labels of 'shop' are unknown to the model and count as missing: 'b'",
    )
    answers = loaded(found, tmp_path / "model")(features())
    np.testing.assert_allclose(answers["p_bad"], np.asarray(booster.predict(known)), atol=1e-6)


def test_codes_follow_the_labels_that_the_user_lists(tmp_path: Path, rows: Dataset) -> None:
    order = ["c", "a", "b"]
    coded = features().assign(shop=features()["shop"].map(order.index))
    model = xgboost.XGBClassifier(n_estimators=8, n_jobs=1).fit(coded, labels())
    model.save_model(tmp_path / "model.json")
    told = {"classes": ["ok", "bad"]}
    with pytest.raises(InvalidInput, match=r"column 'shop'.*reads numbers; give categories="):
        brought(tmp_path / "model.json", rows, **told)
    found = brought(tmp_path / "model.json", rows, categories={"shop": order}, **told)
    answers = loaded(found, tmp_path / "model")(features())
    np.testing.assert_allclose(answers["p_bad"], model.predict_proba(coded)[:, 1], atol=1e-6)


def test_a_student_of_ours_comes_back_as_onnx(tmp_path: Path, rows: Dataset) -> None:
    spec = make_model(rows.schema, table(), network_args={"hidden": [8]}).spec.to_json()
    weights = np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["raw", "w"], ["outputs"])],
            "student",
            [onnx.helper.make_tensor_value_info("raw", 1, ["rows", 4])],
            [onnx.helper.make_tensor_value_info("outputs", 1, ["rows", 1])],
            [onnx.numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.helper.set_model_props(made, {SPEC_KEY: json.dumps(spec)})
    onnx.save(made, tmp_path / "model.onnx")
    filled = dataset(tmp_path / "rows", rows=table().fillna({"amount": 0.0}))
    found = loaded(brought(tmp_path / "model.onnx", filled), tmp_path / "model")
    raw = np.nan_to_num(raw_of(found))
    np.testing.assert_allclose(found.logits(raw), raw @ weights, rtol=1e-6)
    assert found.layout.schema.features == rows.schema.features


REFUSED = {
    "joblib": lambda path: joblib.dump(LogisticRegression(), path),
    "joblib-zlib": lambda path: joblib.dump(LogisticRegression(), path, compress=3),
    "pickle": lambda path: path.write_bytes(pickle.dumps(LogisticRegression())),
    "old-pickle": lambda path: path.write_bytes(pickle.dumps([1], protocol=0)),
    "torch": lambda path: torch.save({"a": torch.ones(1)}, path),
    "csv": lambda path: path.write_text("a,b\n1,2\n"),
    "json": lambda path: path.write_text('{"a": 1}'),
    "zip": lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"),
    "empty": lambda path: path.write_bytes(b""),
}
SAID = {"joblib", "joblib-zlib", "pickle", "old-pickle"}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_run_code_or_that_nobody_knows_are_refused(
    kind: str, tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("model.pkl" if kind == "old-pickle" else "model")
    REFUSED[kind](path)
    for module in (pickle, joblib):
        monkeypatch.setattr(module, "load", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(InvalidInput) as caught:
        brought(path, rows)
    said = str(caught.value)
    assert str(path) in said
    if kind in SAID:
        assert "pickle or joblib" in said
        assert "skops.io.dump" in said
    elif kind == "torch":
        assert "torch.save" in said
        assert "torch.onnx.export" in said
    else:
        assert "none of the formats" in said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_and_programs_of_an_old_torch_are_refused_with_what_to_write_instead(
    tmp_path: Path, rows: Dataset
) -> None:
    network = torch.nn.Linear(3, 1)
    traced: Any = torch.jit.trace(network, torch.zeros(1, 3))
    traced.save(str(tmp_path / "script.pt"))
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as old:
        old.writestr("serialized_exported_program.json", "{}")
        old.writestr("serialized_state_dict.pt", "")
    for name, said in (("script.pt", "is TorchScript"), ("model.pt2", "an older torch saves it")):
        with pytest.raises(InvalidInput, match=rf"{said}.*torch\.onnx\.export"):
            brought(tmp_path / name, rows)


def test_inputs_that_the_dataset_lacks_are_named_with_the_nearest(
    tmp_path: Path, rows: Dataset
) -> None:
    other = frame().rename(columns={"amount": "amounts", "flag": "is_new"})
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1}, lightgbm.Dataset(other, labels()), 2
    )
    booster.save_model(tmp_path / "model.txt")
    with pytest.raises(InvalidInput) as caught:
        brought(tmp_path / "model.txt", rows)
    said = str(caught.value)
    assert "'amounts'" in said
    assert "did you mean 'amount'?" in said
    assert "'is_new'" in said
    # All problems at once.
    assert "does not name its classes" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": ["ok", "bd"]}, "classes = 'bd': is no class.*did you mean 'bad'"),
        ({"classes": ["ok", "bad", "worse"]}, "classes = 'worse': is no class"),
        ({"classes": ["bad"]}, "classes = \\['ok'\\]: are classes of the dataset"),
        ({"classes": ["ok", "bad", "bad"]}, "names a class twice"),
        ({"classes": ["ok", "bad"], "output": "probability"}, "the file gives a logit"),
        ({"classes": ["ok", "bad"], "inputs": ["amount"]}, "the file names its inputs"),
        ({"classes": ["ok", "bad"], "format": "onnx"}, "the content is lightgbm"),
        ({"classes": ["ok", "bad"], "format": "onxx"}, "did you mean 'onnx'"),
        ({"categories": {"shop": ["x", "y", "z"]}}, "none of the dataset's labels"),
    ],
)
def test_what_contradicts_the_file_is_refused(
    options: dict[str, Any], said: str, tmp_path: Path, rows: Dataset
) -> None:
    (tmp_path / "model.txt").write_text(lightgbm_text())
    with pytest.raises(InvalidInput, match=said):
        brought(tmp_path / "model.txt", rows, **options)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"answer": "raise"}, "refuses 256 rows.*RuntimeError: the service is away"),
        ({"answer": "short"}, r"\[255, 1\].*numbers \[256, K\] for 256 rows"),
        ({"answer": "text"}, r"numbers \[256, K\] for 256 rows"),
        ({"answer": "nan"}, "256 of 256 rows.*NaN or infinite"),
        ({"anser": 1}, "args.anser = 1: unknown; did you mean 'answer'"),
    ],
)
def test_a_teacher_that_fails_says_how(args: dict[str, Any], said: str, tmp_path: Path) -> None:
    prices = dataset(tmp_path / "rows", "price")
    with pytest.raises(InvalidInput, match=said):
        brought("foreign_teachers:Mean", prices, args=args)


def test_a_teacher_that_answers_all_rows_alike_is_noted(tmp_path: Path) -> None:
    found = brought("foreign_teachers:Mean", dataset(tmp_path / "rows", "price"))
    assert found.notes == ("it answers all 256 rows tried alike",)


def test_scores_are_no_probabilities(tmp_path: Path, rows: Dataset) -> None:
    (tmp_path / "scale").write_text("2")
    model = to_onnx(
        LinearRegression().fit(features()[["code"]].to_numpy(np.float32), labels() * 9),
        np.zeros((1, 1), np.float32),
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())  # pyright: ignore
    told = {"inputs": ["code"], "classes": ["ok", "bad"]}
    with pytest.raises(InvalidInput, match="the file does not say; use 'logit'"):
        brought(tmp_path / "model.onnx", rows, **told)
    with pytest.raises(InvalidInput, match="no probabilities; say output='logit'"):
        brought(tmp_path / "model.onnx", rows, output="probability", **told)
    assert brought(tmp_path / "model.onnx", rows, output="logit", **told).tried == 256


def test_a_classifier_without_probabilities_is_refused(tmp_path: Path, rows: Dataset) -> None:
    skops.io.dump(LinearSVC().fit(features()[["code"]], table()["label"]), tmp_path / "model.skops")
    with pytest.raises(InvalidInput, match="CalibratedClassifierCV"):
        brought(tmp_path / "model.skops", rows)


def own_step(values: Any) -> Any:
    return values


def test_a_partial_function_is_no_better_than_its_function(tmp_path: Path, rows: Dataset) -> None:
    step = FunctionTransformer(functools.partial(np.sort, axis=0))
    steps = make_pipeline(step, LogisticRegression()).fit(features()[["code"]], table()["label"])
    skops.io.dump(steps, tmp_path / "model.skops")
    with pytest.raises(InvalidInput, match="type = 'numpy:sort'"):
        brought(tmp_path / "model.skops", rows)


def test_types_that_nobody_vouches_for_are_not_loaded(
    tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = make_pipeline(FunctionTransformer(np.sort), LogisticRegression())
    steps.fit(features()[["code"]], table()["label"])
    skops.io.dump(steps, tmp_path / "model.skops")
    with pytest.raises(InvalidInput, match=r"type = 'numpy:sort'.*KUBESTILL_TRUST=numpy"):
        brought(tmp_path / "model.skops", rows)
    monkeypatch.setenv("KUBESTILL_TRUST", "numpy")
    assert brought(tmp_path / "model.skops", rows).tried == 256


def test_the_types_that_count_as_harmless_are_what_fitted_models_hold() -> None:
    fitted = HistGradientBoostingClassifier(max_iter=2).fit([[0.0], [1.0]] * 20, [0, 1] * 20)
    forest = RandomForestClassifier(2).fit([[0.0], [1.0]], [0, 1])
    coded = HistGradientBoostingClassifier(max_iter=2).fit(frame()[["shop"]], labels())
    line = LogisticRegression()
    given = features()[["code"]]
    others = (VotingClassifier([("one", line)]), StackingClassifier([("one", line)], cv=2))
    search = GridSearchCV(line, {"C": [1.0]}, cv=2)
    others = [model.fit(given, table()["label"]) for model in (*others, search)]
    for model in (fitted, forest, coded, *others):
        assert set(skops.io.get_untrusted_types(data=skops.io.dumps(model))) <= set(HARMLESS)


def test_a_file_does_not_vouch_for_the_teacher_that_it_names(
    tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options, _ = save_python(tmp_path)
    brought(source, rows, **options).write(str(tmp_path / "model"))
    with pytest.raises(InvalidInput, match="teacher = 'foreign_teachers:Rule'.*KUBESTILL_TRUST"):
        load_model(str(tmp_path / "model"))
    monkeypatch.setenv("KUBESTILL_TYPED", "foreign_teachers")
    load_model(str(tmp_path / "model"))
    for path in ("foreign_teachers:NoTeacher", "foreign_teachers:np", "os:system"):
        with pytest.raises(InvalidInput, match="teacher = "):
            brought(path, rows)


def damages() -> dict[str, str]:
    text = lightgbm_text()
    circle = text.replace("left_child=", "left_child=0 ", 1)
    return {
        "cut": text[: len(text) // 2],
        "end": text.replace("end of trees", "end"),
        "leaves": text.replace("num_leaves=", "num_leaves=2000000", 1),
        "sizes": text.replace("tree_sizes=", "tree_sizes=9", 1),
        "features": text.replace("max_feature_idx=3", "max_feature_idx=300"),
        "children": circle,
        "linear": text.replace("is_linear=0", "is_linear=1", 1),
        "outputs": text.replace("num_tree_per_iteration=1", "num_tree_per_iteration=0"),
        "classes": text.replace("num_class=1", "num_class=1000000"),
        "objective": text.replace("objective=binary", "objective=multiclassova num_class:9 "),
        "twice": text.replace("\nleaf_value=", "\nsplit_feature=\nleaf_value=", 1),
        "names": text.replace("feature_names=", "feature_nams="),
        "text": text.replace("leaf_value=", "leaf_value=x", 1),
    }


@pytest.mark.parametrize("kind", damages())
def test_a_damaged_lightgbm_file_is_refused_before_its_library_reads_it(
    kind: str, tmp_path: Path, rows: Dataset
) -> None:
    (tmp_path / "model.txt").write_text(damages()[kind])
    with pytest.raises(CorruptData, match="no whole LightGBM model"):
        brought(tmp_path / "model.txt", rows)


def test_any_number_of_a_lightgbm_tree_may_be_wrong(tmp_path: Path, rows: Dataset) -> None:
    """Arrays that hold places are tried one value at a time: none may crash the process."""
    text = lightgbm_text()
    for name in ("split_feature", "left_child", "right_child", "decision_type", "cat_boundaries"):
        start = text.index(f"\n{name}=") + len(name) + 2
        values = text[start : text.index("\n", start)].split(" ")
        for place in {0, len(values) - 1}:
            for wrong in ("999999", "-999999"):
                changed = [*values[:place], wrong, *values[place + 1 :]]
                made = text[:start] + " ".join(changed) + text[text.index("\n", start) :]
                (tmp_path / "model.txt").write_text(made)
                with pytest.raises(CorruptData):
                    brought(tmp_path / "model.txt", rows)


def packed(**members: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("_", "."), content)
    return held.getvalue()


def array_that_claims(shape: tuple[int, ...]) -> bytes:
    held = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(held, header)
    return held.getvalue() + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        packed(schema_json=b"[" * 100_000),
        packed(schema_json=b"{}", a_npy=array_that_claims((1 << 40,))),
        packed(schema_json=b"{}", a_npy=b"\x93NUMPY\x01\x00"),
        packed(schema_json=b"{}", a_bin=bytes(80 << 20)),
        packed(schema_json=b'{"__class__": "int"}'),
    ],
    ids=["deep", "claims", "cut", "bomb", "nothing"],
)
def test_a_damaged_skops_file_takes_no_memory(
    content: bytes, tmp_path: Path, rows: Dataset
) -> None:
    (tmp_path / "model.skops").write_bytes(content)
    with pytest.raises((CorruptData, InvalidInput)):
        brought(tmp_path / "model.skops", rows)


@pytest.mark.parametrize("save", [save_xgboost, save_onnx_columns, save_skops])
def test_a_cut_file_is_corrupt(
    save: Callable[[Path], tuple[Path, dict[str, Any], Truth]], tmp_path: Path, rows: Dataset
) -> None:
    source, options, _ = save(tmp_path)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises((CorruptData, InvalidInput), match="no whole|damaged zip|cannot load"):
        brought(source, rows, **options)


def test_onnx_with_weights_elsewhere_or_a_fixed_batch_is_refused(
    tmp_path: Path, rows: Dataset
) -> None:
    source, options, _ = save_onnx_matrix(tmp_path)
    model = onnx.load(source)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(InvalidInput, match="batches of exactly 1 rows.*dynamic"):
        brought(tmp_path / "fixed.onnx", rows, **options)
    outside = onnx.TensorProto(
        name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL
    )
    outside.external_data.add(key="location", value="../../etc/passwd")
    model.graph.initializer.append(outside)
    onnx.save(model, tmp_path / "outside.onnx")
    with pytest.raises(InvalidInput, match="keeps its weights in other files"):
        brought(tmp_path / "outside.onnx", rows, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "onnx"},
        {"width": 5},
        {"order": [1, 1]},
        {"inputs": []},
        {"answers": "value"},
        {"network": {"factory": "os:system"}},
        {"schema": {"columns": []}},
        {"digest": "0" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_description_that_does_not_fit_its_file_is_corrupt(
    change: dict[str, Any], tmp_path: Path, rows: Dataset
) -> None:
    (tmp_path / "model.txt").write_text(lightgbm_text())
    found = brought(tmp_path / "model.txt", rows, classes=["ok", "bad"])
    found.write(str(tmp_path / "model"))
    place = tmp_path / "model" / "model.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    with pytest.raises((CorruptData, InvalidInput)):
        load_model(str(tmp_path / "model"))


def test_every_format_is_recognised_by_its_content(tmp_path: Path) -> None:
    found = {}
    for save in SAVERS[:-1]:
        source, _, _ = save(tmp_path)
        found[save.__name__.split("_")[1]] = recognise(source.read_bytes(), "nameless")
    assert found == {name: name for name in ("lightgbm", "xgboost", "skops", "onnx")}


def test_a_folder_with_one_file_is_that_file(tmp_path: Path, rows: Dataset) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    with pytest.raises(InvalidInput, match="no such file or folder"):
        brought(folder, rows)
    (folder / "m.txt").write_text(lightgbm_text())
    assert brought(folder, rows, classes=["ok", "bad"]).tried == 256
    (folder / "notes.md").write_text("")
    with pytest.raises(InvalidInput, match="holds 2 files; name one"):
        brought(folder, rows)
