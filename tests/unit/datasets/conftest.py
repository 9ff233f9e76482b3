from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a shelf of its own."""
    monkeypatch.setenv("KUBESTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / f"kubestill-cache-{os.getuid()}"


@pytest.fixture
def schema() -> Schema:
    """One column of every kind and role."""
    return Schema(
        columns=(
            Column(name="size", kind="numeric"),
            Column(name="open", kind="boolean"),
            Column(name="colour", kind="categorical", categories=("blue", "red")),
            Column(name="field", kind="tensor", shape=(2, 3)),
            Column(name="note", kind="categorical", role="ignored"),
            Column(name="serial", kind="numeric", role="ignored"),
            Column(name="grade", kind="categorical", role="target", categories=("1", "2", "10")),
        ),
        task="multiclass",
    )


@pytest.fixture
def make_rows() -> Callable[..., pd.DataFrame]:
    """Make rows for `schema`, with gaps in every feature."""
    return _make_rows


@pytest.fixture
def write() -> Callable[..., Dataset]:
    """Write rows as a dataset."""
    return _write


def _make_rows(count: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": random.normal(size=count),
            "open": pd.array(random.integers(0, 2, count).astype(bool), dtype="boolean"),
            "colour": random.choice(["red", "blue"], count),
            "field": list(random.normal(size=(count, 2, 3)).astype(np.float32)),
            "note": [f"row {n}" if n % 3 else None for n in range(count)],
            "serial": np.arange(count) + 2.0**40,
            "grade": random.choice([1, 2, 10], count),
        }
    )
    for place, name in enumerate(("size", "open", "colour", "field")):
        frame.loc[frame.index % 7 == place, name] = None
    return frame


def _write(root: Path | str, schema: Schema, rows: pd.DataFrame, **options: Any) -> Dataset:
    with DatasetWriter(str(root), schema, **options) as writer:
        writer.write(rows)
    return writer.dataset
