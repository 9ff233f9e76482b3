"""Values that training never saw are counted the same in every form of rows, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from model_samples import CITIES, COLOURS, make_model, mixed_frame, mixed_schema  # pyright: ignore[reportMissingImports]  # pyright: ignore[reportMissingImports]

from kubestill.errors import InvalidInput
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.predict import Predictor

USUAL: dict[str, Any] = {
    "area": 80.0,
    "age": 30.0,
    "garden": True,
    "colour": COLOURS[0],
    "city": CITIES[3],
}
STRANGE: dict[str, tuple[str, Any, str]] = {
    "a label among few": ("colour", "violet", "unseen label"),
    "a label among many": ("city", "Atlantis", "unseen label"),
    "infinite": ("age", np.inf, "infinite"),
    "beyond float32": ("age", -1e300, "infinite"),
    "missing where it never was": ("area", None, "missing"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = str(tmp_path_factory.mktemp("model"))
    export_model(make_model(mixed_schema("binary"), mixed_frame()), made)
    return made


def forms(row: dict[str, Any]) -> dict[str, Any]:
    """The row twice among usual ones, in every form of rows."""
    few = [USUAL, row, row]
    many = [*few, *[USUAL] * 30]
    names = list(USUAL)
    return {
        "dicts": few,
        "columns": {name: [one[name] for one in few] for name in names},
        "frame": pd.DataFrame(few),
        "large frame": pd.DataFrame(many),
        "table": pa.Table.from_pylist(many),
    }


@pytest.mark.parametrize("case", STRANGE)
def test_what_training_never_saw_is_counted_or_refused(folder: str, case: str) -> None:
    name, value, what = STRANGE[case]
    for form, rows in forms({**USUAL, name: value}).items():
        model = load_model(folder)
        model(rows)
        assert model.familiar.counts == {(name, what): 2}, form
        assert model.familiar.rows == (33 if form in ("large frame", "table") else 3)
        strict = load_model(folder, strict=True)
        with pytest.raises(InvalidInput, match=f"'{name}' = '{what}'.*in 2 rows.*in row 1"):
            strict(rows)
        strict(USUAL)


@pytest.mark.parametrize("name", ["age", "garden", "colour", "city"])
def test_gaps_that_training_saw_are_nothing_new(folder: str, name: str) -> None:
    model = load_model(folder, strict=True)
    for rows in forms({**USUAL, name: None}).values():
        model(rows)
    assert not model.familiar.counts


def test_a_label_never_seen_is_answered_as_a_missing_one(folder: str) -> None:
    model: Predictor = load_model(folder)
    for name in ("colour", "city"):
        for missing, unseen in zip(
            forms({**USUAL, name: None}).values(), forms({**USUAL, name: "?"}).values(), strict=True
        ):
            np.testing.assert_array_equal(
                model.logits(model.read(missing)), model.logits(model.read(unseen))
            )


def test_a_read_of_a_server_counts_as_well(folder: str, tmp_path: Path) -> None:
    model = load_model(folder)
    model.read([{**USUAL, "city": "Atlantis"}])
    model.read([USUAL])
    assert (model.familiar.rows, sum(model.familiar.counts.values())) == (2, 1)
