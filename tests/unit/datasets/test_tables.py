from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout, decode_target
from kubestill.runtime.datasets.schema import Column
from kubestill.runtime.datasets.tables import read_table

SAVERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "parquet": lambda frame, path: frame.to_parquet(path),
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
}


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "price": [1.5, None, 3.0, 4.0],
            "count": [1, 2, 3, 70],
            "sold": [True, False, True, True],
            "city": ["Rome", None, "Oslo", "Oslo"],
            "label": ["b", "a", "b", "c"],
        }
    )


@pytest.mark.parametrize("ending", SAVERS)
def test_kinds_are_inferred(tmp_path: Path, frame: pd.DataFrame, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    SAVERS[ending](frame, path)
    table = read_table(str(path), target="label")
    assert table.rows == 4
    assert table.schema.task == "multiclass"
    assert table.schema.columns == (
        Column(name="price", kind="numeric"),
        Column(name="count", kind="numeric"),
        Column(name="sold", kind="boolean"),
        Column(name="city", kind="categorical", categories=("Oslo", "Rome")),
        Column(name="label", kind="categorical", role="target", categories=("a", "b", "c")),
    )
    with DatasetWriter(str(tmp_path / "out"), table.schema) as writer:
        for rows in table.tables():
            writer.write(rows)
    back = writer.dataset.to_pandas()
    assert back["city"].isna().tolist() == [False, True, False, False]
    np.testing.assert_array_equal(back["price"], frame["price"])


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        pytest.param(["x", "y", "x"], "binary", ("x", "y"), id="two labels"),
        pytest.param(["x", "y", "z"], "multiclass", ("x", "y", "z"), id="three labels"),
        pytest.param([True, False, True], "binary", ("false", "true"), id="truth values"),
        pytest.param([0, 1, 0], "binary", ("0", "1"), id="0 and 1"),
        pytest.param([0.0, 1.0, 1.0], "binary", ("0", "1"), id="0.0 and 1.0"),
        pytest.param([2, 10, 1], "multiclass", ("1", "2", "10"), id="few whole numbers"),
        pytest.param(range(51), "regression", (), id="many whole numbers"),
        pytest.param([0.5, 1.0, 2.0], "regression", (), id="numbers"),
        pytest.param([[1.0, 2.0]] * 3, "regression", (), id="tensor"),
    ],
)
def test_the_task_is_inferred(values: Any, task: str, classes: tuple[str, ...]) -> None:
    values = list(values)
    table = read_table(pa.table({"x": [1.0] * len(values), "y": values}), target="y")
    assert (table.schema.task, table.schema.classes) == (task, classes)


def test_the_task_can_be_said() -> None:
    table = pa.table({"x": [1.0, 2.0, 3.0], "y": [0, 1, 2]})
    assert read_table(table, target="y", task="regression").schema.task == "regression"
    table = pa.table({"x": [1.0] * 60, "y": range(60)})
    assert len(read_table(table, target="y", task="multiclass").schema.classes) == 60


def test_kinds_can_be_said() -> None:
    table = pa.table({"zone": [10, 9, None], "flag": [0, 1, None], "y": [0.1, 0.2, 0.3]})
    found = read_table(table, target="y", kinds={"zone": "categorical", "flag": "boolean"})
    assert found.schema.column("zone").categories == ("9", "10")
    assert found.schema.column("flag").kind == "boolean"


def test_features_can_be_chosen(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "rows.parquet")
    found = read_table(str(tmp_path), target="label", features=["count", "city"])
    assert [column.name for column in found.schema.features] == ["count", "city"]
    assert found.schema.column("price").role == "ignored"


def test_columns_that_nobody_learns_from_need_not_be_usable() -> None:
    table = pa.table({"x": [1.0, 2.0], "ragged": [[1.0], [1.0, 2.0]], "huge": [np.inf, 1.0]})
    found = read_table(table, features=["x"])
    assert found.schema.names == ("x", "huge")
    assert list(found.left_out) == ["ragged"]


@pytest.mark.parametrize("nested", [False, True], ids=["flat lists", "lists of lists"])
def test_lists_of_one_shape_are_tensors(nested: bool) -> None:
    cell: list[Any] = [[1.0, 2.0], [3.0, 4.0]] if nested else [1.0, 2.0]
    found = read_table(pa.table({"field": [None, cell, cell]}))
    assert found.schema.column("field").shape == ((2, 2) if nested else (2,))


