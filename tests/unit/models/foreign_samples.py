"""A small table, and models that other libraries fit to it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter

SHOPS, CODES = ("a", "b", "c"), ("7", "11", "13")


@cache
def table() -> pd.DataFrame:
    """Return 600 rows: a number with gaps, text, whole numbers as categories, a flag, a label."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "amount": rng.normal(size=600).astype(np.float32),
            "shop": rng.choice(SHOPS, 600),
            "code": rng.choice([7, 11, 13], 600),
            "flag": rng.random(600) < 0.5,
        }
    )
    score = frame["amount"] + (frame["shop"] == "a") + 0.3 * rng.normal(size=600)
    frame["label"] = np.where(score > 0.5, "bad", "ok")
    frame["price"] = score.astype(np.float32)
    frame["grade"] = np.digitize(score, [-0.5, 0.5]).astype(str)
    frame.loc[::17, "amount"] = np.nan
    return frame


def features() -> pd.DataFrame:
    """Return the columns that a model reads."""
    return table().filter(["amount", "shop", "code", "flag"])


def schema(target: str = "label", classes: tuple[str, ...] = ("bad", "ok")) -> Schema:
    """Return the schema of the rows with one of the targets."""
    inputs = (
        Column(name="amount", kind="numeric"),
        Column(name="shop", kind="categorical", categories=SHOPS),
        Column(name="code", kind="categorical", categories=CODES),
        Column(name="flag", kind="boolean"),
    )
    if target == "price":
        last, task = Column(name="price", kind="numeric", role="target"), "regression"
    else:
        last = Column(name=target, kind="categorical", role="target", categories=classes)
        task = "binary" if len(classes) == 2 else "multiclass"
    return Schema(columns=(*inputs, last), task=task)


def dataset(folder: Path, target: str = "label", rows: pd.DataFrame | None = None) -> Dataset:
    """Write the rows as a dataset."""
    found = table() if rows is None else rows
    classes = () if target == "price" else tuple(sorted(set(found[target])))
    kept = found[["amount", "shop", "code", "flag", target]]
    with DatasetWriter(str(folder), schema(target, classes), provenance={}) as writer:
        writer.write(kept)
    return writer.dataset
