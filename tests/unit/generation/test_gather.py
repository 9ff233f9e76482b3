"""Shards joined by what they say about themselves."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.steps.gather_shards import gather_shards

SCHEMA = Schema(columns=(Column(name="x", kind="numeric"),))


def shard(
    folder: Path, number: int, count: int, *, name: str = "x", rows: int = 8192, **facts: Any
) -> str:
    schema = Schema(columns=(Column(name=name, kind="numeric"),))
    provenance = {"seed": 0, "shard": number, "shards": count, **facts}
    root = str(folder / f"{number}-{len(list(folder.iterdir()))}")
    with DatasetWriter(root, schema, provenance=provenance) as writer:
        if rows:
            writer.write(pd.DataFrame({name: [float(number)] * rows}))
    return root


def gather(folder: Path, uris: list[str]) -> Dataset:
    out = LocalArtifact(str(folder / "all"))
    (uri,) = gather_shards(uris=uris, dataset=out)
    made = Dataset.open(uri)
    assert out.metadata == {"kind": "dataset", "fingerprint": made.fingerprint, "rows": made.rows}
    return made


def test_order_comes_from_the_shards_and_bytes_stay(tmp_path: Path):
    uris = [shard(tmp_path, number, 12, rows=8192 if number < 11 else 5) for number in range(12)]
    made = gather(tmp_path, uris[::-1])
    assert made.to_pandas()["x"].drop_duplicates().tolist() == list(range(12))
    assert [Path(part.path).parent for part in made.parts] == [Path(uri) for uri in uris]
    assert [file.name for file in Path(made.root).iterdir()] == ["dataset.json"]
    assert made.provenance == {"seed": 0}


def test_the_fingerprint_is_that_of_one_dataset(tmp_path: Path):
    uris = [shard(tmp_path, 0, 3, rows=0), shard(tmp_path, 1, 3), shard(tmp_path, 2, 3, rows=7)]
    with DatasetWriter(str(tmp_path / "one"), SCHEMA) as writer:
        writer.write(pd.DataFrame({"x": [1.0] * 8192 + [2.0] * 7}))
    assert gather(tmp_path, uris).fingerprint == writer.dataset.fingerprint


def test_labelled_shards_are_ordered_by_the_rows_they_were_made_of(tmp_path: Path):
    uris: list[str] = []
    for number in range(2):
        root = str(tmp_path / f"labelled-{number}")
        provenance = {"teacher": "t", "rows_from": {"shard": number, "shards": 2, "seed": 1}}
        with DatasetWriter(root, SCHEMA, provenance=provenance) as writer:
            writer.write(pd.DataFrame({"x": [float(number)] * 8192}))
        uris.append(root)
    made = gather(tmp_path, uris[::-1])
    assert made.to_pandas()["x"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert made.provenance == {"teacher": "t", "rows_from": {"seed": 1}}


def test_one_ordinary_dataset_passes(tmp_path: Path):
    with DatasetWriter(str(tmp_path / "d"), SCHEMA, provenance={"who": "me"}) as writer:
        writer.write(pd.DataFrame({"x": [1.0, 2.0]}))
    made = gather(tmp_path, [str(tmp_path / "d")])
    assert made.fingerprint == writer.dataset.fingerprint
    assert made.provenance == {"who": "me"}


def test_everything_wrong_is_listed(tmp_path: Path):
    uris = [
        shard(tmp_path, 0, 4),
        shard(tmp_path, 0, 4),
        shard(tmp_path, 1, 4, seed=9),
        shard(tmp_path, 2, 4, name="y"),
        shard(tmp_path, 1, 5, rows_from={"original": "other"}),
    ]
    with pytest.raises(InvalidInput) as caught:
        gather(tmp_path, uris)
    message = str(caught.value)
    for hint in (
        "shard 0 is there twice",
        "its seed differs",
        "its schema differs",
        "its shards differs",
        "its rows_from differs",
        "missing: 3",
    ):
        assert hint in message
    assert not (tmp_path / "all").exists()


def test_everything_wrong_beside_a_damaged_shard(tmp_path: Path):
    damaged = shard(tmp_path, 1, 5)
    Path(damaged, "dataset.json").write_text("{")
    absent = str(tmp_path / "nowhere")
    uris = [
        damaged,
        shard(tmp_path, 0, 5),
        absent,
        shard(tmp_path, 0, 5),
        shard(tmp_path, 2, 5, name="y", seed=9),
        shard(tmp_path, 7, 9),
    ]
    with pytest.raises(InvalidInput) as caught:
        gather(tmp_path, uris)
    message = str(caught.value)
    for hint in (
        f"uris = {damaged!r}",
        f"{absent!r}: there is no dataset.json",
        "shard 0 is there twice",
        "its schema differs",
        "its seed differs",
        "its shards differs",
        "missing: 1, 3, 4 (counted from 0); 2 of them may be among those that cannot be read",
    ):
        assert hint in message
    assert not (tmp_path / "all").exists()


def test_a_damaged_shard_is_not_called_missing_as_well(tmp_path: Path):
    uris = [shard(tmp_path, number, 3) for number in range(3)]
    Path(uris[1], "dataset.json").write_text("{")
    with pytest.raises(InvalidInput, match="1 problem with") as caught:
        gather(tmp_path, uris)
    assert caught.value.problems[0].value == uris[1]


def test_shards_of_two_teachers_do_not_mix(tmp_path: Path):
    uris = [shard(tmp_path, number, 2, teacher=f"t{number}") for number in range(2)]
    with pytest.raises(InvalidInput, match="its teacher differs"):
        gather(tmp_path, uris)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [], "at least one"),
        (lambda folder: [str(folder / "nowhere"), str(folder / "nothing")], "2 problems"),
        (lambda folder: [shard(folder, 1, 2)], "missing: 0"),
        (lambda folder: [shard(folder, 5, 2), shard(folder, 0, 2)], "missing: 1"),
    ],
    ids=["none", "not there", "one of two", "beyond the count"],
)
def test_bad_lists(tmp_path: Path, make: Any, message: str):
    with pytest.raises(InvalidInput, match=message):
        gather(tmp_path, make(tmp_path))


def test_strangers_among_shards(tmp_path: Path):
    with DatasetWriter(str(tmp_path / "d"), SCHEMA) as writer:
        writer.write(pd.DataFrame({"x": [1.0]}))
    with pytest.raises(InvalidInput, match="not a shard"):
        gather(tmp_path, [str(tmp_path / "d"), shard(tmp_path, 0, 2), shard(tmp_path, 1, 2)])
