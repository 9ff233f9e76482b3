"""Older rows mixed into fresh ones: how many, which, and what cannot be mixed."""

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.training.replay import check_replay, mix, replayed_rows


def dataset_of(root, rows: int, *, first: int = 0, labels=("a", "b")) -> Dataset:
    columns = (
        Column(name="x", kind="numeric"),
        Column(name="y", kind="categorical", role="target", categories=labels),
    )
    frame = pd.DataFrame({"x": np.arange(first, first + rows, dtype=float)})
    frame["y"] = np.where(frame.index % 2 == 0, "a", "b")
    task = "binary" if len(labels) == 2 else "multiclass"
    with DatasetWriter(str(root), Schema(columns=columns, task=task)) as writer:
        writer.write(frame)
    return Dataset.open(str(root))


@pytest.mark.parametrize(
    ("share", "older", "expected"),
    [(0.5, 1000, 100), (0.2, 1000, 25), (0.9, 50, 50), (0.0, 1000, 0)],
    ids=["half", "a fifth", "all there are", "none"],
)
def test_the_share_is_of_the_mix(share, older, expected):
    assert replayed_rows(100, older, share) == expected


def test_the_mix_holds_all_fresh_rows_and_a_repeatable_sample(tmp_path):
    fresh = dataset_of(tmp_path / "fresh", 300, first=100_000)
    older = dataset_of(tmp_path / "older", 10_000)
    made = [
        mix(fresh, older, fresh.schema, share=0.25, seed=7, folder=str(tmp_path / n))
        for n in ("m", "n")
    ]
    frame = made[0].to_pandas()
    assert len(frame) == 400
    assert frame.x[:300].tolist() == fresh.to_pandas().x.tolist()
    sample = frame.x[300:].to_numpy()
    assert len(set(sample)) == 100
    assert sample.max() < 10_000
    assert (frame.y[300:].to_numpy() == np.where(sample % 2 == 0, "a", "b")).all()
    assert made[0].fingerprint == made[1].fingerprint
    other = mix(fresh, older, fresh.schema, share=0.25, seed=8, folder=str(tmp_path / "o"))
    assert other.fingerprint != made[0].fingerprint


def test_rows_of_another_meaning_are_refused(tmp_path):
    fresh = dataset_of(tmp_path / "fresh", 10)
    columns = (Column(name="x", kind="categorical", categories=("1",)),)
    with DatasetWriter(str(tmp_path / "other"), Schema(columns=columns, task=None)) as writer:
        writer.write(pd.DataFrame({"x": ["1"]}))
    with pytest.raises(InvalidInput) as caught:
        check_replay(fresh, writer.dataset, fresh.schema)
    assert len(caught.value.problems) == 2
    assert "target is missing" in str(caught.value)


def levels_of(root, levels: str, rows: str, *, read: bool = True) -> Dataset:
    kinds = {"role": "feature" if read else "ignored", "categories": tuple(levels)}
    columns = (
        Column(name="x", kind="categorical", **kinds),
        Column(name="y", kind="numeric", role="target"),
    )
    with DatasetWriter(str(root), Schema(columns=columns, task="regression")) as writer:
        writer.write(pd.DataFrame({"x": list(rows), "y": np.arange(len(rows)) * 1.0}))
    return writer.dataset


@pytest.mark.parametrize("older_levels", ["ab", "abc", "bcd", "d", "abe", "ef"])
@pytest.mark.parametrize("fresh_levels", ["ab", "bx"])
def test_levels_are_taken_where_the_checkpoint_or_the_fresh_rows_know_them(
    tmp_path, fresh_levels, older_levels
):
    known = levels_of(tmp_path / "known", "abcd", "abcd").schema
    fresh = levels_of(tmp_path / "fresh", fresh_levels, fresh_levels * 3)
    older = levels_of(tmp_path / "older", older_levels, older_levels * 5)
    foreign = set(older_levels) - set("abcd") - set(fresh_levels)
    if foreign:
        with pytest.raises(InvalidInput, match="replay levels of 'x'") as caught:
            check_replay(fresh, older, known)
        assert caught.value.problems[0].value == sorted(foreign)
        return
    check_replay(fresh, older, known)
    mixed = mix(fresh, older, known, share=0.6, seed=1, folder=str(tmp_path))
    rows = mixed.to_pandas()
    assert rows.x[: fresh.rows].tolist() == fresh.to_pandas().x.tolist()
    assert set(rows.x[fresh.rows :]) <= set(older_levels)
    # The fingerprint is that of the rows written at once.
    with DatasetWriter(str(tmp_path / "at once"), mixed.schema) as writer:
        writer.write(rows)
    assert mixed.fingerprint == writer.dataset.fingerprint
    if set(older_levels) <= set(fresh_levels):
        assert mixed.schema == fresh.schema


def test_a_label_that_is_only_declared_is_no_hindrance(tmp_path):
    fresh = levels_of(tmp_path / "fresh", "ab", "ab")
    older = levels_of(tmp_path / "older", "abz", "abab")
    check_replay(fresh, older, fresh.schema)
    assert mix(fresh, older, fresh.schema, share=0.5, seed=1, folder=str(tmp_path)).rows == 4


def test_a_column_that_the_checkpoint_does_not_read_may_hold_anything(tmp_path):
    fresh = levels_of(tmp_path / "fresh", "ab", "ab", read=False)
    older = levels_of(tmp_path / "older", "yz", "yzyz", read=False)
    known = Schema(columns=fresh.schema.columns[1:], task="regression")
    check_replay(fresh, older, known)
    assert mix(fresh, older, known, share=0.5, seed=1, folder=str(tmp_path)).rows == 4
