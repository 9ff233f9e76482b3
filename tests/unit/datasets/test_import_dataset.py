from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.checks import check_validation
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.decode import RawLayout, decode_features, decode_target
from kubestill.runtime.datasets.tables import read_table
from kubestill.runtime.reports.imported import import_report
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
    with pytest.raises(InvalidInput, match="of 1 row is none"):
        run(tmp_path, source=str(tmp_path / "rows.parquet"), target="y")


def test_what_storing_loses_is_told_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    when = np.uint64(2**63) + np.arange(300, dtype=np.uint64)
    pd.DataFrame({"when": when, "y": np.sin(np.arange(300))}).to_parquet(tmp_path / "rows.parquet")
    made = run(tmp_path, source=str(tmp_path / "rows.parquet"), target="y", task="regression")
    said = "float64 moves numbers by up to 1.02e+03; "
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("when "))
    assert f"numeric  feature           {said}" in line
    assert said in html.unescape(Path(made["report"].path).read_text())
    losses = Dataset.open(made["dataset"].uri).provenance["losses"]
    assert list(losses) == ["when"]
    assert losses["when"].startswith(said)


def test_every_column_is_told_on_the_console_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame({f"x{at}": [0.5, 1.5] for at in range(100)} | {"y": [0.5, 0.25]})
    frame = frame.assign(x90=["?", "1"], when=["2023-01-01", "2023-01-02"], nowhere=None)
    frame.to_csv(tmp_path / "rows.csv", index=False, encoding="utf-16")
    options = {"validation_fraction": 0, "holdout_fraction": 0, "target": "y"}
    made = run(tmp_path, source=str(tmp_path / "rows.csv"), **options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith(
        "rows.csv is not UTF-8: read as utf-16; settings={'encoding': ...} names another"
    )
    said = "2 rows, 103 columns: 101 learned from, 1 to predict, 1 kept but not learned from."
    assert lines[-1] == said
    assert lines[0].split() == [
        *("column", "kind", "role", "missing"),
        *("what", "was", "read,", "left", "out", "or", "merged"),
    ]
    told = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:-3]}
    assert len(told) == 30, "the table is shortened"
    assert told["x90"] == "numeric feature 1 '?' is read as missing in 1 row"
    derive = "date32[day] is not a number; derive features such as hour or weekday"
    assert told["when"] == f"date32[day] ignored {derive}"
    assert told["x0"] == "numeric feature"
    assert lines[-3] == "and 73 more columns; the report lists all."
    page = html.unescape(Path(made["report"].path).read_text())
    assert all(f">{name}<" in page for name in frame.columns)
    assert said in re.sub("</?b>", "", page)
    assert "'?' is read as missing in 1 row" in Path(made["summary"].path).read_text()


def test_a_wide_table_has_one_line_for_neighbours_that_are_alike() -> None:
    columns = {f"x{at}": [1.0] for at in range(1200)} | {"x600": ["a"]}
    page, _ = import_report(read_table(pa.table(columns)), {"train": 1})
    for title in ("x0 to x599, 600 columns", "x600", "x601 to x1199, 599 columns"):
        assert f">{title}<" in page


def test_a_table_of_an_earlier_step(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("x,y\n1,0.5\n2,1.5\n3,2.5\n")
    table = LocalArtifact(str(tmp_path / "table"))
    parts = {"validation_fraction": 0, "holdout_fraction": 0, "target": "y"}
    made = run(tmp_path / "file", table=table, **parts)
    assert Dataset.open(made["dataset"].uri).rows == 3
    again = run(tmp_path / "ours", table=made["dataset"], **parts)
    assert again["dataset"].metadata == made["dataset"].metadata
    with pytest.raises(InvalidInput, match="source = 'digits': is given beside a `table`"):
        run(tmp_path / "both", table=table, source="digits", **parts)
    table.metadata["kind"] = "model"
    with pytest.raises(InvalidInput, match="this is a model; connect a dataset"):
        run(tmp_path / "model", table=table, **parts)
    (tmp_path / "table").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InvalidInput, match="is neither Parquet nor text"):
        run(tmp_path / "zip", table=LocalArtifact(str(tmp_path / "table")), **parts)


def test_settings_are_checked_together_with_the_rest(tmp_path: Path) -> None:
    settings = {"delimiter": "ab", "encoding": "latin-99", "decimals": ","}
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, source="digits", seed=-1, settings=settings)
    fields = {problem.field for problem in caught.value.problems}
    names = {"settings.delimiter", "settings.encoding", "settings.decimals"}
    assert fields == {"seed", *names}