def test_times_and_identifiers_are_kept_but_not_learned_from(tmp_path: Path) -> None:
    table = pa.table(
        {
            "x": [float(n) for n in range(100)],
            "when": [datetime.datetime(2024, 1, 1 + n % 28) for n in range(100)],
            "id": [f"row-{n}" for n in range(100)],
            "blob": [b"x"] * 100,
        }
    )
    found = read_table(table)
    assert [column.name for column in found.schema.features] == ["x"]
    assert set(found.left_out) == {"when", "id", "blob"}
    with DatasetWriter(str(tmp_path), found.schema) as writer:
        for rows in found.tables():
            writer.write(rows)
    kept = writer.dataset.to_table().to_pylist()
    assert kept[99]["id"] == "row-99"
    assert kept[1]["when"].startswith("2024-01-02")
    assert "blob" not in kept[0]


def test_a_wide_csv_is_looked_at_in_few_pieces(tmp_path: Path) -> None:
    # Each piece costs time for each column, so their number must not grow with the columns.
    values = np.random.default_rng(0).standard_normal((40, 3000), np.float32)
    pd.DataFrame(values).add_prefix("x").to_csv(tmp_path / "rows.csv", index=False)
    assert os.path.getsize(tmp_path / "rows.csv") > 1 << 20
    found = read_table(str(tmp_path / "rows.csv"))
    (piece,) = found.tables()
    np.testing.assert_allclose(piece.to_pandas().to_numpy(), values, rtol=1e-6)
    assert found.schema.names is found.schema.names


@pytest.mark.parametrize("pattern", ["", "*.parquet", "**/part-?.parquet"])
def test_many_files_are_one_table(tmp_path: Path, frame: pd.DataFrame, pattern: str) -> None:
    for number in range(3):
        frame.assign(count=number).to_parquet(tmp_path / f"part-{number}.parquet")
    (tmp_path / "_SUCCESS").touch()
    found = read_table(os.path.join(tmp_path, pattern), target="label")
    counts = [n for rows in found.tables(["count"]) for n in rows.column("count").to_pylist()]
    assert counts == [n for n in range(3) for _ in range(4)]


@pytest.mark.parametrize("pattern", ["in", "in/", "in/*.csv", "in/a.csv"])
def test_tables_are_read_from_stores(frame: pd.DataFrame, pattern: str) -> None:
    from kubestill.runtime.stores import open_store

    open_store("memory://tables").put("in/a.csv", frame.to_csv(index=False).encode())
    open_store("memory://tables").put("inside.csv", b"other\n1\n")
    assert read_table(f"memory://tables/{pattern}", target="label").rows == 4


def problems(source: Any, **options: Any) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        read_table(source, **options)
    return [str(problem) for problem in caught.value.problems]


