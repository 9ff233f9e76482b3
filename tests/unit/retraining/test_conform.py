"""Fresh rows of text in the form that the registry agreed on."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from kubestill.runtime.datasets.schema import MAX_TEXT, Column, Schema, TextForm
from kubestill.runtime.retraining.conform import Drift, conform

SCHEMA = Schema(
    columns=(
        Column(name="body", kind="text", text=TextForm()),
        Column(name="mood", kind="categorical", role="target", categories=("bad", "good")),
    ),
    task="binary",
)


@pytest.mark.parametrize(
    ("given", "kept", "said"),
    [
        (["as ever", None], ["as ever", None], []),
        (["short", "x" * (MAX_TEXT + 1)], ["short", None], ["1 value that cannot be read"]),
        ([3, None], ["3", None], ["changed its type: int64, where text was agreed on"]),
    ],
    ids=["text", "too large", "numbers"],
)
def test_what_is_no_text_is_told_and_left_empty(
    given: list[Any], kept: list[Any], said: list[str]
) -> None:
    drift = Drift()
    table = pa.table({"body": given, "mood": ["bad", "good"]})
    rows, usable = conform(table, SCHEMA, drift)
    assert rows["body"].to_pylist() == kept
    assert usable.all()
    assert len(drift.told()) == len(said)
    assert all(words in line for words, line in zip(said, drift.told(), strict=True))
