"""A training run that is repeated on other rows: as it was, and for as long."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ended import dies_after, last_state
from test_finetune import milestone

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.identity import read_digest
from kubestill.runtime.steps.finetune_fresh import finetune_fresh
from kubestill.runtime.steps.refit import RefitInputs, train_once_more
from kubestill.runtime.stores import open_store
from kubestill.runtime.training.record import TrainingRecord, read_training
from kubestill.runtime.training.schedules import LearningRates

Train = Callable[..., Path]
Make = Callable[..., LocalArtifact]


def model_in(out: Path) -> LocalArtifact:
    return LocalArtifact(str(out / "model"), metadata={"kind": "model"})


def record_in(model: LocalArtifact) -> TrainingRecord:
    record = read_training(model.path)
    assert record
    return record


def weights(model: LocalArtifact) -> dict[str, torch.Tensor]:
    loaded = load_model(model.path)
    return dict(loaded.model.state_dict())


@pytest.fixture
def again(tmp_path: Path) -> Callable[..., tuple[Any, str]]:
    """Repeats the training run of a model on other rows."""

    def run(model: LocalArtifact, whole: LocalArtifact, name: str = "again", **more: Any) -> Any:
        rows = RefitInputs(
            whole=whole, checkpoint=more.get("checkpoint"), replay=more.get("replay")
        )
        folder = str(tmp_path / name)
        store = str(tmp_path / more.get("store", "store"))
        return train_once_more(
            model, rows, device="auto", checkpoint_uri=store, folder=folder, uri=folder
        )

    return run


def test_on_the_same_rows_it_gives_the_same_bits(train: Train, line: Make, again) -> None:
    rows = line("rows")
    first = model_in(train(dataset=rows, steps=0, epochs=5.0))
    second, why = again(first, rows)
    assert not why
    assert second.path != first.path
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(second)[name]), name
    assert record_in(second).repeats == read_digest(open_store(first.path))
    assert record_in(first).repeats == ""


@pytest.mark.parametrize("shrink", [0.0, 0.4, 1.0])
def test_fine_tuning_is_repeated_from_where_it_began(
    train: Train, line: Make, again, shrink: float
) -> None:
    given = {
        "checkpoint": milestone(train(steps=30), 30),
        "replay": line("older", np.linspace(-2, -1, 64)),
    }
    rows = line("fresh", np.linspace(0, 1, 128))
    how = {"shrink": shrink, "perturb": 0.1 if shrink else 0.0, "keep_schedule": True}
    how |= {"replay_share": 0.25, "steps": 20}
    first = model_in(train("fine", finetune_fresh, dataset=rows, **given, **how))
    second, why = again(first, rows, **given)
    assert not why
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(second)[name]), name
    with pytest.raises(InvalidInput, match=r"checkpoint.*connect the checkpoint that it started"):
        again(first, rows)


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_it_takes_as_long_as_the_exported_milestone_took(
    train: Train, line: Make, again, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    """Validation rows of another line end the first run early; the second has twice as many."""
    rows, other = line("rows"), line("other", y=-np.linspace(-1, 1, 256))
    length = {"epochs": {"steps": 0, "epochs": 10.0}, "steps": {"steps": 40}}[unit]
    settings = {"patience": 5, "metric": "rmse", "checkpoints": {"metric": "rmse"}}
    settings |= {"milestone_every": 1, "milestone_unit": "steps"}
    first = model_in(train(dataset=rows, validation=other, settings=settings, **length))
    before = record_in(first)
    assert before.stop.reason == "early-stopping"
    assert 0 < before.chosen.step < before.steps

    at, rates = LearningRates.at, dict[int, float]()

    def noted(self: LearningRates, step: int) -> float:
        rates[step] = at(self, step)
        return rates[step]

    monkeypatch.setattr(LearningRates, "at", noted)
    double = line("double", np.linspace(-1, 1, 512))
    after = record_in(again(first, double)[0])
    # 256 rows are 4 batches of 64, and 512 are 8.
    times = 2 if unit == "epochs" else 1
    assert after.steps == after.chosen.step == times * before.chosen.step
    assert after.rows == 512
    # The cosine of the whole run, of which these are the first steps.
    for step in range(after.steps):
        whole = 0.01 * (1 + math.cos(math.pi * step / (times * 40))) / 2
        assert rates[step] == pytest.approx(whole)


def test_it_resumes_where_it_was_killed(train: Train, line: Make, again, capsys) -> None:
    rows, more = line("rows"), line("more", np.linspace(-2, 1, 300))
    first = model_in(train(dataset=rows))
    whole = again(first, more, "whole", store="elsewhere")[0]
    with dies_after(25):
        again(first, more)
    capsys.readouterr()
    resumed = again(first, more)[0]
    assert "from step 25" in capsys.readouterr().out
    assert read_digest(open_store(resumed.path)) != read_digest(open_store(first.path))
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    # One that died after the last step finds its work done.
    again(first, more, "third")
    assert "its result is adopted" in capsys.readouterr().out


def test_a_run_that_diverges_leaves_the_model_as_it_was(train: Train, line: Make, again) -> None:
    first = model_in(train(dataset=line("rows"), optimizer="SGD", learning_rate=0.2))
    # One value of 16 standard deviations is more than such steps stand.
    huge = line("huge", np.append(np.linspace(-1, 1, 255), 1e6))
    for _ in range(2):  # a retry adopts the failure
        refit, why = again(first, huge)
        assert refit is None
        assert why.startswith("trained with all rows, it failed: ")


def test_what_cannot_be_repeated_is_told(train: Train, line: Make, again) -> None:
    rows = line("rows")
    fine = train("fine", finetune_fresh, checkpoint=milestone(train(), 60), dataset=rows, steps=5)
    record = record_in(model_in(fine))
    assert record.recipe["shrink"] == 1.0
    (fine / "model" / "training.json").unlink()
    with pytest.raises(InvalidInput, match=r"does not say how it was trained; connect a model of"):
        again(model_in(fine), rows)


def test_a_starting_point_that_nothing_bettered_is_not_repeated(
    train: Train, line: Make, again
) -> None:
    rows = line("rows")
    start = milestone(train(), 60)
    worse = line("worse", y=-3 * np.linspace(-1, 1, 256))
    given = {"checkpoint": start, "dataset": worse, "validation": rows, "steps": 20}
    fine = model_in(train("fine", finetune_fresh, **given, learning_rate=0.01))
    assert record_in(fine).chosen.step == 0
    refit, why = again(fine, rows, checkpoint=start)
    assert refit is None
    assert why == "it is the model that its training run started from"


def test_the_last_state_of_a_repeated_run_goes_on(
    train: Train, line: Make, again, tmp_path
) -> None:
    rows = line("rows")
    first = model_in(train(dataset=rows, validation=line("held", np.linspace(-1, 1, 64))))
    again(first, rows)
    state = last_state(tmp_path / "again")
    assert state.meta["settings"]["steps"] == record_in(first).chosen.step
