from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.columns import MISSING, UNSEEN, label_codes
from kubestill.runtime.datasets.dataset import BLOCK_ROWS, Dataset
from kubestill.runtime.datasets.decode import (
    RawLayout,
    decode_features,
    decode_soft,
    decode_target,
    stream_decoded,
)
from kubestill.runtime.datasets.schema import Column, Schema

MakeRows = Callable[..., pd.DataFrame]
Write = Callable[..., Dataset]


def expected(rows: pd.DataFrame) -> np.ndarray:
    """The raw matrix, built the slow way."""
    codes = {"blue": 0.0, "red": 1.0}
    raw: list[list[float]] = []
    for row in rows.to_dict("records"):
        field = np.full(6, np.nan) if row["field"] is None else np.ravel(row["field"])
        numbers = [np.nan if pd.isna(row[name]) else float(row[name]) for name in ("size", "open")]
        raw.append([*numbers, codes.get(row["colour"], np.nan), *field])
    return np.array(raw, np.float32)


def test_layout_places_every_feature(schema: Schema) -> None:
    layout = RawLayout(schema)
    assert layout.width == 9
    assert layout.slices == {
        "size": slice(0, 1),
        "open": slice(1, 2),
        "colour": slice(2, 3),
        "field": slice(3, 9),
    }


def test_the_same_matrix_from_every_form(
    tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write
) -> None:
    rows = make_rows(BLOCK_ROWS + 1000)
    dataset = write(tmp_path, schema, rows, part_rows=BLOCK_ROWS)
    layout = RawLayout(schema)
    raw = decode_features(dataset, layout)
    assert raw.flags.c_contiguous
    assert raw.dtype == np.float32
    np.testing.assert_array_equal(raw, expected(rows))
    np.testing.assert_array_equal(raw, decode_features(rows, layout))
    np.testing.assert_array_equal(raw, decode_features(dataset.to_table(), layout))


def test_targets_are_class_indices(tmp_path: Path, schema: Schema, make_rows: MakeRows) -> None:
    rows = make_rows(3).assign(grade=[10, None, 1])
    np.testing.assert_array_equal(decode_target(rows, RawLayout(schema)), [2, -1, 0])


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        pytest.param([True, False], [1, 0], id="truth values"),
        pytest.param(["true", "false"], [1, 0], id="text"),
        pytest.param(pd.Categorical(["true", None]), [1, -1], id="pandas categorical"),
    ],
)
def test_labels_are_matched_as_text(values: object, codes: list[int]) -> None:
    schema = Schema(
        columns=(
            Column(name="x", kind="numeric"),
            Column(name="y", kind="categorical", role="target", categories=("false", "true")),
        ),
        task="binary",
    )
    rows = pd.DataFrame({"x": [0, 1], "y": values})
    np.testing.assert_array_equal(decode_target(rows, RawLayout(schema)), codes)


def test_regression_targets_and_soft_outputs(tmp_path: Path, write: Write) -> None:
    schema = Schema(
        columns=(
            Column(name="x", kind="numeric"),
            Column(name="y", kind="tensor", role="target", shape=(2,)),
            Column(name="soft", kind="tensor", role="soft", shape=(2,)),
        ),
        task="regression",
    )
    rows = pd.DataFrame({"x": [0, 1], "y": [[1, 2], None], "soft": [[3, 4], [5, 6]]})
    dataset = write(tmp_path, schema, rows)
    layout = RawLayout(schema)
    np.testing.assert_array_equal(decode_target(dataset, layout), [[1, 2], [np.nan, np.nan]])
    np.testing.assert_array_equal(decode_soft(dataset, layout), [[3, 4], [5, 6]])


def test_the_models_categories_decide(tmp_path: Path, write: Write) -> None:
    def schema(*labels: str) -> Schema:
        return Schema(columns=(Column(name="c", kind="categorical", categories=labels),))

    fresh = write(tmp_path, schema("green", "red"), pd.DataFrame({"c": ["red", "green", None]}))
    raw = decode_features(fresh, RawLayout(schema("blue", "red")))
    # "green" is a label that the model does not know; what is missing is told from it.
    np.testing.assert_array_equal(raw[:, 0], [1, -1, np.nan])


