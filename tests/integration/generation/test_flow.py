"""digits → generate in shards → label with a trained teacher → gather: one dataset, however cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.builtin import digits
from kubestill.runtime.datasets.decode import RawLayout, decode, decode_soft
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema, sort_labels
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.steps.gather_shards import gather_shards
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.label_with_teacher import label_with_teacher

SCHEMA = Schema(
    columns=(
        Column(name="image", kind="tensor", shape=(8, 8)),
        Column(
            name="digit",
            kind="categorical",
            role="target",
            categories=sort_labels(set(map(str, range(10)))),
        ),
    ),
    task="multiclass",
)
REAL = 1797


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    folder = str(tmp_path_factory.mktemp("digits"))
    with DatasetWriter(folder, SCHEMA) as writer:
        writer.write(digits())
    return LocalArtifact(folder, metadata={"kind": "dataset"})


@pytest.fixture(scope="module")
def teacher(original: LocalArtifact, tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    """A small teacher that has seen the digits a few times."""
    layout = RawLayout(SCHEMA)
    data = decode(Dataset.open(original.path), layout, ("raw", "target"))
    model = Model.create(
        SCHEMA,
        encoder=Encoder.fit([data.raw], layout),
        decoder=Decoder(),
        network_args={"hidden": [64]},
    )
    raw, target = torch.from_numpy(data.raw), torch.from_numpy(data.target)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(raw), target).backward()
        optimizer.step()
    folder = str(tmp_path_factory.mktemp("teacher"))
    export_model(model, folder)
    return LocalArtifact(folder, metadata={"kind": "model"})


def flow(
    folder: Path, original: LocalArtifact, teacher: LocalArtifact, shards: int, method: str
) -> Dataset:
    uris: list[str] = []
    for shard in range(shards):
        rows = LocalArtifact(str(folder / f"rows-{shard}"))
        generate_synthetic(
            dataset=rows, original=original, method=method, rows=24_000, shard=shard, shards=shards
        )
        labelled = LocalArtifact(str(folder / f"labelled-{shard}"))
        uris += label_with_teacher(model=teacher, dataset=rows, labelled=labelled)
    union = LocalArtifact(str(folder / "all"))
    gather_shards(uris=uris[::-1], dataset=union)
    return Dataset.open(union.uri)


@pytest.mark.parametrize("method", ["munge", "mixup", "jitter"])
def test_three_shards_are_one(
    tmp_path: Path, original: LocalArtifact, teacher: LocalArtifact, method: str
):
    union = flow(tmp_path / "three", original, teacher, 3, method)
    whole = flow(tmp_path / "one", original, teacher, 1, method)
    assert union.rows == REAL + 24_000
    assert union.fingerprint == whole.fingerprint
    assert union.provenance == whole.provenance
    data = decode(union, RawLayout(union.schema), ("raw", "target", "soft"))
    assert data.target is not None
    assert data.raw.min() >= 0
    assert data.raw.max() <= 1
    labels = data.target[:REAL]
    agreed = decode_soft(union, RawLayout(union.schema)).argmax(axis=1)[:REAL] == labels
    assert agreed.mean() > 0.9
    made = data.target[REAL:]
    if method == "jitter":
        assert np.array_equal(made, labels[np.arange(24_000) % REAL])
    else:
        assert (made == -1).all()


def test_shards_in_a_bucket_are_indexed_where_they_lie(
    tmp_path: Path, original: LocalArtifact, gcs: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBESTILL_CACHE", str(tmp_path / "cache"))
    uris: list[str] = []
    for shard in range(2):
        rows = LocalArtifact(f"{gcs.uri}/rows-{shard}")
        uris += generate_synthetic(
            dataset=rows, original=original, rows=9_000, shard=shard, shards=2
        )
    index = LocalArtifact(str(tmp_path / "index"))
    gather_shards(uris=uris, dataset=index)
    union = Dataset.open(index.path)
    assert all(part.path.startswith(gcs.uri) for part in union.parts)
    whole = LocalArtifact(str(tmp_path / "whole"))
    generate_synthetic(dataset=whole, original=original, rows=9_000)
    assert union.fingerprint == Dataset.open(whole.path).fingerprint
    assert union.to_table().equals(Dataset.open(whole.path).to_table())
