"""Refinement where a surrogate errs: worse rows than chance finds, the same in any shards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import RawLayout, decode
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.generation.gathering import gather_shards
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.steps.generate_synthetic import generate_synthetic


def make(folder: Path, model: LocalArtifact | None = None, **settings: Any) -> Dataset:
    generate_synthetic(dataset=LocalArtifact(str(folder)), model=model, system="heat", **settings)
    return Dataset.open(str(folder))


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    """An untrained network errs by the function itself."""
    dataset = make(tmp_path_factory.mktemp("rows"), method="random", rows=2000)
    layout = RawLayout(dataset.schema)
    data = decode(dataset, layout, ("raw", "target"))
    assert data.target is not None
    model = Model.create(
        dataset.schema,
        encoder=Encoder.fit([data.raw], layout),
        decoder=Decoder.fit([data.target]),
        network_args={"hidden": [4]},
    )
    folder = str(tmp_path_factory.mktemp("surrogate"))
    export_model(model, folder)
    return LocalArtifact(folder, metadata={"kind": "model"})


def test_it_finds_what_the_surrogate_gets_wrong(tmp_path: Path, surrogate: LocalArtifact) -> None:
    def error(dataset: Dataset) -> float:
        rows: Any = dataset.to_pandas()
        predicted = load_model(surrogate.path)(rows)["prediction"].to_numpy()
        return float(np.abs(predicted - rows["temperature"].to_numpy()).mean())

    chance = make(tmp_path / "chance", method="random", rows=1000)
    worst = make(tmp_path / "worst", surrogate, method="adaptive", rows=1000)
    assert error(worst) > 1.5 * error(chance)


def test_the_union_does_not_depend_on_shards(tmp_path: Path, surrogate: LocalArtifact) -> None:
    told = {"method": "adaptive", "rows": 20_000, "settings": {"oversample": 2}}
    unions = [
        gather_shards(
            [
                make(tmp_path / f"{n}-{shard}", surrogate, shard=shard, shards=n, **told).root
                for shard in range(n)
            ],
            str(tmp_path / f"all-{n}"),
        )
        for n in (1, 3)
    ]
    assert unions[0].fingerprint == unions[1].fingerprint


def test_a_surrogate_of_another_system_is_refused(tmp_path: Path, surrogate: LocalArtifact) -> None:
    with pytest.raises(InvalidInput, match="other columns"):
        generate_synthetic(
            dataset=LocalArtifact(str(tmp_path)),
            model=surrogate,
            system="black-scholes",
            method="adaptive",
            rows=10,
        )