class TestBadInput:
    @pytest.mark.parametrize(
        ("columns", "options", "message"),
        [
            pytest.param({"x": [1], "y": [1]}, {"target": "z"}, "no such column", id="no target"),
            pytest.param({"x": [1]}, {"features": ["xx"]}, "did you mean 'x'", id="features"),
            pytest.param({"x": [1]}, {"kinds": {"q": "numeric"}}, "kinds = 'q'", id="kinds name"),
            pytest.param({"x": [1]}, {"kinds": {"x": "number"}}, "'numeric'", id="kinds kind"),
            pytest.param({"x": [1]}, {"task": "binry"}, "did you mean 'binary'", id="task"),
            pytest.param({"x": [1]}, {"task": "binary"}, "needs a target", id="task, no target"),
            pytest.param(
                {"x": [1, 2], "y": [1, 2]},
                {"target": "y", "features": ["y"]},
                "is the target",
                id="target as feature",
            ),
            pytest.param({"x": [1, 2], "y": [0.5, None]}, {"target": "y"}, "1 missing", id="null"),
            pytest.param(
                {"x": [1, 2], "y": [0.5, np.nan]}, {"target": "y"}, "1 missing", id="NaN target"
            ),
            pytest.param(
                {"x": [1, 2], "y": [0.5, np.inf]}, {"target": "y"}, "1 infinite", id="inf target"
            ),
            pytest.param({"x": [1, 2], "y": ["a", None]}, {"target": "y"}, "1 missing", id="label"),
            pytest.param({"x": [1, 2], "y": ["a", "a"]}, {"target": "y"}, "two classes", id="one"),
            pytest.param(
                {"x": [1, 2, 3], "y": ["a", "b", "c"]},
                {"target": "y", "task": "binary"},
                "binary needs two",
                id="three in binary",
            ),
            pytest.param(
                {"x": [1, 2], "y": ["a", "b"]},
                {"target": "y", "task": "regression"},
                "needs numbers",
                id="text in regression",
            ),
            pytest.param({"x": [1.0, np.inf]}, {}, "1 infinite", id="infinite feature"),
            pytest.param({"x": [[1.0], [1.0, 2.0]]}, {}, "different lengths", id="ragged tensor"),
            pytest.param(
                {"x": ["a", "b"]}, {"kinds": {"x": "numeric"}}, "not numbers", id="text as numbers"
            ),
            pytest.param({"x": pa.array([], pa.float64())}, {}, "no rows", id="empty"),
            pytest.param({"y": [0.5]}, {"target": "y"}, "no column is left", id="only a target"),
            pytest.param(
                {"x": [datetime.date(2024, 1, 1)]}, {"features": ["x"]}, "derive numbers", id="time"
            ),
        ],
    )
    def test_tables(self, columns: dict[str, Any], options: dict[str, Any], message: str) -> None:
        assert any(message in found for found in problems(pa.table(columns), **options))

    def test_problems_of_the_values_come_together(self) -> None:
        table = pa.table({"a": [1.0, np.inf], "b": [[1.0], [1.0, 2.0]], "y": [0.5, np.nan]})
        assert len(problems(table, target="y")) == 3

    def test_problems_of_the_call_come_together(self) -> None:
        options = {"target": "z", "task": "?", "features": ["q"], "kinds": {"r": "s"}}
        assert len(problems(pa.table({"x": [1]}), **options)) == 5

    def test_wrong_names_hide_no_wrong_values(self) -> None:
        table = pa.table({"a": [1.0, np.inf], "b": [1.0, 2.0], "y": [0.5, np.nan]})
        found = problems(table, target="y", features=["a", "q"], kinds={"r": "numeric", "b": "?"})
        assert len(found) == 5
        assert any("column 'a' = '1 infinite values'" in told for told in found)
        assert any("target 'y' = '1 missing or NaN values'" in told for told in found)

    def test_wrong_features_alone_are_not_also_told_to_leave_none(self) -> None:
        assert len(problems(pa.table({"x": [1.0, np.inf]}), features=["xx"])) == 1

    @pytest.mark.parametrize("target", ["z", "x"])
    @pytest.mark.parametrize("ending", ["parquet", "csv"])
    def test_doubled_columns_hide_nothing_else(
        self, tmp_path: Path, ending: str, target: str
    ) -> None:
        columns = [pa.array([1.0, 2.0]), pa.array([3.0, 4.0]), pa.array([1.0, np.inf])]
        table = pa.Table.from_arrays(columns, names=["x", "x", "b"])
        path = str(tmp_path / f"rows.{ending}")
        if ending == "csv":
            pacsv.write_csv(table, path)
        else:
            pq.write_table(table, path)
        fields = ["columns = 'x'", *(["target = 'z'"] if target == "z" else []), "column 'b'"]
        found = problems(path, target=target)
        assert len(found) == len(fields)
        for told, field in zip(found, fields, strict=True):
            assert told.startswith(field)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            pytest.param("a.parquet", b"PAR1 and more", "as Parquet", id="not Parquet"),
            pytest.param("a.parquet", b"", "as Parquet", id="empty Parquet"),
            pytest.param("a.csv", b"", "as CSV", id="empty CSV"),
            pytest.param("a.csv", b"x,y\n1,2\n1\n", "as CSV", id="ragged CSV"),
            pytest.param("a.csv", b"x,x\n1,2\n", "more than once", id="duplicate columns"),
            pytest.param("a.xlsx", b"x", "unknown file type", id="unknown type"),
            pytest.param("b/a.txt", b"x", "is no file", id="folder without data"),
        ],
    )
    def test_files(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        source = path if "/" not in name else path.parent
        assert message in problems(str(source))[0]

    def test_truncated_parquet(self, tmp_path: Path, frame: pd.DataFrame) -> None:
        for name in ("a", "b", "c"):
            frame.to_parquet(tmp_path / f"{name}.parquet")
        for name in ("a", "c"):
            os.truncate(tmp_path / f"{name}.parquet", 500)
        assert len(problems(str(tmp_path))) == 2

    def test_damaged_pages(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"x": np.random.default_rng(0).normal(size=10_000)}), path)
        content = bytearray(path.read_bytes())
        content[:2000] = bytes(2000)
        path.write_bytes(content)
        assert "a.parquet" in problems(str(path))[0]

    def test_files_that_contradict_each_other(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"x": [1.0]}), tmp_path / "a.parquet")
        pq.write_table(pa.table({"x": ["text"]}), tmp_path / "b.parquet")
        assert "contradict" in problems(str(tmp_path))[0]

    def test_mixed_types(self, tmp_path: Path, frame: pd.DataFrame) -> None:
        frame.to_parquet(tmp_path / "a.parquet")
        frame.to_csv(tmp_path / "b.csv")
        assert "one type at a time" in problems(str(tmp_path))[0]

    @pytest.mark.parametrize("source", ["", "nowhere.csv", "no*where.csv", "memory://no/where.csv"])
    def test_nothing_there(self, source: str) -> None:
        assert len(problems(source)) == 1


