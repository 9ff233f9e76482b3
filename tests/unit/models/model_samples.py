"""Small datasets of every kind, and models for them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd

from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Column, Schema, Task
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.model import Model

CITIES = tuple(f"city{i:02d}" for i in range(40))
COLOURS = ("blue", "green", "red")

TARGETS = {
    "regression": Column(name="price", kind="numeric", role="target"),
    "vector": Column(name="field", kind="tensor", role="target", shape=(4,)),
    "binary": Column(name="late", kind="categorical", role="target", categories=("no", "yes")),
    "multiclass": Column(
        name="grade", kind="categorical", role="target", categories=("a", "b", "c", "d")
    ),
}


def mixed_frame() -> pd.DataFrame:
    """300 rows of numbers, flags, a small and a large category, with missing values in each."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "area": rng.normal(80, 25, 300).astype(np.float32),
            "age": rng.integers(0, 100, 300).astype(np.float64),
            "garden": pd.array(rng.random(300) < 0.3, dtype="boolean"),
            "colour": rng.choice(COLOURS, 300),
            "city": rng.choice(CITIES, 300),
        }
    )
    frame.loc[5:20, "age"] = np.nan
    frame.loc[30:35, "garden"] = pd.NA
    frame.loc[40:45, "colour"] = None
    frame.loc[50:55, "city"] = None
    return frame


def mixed_schema(task: str) -> Schema:
    columns = (
        Column(name="area", kind="numeric"),
        Column(name="age", kind="numeric"),
        Column(name="garden", kind="boolean"),
        Column(name="colour", kind="categorical", categories=COLOURS),
        Column(name="city", kind="categorical", categories=CITIES),
        TARGETS[task],
    )
    return Schema(columns=columns, task=cast(Task, "regression" if task == "vector" else task))


def image_schema(*shape: int) -> Schema:
    image = Column(name="image", kind="tensor", shape=shape)
    return Schema(columns=(image, TARGETS["multiclass"]), task="multiclass")


def images(*shape: int, rows: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    pictures = rng.random((rows, *shape)).astype(np.float32)
    return pd.DataFrame({"image": [picture.tolist() for picture in pictures]})


def make_model(schema: Schema, frame: pd.DataFrame, **options: Any) -> Model:
    """Build a model whose preprocessing is fitted on `frame`; regression targets are far from 0."""
    layout = RawLayout(schema)
    decoder = Decoder()
    if schema.task == "regression":
        rng = np.random.default_rng(2)
        decoder = Decoder.fit([rng.normal(1e3, 7, (100, layout.outputs)).astype(np.float32)])
    encoder = Encoder.fit([decode_features(frame, layout)], layout)
    return Model.create(schema, encoder=encoder, decoder=decoder, **options).eval()
