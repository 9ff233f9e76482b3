"""Tables as systems: one solved here, and a user's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.generation.systems import load_system
from kubestill.runtime.generation.systems.collision_avoidance import ADVISORIES, CollisionAvoidance
from kubestill.runtime.steps.generate_synthetic import generate_synthetic

SMALL: dict[str, Any] = {"distances": 12, "angles": 9, "horizon": 6}


@pytest.fixture(scope="module")
def policy() -> CollisionAvoidance:
    return CollisionAvoidance(**SMALL)


def test_the_policy_turns_away_only_where_it_must(policy: CollisionAvoidance) -> None:
    rows: Any = policy.domain.grid(
        np.arange(policy.domain.grid_rows or 0), policy.domain.points(rows=1)
    )
    action = policy.solve(rows)
    assert set(action) <= set(ADVISORIES)
    far = (rows["distance"] > 6000).to_numpy()
    assert (action[far & (rows["advisory"] == "clear").to_numpy()] == "clear").all()
    near = (rows["distance"] < 3000).to_numpy() & (rows["seconds"] == 5).to_numpy()
    assert (action[near] != "clear").mean() > 0.05


def test_the_table_is_consistent_with_its_own_equation(policy: CollisionAvoidance) -> None:
    """Q falls by the cost of an advisory alone: expectation of the next value does not know it."""
    q = policy.q_table
    assert q.shape == (7, 5, 12, 9, 9, 5)
    assert q.dtype == np.float32
    assert q.max() <= 0
    assert q.min() >= -1.2
    np.testing.assert_allclose(q[3, 0, ..., 1] - q[3, 1, ..., 1], -0.001, atol=1e-6)
    np.testing.assert_allclose(q[3, 1, ..., 2] - q[3, 0, ..., 2], -0.007, atol=1e-6)


def test_left_and_right_mirror_each_other(policy: CollisionAvoidance) -> None:
    q = policy.q_table
    mirrored = q[:, [0, 2, 1, 4, 3]][..., ::-1, ::-1, :][..., [0, 2, 1, 4, 3]]
    # Bearing and heading of -180 and 180 degrees are one direction but two points of the table.
    inner = (slice(None), slice(None), slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(q[inner], mirrored[inner], atol=2e-3)


def test_its_values_are_the_table(policy: CollisionAvoidance) -> None:
    values = CollisionAvoidance(output="values", **SMALL)
    rows = values.domain.grid(np.array([0, 777, 5000]), values.domain.points(rows=1))
    flat = policy.q_table.reshape(-1, 5)
    np.testing.assert_array_equal(values.solve(rows), flat[[0, 777, 5000]].astype(np.float64))


@pytest.fixture
def prices(tmp_path: Path) -> str:
    path = tmp_path / "prices.csv"
    frame = pd.DataFrame(
        {
            "weight": [1.0, 2.5, 1.0, 2.5, 1.0],
            "zone": ["a", "a", "b", "b", "a"],
            "price": [3.5, 4.0, 5.25, 7.0, 3.5],
        }
    )
    frame.to_csv(path, index=False)
    return str(path)


def test_a_users_table_is_its_own_domain(prices: str, tmp_path: Path) -> None:
    out = LocalArtifact(str(tmp_path / "out"))
    args = {"source": prices, "target": "price"}
    generate_synthetic(dataset=out, system="table", system_args=args)
    made = Dataset.open(out.path)
    rows: Any = made.to_pandas()
    assert made.complete_domain
    assert rows["price"].tolist() == [3.5, 4.0, 5.25, 7.0]
    system = load_system("table", args)
    assert system.domain.contains(rows[["weight", "zone"]]).all()
    stranger = pd.DataFrame({"weight": [1.0, 9.0], "zone": ["b", "a"]})
    assert system.domain.contains(stranger).tolist() == [True, False]
    with pytest.raises(InvalidInput, match="1 rows are not in it"):
        system.solve(stranger)


def test_a_table_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    """So far from its other inputs, two are one in float32; by themselves they are read apart."""
    path = tmp_path / "noisy.parquet"
    rows = pd.DataFrame({"x": [0.0, 1.0, 1.0 + 1e-9], "y": [0.0, 1.0, 2.0]})
    rows.to_parquet(path)
    with pytest.raises(InvalidInput, match="rows 1 and 2 say"):
        load_system("table", {"source": str(path), "target": "y"})
    rows.iloc[1:].to_parquet(path)
    table = load_system("table", {"source": str(path), "target": "y"})
    assert table.solve(rows.iloc[1:]).tolist() == [1.0, 2.0]


def test_a_table_has_no_coarser_grid(prices: str) -> None:
    system = load_system("table", {"source": prices, "target": "price"})
    with pytest.raises(InvalidInput, match="leave `points` out"):
        system.domain.points(3, rows=2)


@pytest.mark.parametrize("width", [1, 2], ids=["numbers", "tensors"])
def test_a_table_answers_with_its_own_numbers_not_with_what_a_dataset_holds(
    tmp_path: Path, width: int
) -> None:
    exact = 1.7e9 + np.arange(200) * 40.5
    cells = exact if width == 1 else [[value, -value] for value in exact]
    path = tmp_path / "exact.parquet"
    pd.DataFrame({"key": np.arange(200.0), "y": cells}).to_parquet(path)
    system = load_system("table", {"source": str(path), "target": "y"})
    solved = system.solve(pd.DataFrame({"key": np.arange(200.0, dtype=np.float32)}))
    assert solved.reshape(200, -1)[:, 0].tolist() == exact.tolist()


def test_targets_that_differ_beyond_float32_contradict_each_other(tmp_path: Path) -> None:
    path = tmp_path / "close.parquet"
    pd.DataFrame({"x": [1.0, 1.0, 2.0], "y": [1.7e9, 1.7e9 + 0.5, 0.0]}).to_parquet(path)
    with pytest.raises(InvalidInput, match="rows 0 and 1 say 1700000000.0 and 1700000000.5"):
        load_system("table", {"source": str(path), "target": "y"})


def test_a_table_far_from_zero_is_covered_with_its_own_numbers(tmp_path: Path) -> None:
    path, exact = tmp_path / "step.parquet", 1.7e9 + np.arange(512) / 2
    pd.DataFrame({"key": np.arange(512.0), "y": exact}).to_parquet(path)
    made = LocalArtifact(str(tmp_path / "made"))
    source = {"source": str(path), "target": "y"}
    generate_synthetic(dataset=made, system="table", system_args=source)
    dataset = Dataset.open(made.path)
    assert dataset.schema == load_system("table", source).schema
    assert dataset.to_pandas(["y"])["y"].tolist() == exact.tolist()
