from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from model_samples import image_schema, images, mixed_frame, mixed_schema

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.embed import Embed, embedding_size
from kubestill.runtime.models.encoder import Encoder


def fitted(schema: Schema, frame: pd.DataFrame) -> tuple[Encoder, np.ndarray]:
    layout = RawLayout(schema)
    raw = decode_features(frame, layout)
    return Encoder.fit([raw], layout), raw


def encode(encoder: Encoder, raw: np.ndarray) -> np.ndarray:
    return encoder(torch.from_numpy(raw)).numpy()


def test_lays_out_scaled_then_indicators_then_one_hot_then_codes() -> None:
    frame = mixed_frame()
    encoder, raw = fitted(mixed_schema("binary"), frame)
    features = encode(encoder, raw)
    assert features.shape == (300, 3 + 2 + 3 + 1) == (300, encoder.width)
    area, age, garden = features[:, 0], features[:, 1], features[:, 2]
    expected = (frame["area"] - frame["area"].mean()) / frame["area"].std(ddof=0)
    np.testing.assert_allclose(area, expected, atol=1e-5)
    there = frame["age"].notna().to_numpy()
    assert age[there].mean() == pytest.approx(0, abs=1e-6)
    assert age[there].std() == pytest.approx(1, abs=1e-6)
    assert set(age[~there]) == {0.0}
    share = float(frame["garden"].to_numpy(float, na_value=np.nan)[frame["garden"].notna()].mean())
    assert {round(float(v), 5) for v in garden} == {0.0, *(round(v - share, 5) for v in (0, 1))}
    np.testing.assert_array_equal(features[:, 3], ~there)
    np.testing.assert_array_equal(features[:, 4], frame["garden"].isna())
    for at, colour in enumerate(("blue", "green", "red")):
        np.testing.assert_array_equal(features[:, 5 + at], frame["colour"] == colour)
    codes = [0 if pd.isna(city) else int(city[4:]) + 1 for city in frame["city"]]
    np.testing.assert_array_equal(features[:, 8], codes)
    assert encoder.vocabulary == (40,)


def test_column_without_missing_values_has_no_indicator_and_takes_them_later() -> None:
    encoder, raw = fitted(mixed_schema("binary"), mixed_frame())
    raw[0] = np.nan
    assert encode(encoder, raw[:1]).tolist() == [[0, 0, 0, 1, 1, 0, 0, 0, 0]]


def test_infinite_values_count_as_missing_when_predicting() -> None:
    encoder, raw = fitted(mixed_schema("binary"), mixed_frame())
    raw[0, :2] = np.inf, -np.inf
    assert encode(encoder, raw[:1])[0, [0, 1, 3]].tolist() == [0, 0, 1]


@pytest.mark.parametrize("rows", [1, 7, 300], ids="blocks of {}".format)
def test_fit_does_not_depend_on_the_blocks(rows: int) -> None:
    encoder, raw = fitted(mixed_schema("binary"), mixed_frame())
    layout = RawLayout(mixed_schema("binary"))
    again = Encoder.fit((raw[i : i + rows] for i in range(0, 300, rows)), layout)
    for one, other in zip(encoder.columns, again.columns, strict=True):
        assert one.mean == pytest.approx(other.mean, rel=1e-12)
        assert one.std == pytest.approx(other.std, rel=1e-12)
        assert one.indicator == other.indicator


def test_spread_survives_a_large_offset() -> None:
    schema = Schema(columns=(Column(name="x", kind="numeric"),))
    values = 1e6 + np.random.default_rng(0).normal(size=(5000, 1)).astype(np.float32)
    encoder = Encoder.fit(np.array_split(values, 9), RawLayout(schema))
    assert encoder.columns[0].std == pytest.approx([values.astype(np.float64).std()], rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e20], ids=str)
def test_constant_column_becomes_zero(value: float) -> None:
    schema = Schema(columns=(Column(name="x", kind="numeric"),))
    raw = np.full((3001, 1), value, np.float32)
    encoder = Encoder.fit([raw[:1000], raw[1000:]], RawLayout(schema))
    assert encoder.columns[0].std == (1.0,)
    assert np.abs(encode(encoder, raw)).max() <= 1e-7 * abs(value)