def test_reading_leaves_the_table_alone(schema: Schema, make_rows: MakeRows) -> None:
    rows = make_rows(10)
    before = rows.copy(deep=True)
    raw = decode_features(rows, RawLayout(schema))
    raw[:] = 0
    pd.testing.assert_frame_equal(rows, before)


def test_streaming_gives_every_row_once(
    tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write
) -> None:
    dataset = write(tmp_path, schema, make_rows(3 * BLOCK_ROWS), part_rows=BLOCK_ROWS)
    layout = RawLayout(schema)
    seen = np.full((dataset.rows, layout.width), -1, np.float32)
    stream_decoded(
        dataset,
        layout,
        ("raw",),
        lambda first, got: seen[first:].__setitem__(slice(len(got["raw"])), got["raw"]),
    )
    np.testing.assert_array_equal(seen, decode_features(dataset, layout))


class TestBadInput:
    def test_missing_columns_come_together(self, schema: Schema, make_rows: MakeRows) -> None:
        with pytest.raises(InvalidInput) as caught:
            decode_features(make_rows(2).drop(columns=["size", "open"]), RawLayout(schema))
        assert [problem.value for problem in caught.value.problems] == ["size", "open"]

    def test_values_that_do_not_fit_come_together(
        self, schema: Schema, make_rows: MakeRows
    ) -> None:
        rows = make_rows(2).assign(size=["a", "b"], open=[3, 4])
        with pytest.raises(InvalidInput) as caught:
            decode_features(rows, RawLayout(schema))
        fields = {problem.field for problem in caught.value.problems}
        assert fields == {"column 'size'", "column 'open'"}

    def test_a_class_the_model_does_not_know(self, schema: Schema, make_rows: MakeRows) -> None:
        with pytest.raises(InvalidInput, match=r"\['7'\]"):
            decode_target(make_rows(2).assign(grade=[7, 1]), RawLayout(schema))

    def test_duplicate_columns(self, schema: Schema, make_rows: MakeRows) -> None:
        rows = make_rows(2)
        with pytest.raises(InvalidInput, match="more than once"):
            decode_features(pd.concat([rows, rows[["size"]]], axis=1), RawLayout(schema))

    def test_a_dataset_of_another_kind(self, tmp_path: Path, write: Write) -> None:
        text = Schema(columns=(Column(name="x", kind="categorical", categories=("a",)),))
        dataset = write(tmp_path, text, pd.DataFrame({"x": ["a"]}))
        layout = RawLayout(Schema(columns=(Column(name="x", kind="numeric"),)))
        with pytest.raises(InvalidInput, match="the model reads numeric"):
            decode_features(dataset, layout)

    def test_no_target(self) -> None:
        layout = RawLayout(Schema(columns=(Column(name="x", kind="numeric"),)))
        with pytest.raises(InvalidInput, match="no column with the role 'target'"):
            decode_target(pa.table({"x": [1.0]}), layout)

    def test_no_feature(self) -> None:
        ignored = Schema(columns=(Column(name="x", kind="numeric", role="ignored"),))
        with pytest.raises(InvalidInput, match="at least one column"):
            RawLayout(ignored)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_labels_become_their_places_whatever_type_they_have(kind: pa.DataType):
    labels = ["b", None, "x", "a", "", "b"]
    for texts, codes in (labels, [1, MISSING, UNSEEN, 0, 2, 1]), (["a", "b"], [0, 1]), ([], []):
        for values in (pa.array(texts, kind), pa.chunked_array([pa.array(texts, kind)] * 2)):
            found = label_codes(values, ("a", "b", ""))
            assert found.dtype == np.int32
            assert found.tolist() == codes * (1 + isinstance(values, pa.ChunkedArray))
