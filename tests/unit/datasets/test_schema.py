from __future__ import annotations

import json
from typing import Any

import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.schema import Column, Schema, sort_labels


def test_a_schema_survives_json(schema: Schema) -> None:
    form = json.loads(json.dumps(schema.to_json()))
    assert Schema.from_json(form) == schema


def test_sizes_that_became_floats_are_read_as_integers(schema: Schema) -> None:
    form = json.loads(json.dumps(schema.to_json()).replace("[2, 3]", "[2.0, 3.0]"))
    assert Schema.from_json(form).column("field").shape == (2, 3)


def test_roles(schema: Schema) -> None:
    assert [column.name for column in schema.features] == ["size", "open", "colour", "field"]
    assert schema.target == schema.column("grade")
    assert schema.soft is None
    assert schema.classes == ("1", "2", "10")


def test_soft_outputs_replace_earlier_ones(schema: Schema) -> None:
    twice = schema.with_soft("logits", 3).with_soft("better", 3)
    assert twice.soft == Column(name="better", kind="tensor", role="soft", shape=(3,))
    assert "logits" not in twice.names


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        pytest.param({"10", "9", "-1"}, ("-1", "9", "10"), id="whole numbers by value"),
        pytest.param({"10", "9", "x"}, ("10", "9", "x"), id="text as text"),
        pytest.param(set[str](), (), id="none"),
    ],
)
def test_label_order(labels: set[str], order: tuple[str, ...]) -> None:
    assert sort_labels(labels) == order


def column(**changes: Any) -> Column:
    return Column(**{"name": "x", "kind": "numeric", **changes})


@pytest.mark.parametrize(
    ("columns", "task", "message"),
    [
        pytest.param([column(), column()], None, "2 times", id="duplicate"),
        pytest.param([column(kind="numerc")], None, "did you mean 'numeric'", id="unknown kind"),
        pytest.param([column(role="label")], None, "known: ", id="unknown role"),
        pytest.param([column(kind="tensor")], None, "sizes of 1", id="tensor without shape"),
        pytest.param([column(shape=(2,))], None, "only tensors", id="shape of a scalar"),
        pytest.param([column(kind="categorical")], None, "list its labels", id="no categories"),
        pytest.param([column(role="soft")], None, "tensors of shape", id="scalar soft"),
        pytest.param([column(role="target")], None, "needs one of", id="target without task"),
        pytest.param([column()], "regression", "role 'target'", id="task without target"),
        pytest.param([column(role="target")], "binary", "is numeric", id="numbers as classes"),
        pytest.param(
            [column(role="target", kind="categorical", categories=("a", "b", "c"))],
            "binary",
            "has 3 classes",
            id="three classes in binary",
        ),
    ],
)
def test_bad_schemas(columns: list[Column], task: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Schema(columns=tuple(columns), task=task)


def test_all_problems_come_together() -> None:
    with pytest.raises(InvalidInput) as caught:
        Schema(columns=(column(), column(), column(name="t", kind="tensor")), task="regression")
    assert len(caught.value.problems) == 3
