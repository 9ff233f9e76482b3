from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from model_samples import image_schema, images, make_model, mixed_frame, mixed_schema

from kubestill.errors import InvalidInput
from kubestill.runtime.models.predict import BATCH_ROWS, Predictor, probabilities


def predictor(task: str) -> Predictor:
    return Predictor(make_model(mixed_schema(task), mixed_frame()))


def test_binary_gives_a_label_and_both_probabilities() -> None:
    table = predictor("binary")(mixed_frame())
    assert list(table.columns) == ["prediction", "p_no", "p_yes"]
    np.testing.assert_allclose(table["p_no"] + table["p_yes"], 1, atol=1e-6)
    expected = np.where(table["p_yes"] > table["p_no"], "yes", "no")
    assert table["prediction"].tolist() == expected.tolist()


def test_multiclass_gives_a_label_and_a_probability_each() -> None:
    table = predictor("multiclass")(mixed_frame())
    chances = table[["p_a", "p_b", "p_c", "p_d"]]
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    expected = np.array(["a", "b", "c", "d"])[chances.to_numpy().argmax(axis=1)]
    assert table["prediction"].tolist() == expected.tolist()


def test_regression_is_in_target_units() -> None:
    table = predictor("regression")(mixed_frame())
    assert list(table.columns) == ["prediction"]
    assert table["prediction"].between(950, 1050).all()


def test_vector_target_gives_a_column_each() -> None:
    table = predictor("vector")(mixed_frame())
    assert list(table.columns) == [f"prediction_{i}" for i in range(4)]


def test_keeps_the_index() -> None:
    frame = mixed_frame().set_index(pd.Index(range(1000, 1300), name="house"))
    assert predictor("binary")(frame).index.equals(frame.index)


def test_order_of_columns_and_useless_columns_do_not_matter() -> None:
    frame = mixed_frame()
    other = frame[frame.columns[::-1]].assign(note="x", price=1.0)
    model = predictor("multiclass")
    pd.testing.assert_frame_equal(model(frame), model(other))


def test_missing_columns_are_named_together() -> None:
    frame = mixed_frame().drop(columns="garden").rename(columns={"colour": "color"})
    with pytest.raises(InvalidInput) as caught:
        predictor("binary")(frame)
    assert {problem.value for problem in caught.value.problems} == {"garden", "colour"}
    assert "did you mean 'color'" in str(caught.value)


def test_text_in_a_numeric_column_is_refused() -> None:
    with pytest.raises(InvalidInput, match="area"):
        predictor("binary")(mixed_frame().assign(area="large"))


def test_numbers_and_truth_values_that_pandas_keeps_as_categories_are_what_they_are() -> None:
    frame, model = mixed_frame(), predictor("regression")
    kept = frame.assign(age=pd.Categorical(frame["age"]), garden=pd.Categorical(frame["garden"]))
    pd.testing.assert_frame_equal(model(kept), model(frame))


@pytest.mark.parametrize(
    ("column", "value"),
    [("colour", "ultraviolet"), ("city", "Atlantis")],
    ids=["one-hot", "embedded"],
)
def test_unseen_category_counts_as_missing(column: str, value: str) -> None:
    model = predictor("multiclass")
    unseen, missing = mixed_frame(), mixed_frame()
    unseen[column] = value
    missing[column] = None
    pd.testing.assert_frame_equal(model(unseen), model(missing))


def test_values_missing_everywhere_still_predict() -> None:
    frame = mixed_frame()
    nothing = pd.DataFrame(None, index=frame.index, columns=frame.columns, dtype=object)
    assert np.isfinite(predictor("regression")(nothing)["prediction"].to_numpy()).all()


def test_no_rows() -> None:
    table = predictor("binary")(mixed_frame().head(0))
    assert list(table.columns) == ["prediction", "p_no", "p_yes"]
    assert len(table) == 0


def test_images() -> None:
    model = make_model(image_schema(8, 8), images(8, 8), network="own_networks:TinyConv")
    assert len(Predictor(model)(images(8, 8))) == 60


def test_batches_start_at_fixed_rows() -> None:
    model = predictor("regression")
    raw = np.random.default_rng(0).random((2 * BATCH_ROWS + 5, 5)).astype(np.float32)
    whole = model.logits(raw)
    np.testing.assert_array_equal(whole[BATCH_ROWS:], model.logits(raw[BATCH_ROWS:]))


def test_probabilities_survive_large_logits() -> None:
    wild = probabilities(np.array([[-200.0], [200.0]], np.float32))
    assert wild.tolist() == [[1, 0], [0, 1]]
    assert probabilities(np.array([[1e4, 0, -1e4]], np.float32)).tolist() == [[1, 0, 0]]


def test_dropout_is_off() -> None:
    options = {"network_args": {"dropout": 0.9}}
    model = make_model(mixed_schema("binary"), mixed_frame(), **options).train()
    raw = torch.zeros(4, 5).numpy()
    serve = Predictor(model)
    np.testing.assert_array_equal(serve.logits(raw), serve.logits(raw))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_copies_take_turns_and_change_no_bit(count: int) -> None:
    """As every visible GPU has one."""
    alone, shared = predictor("multiclass"), predictor("multiclass")
    shared.copies = tuple(predictor("multiclass").model for _ in range(count))
    asked: list[int] = []
    for number, model in enumerate((shared.model, *shared.copies)):
        model.network.register_forward_hook(lambda *_, number=number: asked.append(number))
    blocks = 4
    raw = np.tile(alone.read(mixed_frame()), (blocks * BATCH_ROWS // 300, 1))
    np.testing.assert_array_equal(shared.logits(raw), alone.logits(raw))
    assert sorted(asked) == sorted(number % (count + 1) for number in range(blocks))


def test_the_cause_of_a_copy_that_fails_is_told() -> None:
    shared = predictor("multiclass")
    shared.copies = (predictor("multiclass").model,)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: the device is lost")

    shared.copies[0].network.register_forward_hook(fail)
    raw = np.tile(shared.read(mixed_frame()), (100, 1))
    with pytest.raises(RuntimeError, match="the device is lost"):
        shared.logits(raw)
