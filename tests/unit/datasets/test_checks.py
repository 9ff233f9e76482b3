from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.checks import check_trainable, check_validation
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema

MakeRows = Callable[..., pd.DataFrame]
Write = Callable[..., Dataset]


@pytest.fixture
def train(tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write) -> Dataset:
    return write(tmp_path / "train", schema, make_rows(40).assign(grade=[1, 2] * 20))


def test_a_validation_set_that_fits(
    tmp_path: Path, train: Dataset, make_rows: MakeRows, write: Write
) -> None:
    rows = make_rows(5).assign(grade=1)
    check_trainable(train)
    check_validation(train, write(tmp_path / "validation", train.schema, rows))


def test_a_class_seen_only_in_validation(
    tmp_path: Path, train: Dataset, make_rows: MakeRows, write: Write
) -> None:
    validation = write(tmp_path / "v", train.schema, make_rows(3).assign(grade=[1, 10, 2]))
    with pytest.raises(InvalidInput, match=r"\['10'\].*no training row"):
        check_validation(train, validation)


def test_classes_of_a_teacher_count_as_seen(
    tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write
) -> None:
    rows = make_rows(3).assign(grade=None, logits=[[0.0, 1.0, 2.0]] * 3)
    student = write(tmp_path / "train", schema.with_soft("logits", 3), rows)
    check_validation(student, write(tmp_path / "v", schema, make_rows(3).assign(grade=10)))


def test_an_empty_validation_set(tmp_path: Path, train: Dataset) -> None:
    with DatasetWriter(str(tmp_path / "v"), train.schema) as writer:
        pass
    with pytest.raises(InvalidInput, match="is empty"):
        check_validation(train, writer.dataset)


def test_columns_that_do_not_fit_come_together(
    tmp_path: Path, train: Dataset, write: Write
) -> None:
    other = Schema(
        columns=(
            Column(name="size", kind="boolean"),
            Column(name="open", kind="boolean"),
            Column(name="field", kind="tensor", shape=(3, 2)),
            Column(name="grade", kind="numeric", role="target"),
        ),
        task="regression",
    )
    rows = pd.DataFrame({"size": [True], "open": [True], "field": [[1.0] * 6], "grade": [1.0]})
    with pytest.raises(InvalidInput) as caught:
        check_validation(train, write(tmp_path / "v", other, rows))
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    for name in ("size", "colour", "field", "grade", "validation task"):
        assert name in text


def test_an_empty_training_set(tmp_path: Path, schema: Schema) -> None:
    with DatasetWriter(str(tmp_path), schema) as writer:
        pass
    with pytest.raises(InvalidInput, match="is empty"):
        check_trainable(writer.dataset)


def test_nothing_to_learn_from(tmp_path: Path, write: Write) -> None:
    schema = Schema(columns=(Column(name="y", kind="numeric", role="target"),), task="regression")
    with pytest.raises(InvalidInput, match="no feature"):
        check_trainable(write(tmp_path, schema, pd.DataFrame({"y": [1.0]})))


def test_a_part_that_was_cut_off(tmp_path: Path, train: Dataset) -> None:
    part = Path(train.root) / train.parts[0].path
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(InvalidInput, match="50 bytes where .* run what made it again"):
        check_trainable(train)
