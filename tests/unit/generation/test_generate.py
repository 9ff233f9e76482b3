"""Whole shards, written and read back."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.generation.gathering import gather_shards
from kubestill.runtime.generation.generate import shard_rows
from kubestill.runtime.steps.generate_synthetic import generate_synthetic

SCHEMA = Schema(
    columns=(
        Column(name="id", kind="numeric", role="ignored"),
        Column(name="size", kind="numeric"),
        Column(name="count", kind="numeric"),
        Column(name="open", kind="boolean"),
        Column(name="colour", kind="categorical", categories=("blue", "green", "red")),
        Column(name="image", kind="tensor", shape=(4, 4)),
        Column(name="kind", kind="categorical", role="target", categories=("a", "b")),
    ),
    task="binary",
)


class Doubler:
    """A source of one's own: two times the row number."""

    schema = Schema(
        columns=(
            Column(name="x", kind="numeric"),
            Column(name="y", kind="numeric", role="target"),
        ),
        task="regression",
    )

    def __init__(self, factor: float = 2.0):
        self.factor = factor

    def sample(self, rows: np.ndarray, seed: int) -> pd.DataFrame:
        return pd.DataFrame({"x": rows + seed, "y": rows * self.factor})


class Short(Doubler):
    def sample(self, rows: np.ndarray, seed: int) -> pd.DataFrame:
        return super().sample(rows[:-1], seed)


class Mute:
    pass


def rows(count: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(count),
            "size": np.where(random.random(count) < 0.1, np.nan, random.normal(size=count)),
            "count": random.integers(0, 50, count),
            "open": pd.array(random.choice(np.array([True, False, None]), count), "boolean"),
            "colour": random.choice(np.array(["red", "green", "blue", None]), count),
            "image": list(random.random((count, 16), np.float32)),
            "kind": random.choice(["a", "b"], count),
        }
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    folder = str(tmp_path_factory.mktemp("small"))
    with DatasetWriter(folder, SCHEMA) as writer:
        writer.write(rows(300))
    return LocalArtifact(folder, metadata={"kind": "dataset"})


def table(dataset: Dataset) -> Any:
    """Return the rows as a DataFrame, which is only half typed."""
    return dataset.to_pandas()


def make(folder: Path, original: LocalArtifact | None, **settings: Any) -> Dataset:
    out = LocalArtifact(str(folder))
    (uri,) = generate_synthetic(dataset=out, original=original, **settings)
    assert uri == str(folder)
    assert out.metadata["fingerprint"] == Dataset.open(uri).fingerprint
    return Dataset.open(uri)


def in_shards(
    folder: Path, original: LocalArtifact | None, shards: int, **settings: Any
) -> Dataset:
    made = [
        make(folder / f"{shards}-{shard}", original, shard=shard, shards=shards, **settings)
        for shard in range(shards)
    ]
    return gather_shards([shard.root for shard in reversed(made)], str(folder / f"all-{shards}"))


@pytest.mark.parametrize("method", ["munge", "mixup", "jitter"])
def test_the_union_of_shards_does_not_depend_on_their_number(
    tmp_path: Path, small: LocalArtifact, method: str
):
    unions = [in_shards(tmp_path, small, n, method=method, rows=30_000) for n in (1, 2, 3, 7)]
    assert {union.rows for union in unions} == {30_300}
    assert len({union.fingerprint for union in unions}) == 1
    pd.testing.assert_frame_equal(unions[0].to_pandas(), unions[3].to_pandas())


def test_the_union_of_a_source_does_not_depend_on_shards(tmp_path: Path):
    settings = {"method": f"{__name__}:Doubler", "rows": 20_000, "settings": {"factor": 3.0}}
    unions = [in_shards(tmp_path, None, n, **settings) for n in (1, 2, 5)]
    assert len({union.fingerprint for union in unions}) == 1
    assert np.array_equal(table(unions[0])["y"], np.arange(20_000) * 3)


@pytest.mark.parametrize(("method", "labelled"), [("munge", False), ("jitter", True)])
def test_originals_come_first_with_their_labels(
    tmp_path: Path, small: LocalArtifact, method: str, labelled: bool
):
    made = table(make(tmp_path, small, method=method, rows=700))
    before = table(Dataset.open(small.path))
    pd.testing.assert_frame_equal(made[:300], before)
    assert made["kind"][300:].notna().all() == labelled
    assert made["kind"][300:].isna().all() != labelled
    source = before.iloc[np.arange(700) % 300].reset_index(drop=True)
    assert np.array_equal(made["id"][300:], source["id"])
    if labelled:
        assert np.array_equal(made["kind"][300:], source["kind"])


def test_without_originals_the_new_rows_are_the_same(tmp_path: Path, small: LocalArtifact):
    both = make(tmp_path / "both", small, rows=500)
    alone = make(tmp_path / "alone", small, rows=500, include_original=False)
    assert alone.rows == 500
    pd.testing.assert_frame_equal(table(both)[300:].reset_index(drop=True), table(alone))


