from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.datasets.dataset import BLOCK_ROWS, Dataset, DatasetWriter, gather
from kubestill.runtime.datasets.schema import Column, Schema

MakeRows = Callable[..., pd.DataFrame]
Write = Callable[..., Dataset]


def test_rows_come_back_as_they_were(
    tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write
) -> None:
    rows = make_rows(100)
    write(tmp_path, schema, rows)
    frame = Dataset.open(str(tmp_path)).to_pandas()
    np.testing.assert_array_equal(frame["size"], rows["size"].to_numpy(np.float32))
    np.testing.assert_array_equal(frame["serial"], rows["serial"])
    assert frame["open"].isna().equals(rows["open"].isna())
    assert frame["colour"].astype("str").tolist() == rows["colour"].astype("str").tolist()
    assert frame["note"].fillna("?").tolist() == rows["note"].fillna("?").tolist()
    assert frame["grade"].tolist() == rows["grade"].astype(str).tolist()
    present = rows["field"].notna()
    np.testing.assert_array_equal(
        np.stack(list(frame["field"][present])).reshape(-1, 2, 3),
        np.stack(list(rows["field"][present])),
    )
    assert np.isnan(np.stack(list(frame["field"][~present]))).all()


@pytest.mark.parametrize("part_rows", [1, BLOCK_ROWS, 3 * BLOCK_ROWS])
@pytest.mark.parametrize("piece", [1_000, 20_000, 50_000])
def test_blocks_and_fingerprint_do_not_depend_on_parts(
    tmp_path: Path, schema: Schema, make_rows: MakeRows, part_rows: int, piece: int
) -> None:
    rows = make_rows(2 * BLOCK_ROWS + 100)
    with DatasetWriter(str(tmp_path / "whole"), schema) as whole:
        whole.write(rows)
    with DatasetWriter(str(tmp_path / "cut"), schema, part_rows=part_rows) as cut:
        for first in range(0, len(rows), piece):
            cut.write(rows.iloc[first : first + piece])
    assert cut.dataset.blocks == whole.dataset.blocks
    assert cut.dataset.fingerprint == whole.dataset.fingerprint
    blocks = list(Dataset.open(str(tmp_path / "cut")).iter_blocks(["serial"]))
    assert [block.num_rows for block in blocks] == [BLOCK_ROWS, BLOCK_ROWS, 100]
    serial = np.concatenate([block.column("serial").to_numpy() for block in blocks])
    np.testing.assert_array_equal(serial, rows["serial"])


