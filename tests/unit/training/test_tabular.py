"""The network for tables in a training run: its bins come from the rows, and survive a death."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ended import dies_after, same_states

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.models.export import load_model

Train = Callable[..., Path]
Make = Callable[..., LocalArtifact]

STEP = np.random.default_rng(0).exponential(size=512).astype(np.float32)
GIVEN: dict[str, Any] = {
    "network": "tabm",
    "network_args": {"hidden": [16], "members": 4, "bins": 12},
    "settings": {"ema_decay": 0.9},
}


def test_bins_are_those_of_the_training_rows(train: Train, line: Make) -> None:
    """A threshold, which a plain network of this size and time blurs, is learned as such."""
    rows = line("steps", STEP, y=np.float32(STEP > 0.25))
    given: dict[str, Any] = {"dataset": rows, "steps": 300}
    errors: list[float] = []
    for name, network in (("binned", GIVEN), ("plain", {"network_args": {"hidden": [16]}})):
        model = load_model(str(train(name, **given, **network) / "model"))
        answers = model.logits(STEP[:, None])[:, 0]
        errors.append(float(np.square(answers - (STEP > 0.25)).mean()))
        if name == "binned":
            column = model.model.encoder.columns[0]
            lower = model.model.state_dict()["network.encoding.lower"][0].numpy()
            wanted = np.quantile(STEP, np.linspace(0, 1, 13)[:-1], method="inverted_cdf")
            found = lower * column.std[0] + column.mean[0]
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("workers", [1, 4])
def test_a_training_run_that_dies_ends_with_the_same_bits(
    train: Train, line: Make, tmp_path: Path, workers: int
) -> None:
    given: dict[str, Any] = {"dataset": line("rows"), "steps": 12, **GIVEN}
    given["settings"] = {"virtual_workers": workers, **GIVEN["settings"]}
    whole = train("whole", **given)
    given["checkpoint_uri"] = str(tmp_path / "another")
    with dies_after(7):
        train("again", **given)
    same_states(whole, train("again", **given))


def test_a_network_that_drops_units_by_default_has_no_finish(train: Train, line: Make) -> None:
    given: dict[str, Any] = {"dataset": line("rows"), "steps": 4, "network": "tabm"}
    with pytest.raises(InvalidInput, match=r"network_args\.dropout to 0"):
        train(**given, settings={"finish_steps": 2})
    train(**given, settings={"finish_steps": 2}, network_args={"dropout": 0.0, "hidden": [4]})
