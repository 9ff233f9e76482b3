"""Rows to train on, of the kinds that people have: images, tables, rare classes, fields, grids."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter

Table = tuple[Schema, pd.DataFrame]
CITIES = tuple(f"city{number:02d}" for number in range(40))


@cache
def digits() -> Table:
    """Real handwritten digits, 8 by 8."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    image = Column(name="image", kind="tensor", shape=(8, 8))
    labels = tuple(map(str, range(10)))
    target = Column(name="digit", kind="categorical", role="target", categories=labels)
    frame = pd.DataFrame({"image": list(found.data[order].astype(np.float32))})
    frame["digit"] = found.target[order].astype(str)
    return Schema(columns=(image, target), task="multiclass"), frame


@cache
def prices() -> Table:
    """Houses: numbers with gaps, a flag, a large category; the price in thousands, with noise."""
    rng = np.random.default_rng(1)
    rows = 1500
    area, age = rng.normal(90, 30, rows), rng.integers(0, 100, rows).astype(float)
    garden, city = rng.random(rows) < 0.3, rng.integers(0, len(CITIES), rows)
    noise = rng.normal(0, 20, rows)
    price = 3 * area - 0.8 * age + 40 * garden + 4 * city + noise
    age[rng.random(rows) < 0.05] = np.nan
    columns = (
        Column(name="area", kind="numeric"),
        Column(name="age", kind="numeric"),
        Column(name="garden", kind="boolean"),
        Column(name="city", kind="categorical", categories=CITIES),
        Column(name="price", kind="numeric", role="target"),
    )
    frame = pd.DataFrame({"area": area, "age": age, "garden": garden})
    frame["city"] = np.asarray(CITIES)[city]
    frame["price"] = price
    return Schema(columns=columns, task="regression"), frame


@cache
def bands() -> Table:
    """The same houses in three bands of price."""
    schema, frame = prices()
    labels = ("low", "middle", "high")
    target = Column(name="band", kind="categorical", role="target", categories=labels)
    banded = frame.drop(columns="price")
    banded["band"] = pd.Series(pd.qcut(frame["price"], 3, labels=list(labels))).astype(str)
    return Schema(columns=(*schema.features, target), task="multiclass"), banded


@cache
def late() -> Table:
    """Rare, noisy and full of conflicts: three small whole numbers, 6% of the rows positive."""
    rng = np.random.default_rng(2)
    parts = rng.integers(0, 4, (3000, 3)).astype(np.float64)
    chance = 1 / (1 + np.exp(4.6 - 0.8 * parts[:, 0] - 0.4 * parts[:, 1]))
    names = ("day", "line", "load")
    target = Column(name="late", kind="categorical", role="target", categories=("no", "yes"))
    columns = tuple(Column(name=name, kind="numeric") for name in names)
    frame = pd.DataFrame(parts, columns=list(names))
    frame["late"] = np.where(rng.random(3000) < chance, "yes", "no")
    return Schema(columns=(*columns, target), task="binary"), frame


@cache
def field() -> Table:
    """A cooling rod: three parameters in, sixteen temperatures out, without noise."""
    rng = np.random.default_rng(3)
    a, b, t = rng.uniform(-1, 1, 1000), rng.uniform(-1, 1, 1000), rng.uniform(0, 0.2, 1000)
    x = np.linspace(0, 1, 16)
    rod = sum(
        weight[:, None] * np.exp(-((k * np.pi) ** 2) * t)[:, None] * np.sin(k * np.pi * x)
        for k, weight in ((1, a), (2, b))
    )
    columns = tuple(Column(name=name, kind="numeric") for name in ("a", "b", "t"))
    target = Column(name="rod", kind="tensor", role="target", shape=(16,))
    frame = pd.DataFrame({"a": a, "b": b, "t": t})
    frame["rod"] = list(np.asarray(rod, np.float32))
    return Schema(columns=(*columns, target), task="regression"), frame


@cache
def grid() -> Table:
    """A smooth function on a sorted grid: every row looks like its neighbours."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 1, 40)))
    columns = tuple(Column(name=name, kind="numeric") for name in ("x", "y"))
    target = Column(name="value", kind="numeric", role="target")
    frame = pd.DataFrame({"x": x, "y": y, "value": np.sin(5 * x) * np.cos(4 * y)})
    return Schema(columns=(*columns, target), task="regression"), frame


@cache
def incomes() -> Table:
    """A target with a long tail (log-normal) and four numbers that explain some of it."""
    rng = np.random.default_rng(4)
    parts = rng.normal(size=(1500, 4))
    target = Column(name="income", kind="numeric", role="target")
    columns = tuple(Column(name=f"x{number}", kind="numeric") for number in range(4))
    frame = pd.DataFrame(parts, columns=[column.name for column in columns])
    frame["income"] = np.exp(parts @ [0.9, -0.5, 0.3, 0.0] + rng.normal(0, 0.4, 1500))
    return Schema(columns=(*columns, target), task="regression"), frame


@cache
def taught() -> Table:
    """Digits with a teacher's logits beside the labels, which now and then disagree with it."""
    from sklearn.linear_model import LogisticRegression

    schema, frame = digits()
    pixels = np.stack(list(frame["image"])) / 16
    teacher = LogisticRegression(max_iter=200).fit(pixels[:600], frame["digit"][:600])
    labelled = frame.copy()
    logits = teacher.decision_function(pixels).astype(np.float32)
    labelled["teacher"] = pd.Series(list(logits), index=frame.index)
    return schema.with_soft("teacher", 10), labelled


def write(table: Table, folder: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Dataset:
    schema, frame = table
    with DatasetWriter(folder, schema) as writer:
        writer.write(change(frame.copy()).reset_index(drop=True))
    return writer.dataset