def test_wide_rows_make_small_row_groups(tmp_path: Path) -> None:
    wide = Schema(columns=(Column(name="x", kind="tensor", shape=(4096,)),))
    table = pa.table(
        {"x": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8_192_000 // 2)), 4096)}
    )
    with DatasetWriter(str(tmp_path), wide) as writer:
        for _ in range(3):
            writer.write(table)
    pieces = [piece.num_rows for piece in Dataset.open(str(tmp_path)).iter_tables()]
    assert max(pieces) * 4096 * 4 <= 32 << 20
    assert sum(pieces) == 3000


def test_row_groups_begin_small_and_grow_to_the_end_of_their_part(tmp_path: Path) -> None:
    narrow = Schema(columns=(Column(name="x", kind="numeric"),))
    with DatasetWriter(str(tmp_path), narrow, part_rows=85 * BLOCK_ROWS) as writer:
        writer.write(pa.table({"x": np.zeros(101 * BLOCK_ROWS, np.float32)}))
    assert [part.rows // BLOCK_ROWS for part in writer.dataset.parts] == [85, 16]
    pieces = [piece.num_rows // BLOCK_ROWS for piece in writer.dataset.iter_tables()]
    assert pieces == [2, 2, 2, 2, 2, 3, 4, 5, 6, 7, 9, 11, 14, 16, 2, 2, 2, 2, 2, 3, 3]
    for part in writer.dataset.parts:
        content = (tmp_path / part.path).read_bytes()
        assert (part.bytes, part.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("name", ["size", "open", "colour", "field", "note", "serial", "grade"])
def test_every_column_is_in_the_fingerprint(
    tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write, name: str
) -> None:
    rows = make_rows(50)
    before = write(tmp_path / "before", schema, rows)
    first, second = rows.at[20, name], rows.at[25, name]
    rows.at[20, name], rows.at[25, name] = second, first
    assert repr(first) != repr(second)
    after = write(tmp_path / "after", schema, rows)
    assert before.fingerprint != after.fingerprint


def test_missing_is_one_value_however_it_is_written(tmp_path: Path, write: Write) -> None:
    schema = Schema(columns=(Column(name="x", kind="numeric"),))
    odd = np.array([1, 0x7FC00001], np.uint32).view(np.float32)
    one = write(tmp_path / "one", schema, pd.DataFrame({"x": [np.float32(1.4e-45), None]}))
    two = write(tmp_path / "two", schema, pd.DataFrame({"x": odd}))
    assert one.fingerprint == two.fingerprint


def test_nothing_is_left_after_an_error(
    tmp_path: Path, schema: Schema, make_rows: MakeRows
) -> None:
    root = tmp_path / "data"
    with pytest.raises(RuntimeError, match="stop"), DatasetWriter(str(root), schema) as writer:  # noqa: PT012
        writer.write(make_rows(20_000))
        raise RuntimeError("stop")
    assert os.listdir(root) == []
    with pytest.raises(InvalidInput, match=r"no dataset\.json"):
        Dataset.open(str(root))


def test_a_dataset_is_replaced_whole(
    tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write
) -> None:
    write(tmp_path, schema, make_rows(3 * BLOCK_ROWS), part_rows=BLOCK_ROWS)
    write(tmp_path, schema, make_rows(10))
    assert sorted(os.listdir(tmp_path)) == ["dataset.json", "part-00000.parquet"]
    assert Dataset.open(str(tmp_path)).rows == 10


def test_an_empty_dataset_can_be_written_and_read(tmp_path: Path, schema: Schema) -> None:
    with DatasetWriter(str(tmp_path), schema):
        pass
    dataset = Dataset.open(str(tmp_path))
    assert (dataset.rows, dataset.blocks) == (0, ())
    assert dataset.to_pandas().columns.tolist() == list(schema.names)


def test_writing_no_rows_of_tensors_changes_nothing(
    tmp_path: Path, schema: Schema, make_rows: MakeRows
) -> None:
    rows = make_rows(5)
    with DatasetWriter(str(tmp_path / "one"), schema) as one:
        one.write(rows)
    with DatasetWriter(str(tmp_path / "two"), schema) as two:
        two.write(rows.iloc[:0])
        two.write(rows)
        two.write(rows.iloc[:0])
    with DatasetWriter(str(tmp_path / "none"), schema) as none:
        none.write(rows.iloc[:0])
    assert one.dataset.fingerprint == two.dataset.fingerprint
    assert none.dataset.rows == 0


def test_provenance_and_domain_are_kept(tmp_path: Path, schema: Schema) -> None:
    with DatasetWriter(str(tmp_path), schema, provenance={"by": "me"}, complete_domain=True):
        pass
    dataset = Dataset.open(str(tmp_path))
    assert dataset.provenance == {"by": "me"}
    assert dataset.complete_domain


@pytest.mark.parametrize("place", ["memory", "gcs"])
def test_datasets_live_in_stores(
    place: str, request: pytest.FixtureRequest, schema: Schema, make_rows: MakeRows, write: Write
) -> None:
    root = "memory://data/one" if place == "memory" else request.getfixturevalue("gcs").uri + "/one"
    rows = make_rows(BLOCK_ROWS + 5)
    written = write(root, schema, rows, part_rows=BLOCK_ROWS)
    dataset = Dataset.open(root)
    assert dataset.fingerprint == written.fingerprint
    np.testing.assert_array_equal(dataset.to_pandas(["serial"])["serial"], rows["serial"])
    write(root, schema, make_rows(5))
    assert Dataset.open(root).rows == 5


class TestGather:
    @pytest.mark.parametrize("first", [2 * BLOCK_ROWS, BLOCK_ROWS + 1], ids=["aligned", "ragged"])
    def test_an_index_equals_one_dataset(
        self, tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write, first: int
    ) -> None:
        rows = make_rows(3 * BLOCK_ROWS + 7)
        whole = write(tmp_path / "whole", schema, rows)
        shards = [
            write(tmp_path / "a", schema, rows.iloc[:first]),
            write(tmp_path / "b", schema, rows.iloc[first:]),
        ]
        gather(shards, str(tmp_path / "index"), provenance={})
        index = Dataset.open(str(tmp_path / "index"))
        assert index.fingerprint == whole.fingerprint
        assert os.listdir(tmp_path / "index") == ["dataset.json"]
        np.testing.assert_array_equal(index.to_pandas(["serial"])["serial"], rows["serial"])

    def test_an_aligned_index_reads_no_rows(
        self, tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write
    ) -> None:
        shard = write(tmp_path / "a", schema, make_rows(BLOCK_ROWS))
        os.remove(tmp_path / "a" / "part-00000.parquet")
        index = gather([shard, shard], str(tmp_path / "index"), provenance={})
        assert index.rows == 2 * BLOCK_ROWS

    def test_schemas_must_agree(self, tmp_path: Path, schema: Schema) -> None:
        other = Schema(columns=(Column(name="x", kind="numeric"),))
        shards: list[Dataset] = []
        for number, kind in enumerate((schema, other)):
            with DatasetWriter(str(tmp_path / str(number)), kind) as writer:
                pass
            shards.append(writer.dataset)
        with pytest.raises(InvalidInput, match="schema differs"):
            gather(shards, str(tmp_path / "index"), provenance={})

    def test_of_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="at least one"):
            gather([], str(tmp_path), provenance={})


class TestBadRows:
    def test_all_problems_come_together(
        self, tmp_path: Path, schema: Schema, make_rows: MakeRows
    ) -> None:
        rows = make_rows(20).drop(columns=["note"]).rename(columns={"size": "sice"})
        with (
            DatasetWriter(str(tmp_path), schema) as writer,
            pytest.raises(InvalidInput) as caught,
        ):
            writer.write(rows)
        found = {(problem.field, problem.value) for problem in caught.value.problems}
        assert found == {("columns", "size"), ("columns", "note"), ("columns", "sice")}
        assert "did you mean 'sice'" in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            pytest.param("size", [1.0, np.inf], "1 infinite", id="infinite feature"),
            pytest.param("size", [1.0, 1e39], "1 infinite", id="more than float32"),
            pytest.param("size", ["a", "b"], "not numbers", id="text as numbers"),
            pytest.param("open", [0, 2], "not truth values", id="2 as truth value"),
            pytest.param("colour", ["red", "green"], "'green'", id="unknown label"),
            pytest.param("field", [[1.0], [2.0]], "1 numbers a row", id="wrong shape"),
            pytest.param("field", [[1.0] * 6, [2.0]], "different lengths", id="ragged"),
            pytest.param("grade", ["1", None], "1 missing", id="missing target"),
        ],
    )
    def test_values(
        self,
        tmp_path: Path,
        schema: Schema,
        make_rows: MakeRows,
        name: str,
        values: list[object],
        message: str,
    ) -> None:
        rows = make_rows(2)
        rows[name] = pd.Series(values)
        with (
            DatasetWriter(str(tmp_path), schema) as writer,
            pytest.raises(InvalidInput, match=message),
        ):
            writer.write(rows)

    def test_duplicate_columns(self, tmp_path: Path, schema: Schema, make_rows: MakeRows) -> None:
        rows = make_rows(2)
        with (
            DatasetWriter(str(tmp_path), schema) as writer,
            pytest.raises(InvalidInput, match="more than once"),
        ):
            writer.write(pd.concat([rows, rows[["size"]]], axis=1))

    def test_unlabelled_rows_need_soft_outputs(
        self, tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write
    ) -> None:
        rows = make_rows(3).assign(grade=None, logits=[[0.0, 1.0, 2.0]] * 3)
        dataset = write(tmp_path, schema.with_soft("logits", 3), rows)
        assert dataset.to_pandas()["grade"].isna().tolist() == [True] * 3


class TestDamage:
    @pytest.fixture
    def dataset(self, tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write) -> Dataset:
        return write(tmp_path, schema, make_rows(1000))

    def test_missing_part(self, tmp_path: Path, dataset: Dataset) -> None:
        os.remove(tmp_path / "part-00000.parquet")
        with pytest.raises(CorruptData, match="is missing"):
            dataset.to_pandas()

    def test_truncated_part(self, tmp_path: Path, dataset: Dataset) -> None:
        os.truncate(tmp_path / "part-00000.parquet", 1000)
        with pytest.raises(CorruptData, match="1000 bytes"):
            dataset.to_pandas()

    def test_flipped_bit(self, tmp_path: Path, dataset: Dataset) -> None:
        path = tmp_path / "part-00000.parquet"
        content = bytearray(path.read_bytes())
        content[300] ^= 1
        path.write_bytes(content)
        with pytest.raises(CorruptData, match="cannot be read"):
            dataset.to_pandas()

    def test_manifest_that_lies(self, tmp_path: Path, dataset: Dataset) -> None:
        path = tmp_path / "dataset.json"
        form = json.loads(path.read_text())
        form["rows"] = 999
        path.write_text(json.dumps(form))
        with pytest.raises(CorruptData, match="fingerprint"):
            Dataset.open(str(tmp_path))

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "other/1"}'])
    def test_manifest_of_something_else(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(CorruptData):
            Dataset.open(str(tmp_path))

    def test_flipped_bit_in_a_store(
        self, schema: Schema, make_rows: MakeRows, write: Write
    ) -> None:
        from kubestill.runtime.stores import open_store

        write("memory://damage/one", schema, make_rows(10))
        store = open_store("memory://damage/one")
        content = bytearray(store.get("part-00000.parquet"))
        content[300] ^= 1
        store.put("part-00000.parquet", bytes(content))
        with pytest.raises(CorruptData, match="digest"):
            Dataset.open("memory://damage/one").to_pandas()


def test_unknown_columns_are_named(tmp_path: Path, schema: Schema) -> None:
    with DatasetWriter(str(tmp_path), schema) as writer:
        pass
    with pytest.raises(InvalidInput, match="did you mean 'colour'"):
        writer.dataset.to_pandas(["color"])