NANOSECONDS = 1_700_000_000 * 10**9 + np.arange(1000) * 7 * 86_400 * 10**9 // 1000
"""A week of moments; float32 tells 2^37 nanoseconds apart, a bit more than two minutes."""


def test_numbers_that_float32_would_merge_are_kept_less_what_they_have_in_common() -> None:
    table = pa.table(
        {
            "when": NANOSECONDS,
            "price": np.linspace(0.1, 0.9, 1000),
            "constant": np.full(1000, 0.1),
            "large": np.linspace(-1e30, 1e30, 1000),
            "missing": pa.array([None, 1.7e9] * 500),
            "field": [[101_325 + n / 1e3, 101_325.5] for n in range(1000)],
            "y": np.arange(1000.0),
        }
    )
    found = read_table(table, target="y")
    assert found.losses == {}
    offsets = {column.name: column.offset for column in found.schema.columns if column.exact}
    assert offsets == {
        "when": pytest.approx((NANOSECONDS[0] + NANOSECONDS[-1]) / 2, rel=1e-12),
        "field": pytest.approx(101_325.5, abs=0.02),
    }
    (note,) = next(story.notes for story in found.stories if story.name == "field")
    assert note == f"kept in float64, and learned from less {offsets['field']:.9g}"


APART = np.concatenate([10**9 + np.arange(300), 3 * 10**9 + np.arange(300)])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param(
            np.uint64(2**63) + np.arange(300, dtype=np.uint64),
            "float64 moves numbers by up to 1.02e+03; 299 different numbers become equal to "
            "others, as 9223372036854775808 and 9223372036854775809",
            id="beyond float64",
        ),
        pytest.param(
            APART,
            "float32 moves numbers by up to 31.5; 590 different numbers become equal to others, as "
            "1000000000 and 1000000001",
            id="near each other and far apart",
        ),
    ],
)
def test_what_is_still_lost_is_named_or_refused(values: Any, said: str) -> None:
    table = pa.table({"x": values, "y": np.arange(len(values), dtype=float)})
    assert read_table(table, target="y").losses["x"].startswith(said)
    if "float64" in said:
        with pytest.raises(InvalidInput, match="target 'x'.*float64 moves numbers"):
            read_table(table, target="x", task="regression")
    # As classes they are text, of which nothing is lost.
    assert read_table(table, target="x", task="multiclass").losses == {}


@pytest.mark.parametrize(
    "y",
    [
        pytest.param(1.7e9 + np.arange(512) / 2, id="steps"),
        pytest.param(1.7e9 + np.arange(512) / 1e3, id="one-step"),
        pytest.param(2**40 + np.arange(512), id="whole-numbers"),
        pytest.param(np.arange(512) / 10, id="decimals"),
        pytest.param([[1e6 + n / 16, 1e6] for n in range(512)], id="tensors"),
    ],
)
def test_a_target_is_kept_as_it_is(tmp_path: Path, y: Any) -> None:
    found = read_table(pa.table({"x": np.arange(512.0), "y": y}), target="y", task="regression")
    with DatasetWriter(str(tmp_path / "made"), found.schema) as writer:
        for piece in found.tables():
            writer.write(piece)
    dataset = Dataset.open(str(tmp_path / "made"))
    layout = RawLayout(dataset.schema)
    np.testing.assert_array_equal(decode_target(dataset, layout), np.reshape(y, (512, -1)))
    stored = np.stack(dataset.to_table(["y"])["y"].to_pylist())
    np.testing.assert_array_equal(stored, y)
