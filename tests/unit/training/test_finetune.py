"""`finetune-fresh`: what it keeps of the training it goes on from, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.checkpoints.inspection import ledgers
from kubestill.runtime.checkpoints.ledger import (
    Checkpoint,
    read_ledger_artifact,
    write_checkpoint_artifact,
)
from kubestill.runtime.checkpoints.restore import load_state
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.steps.finetune_fresh import finetune_fresh
from kubestill.runtime.training.schedules import LearningRates

Train = Callable[..., Path]
Make = Callable[..., LocalArtifact]
MOMENTUM = {"optimizer_args": {"momentum": 0.9}}


def milestone(out: Path, step: int) -> LocalArtifact:
    """Return one milestone of a training as `select-checkpoint` would hand it on."""
    ledger = read_ledger_artifact(str(out / "ledger"))
    (entry,) = (entry for entry in ledger.milestones if entry.step == step)
    path = out / f"checkpoint-{step}"
    write_checkpoint_artifact(Checkpoint.of(ledger, entry), str(path))
    return LocalArtifact(str(path), metadata={"kind": "checkpoint"})


def last_state(out: Path) -> TrainingState:
    ledger = read_ledger_artifact(str(out / "ledger"))
    return load_state(Checkpoint.of(ledger, ledger.milestones[-1]))


@pytest.fixture
def finetune(train: Train) -> Callable[..., Path]:
    """Fine-tunes for ten steps."""

    def run(checkpoint: LocalArtifact, **parameters: Any) -> Path:
        given = {"run": finetune_fresh, "checkpoint": checkpoint, "steps": 10, **parameters}
        return train("fine", **given)

    return run


def test_a_kept_optimizer_keeps_its_arguments(train: Train, finetune: Train) -> None:
    before = train(optimizer="SGD", settings=MOMENTUM)
    state = last_state(finetune(milestone(before, 60), learning_rate=1e-9))
    assert state.meta["settings"]["optimizer"] == "SGD"
    assert state.meta["settings"]["optimizer_args"] == {"momentum": 0.9}
    assert any(name.endswith("/momentum_buffer") for name in state.tensors)


def test_a_new_optimizer_starts_afresh(train: Train, finetune: Train) -> None:
    before = train(optimizer="SGD", settings=MOMENTUM)
    state = last_state(finetune(milestone(before, 60), keep_optimizer=False))
    assert state.meta["settings"]["optimizer"] == "AdamW"
    assert state.meta["settings"]["optimizer_args"] == {}


def test_arguments_that_do_not_fit_what_is_kept(train: Train, finetune: Train) -> None:
    before = train(optimizer="SGD", settings=MOMENTUM)
    with pytest.raises(InvalidInput, match="momentum_buffer.*keeps nothing.*keep_optimizer"):
        finetune(milestone(before, 60), settings={"optimizer_args": {"momentum": 0.0}})


def test_a_kept_schedule_goes_on_as_if_nothing_had_happened(
    train: Train, finetune: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, rates = LearningRates.at, dict[int, float]()

    def noted(self: LearningRates, step: int) -> float:
        rates[step] = at(self, step)
        return rates[step]

    monkeypatch.setattr(LearningRates, "at", noted)
    before = train(settings={"schedule_args": {"eta_min": 1e-4}})
    whole = dict(rates)
    rates.clear()
    finetune(milestone(before, 30), keep_schedule=True)
    assert whole[30] == pytest.approx(0.00505)
    for step in range(30, 40):
        assert rates[step] == pytest.approx(whole[step])


def test_a_schedule_that_was_kept_once_can_be_kept_again(
    train: Train, finetune: Train, tmp_path: Path
) -> None:
    first = finetune(milestone(train(), 30), keep_schedule=True, keep_position=True)
    kept = last_state(first).meta["kept"]
    assert kept == {
        "schedule_from": 40,
        "schedule_steps": 60,
        "steps_per_epoch": 4,
        "data_from": 40,
    }
    (tmp_path / "fine").rename(tmp_path / "first")
    again = finetune(milestone(tmp_path / "first", 10), keep_schedule=True)
    assert last_state(again).meta["kept"]["schedule_from"] == 50


def test_where_there_is_an_average_it_is_gone_on_from(train: Train, finetune: Train) -> None:
    before = train(settings={"ema_decay": 0.99})
    after = last_state(finetune(milestone(before, 60), learning_rate=1e-12))
    average = last_state(before).tensors
    for name, tensor in after.tensors.items():
        if name.startswith("model/network."):
            expected = average[name.replace("model/", "ema/")]
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-4)
            assert not torch.equal(expected, average[name])


def test_shrink_and_perturb(train: Train, finetune: Train) -> None:
    before = train()
    shrunk = finetune(milestone(before, 60), shrink=0.5, learning_rate=1e-12)
    old, new = last_state(before).tensors, last_state(shrunk).tensors
    for name in (name for name in old if name.startswith("model/")):
        torch.testing.assert_close(new[name], 0.5 * old[name], atol=1e-6, rtol=1e-4)


def test_everything_wrong_is_said_before_anything_is_read(
    finetune: Train, line: Make, tmp_path: Path
) -> None:
    """There is no such checkpoint: it would be the next thing to fail."""
    nowhere = LocalArtifact(str(tmp_path / "nowhere"), metadata={"kind": "checkpoint"})
    damaged = line("damaged")
    (Path(damaged.path) / "dataset.json").write_text("{")
    with pytest.raises(InvalidInput) as caught:
        finetune(
            nowhere,
            dataset=damaged,
            replay=damaged,
            shrink=2.0,
            perturb=-1.0,
            replay_share=1.0,
            keep_schedule=True,
            optimizer="Admm",
            epochs=-1,
            resume="perhaps",
            settings={"patiense": 1, "warmup_steps": 5, "network": "mlp"},
        )
    assert {problem.field for problem in caught.value.problems} == {
        "checkpoint",
        "dataset",
        "replay",
        "shrink",
        "perturb",
        "replay_share",
        "optimizer",
        "epochs",
        "resume",
        "settings.patiense",
        "settings.warmup_steps",
        "settings.network",
    }


def labelled(root: Path, name: str, labels: str, classes: str) -> LocalArtifact:
    """Write one row a letter of `labels`."""
    columns = (
        Column(name="x", kind="numeric"),
        Column(name="y", kind="categorical", role="target", categories=tuple(classes)),
    )
    schema = Schema(columns=columns, task="multiclass")
    with DatasetWriter(str(root / name), schema) as writer:
        writer.write(pd.DataFrame({"x": np.arange(len(labels)), "y": list(labels)}))
    return LocalArtifact(str(root / name), metadata={"kind": "dataset"})


def test_rows_that_the_checkpoint_does_not_know_are_refused_before_it_is_loaded(
    train: Train, finetune: Train, line: Make, tmp_path: Path
) -> None:
    chosen = milestone(train(dataset=labelled(tmp_path, "old", "abcabc", "abc")), 60)
    (store,) = ledgers(str(tmp_path / "store"))
    for fresh, field in (
        (labelled(tmp_path, "new", "abd", "abd"), "dataset classes of 'y'"),
        (line("numbers"), "dataset column 'y'"),
    ):
        with pytest.raises(InvalidInput, match="checkpoint") as caught:
            finetune(chosen, dataset=fresh, resume="perhaps")
        assert {field, "resume"} <= {problem.field for problem in caught.value.problems}
    assert ledgers(str(tmp_path / "store")) == [store]


def test_a_class_may_be_missing_among_the_fresh_rows(
    train: Train, finetune: Train, tmp_path: Path
) -> None:
    """The model knows it, and is judged on it."""
    chosen = milestone(train(dataset=labelled(tmp_path, "old", "abcabc", "abc")), 60)
    fresh, held_out = (
        labelled(tmp_path, "new", "abab", "ab"),
        labelled(tmp_path, "held", "cc", "bc"),
    )
    assert last_state(finetune(chosen, dataset=fresh, validation=held_out)).meta
