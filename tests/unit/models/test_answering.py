"""A foreign model as the system that a surrogate is certified against, and as the surrogate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from foreign_samples import dataset, features, table

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.generation.systems import load_system
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.steps.certify_surrogate import certify_surrogate
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.plan_shards import plan_shards


@pytest.fixture(scope="module", params=["label", "price"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    target = request.param
    frame = features().assign(shop=pd.Categorical(features()["shop"]))
    known = table()[target] if target == "price" else table()[target] == "bad"
    given = {"objective": "regression" if target == "price" else "binary"}
    booster = lightgbm.train(
        given | {"verbose": -1, "num_threads": 1}, lightgbm.Dataset(frame, known), 5
    )
    booster.save_model(folder / "model.txt")
    rows = dataset(folder / "rows", target)
    classes = [] if target == "price" else ["ok", "bad"]
    brought = bring(str(folder / "model.txt"), rows, Options(classes=classes))
    assert brought is not None
    brought.write(str(folder / "model"))
    return folder / "model"


RANGES = {"amount": [-2.0, 2.0]}


def test_a_model_answers_its_own_domain(model: Path) -> None:
    system = load_system("model", {"model": str(model), "ranges": RANGES})
    predictor = load_model(str(model))
    inputs = system.domain.at(np.random.default_rng(0).random((200, system.domain.width)))
    assert set(inputs["shop"]) == {"a", "b", "c"}
    assert set(inputs["flag"]) == {0.0, 1.0}
    found = system.solve(inputs)
    # As the file's own library has it.
    rows = inputs.assign(
        shop=pd.Categorical(inputs["shop"], categories=["a", "b", "c"]),
        code=inputs["code"].astype(float),
        flag=inputs["flag"].astype(bool),
    )
    own = np.asarray(lightgbm.Booster(model_file=str(model / "model.txt")).predict(rows))
    if system.output.classes:
        np.testing.assert_array_equal(found, np.where(own > 0.5, "bad", "ok"))
    else:
        np.testing.assert_allclose(found, own, rtol=1e-6)
    assert system.version == predictor.digest


@pytest.mark.parametrize("model", ["price"], indirect=True)
def test_a_surrogate_is_certified_against_a_model(model: Path, tmp_path: Path) -> None:
    args: dict[str, Any] = {"model": str(model), "ranges": RANGES}
    assert plan_shards(2, "sobol", 500, {}, system="model", system_args=args) == [0, 1]
    rows = LocalArtifact(str(tmp_path / "rows"))
    generate_synthetic(dataset=rows, method="sobol", rows=500, system="model", system_args=args)
    made: dict[str, Any] = {
        name: LocalArtifact(str(tmp_path / name))
        for name in ("certificate", "metrics", "report", "summary")
    }
    # The model as its own surrogate: nothing can be closer.
    surrogate = LocalArtifact(str(model), metadata={"kind": "model"})
    verdict, _ = certify_surrogate(
        model=surrogate,
        dataset=rows,
        system="model",
        system_args=args,
        tolerance=1e-4,
        samples=300,
        strict=False,
        **made,
    )
    assert verdict.startswith(("certified", "measured"))
    found = next(Path(made["certificate"].path).glob("*.json")).read_text()
    assert f'"weights_bytes": {(model / "model.txt").stat().st_size}' in found


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({}, "give its lowest and highest value"),
        ({"amuont": [0, 1], "amount": [0, 1]}, "did you mean 'amount'"),
        ({"amount": [0]}, "give its lowest and highest value"),
    ],
)
def test_a_domain_needs_the_range_of_every_number(
    ranges: dict[str, Any], said: str, model: Path
) -> None:
    with pytest.raises(InvalidInput, match=said):
        load_system("model", {"model": str(model), "ranges": ranges})
