"""Tables as people have them: each is read as they mean it, refused by name, or the change told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.tables import ColumnStory, UserTable, read_table

RANDOM = np.random.default_rng(0)
A = RANDOM.normal(size=200)


def read(source: Path, target: str = "t", **options: Any) -> UserTable:
    reading = Reading(**options.pop("settings", {}))
    return read_table(str(source), target=target, reading=reading, **options)


def story(table: UserTable, name: str) -> ColumnStory:
    (found,) = (story for story in table.stories if story.name == name)
    return found


def values(table: UserTable, name: str) -> list[Any]:
    return [value for piece in table.tables([name]) for value in piece.column(name).to_pylist()]


def refusal(source: Path, target: str = "t", **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(source, target, **options)
    (problem,) = caught.value.problems
    return str(problem)


def save(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def numbers(path: Path, name: str, texts: list[str], *, mark: str = ",") -> Path:
    """Write a CSV of a column of text beside whole numbers."""
    quote = '"' if mark == "," else ""
    rows = [f"{at}{mark}{at}{mark}{quote}{text}{quote}" for at, text in enumerate(texts)]
    return save(path, "\n".join([f"t{mark}x{mark}{name}", *rows, ""]))


class TestNumbers:
    def test_whole_numbers_that_float32_merges_are_named(self, tmp_path: Path) -> None:
        table = {"id": 10**9 + 10**6 * np.arange(200) + (np.arange(200) == 7), "t": A}
        table["id"][8] = table["id"][7] + 1
        pq.write_table(pa.table(table), tmp_path / "x.parquet")
        loss = story(read(tmp_path / "x.parquet"), "id").loss
        assert "1 different number becomes equal to another, as 1007000001 and 1007000002" in loss

    def test_one_question_mark_leaves_a_column_of_numbers(self, tmp_path: Path) -> None:
        path = numbers(tmp_path / "x.csv", "age", ["68.5", "?", *map(str, range(100))])
        found = read(path)
        assert found.schema.column("age").kind == "numeric"
        assert values(found, "age")[:3] == [68.5, None, 0]
        assert story(found, "age").notes == ("'?' is read as missing in 1 row",)
        assert story(found, "age").missing == 1

    def test_a_word_among_numbers_is_told_with_the_remedy(self, tmp_path: Path) -> None:
        path = numbers(tmp_path / "x.csv", "age", ["old", *map(str, range(100))])
        assert "'old' among its numbers is none" in story(read(path), "age").notes[0]
        found = read(path, settings={"null_words": ["old"]})
        assert values(found, "age")[:2] == [None, 0]
        assert "'old' in 1 row are not numbers" in refusal(path, kinds={"age": "numeric"})

    @pytest.mark.parametrize(
        ("texts", "mark", "expected", "written"),
        [
            pytest.param(["1,234", "567"], ",", [1234, 567], "thousands ','", id="thousands"),
            pytest.param(["1,234.5", "0.5"], ",", [1234.5, 0.5], "thousands ','", id="points"),
            pytest.param(["1234,5", "0,25"], ";", [1234.5, 0.25], "decimal ','", id="comma"),
            pytest.param(["1.234,5", "2"], ";", [1234.5, 2], "thousands '.'", id="german"),
            pytest.param(["1 234,5", "2"], ";", [1234.5, 2], "thousands ' '", id="french"),
            pytest.param(["1\u202f234", "2"], ",", [1234, 2], "thousands ' '", id="narrow"),
            pytest.param(["1'234.5", "2"], ",", [1234.5, 2], 'thousands "\'"', id="swiss"),
        ],
    )
    def test_separators_are_detected_and_told(
        self, tmp_path: Path, texts: list[str], mark: str, expected: list[float], written: str
    ) -> None:
        found = read(numbers(tmp_path / "x.csv", "price", texts, mark=mark))
        assert values(found, "price") == expected
        assert written in story(found, "price").notes[0]

    def test_points_beside_decimal_commas_are_between_thousands(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.csv", "t;price;people\n0;1,5;1.234\n1;2,25;25.678\n")
        assert values(read(path), "people") == [1234, 25678]
        path = save(tmp_path / "y.csv", "t;price;height\n0;1,5;1.25\n1;2,25;1.678\n")
        assert values(read(path), "height") == [1.25, 1.678]
        path = save(tmp_path / "z.csv", "t,code,height\n0,123.456.789,1.234\n1,2.345.678,1.678\n")
        assert values(read(path), "height") == [1.234, 1.678]

    def test_a_comma_that_may_mean_two_things_is_asked_about(self, tmp_path: Path) -> None:
        path = numbers(tmp_path / "x.csv", "price", ["1,234", "5,678"], mark=";")
        assert "column 'price' = 'numbers with a comma'" in refusal(path)
        found = read(path, settings={"decimal": ","})
        assert values(found, "price") == [1.234, 5.678]
        found = read(path, settings={"thousands": ",", "decimal": "."})
        assert values(found, "price") == [1234, 5678]

    def test_text_of_parquet_is_numeric_if_the_user_says_so(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"x": ["1,5", None, "2"], "t": A[:3]}), tmp_path / "x.parquet")
        path = tmp_path / "x.parquet"
        found = read(path, kinds={"x": "numeric"}, settings={"decimal": ","})
        assert values(found, "x") == [1.5, None, 2]
        assert "'1,5' in 1 row are not numbers" in refusal(path, kinds={"x": "numeric"})


class TestText:
    def test_labels_stay_as_they_stand_where_the_user_says_categorical(
        self, tmp_path: Path
    ) -> None:
        path = save(tmp_path / "x.csv", "zip,t\n01234,0.5\n1234,1\n20095,2\n")
        found = read(path, kinds={"zip": "categorical"})
        assert found.schema.column("zip").categories == ("01234", "1234", "20095")
        told = story(read(path), "zip").notes
        assert told == ("'01234' is read as 1234; kinds={'zip': 'categorical'} keeps it as text",)
        path = save(tmp_path / "y.csv", "zip,t\n01234,0.5\n1234,1\n20095a,2\n")
        assert story(read(path), "zip").notes == ()

    @pytest.mark.parametrize("header", ["city", "größe"])
    def test_latin1_is_read_and_told(self, tmp_path: Path, header: str) -> None:
        path = save(tmp_path / "x.csv", f"{header},t\nMünchen,0.5\nKöln,1\n", "latin-1")
        found = read(path)
        assert found.schema.column(header).categories == ("Köln", "München")
        assert "x.csv is not UTF-8: read as cp1252" in found.told[0]
        assert "in utf-8" in refusal(path, settings={"encoding": "utf-8"})

    def test_bytes_of_another_encoding_are_refused_by_line(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.csv", "city,t\nabc,0\n東京、,0.5\nソ,1\n", "shift-jis")
        assert "line 3 has the byte 81, which UTF-8 and cp1252 do not know" in refusal(path)
        found = read(path, settings={"encoding": "shift-jis"})
        assert values(found, "city") == ["abc", "東京、", "ソ"]

    def test_na_is_told_and_may_be_kept(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.csv", "country,t\nNA,0.5\nDE,1\nUS,2\n,3\n")
        told = story(read(path), "country")
        assert told.notes[0].startswith("'NA' is read as missing in 1 row; settings=")
        assert told.missing == 2
        assert "keeps 'NA' in 1 row as text" in refusal(path, "country")
        found = read(path, settings={"null_words": []})
        assert values(found, "country") == ["NA", "DE", "US", None]

    def test_line_breaks_in_quotes_beyond_a_block(self, tmp_path: Path) -> None:
        # Arrow's blocks are of 16 MiB: one ends within the last text of a hundred.
        notes = [f"{at % 7}\n{'x' * 200_000}" for at in range(100)]
        rows = [f'"{note}",{at / 7}\n' for at, note in enumerate(notes)]
        found = read(save(tmp_path / "x.csv", "note,t\n" + "".join(rows)))
        assert values(found, "note") == notes

    def test_too_many_labels_are_left_out_and_told(self, tmp_path: Path) -> None:
        ids = pa.array([str(at) for at in range(50_002)])
        table = pa.table({"id": ids, "x": np.zeros(50_002), "t": np.arange(50_002) / 7})
        pq.write_table(pa.concat_tables([table, table, table]), tmp_path / "x.parquet")
        told = story(read(tmp_path / "x.parquet"), "id")
        assert (told.role, told.why) == ("ignored", "50,002 labels in 150,006 rows: an identifier")
        assert "look like an identifier" in refusal(tmp_path / "x.parquet", features=["id", "x"])

    def test_yes_and_no_are_truth_values_if_the_user_says_so(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.csv", "open,t\nyes,0.5\nNo,1\n,2\n")
        assert values(read(path, kinds={"open": "boolean"}), "open") == [True, False, None]
        path = save(tmp_path / "y.csv", "open,t\nyes,0.5\nmaybe,1\n")
        assert "'maybe' are no truth values" in refusal(path, kinds={"open": "boolean"})


class TestDates:
    @pytest.mark.parametrize("days", [[20230601, 20230630], ["20230601", "20230630"]])
    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_days_as_numbers(self, tmp_path: Path, days: list[Any], ending: str) -> None:
        frame = pd.DataFrame({"day": days, "x": [1.0, 2.0], "t": [0.5, 1.5]})
        path = tmp_path / f"x.{ending}"
        frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
        found = read(path, settings={"date_formats": {"day": "%Y%m%d"}})
        assert values(found, "day") == list(pd.to_datetime(["2023-06-01", "2023-06-30"]))
        assert story(found, "day").role == "ignored"
        wrong = refusal(path, settings={"date_formats": {"day": "%d.%m.%Y"}})
        assert "'20230601', '20230630' in 2 rows is no time of the form" in wrong

    def test_numbers_that_look_like_days_are_told(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.csv", "day,t\n20230602,0.5\n20230630,1\n")
        assert "20230602 to 20230630: if these are days" in story(read(path), "day").notes[0]
        path = save(tmp_path / "y.csv", "day,x,t\n01.02.2023,0,0.5\n01.03.2023,1,1\n")
        assert "'01.02.2023' is kept as text" in story(read(path), "day").notes[0]


class TestColumns:
    @pytest.mark.parametrize("name", [None, "row"])
    def test_the_index_of_pandas_is_no_feature_unless_named(
        self, tmp_path: Path, name: str | None
    ) -> None:
        frame = pd.DataFrame({"c": A, "t": A}).sample(frac=1, random_state=0)
        frame.rename_axis(name).to_parquet(tmp_path / "x.parquet")
        index = name or "__index_level_0__"
        found = read(tmp_path / "x.parquet")
        assert [column.name for column in found.schema.features] == ["c"]
        assert story(found, index).why == "is the index of a pandas DataFrame"
        named = read(tmp_path / "x.parquet", features=["c", index])
        assert [column.name for column in named.schema.features] == ["c", index]

    def test_a_column_without_a_name_is_left_out_and_told(self, tmp_path: Path) -> None:
        pd.DataFrame({"c": A, "t": A}).to_csv(tmp_path / "x.csv")
        found = read(tmp_path / "x.csv")
        assert [story.name for story in found.stories] == ["c", "t"]
        assert "column 1 has no name, as pandas writes its index: left out" in found.told[0]

    @pytest.mark.parametrize(
        "name", ["weight", "sample_weights", "teacher_logits", "Teacher_Probabilities", "fold"]
    )
    def test_what_is_seldom_an_input_is_asked_about(self, tmp_path: Path, name: str) -> None:
        pq.write_table(pa.table({"a": A, name: A, "t": A}), tmp_path / "x.parquet")
        path = tmp_path / "x.parquet"
        assert refusal(path).startswith(f"features = {name!r}: is a")
        assert [c.name for c in read(path, ignore=[name]).schema.features] == ["a"]
        assert story(read(path, ignore=[name]), name).role == "ignored"
        assert len(read(path, kinds={name: "numeric"}).schema.features) == 2
        assert len(read(path, features=["a", name]).schema.features) == 2
        assert len(read(path, features=["a"]).schema.features) == 1
        assert read(path, name, features=["a"]).schema.target is not None

    def test_ignored_columns_are_checked(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"a": A, "b": A, "t": A}), tmp_path / "x.parquet")
        path = tmp_path / "x.parquet"
        assert "ignore = 'aa': there is no such column" in refusal(path, ignore=["aa"])
        assert "is named in `target`, too" in refusal(path, ignore=["t"])
        assert "is named in `features`, too" in refusal(path, ignore=["a"], features=["a", "b"])


class TestHive:
    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    @pytest.mark.parametrize("pattern", ["", "**/*", "store=*/*", "store=*/part*"])
    def test_folders_become_a_column(self, tmp_path: Path, ending: str, pattern: str) -> None:
        for at, store in enumerate(["007", "7", "__HIVE_DEFAULT_PARTITION__", "a%20b"]):
            folder = tmp_path / "h" / f"store={store}"
            folder.mkdir(parents=True)
            frame = pd.DataFrame({"a": [1.0, 2.0], "t": [at + 0.5, at + 0.25]})
            path = folder / f"part-0.{ending}"
            frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
        found = read(tmp_path / "h" / pattern)
        rows = dict(zip(values(found, "t"), values(found, "store"), strict=True))
        assert rows == {
            **{0.5: "007", 0.25: "007", 1.5: "7", 1.25: "7"},
            **{2.5: None, 2.25: None, 3.5: "a b", 3.25: "a b"},
        }
        assert found.schema.column("store").categories == ("007", "7", "a b")

    def test_from_a_bucket(self) -> None:
        from kubestill.runtime.stores import open_store

        for store in ("007", "7"):
            key = f"h/store={store}/part-0.csv"
            open_store("memory://hive").put(key, b"a,t\n1,0.5\n2,1.5\n")
        for source in ("memory://hive/h", "memory://hive/h/**/*.csv"):
            found = read_table(source, target="t")
            assert values(found, "store") == ["007", "007", "7", "7"]

    def test_folders_that_name_a_date_are_kept_but_not_learned_from(self, tmp_path: Path) -> None:
        for day in ("2023-06-01", "2023-06-02"):
            (tmp_path / f"day={day}").mkdir()
            save(tmp_path / f"day={day}" / "x.csv", "a,t\n1,0.5\n2,1.5\n")
        assert story(read(tmp_path), "day").why == "names a date, which later rows never share"


class TestParts:
    @pytest.mark.parametrize(
        ("one", "other", "expected"),
        [
            pytest.param(
                pa.array(["x", "y"]).dictionary_encode(),
                pa.array(["z"]),
                ["x", "y", "z"],
                id="dict",
            ),
            pytest.param(pa.array([1, 2], pa.int64()), pa.array([3], pa.uint64()), [1, 2, 3]),
            pytest.param(pa.array([True, False]), pa.array([1]), [1, 0, 1], id="bool-int"),
            pytest.param(pa.array([True, None]), pa.array([0.0]), [1, None, 0], id="bool-float"),
            pytest.param(pa.array([1]), pa.array([2.5]), [1, 2.5], id="int-float"),
            pytest.param(pa.array(["a"]), pa.array(["b"], pa.large_string()), ["a", "b"]),
            pytest.param(pa.array(["a"]), pa.array(["b"], pa.string_view()), ["a", "b"]),
            pytest.param(pa.array(["a"]), pa.array([b"b"]), ["a", "b"], id="text-bytes"),
            pytest.param(pa.array([None, None]), pa.array(["b"]), [None, None, "b"], id="null"),
            pytest.param(
                pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
                pa.array([[3.0, 4.0]]),
                [[1, 2], [3, 4]],
                id="lists",
            ),
        ],
    )
    def test_harmless_differences_are_unified(
        self, tmp_path: Path, one: pa.Array, other: pa.Array, expected: list[Any]
    ) -> None:
        for order in ((one, other), (other, one)):
            for name, array in zip("ab", order, strict=True):
                table = pa.table({"x": array, "z": A[: len(array)]})
                pq.write_table(table, tmp_path / f"{name}.parquet")
            found = read(tmp_path, target="")
            assert sorted(values(found, "x"), key=str) == sorted(expected, key=str)

    @pytest.mark.parametrize(
        ("one", "other", "message"),
        [
            pytest.param(
                [1.0], ["text"], "string in .*b.parquet.* is double in .*a.parquet", id="text"
            ),
            pytest.param([1], pa.array([2**64 - 1], pa.uint64()), "b.parquet.*uint64", id="large"),
            pytest.param([2**53 + 1], [0.5], "a.parquet.*int64, and double of", id="fraction"),
            pytest.param(
                [[1.0]], [1.0], "double in .*b.parquet.* is list<.*> in .*a.parquet", id="list"
            ),
            pytest.param(["a"], [b"\xff"], "b.parquet.*binary", id="no-text"),
        ],
    )
    def test_what_would_be_lost_is_refused_by_file_and_column(
        self, tmp_path: Path, one: Any, other: Any, message: str
    ) -> None:
        for name, values in (("a", one), ("b", other)):
            pq.write_table(pa.table({"x": values, "z": [1.0]}), tmp_path / f"{name}.parquet")
        told = refusal(tmp_path, target="")
        assert told.startswith("column 'x' = ")
        assert re.search(message, told)

    def test_text_in_one_csv_and_numbers_in_another(self, tmp_path: Path) -> None:
        save(tmp_path / "a.csv", "x,t\n1,0.5\n2,1\n")
        save(tmp_path / "b.csv", "x,t\n?,0.5\n3,1\n")
        assert values(read(tmp_path), "x") == [1, 2, None, 3]
        save(tmp_path / "b.csv", "x,t\n3a,0.5\n3,1\n")
        assert values(read(tmp_path), "x") == ["1", "2", "3a", "3"]
        save(tmp_path / "b.csv", "x,t\ntrue,0.5\nfalse,1\n")
        assert values(read(tmp_path), "x") == [1, 2, 1, 0]
