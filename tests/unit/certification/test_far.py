"""Inputs so far from zero that float32 would merge them: seconds since 1970."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from certified_parts import SYSTEMS, examine, make_dataset, make_model, system
from certified_systems import NOON

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.systems import Continuous, Domain, Integer, Levels, load_system


def imported(folder: Path, frame: pd.DataFrame) -> LocalArtifact:
    """Import rows as a user does who has them from elsewhere."""
    frame.to_parquet(folder / "rows.parquet")
    names = ("dataset", "validation", "holdout", "report", "summary")
    parts = {name: LocalArtifact(str(folder / name)) for name in names}
    fractions = {"validation_fraction": 0.0, "holdout_fraction": 0.0}
    import_dataset(**parts, source=str(folder / "rows.parquet"), target="z", **fractions)  # pyright: ignore
    return parts["dataset"]


def rows_of(name: str, count: int = 3000) -> pd.DataFrame:
    """Return rows of a system that somebody else drew, in full float64 or all there are."""
    solver = system(name)
    if solver.domain.grid_rows is not None:
        points = solver.domain.points(rows=solver.domain.grid_rows)
        frame = solver.domain.grid(np.arange(solver.domain.grid_rows), points)
    else:
        unit = np.random.default_rng(0).random((count, 2))
        frame = pd.DataFrame({"t": NOON + 86_400 * unit[:, 0], "x": unit[:, 1]})
    return frame.assign(z=solver.solve(frame))


@pytest.mark.parametrize("source", ["imported", "generated"])
@pytest.mark.parametrize(
    ("name", "assurance"),
    [("Day", "sampled"), ("Day", "proven"), ("Hours", "enumerated"), ("Ticks", "enumerated")],
)
def test_each_assurance_holds_far_from_zero(
    tmp_path: Path, name: str, assurance: str, source: str
) -> None:
    """The line is exact: any number that is merged on the way shows as an error."""
    if source == "generated":
        dataset = make_dataset(tmp_path / "rows", system(name), method="sobol", points=None)
        if assurance == "enumerated":
            dataset = make_dataset(tmp_path / "all", system(name), points=None)
    else:
        dataset = imported(tmp_path, rows_of(name))
    assert Dataset.open(dataset.path).schema.column("t").offset
    model = make_model(tmp_path / "model", dataset, "linear")
    given = {"system": f"{SYSTEMS}:{name}", "assurance": assurance, "tolerance": 1e-5}
    made = examine(model, dataset, **given, proof_seconds=5.0)
    assert made["verdict"] == f"certified: {assurance}", made["reason"]
    assert made["worst"]["error"] < 1e-5
    # What was compared is told apart in its own unit.
    assert NOON <= made["worst"]["inputs"]["t"] <= NOON + 86_400


@pytest.mark.parametrize(
    ("name", "value", "allowed", "shown"),
    [
        ("Day", NOON + 86_401.5, "1700000000 to 1700086400", "1700086401.5"),
        ("Hours", NOON + 3601, "25 values", "1700003601"),
        ("Ticks", NOON + 200, "1700000007 to 1700000106", "1700000200"),
    ],
)
def test_rows_outside_of_a_far_domain_are_named_in_its_unit(
    tmp_path: Path, name: str, value: float, allowed: str, shown: str
) -> None:
    frame = rows_of(name)
    frame.loc[7, "t"] = value
    frame["z"] = system(name).solve(frame)
    dataset = imported(tmp_path, frame)
    model = make_model(tmp_path / "model", dataset, "linear")
    made = examine(model, dataset, system=f"{SYSTEMS}:{name}")
    assert made["failed"] == {"outside"}, made["reason"]
    (condition,) = (one for one in made["conditions"] if one.get("code") == "outside")
    assert condition["said"] == f"1 rows have t outside of {allowed}, such as {shown}."


@pytest.mark.parametrize("kind", ["table", "interpolated-table"])
def test_a_table_by_the_second_keeps_its_rows_apart(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clock.parquet"
    rows = pd.DataFrame({"t": NOON + np.arange(40.0), "z": np.arange(40.0) % 7})
    rows.to_parquet(path)
    found = load_system(kind, {"source": str(path), "target": "z"})
    inputs = rows.drop(columns="z")
    assert np.array_equal(found.solve(inputs), rows["z"].to_numpy())
    inside = found.domain.at(np.random.default_rng(0).random((2000, 1)))
    assert len(np.unique(inside["t"].to_numpy())) == (40 if kind == "table" else 2000)
    exact = np.interp(
        inside["t"].to_numpy(np.float64), rows["t"].to_numpy(np.float64), rows["z"].to_numpy(float)
    )
    assert float(np.abs(found.solve(inside) - exact).max()) < 1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Integer(name="t", low=0, high=1 << 26), r"tells 2\^25 whole numbers in a row apart"),
        (Levels(name="t", values=(0.0, 1.7e9, 1.7e9 + 1)), "each once and apart in float32"),
    ],
    ids=["integers", "levels"],
)
def test_what_models_could_not_tell_apart_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Domain([given])


@pytest.mark.parametrize("mapping", ["linear", "log", "normal", "exponential"])
def test_values_of_a_far_input_stay_inside_and_apart(mapping: Any) -> None:
    bounds: dict[str, Any] = {"low": NOON, "high": NOON + 0.1}
    if mapping == "normal":
        bounds = {"centre": NOON, "spread": 0.1}
    elif mapping == "exponential":
        bounds = {"low": NOON, "spread": 0.1}
    given = Continuous(name="t", mapping=mapping, **bounds)
    values = given.at(np.linspace(1e-6, 1 - 1e-6, 20_000)[:, None])
    assert len(np.unique(values)) > 19_000
    assert given.contains(values).all()
    # A model reads what the dataset holds, less the offset, without moving it any further.
    read = (values - given.offset).astype(np.float32).astype(np.float64) + given.offset
    assert np.abs(read - values).max() <= 2 * np.spacing(NOON)


def test_levels_are_answered_where_the_user_put_them(tmp_path: Path) -> None:
    """0.1 is no float32: an error is that at a tenth, not at the number that a model reads."""
    rows = make_dataset(tmp_path / "rows", system("Steep"), points=None)
    assert Dataset.open(rows.path).to_pandas()["x"].unique().tolist() == [0.1, 0.3, 0.7]
    model = make_model(tmp_path / "model", rows, "Constant")
    made = examine(model, rows, assurance="enumerated")
    solver = system("Steep")
    grid = solver.domain.grid(np.arange(3), {"x": 3})
    told = load_model(model.path).logits(grid.to_numpy(np.float32))[:, 0].astype(np.float64)
    errors = np.abs(told - solver.solve(pd.DataFrame({"x": [0.1, 0.3, 0.7]})))
    assert made["errors"]["data"]["max"] == errors.max()
    worst = made["worst"]
    assert worst["inputs"]["x"] == [0.1, 0.3, 0.7][int(errors.argmax())]
    assert abs(worst["solution"] - worst["surrogate"]) == worst["error"] == errors.max()
