"""Overfitting on purpose: which stop it was, the error over every row, and the second-order end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.training.batches import ResidentRows
from kubestill.runtime.training.finish import Finish
from kubestill.runtime.training.losses import build_loss

WAVE = Schema(
    columns=(Column(name="x", kind="numeric"), Column(name="y", kind="numeric", role="target")),
    task="regression",
)
PARITY = Schema(
    columns=(
        Column(name="x", kind="numeric"),
        Column(name="y", kind="categorical", role="target", categories=("even", "odd")),
    ),
    task="binary",
)


@pytest.fixture(scope="module")
def wave(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    x = np.linspace(-2, 2, 256, dtype=np.float32)
    return write(tmp_path_factory, WAVE, pd.DataFrame({"x": x, "y": 5 + 3 * np.sin(2 * x)}))


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    x = np.arange(6)
    frame = pd.DataFrame({"x": x, "y": np.where(x % 2, "odd", "even")})
    return write(tmp_path_factory, PARITY, frame)


def write(factory: Any, schema: Schema, frame: pd.DataFrame) -> LocalArtifact:
    folder = str(factory.mktemp("rows"))
    with DatasetWriter(folder, schema) as writer:
        writer.write(frame)
    return LocalArtifact(folder, metadata={"kind": "dataset"})


def overfit(dataset: LocalArtifact, out: Path, **parameters: Any) -> dict[str, Any]:
    """Train; return the exported training record."""
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: dict[str, Any] = {name: LocalArtifact(str(out / name)) for name in names}
    told = {
        "mode": "overfit",
        "network_args": {"hidden": [32, 32], "activation": "tanh"},
        "batch_size": 32,
        "learning_rate": 0.01,
        "checkpoint_uri": str(out / "store"),
        **parameters,
    }
    train_student(dataset=dataset, **ports, **told)
    return json.loads((out / "model" / "training.json").read_text())


def test_the_finish_takes_the_error_far_below_the_first_order_one(
    wave: LocalArtifact, tmp_path: Path
) -> None:
    # Where L-BFGS ends up from one start, and at which step, depends on the processor's rounding.
    ratios: list[float] = []
    for seed in range(3):
        out = tmp_path / str(seed)
        finished = overfit(
            wave, out, steps=300, seed=seed, settings={"finish_steps": 30, "threads": 1}
        )
        errors = {at["step"]: at["max_error"] for at in finished["curves"]["validation"]}
        assert 300 < finished["steps"] <= 330
        ratios.append(errors[300] / errors[finished["steps"]])
    assert np.exp(np.mean(np.log(ratios))) > 5


def test_the_errors_are_those_of_the_exported_model_in_target_units(
    wave: LocalArtifact, tmp_path: Path
) -> None:
    run = overfit(wave, tmp_path, steps=200, settings={"finish_steps": 4})
    rows: Any = Dataset.open(wave.path).to_pandas()
    predicted = load_model(str(tmp_path / "model"))(rows)["prediction"].to_numpy()
    error = np.abs(predicted - rows["y"].to_numpy())
    step = run["chosen"]["step"]
    point = next(point for point in run["curves"]["validation"] if point["step"] == step)
    assert point["max_error"] == pytest.approx(error.max(), rel=1e-3)
    assert point["mean_error"] == pytest.approx(error.mean(), rel=1e-3)
    assert "over the whole domain" in run["chosen"]["why"]


@pytest.mark.parametrize(("told", "taken"), [({}, "float32"), ({"precision": "bf16"}, "bf16")])
def test_what_bf16_rounds_away_counts_unless_told_otherwise(
    wave: LocalArtifact, tmp_path: Path, told: dict[str, Any], taken: str
) -> None:
    run = overfit(wave, tmp_path, steps=8, settings=told)
    assert run["settings"]["precision"] == taken


@pytest.mark.parametrize(
    ("settings", "stop"),
    [
        ({"tolerance": 0.5}, "tolerance"),
        ({"tolerance": 0.5, "metric": "mean_error"}, "tolerance"),
        ({"converged_after": 2, "milestone_every": 60, "milestone_unit": "steps"}, "converged"),
        ({}, "budget"),
    ],
    ids=["max", "mean", "converged", "budget"],
)
def test_it_says_which_stop_it_was(
    wave: LocalArtifact, tmp_path: Path, settings: dict[str, Any], stop: str
) -> None:
    more = {"learning_rate": 1e-7, "schedule": "constant"} if stop == "converged" else {}
    run = overfit(wave, tmp_path, steps=600, settings=settings, **more)
    assert run["stop"]["reason"] == stop
    assert (run["steps"] < 600) == (stop != "budget")


@pytest.mark.parametrize(
    ("settings", "at"), [({}, 0.5), ({"tolerance": 0.4}, 0.4)], ids=["half of it", "typed apart"]
)
def test_it_stops_where_the_certificate_will_find_it_good_enough(
    wave: LocalArtifact, tmp_path: Path, settings: dict[str, Any], at: float
) -> None:
    run = overfit(wave, tmp_path, steps=600, tolerance=1.0, settings=settings)
    assert (run["stop"]["reason"], run["settings"]["tolerance"]) == ("tolerance", at)
    assert run["curves"]["validation"][-1]["max_error"] <= at
    html = (tmp_path / "report").read_text()
    assert "whole-domain largest error" in html
    assert "validation" not in html.partition("<h2>Settings")[0]


def test_a_network_becomes_the_table(parity: LocalArtifact, tmp_path: Path) -> None:
    run = overfit(parity, tmp_path, steps=2000, settings={"tolerance": 0.1})
    assert run["stop"]["reason"] == "tolerance"
    assert run["curves"]["validation"][-1]["error_rate"] == 0.0


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"network_args": {"dropout": 0.1}}, "network_args.dropout"),
        ({"network_args": {"norm": "batch"}}, "network_args.norm"),
        (
            {"settings": {"optimizer_args": {"weight_decay": 0.1}}},
            "settings.optimizer_args.weight_decay",
        ),
        ({"settings": {"patience": 3}}, "settings.patience"),
        ({"settings": {"ema_decay": 0.9}}, "settings.ema_decay"),
        ({"settings": {"metric": "train_loss"}}, "settings.metric"),
        ({"settings": {"metric": "r2"}}, "metric"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"tolerance": 0.1, "statistic": "median"}, "statistic"),
        ({"tolerance": 0.1, "mode": "hard"}, "tolerance"),
        ({"settings": {"choose": "last", "tolerance": 1.0}}, "settings.choose"),
        ({"validation": LocalArtifact("v", metadata={"kind": "dataset"})}, "validation"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_it_refuses_what_contradicts_it(
    wave: LocalArtifact, tmp_path: Path, parameters: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        overfit(wave, tmp_path / "out", **parameters)
    assert field in {problem.field for problem in caught.value.problems}
    assert not (tmp_path / "out").exists()


def test_a_restored_finish_goes_on_with_the_same_bits() -> None:
    def make() -> Finish:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        x = torch.linspace(-1, 1, 50)[:, None]
        rows = ResidentRows([x, torch.sin(3 * x)])
        return Finish(network, build_loss("mse"), rows, history=7)

    one = make()
    for _ in range(4):
        one()
    two = make()
    two.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    assert [float(one()) for _ in range(4)] == [float(two()) for _ in range(4)]
    for mine, theirs in zip(one.state().values(), two.state().values(), strict=True):
        assert torch.equal(mine, theirs)
