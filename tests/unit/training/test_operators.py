"""Operators train like any network: complex weights, fields in and out, and the same bits again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ended import dies_after, same_states

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.export import load_model
from kubestill.runtime.training.record import read_training

SHAPE = (2, 6, 8)
NETWORKS = Path(__file__).parent.parent / "models"
LIBRARY: dict[str, Any] = {"network": "own_networks:Library"}
OURS: dict[str, Any] = {
    "network": "fno",
    "network_args": {"modes": [2, 3], "channels": 4, "layers": 1, "projection": 8},
}


@pytest.fixture
def fields(tmp_path: Path) -> LocalArtifact:
    """Rows of fields, and what comes of them: the first half of each, moved around."""
    a = np.random.default_rng(0).normal(size=(40, *SHAPE)).astype(np.float32)
    columns = (
        Column(name="a", kind="tensor", shape=SHAPE),
        Column(name="u", kind="tensor", role="target", shape=SHAPE[1:]),
    )
    with DatasetWriter(
        str(tmp_path / "fields"), Schema(columns=columns, task="regression")
    ) as writer:
        writer.write(pd.DataFrame({"a": list(a), "u": list(np.roll(a[:, 0], 2, axis=1))}))
    return LocalArtifact(str(tmp_path / "fields"), metadata={"kind": "dataset"})


@pytest.mark.parametrize(
    ("network", "optimizer", "settings"),
    [
        pytest.param(
            LIBRARY, "AdamW", {"ema_decay": 0.9, "gradient_clip": 0.5}, id="complex, AdamW"
        ),
        pytest.param(LIBRARY, "SGD", {"optimizer_args": {"momentum": 0.9}}, id="complex, SGD"),
        pytest.param(OURS, "AdamW", {}, id="fno"),
    ],
)
def test_a_training_run_of_an_operator_that_dies_ends_with_the_same_bits(
    train: Callable[..., Path],
    fields: LocalArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: dict[str, Any],
    optimizer: str,
    settings: dict[str, Any],
) -> None:
    monkeypatch.syspath_prepend(str(NETWORKS))
    settings = {"loss": "relative_l2", "target_scale": "together", **settings}
    given = {"dataset": fields, "steps": 12, "batch_size": 16, "optimizer": optimizer}
    given |= {"settings": settings, **network}
    whole = train(**given).rename(tmp_path / "whole")
    given["checkpoint_uri"] = str(tmp_path / "another")
    with dies_after(7):
        train(**given)
    again = train(**given)
    state = same_states(whole, again)
    record = read_training(str(again / "model"))
    assert record
    assert record.curves.train[-1].loss < record.curves.train[0].loss
    complex_ones = {name for name, tensor in state.items() if tensor.is_complex()}
    assert bool(complex_ones) == (network is LIBRARY)
    # Fields, by the model that was exported.
    model = load_model(str(again / "model"), trust=("own_networks",))
    held = np.random.default_rng(1).normal(size=(3, *SHAPE))
    assert model.fields(held).shape == (3, *SHAPE[1:])
    assert np.isfinite(model.fields(held)).all()