def test_one_mean_for_a_plain_tensor_and_one_a_channel_for_three_dimensions() -> None:
    grey, raw = fitted(image_schema(8, 8), images(8, 8))
    assert len(grey.columns[0].mean) == 1
    features = encode(grey, raw)
    assert features.mean() == pytest.approx(0, abs=1e-5)
    assert features.std() == pytest.approx(1, abs=1e-5)

    frame = images(3, 8, 8)
    pictures = np.asarray(frame["image"].tolist()) * np.array([1, 10, 100])[:, None, None]
    frame["image"] = [picture.tolist() for picture in pictures]
    colour, raw = fitted(image_schema(3, 8, 8), frame)
    channels = encode(colour, raw).reshape(-1, 3, 64)
    np.testing.assert_allclose(channels.mean(axis=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(channels.std(axis=(0, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("column", ["area", "age", "garden", "colour", "city"])
def test_single_column_of_any_kind(column: str) -> None:
    schema = Schema(columns=(mixed_schema("binary").column(column),))
    encoder, raw = fitted(schema, mixed_frame())
    features = encode(encoder, raw)
    assert features.shape == (300, encoder.width)
    assert np.isfinite(features).all()
    assert features.std() > 0


def test_round_trip_through_json_is_bit_equal() -> None:
    schema = mixed_schema("binary")
    encoder, raw = fitted(schema, mixed_frame())
    again = Encoder.from_spec(json.loads(json.dumps(encoder.to_spec())), schema.features)
    np.testing.assert_array_equal(encode(encoder, raw), encode(again, raw))
    assert not encoder.state_dict()


def test_refuses_infinite_and_empty_columns_together() -> None:
    frame = mixed_frame()
    frame.loc[7, "area"] = np.inf
    frame["age"] = np.nan
    with pytest.raises(InvalidInput) as caught:
        fitted(mixed_schema("binary"), frame)
    assert {problem.field for problem in caught.value.problems} == {"area", "age"}


def test_unmet_categories_embed_as_zero() -> None:
    embed = Embed(4, (40, 100))
    features = torch.tensor([[1.0, 2.0, 0.0, 100.0]])
    out = embed(features)
    assert out.shape == (1, embed.out_features) == (1, 2 + 13 + 21)
    assert out[0, :2].tolist() == [1, 2]
    assert not out[0, 2:15].any()
    assert out[0, 15:].all()
    out.sum().backward()
    table = embed.tables[0].weight
    assert isinstance(table, torch.nn.Parameter)
    assert table.grad is not None
    assert table.grad[0].all(), "missing is learned like any other category"


@pytest.mark.parametrize(("categories", "size"), [(17, 8), (40, 13), (1000, 50), (10**6, 50)])
def test_embedding_size(categories: int, size: int) -> None:
    assert embedding_size(categories) == size


def test_decoder_standardises_each_output_and_back() -> None:
    rng = np.random.default_rng(0)
    target = (rng.normal(size=(500, 2)) * [3, 1e-3] + [1e4, 0]).astype(np.float32)
    decoder = Decoder.fit([target[:100], target[100:]])
    learned = decoder.standardise(torch.from_numpy(target))
    assert learned.mean(0).abs().max() < 1e-3
    assert learned.std(0, correction=0).sub(1).abs().max() < 1e-3
    np.testing.assert_allclose(decoder(learned).numpy(), target, rtol=1e-6)
    again = Decoder.from_spec(json.loads(json.dumps(decoder.to_spec())), 2)
    assert torch.equal(again(learned), decoder(learned))


def test_decoder_leaves_out_rows_without_a_target() -> None:
    target = np.array([[1.0], [math.nan], [3.0]], np.float32)
    assert Decoder.fit([target]).to_spec() == {"mean": [2.0], "std": [1.0]}


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_decoder_refuses_targets_it_cannot_scale(value: float) -> None:
    with pytest.raises(InvalidInput, match="target"):
        Decoder.fit([np.full((3, 1), value, np.float32)])


def test_decoder_without_statistics_is_the_identity() -> None:
    logits = torch.randn(3, 2)
    assert Decoder()(logits) is logits
