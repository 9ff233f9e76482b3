from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.checks import check_validation
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.decode import RawLayout, decode_features, decode_target
from kubestill.runtime.steps.import_dataset import import_dataset

PARTS = ("dataset", "validation", "holdout")
PAGES = ("report", "summary")


def run(folder: Path, **options: Any) -> dict[str, LocalArtifact]:
    artifacts = {name: LocalArtifact(str(folder / name)) for name in (*PARTS, *PAGES)}
    (uri,) = import_dataset(**artifacts, **options)
    assert uri == artifacts["dataset"].uri
    return artifacts


def test_digits(tmp_path: Path) -> None:
    artifacts = run(tmp_path, source="digits")
    datasets = {name: Dataset.open(artifacts[name].uri) for name in PARTS}
    assert {name: made.rows for name, made in datasets.items()} == {
        "dataset": 1167,
        "validation": 270,
        "holdout": 360,
    }
    check_validation(datasets["dataset"], datasets["validation"])
    schema = datasets["dataset"].schema
    assert schema.column("image").shape == (8, 8)
    assert schema.classes == tuple("0123456789")
    layout = RawLayout(schema)
    raw = np.concatenate([decode_features(made, layout) for made in datasets.values()])
    assert (raw.min(), raw.max()) == (0, 1)
    assert len(np.unique(raw, axis=0)) == 1797
    shares = np.bincount(decode_target(datasets["holdout"], layout)) / 360
    assert np.all(np.abs(shares - 0.1) < 0.01)
    for name in PARTS:
        assert artifacts[name].metadata["kind"] == "dataset"
        assert artifacts[name].metadata["fingerprint"] == datasets[name].fingerprint


def test_running_twice_gives_the_same(tmp_path: Path) -> None:
    first = run(tmp_path / "a", source="digits", seed=3)
    again = run(tmp_path / "b", source="digits", seed=3.0)
    other = run(tmp_path / "c", source="digits", seed=4)
    for name in PARTS:
        assert first[name].metadata == again[name].metadata
        assert first[name].metadata["fingerprint"] != other[name].metadata["fingerprint"]


def test_a_users_table_keeps_every_row_once(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(1000.0), "y": np.arange(1000) * 0.5})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    made = run(tmp_path, source=str(tmp_path / "rows.csv"), target="y", validation_fraction=0)
    rows = [Dataset.open(made[name].uri).to_pandas()["x"] for name in PARTS]
    assert [len(part) for part in rows] == [800, 0, 200]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), frame["x"])


def test_all_problems_come_together_and_nothing_is_written(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.0, np.inf], "y": [0.5, np.nan]})
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InvalidInput) as caught:
        run(
            tmp_path,
            source=str(tmp_path / "rows.parquet"),
            target="y",
            validation_fraction=1.5,
            holdout_fraction=-1,
        )
    assert len(caught.value.problems) == 4
    assert os.listdir(tmp_path) == ["rows.parquet"]


def test_parameters_of_the_wrong_type_come_together(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, source="digits", seed=-1, features=[3], kinds={"a": 1}, target=None)
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["target", "features.0", "kinds.a", "seed"]


def test_every_problem_of_call_table_and_values_comes_at_once(tmp_path: Path) -> None:
    rows = "a,a,x,z,w\n1,2,inf,3,4\n1,2,5,inf,6\n"
    (tmp_path / "rows.csv").write_text(rows)
    with pytest.raises(InvalidInput) as caught:
        run(
            tmp_path,
            source=str(tmp_path / "rows.csv"),
            target="y",
            task="binry",
            features=["x", "xx"],
            kinds={"zz": "numeric", "w": "number"},
            validation_fraction=2,
            seed=-1,
        )
    assert {problem.field for problem in caught.value.problems} == {
        "columns",
        "target",
        "task",
        "features",
        "kinds",
        "kinds['w']",
        "column 'x'",
        "validation_fraction",
        "seed",
    }
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_a_damaged_source_hides_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(InvalidInput) as caught:
        run(
            tmp_path,
            source=str(tmp_path / "rows.parquet"),
            task="binry",
            kinds={"w": "number"},
            holdout_fraction=2,
            seed="much",
        )
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"source", "task", "kinds['w']", "holdout_fraction", "seed"}


@pytest.mark.parametrize("source", [None, 3])
def test_a_source_that_is_no_text(tmp_path: Path, source: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, source=source, seed=-1)
    assert [problem.field for problem in caught.value.problems] == ["source", "seed"]


def test_rows_to_judge_by_may_be_required(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holdout_fraction = 0.*hold some out"):
        run(tmp_path, source="digits", holdout_fraction=0, require_holdout=True)


def test_too_few_rows(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0], "y": [0.5]}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InvalidInput, match="of 1 rows is none"):
        run(tmp_path, source=str(tmp_path / "rows.parquet"), target="y")


def test_what_float32_loses_is_told_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    when = 1.7e9 + np.arange(300) * 60.0
    pd.DataFrame({"when": when, "y": np.sin(when)}).to_parquet(tmp_path / "rows.parquet")
    made = run(tmp_path, source=str(tmp_path / "rows.parquet"), target="y", task="regression")
    said = "float32 moves numbers by up to 64, 0.36% of the column's range; "
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("when "))
    assert f"numeric  feature           {said}" in line
    assert said in html.unescape(Path(made["report"].path).read_text())
    losses = Dataset.open(made["dataset"].uri).provenance["losses"]
    assert list(losses) == ["when"]
    assert losses["when"].startswith(said)