def test_kinds_survive(tmp_path: Path, small: LocalArtifact):
    made = make(tmp_path, small, rows=2000, include_original=False)
    rows = table(made)
    assert made.schema == SCHEMA
    assert np.array_equal(rows["count"], rows["count"].round())
    assert rows["count"].between(0, 49).all()
    assert set(rows["open"].dropna()) == {True, False}
    assert set(rows["colour"].dropna()) == {"blue", "green", "red"}
    assert 0 < rows["size"].isna().mean() < 0.3
    assert 0 < rows["colour"].isna().mean() < 0.5


def test_a_retry_gives_the_same(tmp_path: Path, small: LocalArtifact):
    assert (
        make(tmp_path, small, rows=500).fingerprint == make(tmp_path, small, rows=500).fingerprint
    )


def test_the_local_runner_s_floats_are_taken_as_ints(tmp_path: Path, small: LocalArtifact):
    made = make(tmp_path, small, rows=500.0, shards=1.0, shard=0.0, seed=3.0)
    assert made.provenance["seed"] == 3


def test_more_shards_than_blocks_leave_some_empty(tmp_path: Path, small: LocalArtifact):
    union = in_shards(tmp_path, small, 4, rows=100)
    assert union.rows == 400
    assert union.fingerprint == in_shards(tmp_path, small, 1, rows=100).fingerprint


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 100])
def test_shards_cover_every_block_once(shards: int):
    edges = [shard_rows(50_000, shard, shards) for shard in range(shards)]
    assert edges[0][0] == 0
    assert edges[-1][1] == 50_000
    assert all(left[1] == right[0] for left, right in zip(edges, edges[1:], strict=False))
    assert all(start % 8192 == 0 for start, _ in edges)


def test_all_problems_at_once_and_nothing_written(tmp_path: Path):
    out = LocalArtifact(str(tmp_path / "out"))
    with pytest.raises(InvalidInput) as caught:
        generate_synthetic(
            dataset=out,
            original=LocalArtifact("m", metadata={"kind": "model"}),
            method="munge",
            rows=-1,
            shard=-1,
            shards=0,
            seed=-5,
            settings={"local_varience": 1, "swap_probability": 2},
        )
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {
        "original",
        "rows",
        "shard",
        "shards",
        "seed",
        "settings.local_varience",
        "settings.swap_probability",
    }
    assert "did you mean 'local_variance'" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_original_hides_nothing_else(tmp_path: Path):
    for name, file in (("rows", "dataset.json"), ("surrogate", "model.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{")
    (tmp_path / "surrogate" / "model.safetensors").touch()
    with pytest.raises(InvalidInput) as caught:
        generate_synthetic(
            dataset=LocalArtifact(str(tmp_path / "out")),
            original=LocalArtifact(str(tmp_path / "rows"), metadata={"kind": "dataset"}),
            model=LocalArtifact(str(tmp_path / "surrogate"), metadata={"kind": "model"}),
            method="adaptive",
            rows=-1,
            seed=-5,
            settings={"oversampel": 2},
        )
    assert {problem.field for problem in caught.value.problems} == {
        "original",
        "model",
        "method",
        "rows",
        "seed",
        "settings.oversampel",
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nowhere", "damaged"])
def test_an_original_that_cannot_be_opened_is_told_with_the_rest(tmp_path: Path, name: str):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "dataset.json").write_text("{")
    original = LocalArtifact(str(tmp_path / name), metadata={"kind": "dataset"})
    with pytest.raises(InvalidInput) as caught:
        make(tmp_path / "out", original, rows=-1)
    assert [problem.value for problem in caught.value.problems] == [original.uri, -1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mung"}, "did you mean 'munge'"),
        ({"shard": 3, "shards": 3}, "at most 2"),
        ({"rows": 2.5}, "rows = 2.5"),
        ({"settings": {"alpha": 0.5}}, "settings.alpha"),
        ({"method": "nowhere:Source"}, "no module 'nowhere'"),
        ({"method": f"{__name__}:Doubbler"}, "did you mean 'Doubler'"),
        ({"method": f"{__name__}:Doubler", "settings": {"speed": 1}}, "unexpected keyword"),
        ({"method": f"{__name__}:Mute"}, "schema"),
        ({"method": f"{__name__}:Doubler"}, "schema differs"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_requests(tmp_path: Path, small: LocalArtifact, settings: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=message):
        make(tmp_path / "out", small, **settings)
    assert not (tmp_path / "out").exists()


def test_a_method_needs_an_original(tmp_path: Path):
    with pytest.raises(InvalidInput, match="starts from a dataset"):
        make(tmp_path, None)


def test_a_source_that_gives_too_few_rows_leaves_nothing(tmp_path: Path):
    with pytest.raises(InvalidInput, match="asked for 100 rows"):
        make(tmp_path / "out", None, method=f"{__name__}:Short", rows=100)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_nothing_to_augment(tmp_path: Path):
    with DatasetWriter(str(tmp_path / "empty"), SCHEMA):
        pass
    empty = LocalArtifact(str(tmp_path / "empty"), metadata={"kind": "dataset"})
    with pytest.raises(InvalidInput, match="nothing to augment"):
        make(tmp_path / "out", empty, method="jitter")
