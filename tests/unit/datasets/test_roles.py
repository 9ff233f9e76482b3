"""Columns that are neither features nor the target: weights, entities, times, answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.checks import check_validation
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.decode import RawLayout, decode_soft
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.train_student import train_student

PARTS = ("dataset", "validation", "holdout")
ROWS = 200


def table(**columns: Any) -> pd.DataFrame:
    random = np.random.default_rng(0)
    x = random.normal(size=ROWS)
    return pd.DataFrame({"x": x, "y": np.where(x > 0, "yes", "no"), **columns})


def run(
    folder: Path, frame: pd.DataFrame, roles: dict[str, str], form: str = "csv", **options: Any
) -> dict[str, Dataset]:
    source = str(folder / f"rows.{form}")
    if form == "csv":
        frame.to_csv(source, index=False)
    else:
        frame.to_parquet(source)
    settings = {"roles": roles, **options.pop("settings", {})}
    names = (*PARTS, "report", "summary")
    ports = {name: LocalArtifact(str(folder / name)) for name in names}
    import_dataset(**ports, source=source, target="y", settings=settings, **options)
    return {name: Dataset.open(str(folder / name)) for name in PARTS}


def test_a_weight_is_kept_beside_every_row(tmp_path: Path) -> None:
    frame = table(weight=np.arange(ROWS) / 7)
    made = run(tmp_path, frame, {"weight": "weight"})
    assert [c.name for c in made["dataset"].schema.features] == ["x"]
    for part in made.values():
        x, weights = part.to_pandas(["x"])["x"], part.weights()
        assert weights is not None
        expected = frame.set_index(frame["x"].astype(np.float32)).loc[x, "weight"]
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_entities_stay_together(tmp_path: Path, form: str) -> None:
    customer = [f"{number:03d}" for number in np.arange(ROWS) % 40]
    made = run(tmp_path, table(customer=customer), {"customer": "group"}, form)
    held = [set(part.to_pandas(["customer"])["customer"]) for part in made.values()]
    assert set.union(*held) == set(customer)
    assert sum(map(len, held)) == 40
    check_validation(made["dataset"], made["validation"])
    with pytest.raises(InvalidInput, match="groups of 'customer' = '26 of 26'.*training rows"):
        check_validation(made["dataset"], made["dataset"])


def test_rows_without_an_entity_are_their_own(tmp_path: Path) -> None:
    customer = ["a"] * 30 + [None] * (ROWS - 30)
    made = run(tmp_path, table(customer=customer), {"customer": "group"})
    rows = {name: part.rows for name, part in made.items()}
    assert sum(rows.values()) == ROWS
    assert rows["holdout"] == pytest.approx(40, abs=30)
    check_validation(made["dataset"], made["validation"])


TIMES = {
    "dates": pd.date_range("2024-01-01", periods=ROWS).strftime("%Y-%m-%d"),
    "gaps and duplicates": pd.Timestamp("2024-01-01")
    + pd.to_timedelta(np.repeat(np.arange(ROWS // 5) ** 2, 5), unit="h"),
    "two zones": [
        stamp.tz_convert(zone).isoformat()
        for stamp, zone in zip(
            pd.date_range("2024-10-26", periods=ROWS, freq="h", tz="UTC"),
            ["Europe/Berlin", "America/New_York"] * (ROWS // 2),
            strict=True,
        )
    ],
    "numbers": np.arange(ROWS) * 1e6 + 1.7e18,
}


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_splits_are_in_the_order_of_time(tmp_path: Path, kind: str, form: str) -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    frame = table(t=TIMES[kind], place=np.arange(ROWS)).iloc[order]
    made = run(tmp_path, frame, {"t": "time"}, form)
    places = [part.to_pandas(["place"])["place"].to_numpy() for part in made.values()]
    assert places[0].max() < places[1].min()
    assert places[1].max() < places[2].min()
    assert [len(part) for part in places] == pytest.approx([130, 30, 40], abs=3)
    assert [column.name for column in made["dataset"].schema.features] == ["x", "place"]


BAD = {
    "negative weights": ({"w": -np.arange(ROWS)}, {"w": "weight"}, "weight 'w'.*negative.*-199"),
    "zero weights": ({"w": 0}, {"w": "weight"}, "weight 'w' = 'all zero'"),
    "missing weights": (
        {"w": [1, None] * 100},
        {"w": "weight"},
        "weight 'w' = '100 missing or NaN",
    ),
    "infinite weights": ({"w": np.inf}, {"w": "weight"}, "'w' = '200 infinite"),
    "words as weights": ({"w": ["much"] * ROWS}, {"w": "weight"}, "'w'.*much"),
    "two weights": ({"w": 1, "v": 1}, {"w": "weight", "v": "weight"}, "'w' and 'v' are all"),
    "no such role": ({"w": 1}, {"w": "wieght"}, "'wieght' of 'w' is no role; use weight"),
    "no such column": ({"w": 1}, {"v": "weight"}, "roles.*'v'.*no such column; known: w, x, y"),
    "the target": ({}, {"y": "group"}, "roles.*'y'.*`target`, too"),
    "missing times": (
        {"t": ["2024-01-01", None] * 100},
        {"t": "time"},
        "time 't' = '100 missing values",
    ),
    "unreadable times": (
        {"t": ["2024-01-01", "soon"] * 100},
        {"t": "time"},
        "time 't'.*100 rows whose time cannot be read.*date_formats",
    ),
    "some times with a zone": (
        {"t": ["2024-01-01T00:00:00", "2024-01-01T00:00:00+01:00"] * 100},
        {"t": "time"},
        "time 't'.*with a zone and times without",
    ),
    "one instant": ({"t": "2024-01-01"}, {"t": "time"}, "holdout_fraction.*200 rows is none"),
    "one entity": ({"g": "a"}, {"g": "group"}, "holdout_fraction.*1 group is none"),
    "outside": ({"p": 1.5}, {"p": "soft"}, r"soft 'p' = 'outside of \[0, 1\] in 200 rows, as 1.5"),
    "a gap": ({"p": [0.5, None] * 100}, {"p": "soft"}, "soft 'p' = '100 missing"),
    "no sum": (
        {"p_no": 0.5, "p_yes": 0.6},
        {"p_no": "soft", "p_yes": "soft"},
        "add up to another sum in 200 rows, as 1.1",
    ),
    "an unknown class": ({"p": 0.5}, {"p": "soft:ja"}, "roles.*'ja'.*no such class|no such class"),
    "a class without a column": (
        {"p_yes": 0.5, "q_yes": 0.5},
        {"p_yes": "soft", "q_yes": "soft"},
        "give a column for each of no, yes",
    ),
    "no class in a name": (
        {"a": 0.5, "b": 0.5},
        {"a": "soft", "b": "soft"},
        "roles.*'a'.*does not end in a class of 'y'.*soft:no",
    ),
    "the other class in a name": (
        {"p_no": 0.5},
        {"p_no": "soft"},
        "its name ends in 'no', but one column alone is of 'yes'; say which.*soft:no",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, case: str) -> None:
    columns, roles, said = BAD[case]
    with pytest.raises(InvalidInput, match=said):
        run(tmp_path, table(**columns), roles)
    assert not any((tmp_path / name).exists() for name in PARTS)


def test_lists_of_another_width_are_refused(tmp_path: Path) -> None:
    frame = table(p=[[0.2, 0.3, 0.5]] * ROWS)
    with pytest.raises(InvalidInput, match="soft 'p' = '3 numbers a row': .*2 classes: no, yes"):
        run(tmp_path, frame, {"p": "soft"}, "parquet")


@pytest.mark.parametrize(
    ("cell", "role", "values", "said"),
    [
        ({"no": 0.4, "yes": 0.6}, "soft", "probability", "soft 'p' = 'struct<.*a column for each"),
        ([0.4, 0.6], "soft:no", "probability", "a list holds all classes in their order"),
        ([0.4, 0.6], "soft", "logit", "these are probabilities, so leave it out"),
    ],
    ids=["struct", "class of a list", "probabilities"],
)
def test_answers_that_are_said_to_be_others_are_refused(
    cell: Any, role: str, values: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=said):
        run(
            tmp_path,
            table(p=[cell] * ROWS),
            {"p": role},
            "parquet",
            settings={"soft_values": values},
        )


NAMES = {
    "weight": "weight",
    "Sample_Weight": "weight",
    "class_weights": "weight",
    "teacher_logits": "soft",
    "teacher_probability": "soft",
    "soft_labels": "soft",
    "y_pred": "soft",
    "fold": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_seldom_inputs_are_asked_about(tmp_path: Path, name: str) -> None:
    frame = table(**{name: 0.5})
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, frame, {})
    said = str(caught.value)
    assert f"ignore=['{name}']" in said
    assert (f"{{'roles': {{'{name}': '{NAMES[name]}'}}}}" in said) == bool(NAMES[name])
    role = NAMES[name] or "ignored"
    assert run(tmp_path, frame, {name: role})["dataset"].schema.names[:1] == ("x",)


P = expit(np.random.default_rng(2).normal(size=ROWS))
THREE = softmax(np.random.default_rng(3).normal(size=(ROWS, 3)), axis=1)
WAYS = {
    "a probability": ({"p": P}, {"p": "soft"}, {}),
    "of the other class": ({"p": 1 - P}, {"p": "soft:no"}, {}),
    "a logit": ({"p": logit(P)}, {"p": "soft"}, {"soft_values": "logit"}),
    "its negative": ({"p": -logit(P)}, {"p": "soft:no"}, {"soft_values": "logit"}),
    "two columns": ({"p_yes": P, "p_no": 1 - P}, {"p_yes": "soft", "p_no": "soft"}, {}),
    "two logits": (
        {"a": logit(P) + 3, "b": 3.0 + 0 * P},
        {"a": "soft:yes", "b": "soft:no"},
        {"soft_values": "logit"},
    ),
    "a list": ({"p": list(np.stack([1 - P, P], axis=1))}, {"p": "soft"}, {}),
    "a list of one": ({"p": [[p] for p in P]}, {"p": "soft"}, {}),
    "a list of the other": ({"p": [[1 - p] for p in P]}, {"p": "soft:no"}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_two_classes_gives_the_same_logit(tmp_path: Path, way: str) -> None:
    columns, roles, settings = WAYS[way]
    made = run(
        tmp_path, table(**columns, place=np.arange(ROWS)), roles, "parquet", settings=settings
    )
    for part in made.values():
        found = decode_soft(part, RawLayout(part.schema))
        places = part.to_pandas(["place"])["place"].astype(int)
        np.testing.assert_allclose(found[:, 0], logit(P)[places], rtol=1e-5, atol=1e-6)
    assert "p_yes" not in made["dataset"].schema.names


@pytest.mark.parametrize("way", ["columns", "list", "logits"])
def test_columns_of_three_classes_go_by_name(tmp_path: Path, way: str) -> None:
    names = ["cat", "dog", "eel"]
    frame = table(place=np.arange(ROWS)).assign(y=np.resize(names, ROWS))
    given, settings = (np.log(THREE), {"soft_values": "logit"}) if way == "logits" else (THREE, {})
    if way == "list":
        frame, roles = frame.assign(p=list(given)), {"p": "soft"}
    else:
        order = [2, 0, 1]
        frame = frame.assign(**{f"p_{names[k]}": given[:, k] for k in order})
        roles = {f"p_{names[k]}": "soft" for k in order}
    made = run(tmp_path, frame, roles, "parquet", settings=settings)["dataset"]
    found = softmax(decode_soft(made, RawLayout(made.schema)), axis=1)
    places = made.to_pandas(["place"])["place"].astype(int)
    np.testing.assert_allclose(found, THREE[places], rtol=1e-4)


def test_probabilities_of_zero_and_one_are_learned_from(tmp_path: Path) -> None:
    made = run(tmp_path, table(p=np.resize([0, 1], ROWS)), {"p": "soft"})["dataset"]
    found = decode_soft(made, RawLayout(made.schema))
    assert np.isfinite(found).all()
    assert np.abs(found).min() > 15


@pytest.mark.parametrize("far", [0.0, 1.7e9])
def test_a_prediction_is_in_the_unit_of_the_target(far: float, tmp_path: Path) -> None:
    frame = table(p=far + P * 1000).assign(y=far + P * 1000 + 1)
    made = run(tmp_path, frame, {"p": "soft"})["dataset"]
    found = decode_soft(made, RawLayout(made.schema))[:, 0].astype(np.float64)
    np.testing.assert_allclose(
        found + 1, made.to_pandas(["y"])["y"], rtol=0 if far else 1e-5, atol=1e-3
    )


def test_a_soft_column_distils_without_a_teacher(tmp_path: Path) -> None:
    """Rows that only the teacher has answered are learned from; none of them judges."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1000, 2))
    truth = expit(x @ [2.0, -1.0])
    y = np.where(random.random(1000) < truth, "yes", "no").astype(object)
    y[:800] = None
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y, "teacher": truth})
    made = run(tmp_path, frame, {"teacher": "soft"})
    assert [part.unlabelled for part in made.values()] == [800, 0, 0]
    assert made["dataset"].rows + made["validation"].rows + made["holdout"].rows == 1000
    ports: dict[str, Any] = {
        name: LocalArtifact(str(tmp_path / "out" / name))
        for name in ("model", "ledger", "metrics", "report", "summary")
    }
    inputs: dict[str, Any] = {
        name: LocalArtifact(str(tmp_path / name), metadata={"kind": "dataset"})
        for name in ("dataset", "validation")
    }
    train_student(
        **inputs,
        **ports,
        mode="distil",
        network_args={"hidden": [16]},
        epochs=60.0,
        learning_rate=0.01,
        checkpoint_uri=str(tmp_path / "store"),
    )
    told = load_model(str(tmp_path / "out" / "model"))(frame[["a", "b"]])["p_yes"]
    hard = LogisticRegression().fit(x[800:], y[800:].astype(str)).predict_proba(x)[:, 1]
    assert np.abs(told - truth).mean() < 0.02
    assert np.abs(told - truth).mean() < np.abs(hard - truth).mean()
