"""Rows in every form that an application holds, and value by value as column by column."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from model_samples import (  # pyright: ignore[reportMissingImports]
    TARGETS,
    image_schema,
    images,
    make_model,
    mixed_frame,
    mixed_schema,
)

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.rows import FEW_ROWS, FewRows, RowReader

TASKS = ["binary", "multiclass", "regression", "vector"]


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Give the rows as a JSON reader would: Python's own values, None where missing."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame.columns[::-1]].assign(note="x")


FORMS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "frame": shuffled,
    "objects": lambda frame: frame.astype(object),
    "array": lambda frame: frame.to_numpy(dtype=object),
    "table": lambda frame: pa.Table.from_pandas(shuffled(frame)),
    "batch": lambda frame: pa.RecordBatch.from_pandas(shuffled(frame)),
    "rows": lambda frame: plain(shuffled(frame)),
    "tuple": lambda frame: tuple(plain(frame)),
    "lists": lambda frame: {str(name): list(frame[name]) for name in frame.columns[::-1]},
    "arrays": lambda frame: {str(name): frame[name].to_numpy() for name in frame},
    "series": lambda frame: {str(name): frame[name] for name in frame},
}


def as_frame(answer: Any, index: pd.Index) -> pd.DataFrame:
    if isinstance(answer, pa.Table):
        answer = answer.to_pandas()
    return pd.DataFrame(answer).set_index(index)


@cache
def predictor_of(task: str) -> Predictor:
    return Predictor(make_model(mixed_schema(task), mixed_frame()))


@pytest.mark.parametrize(
    ("task", "rows"),
    [*product(["multiclass"], [0, 1, FEW_ROWS + 1]), *product(TASKS, [2])],
)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gets_the_same_answers(task: str, form: str, rows: int) -> None:
    predictor = predictor_of(task)
    whole = mixed_frame()
    frame = whole.iloc[30 : 30 + rows]
    given = FORMS[form](frame)
    raw, _ = predictor._reader.read(given)
    np.testing.assert_array_equal(raw, decode_features(whole, predictor.layout)[frame.index])
    answer = predictor(given)
    kinds = {"frame": pd.DataFrame, "table": pa.Table, "rows": list, "lists": dict}
    assert isinstance(answer, kinds.get(form, object))
    found = as_frame(answer, frame.index)
    if rows:
        assert list(found.columns) == list(predictor(frame).columns)
        pd.testing.assert_frame_equal(found, predictor(frame), check_dtype=False)


@pytest.mark.parametrize("task", TASKS)
def test_one_row_is_answered_as_one_row(task: str) -> None:
    frame = mixed_frame().iloc[[33]]
    predictor = predictor_of(task)
    table = predictor(frame)
    row = predictor(plain(frame)[0])
    assert row == table.iloc[0].to_dict()
    assert all(type(value) in (str, float) for value in row.values()), "JSON can hold it"
    series = predictor(frame.iloc[0])
    assert series.to_dict() == row
    assert series.name == 33
    line = predictor(frame.to_numpy(dtype=object)[0])
    pd.testing.assert_frame_equal(line, table.reset_index(drop=True))


LABELS = {
    "text": ("", "a", "b", "ü"),
    "whole": ("-1", "0", "7", "9007199254740993"),
    "fractions": ("-0.5", "1.5", "3"),
    "truth": ("false", "true"),
    "zip": ("00123", "10115"),
}
VALUES: list[Any] = [
    *(None, float("nan"), pd.NA, np.float64("nan"), True, False, np.True_),
    *(0, 1, 3, 7, -1, 10115, 9007199254740993, np.int8(7), np.uint64(3), Decimal("1.5")),
    *(0.0, 1.0, 1.5, -0.5, 7.0, np.float32(1.5), np.float16(7), 0.1, -1e15),
    *("a", "b", "c", "", "ü", "7", "1.5", "true", "00123", np.str_("a"), "nan"),
]


def column_of(kind: str, labels: str) -> Column:
    if kind != "categorical":
        return Column(name="x", kind=kind)  # pyright: ignore[reportArgumentType]
    return Column(name="x", kind=kind, categories=LABELS[labels])


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("numeric", ""), ("boolean", ""), *product(["categorical"], LABELS)],
)
def test_a_value_is_read_as_its_column_would_be(kind: str, labels: str) -> None:
    column = column_of(kind, labels)
    layout = RawLayout(Schema(columns=(column, TARGETS["binary"]), task="binary"))
    reader = RowReader(layout)
    compared = 0
    for value in VALUES + [-0.0, 1e300, -1e300, np.inf] * (kind == "numeric"):
        try:
            table = pa.table({"x": pa.array([value], from_pandas=True)})
            expected: Any = decode_features(table, layout)
        except InvalidInput:
            expected = None
        for given in ({"x": value}, pd.DataFrame({"x": [value]}, dtype=object)):
            try:
                found = reader.read(given)[0]
            except InvalidInput:
                found = None
            if expected is None:
                assert found is None, (value, found)
            else:
                assert found is not None, value
                np.testing.assert_array_equal(found, expected, err_msg=repr(value))
            compared += expected is not None
    assert compared > len(VALUES) / 2


@pytest.mark.parametrize("missing", [False, True])
def test_few_rows_are_encoded_bit_for_bit(missing: bool) -> None:
    whole = mixed_frame() if missing else mixed_frame().dropna()
    layout = RawLayout(mixed_schema("binary"))
    encoder = Encoder.fit([decode_features(whole, layout)], layout)
    raw = decode_features(mixed_frame(), layout)
    hard = [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 0, -1, 2, 39, 40, 1e9]
    wild = np.array(list(product(hard, repeat=2)), np.float32)
    raw = np.concatenate([raw, np.tile(wild, (1, 3))[:, :5]])
    expected = encoder(torch.from_numpy(raw)).numpy()
    few = FewRows(encoder)
    for place in range(0, len(raw), FEW_ROWS):
        block = slice(place, place + FEW_ROWS)
        found = np.array(few(raw[block]), np.float32)
        assert found.tobytes() == expected[block].tobytes()


def test_tensors_come_as_arrays_lists_and_columns() -> None:
    frame = images(8, 8, rows=3)
    predictor = Predictor(make_model(image_schema(8, 8), frame))
    expected = predictor(frame)
    array = np.stack([np.asarray(cell) for cell in frame["image"]])
    rows = [{"image": one} for one in array]
    for given in (array, rows, [{"image": one.tolist()} for one in array], {"image": array}):
        found = pd.DataFrame(predictor(given))
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    flat = [{"image": one.reshape(-1).tolist()} for one in array]
    assert predictor(flat) == predictor(rows)
    for one in ({"image": array[0]}, {"image": flat[0]["image"]}, array[0]):
        found = pd.DataFrame(predictor(one), index=[0])
        pd.testing.assert_frame_equal(found, expected.head(1), check_dtype=False)
    assert np.isfinite(predictor({"image": None})["p_a"])
    with pytest.raises(InvalidInput, match=r"holds the shape \[8, 7\] where \[8, 8\]"):
        predictor([{"image": array[0][:, :7]}])
    with pytest.raises(InvalidInput, match=r"holds no numbers of the shape \[8, 8\]"):
        predictor({"image": [[1, 2], [3]]})


def test_all_that_is_wrong_with_a_row_is_told_together() -> None:
    predictor = predictor_of("binary")
    with pytest.raises(InvalidInput) as caught:
        predictor([plain(mixed_frame())[0], {"area": "wide", "age": None, "garden": 2, "color": 1}])
    told = str(caught.value)
    assert "4 problems" in told
    assert "column 'area' = 'wide': holds str, not numbers" in told
    assert "column 'garden' = 2: holds int, not truth values" in told
    assert "did you mean 'color'" in told


MIXED = pd.DataFrame(
    {"area": [1.0, "x"], "age": 1.0, "garden": True, "colour": ["red", 1], "city": [["a"], "b"]}
)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (5, "int.*is no form of rows.*area, age, garden, colour, city"),
        ("area", "str"),
        (None, "NoneType"),
        ([1, 2], "list.*is no form"),
        (np.zeros((2, 4)), r"an array \[2, 4\].*area, age, garden, colour, city, in this order"),
        (np.zeros((2, 5, 1)), r"an array \[2, 5, 1\]"),
        ({}, "5 problems"),
        ({"area": [1.0], "age": [1, 2]}, "different lengths"),
        ({"area": [1.0], "age": 2}, "'age': 'a value'"),
        ({"area": 10**400, "age": 1, "garden": 1, "colour": "", "city": ""}, "64 bits"),
        ({"area": 1j, "age": 1, "garden": 1, "colour": "", "city": []}, "2 problems"),
        (MIXED, r"3 problems.*'area'.*different kinds.*'colour'.*different kinds.*'city'"),
    ],
)
def test_what_is_no_row_is_refused(given: Any, told: str) -> None:
    predictor = predictor_of("binary")
    with pytest.raises(InvalidInput, match=f"(?s){told}"):
        predictor(given)


def test_an_array_of_numbers_is_read_in_the_order_of_the_columns() -> None:
    whole: Any = mixed_frame()[["age", "area"]].dropna()
    schema = Schema(
        columns=(*mixed_schema("binary").columns[:2], TARGETS["regression"]), task="regression"
    )
    predictor = Predictor(make_model(schema, whole))
    assert predictor.columns == ("area", "age")
    expected = predictor(whole).reset_index(drop=True)
    array = whole[["area", "age"]].to_numpy(np.float64)
    for given in (array, array.astype(np.float32), np.asfortranarray(array)):
        pd.testing.assert_frame_equal(predictor(given), expected)
    pd.testing.assert_frame_equal(predictor(array[:2]), expected.head(2))
