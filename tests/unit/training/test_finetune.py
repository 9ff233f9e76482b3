"""`finetune-fresh`: what it keeps of the training it goes on from, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ended import dies_after, last_state

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.checkpoints.inspection import ledgers
from kubestill.runtime.checkpoints.ledger import (
    Checkpoint,
    read_ledger_artifact,
    write_checkpoint_artifact,
)
from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.fake_quantise import is_quantised, without_ranges
from kubestill.runtime.models.model import Model, ModelSpec
from kubestill.runtime.steps.finetune_fresh import finetune_fresh
from kubestill.runtime.training.schedules import LearningRates

Train = Callable[..., Path]
Make = Callable[..., LocalArtifact]
MOMENTUM = {"optimizer_args": {"momentum": 0.9}}
AT_TEN = {"milestone_every": 10, "milestone_unit": "steps"}


def milestone(out: Path, step: int) -> LocalArtifact:
    """Return one milestone of a training as `select-checkpoint` would hand it on."""
    ledger = read_ledger_artifact(str(out / "ledger"))
    (entry,) = (entry for entry in ledger.milestones if entry.step == step)
    path = out / f"checkpoint-{step}"
    write_checkpoint_artifact(Checkpoint.of(ledger, entry), str(path))
    return LocalArtifact(str(path), metadata={"kind": "checkpoint"})


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


@pytest.mark.parametrize("change", [{"shrink": 0.5}, {"perturb": 0.1}], ids=str)
def test_what_is_frozen_is_neither_shrunk_nor_perturbed(
    train: Train, finetune: Train, change: dict[str, float]
) -> None:
    with pytest.raises(InvalidInput, match="settings.freeze.*frozen parameters keep their values"):
        finetune(milestone(train(), 60), settings={"freeze": ["0.*"]}, **change)


def test_a_model_learns_in_8_bits_from_a_checkpoint_of_float32(
    train: Train, finetune: Train
) -> None:
    start = milestone(train(), 60)
    settings = {"quantise_aware": 1.0}
    tuned = finetune(start, learning_rate=1e-9, settings=settings)
    found = load_model(str(tuned / "model")).model
    assert is_quantised(found.network)
    rows = torch.zeros(1, found.encoder.raw_width)
    plain = without_ranges(found)
    assert not torch.equal(found(rows), plain(rows))
    torch.testing.assert_close(found(rows), plain(rows), atol=0.1, rtol=0.1)
    again = finetune(milestone(tuned, 10), seed=1)  # stays as it is
    assert is_quantised(load_model(str(again / "model")).model.network)
    for change in ({"shrink": 0.5}, {"perturb": 0.1}):
        with pytest.raises(InvalidInput, match=r"quantise_aware.*ranges are those of the"):
            finetune(start, settings=settings, **change)


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


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_shrinking_to_nothing_trains_from_scratch(
    train: Train, finetune: Train, line: Make, optimizer: str
) -> None:
    """The same as a first training run on these rows, whose preprocessing is theirs."""
    shifted = line("shifted", np.linspace(4, 9, 300))
    before = milestone(train(optimizer=optimizer), 60)
    anew = last_state(finetune(before, shrink=0.0, dataset=shifted))
    first = last_state(train("first", steps=10, dataset=shifted, optimizer=optimizer))
    assert anew.tensors.keys() == first.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(anew.tensors[name], tensor), name
    assert anew.meta["model_spec"] == first.meta["model_spec"]


def test_noise_has_nothing_to_do_with_the_weights_that_training_began_with(
    train: Train, finetune: Train
) -> None:
    """Ash & Adams 2020: both runs have seed 0 unless somebody changes it."""
    before = train()
    began = Model.from_spec(ModelSpec.from_json(last_state(before).meta["model_spec"]))
    noisy = finetune(milestone(before, 60), perturb=1.0, learning_rate=1e-12)
    old, new = last_state(before).tensors, last_state(noisy).tensors
    for name, initial in began.state_dict().items():
        noise = (new[f"model/{name}"] - old[f"model/{name}"]).flatten()
        cosine = torch.cosine_similarity(noise, initial.flatten(), dim=0)
        assert abs(cosine) < 4 / initial.numel() ** 0.5, name
        ratio = noise.norm() / initial.norm()
        assert 0.5 < ratio < 2 or initial.numel() == 1, name


@pytest.mark.parametrize(
    ("optimizer", "change"),
    [("AdamW", {}), ("RMSprop", {}), ("AdamW", {"shrink": 0.5, "perturb": 0.5})],
    ids=["AdamW", "RMSprop", "other weights"],
)
def test_a_ruined_fine_tuning_exports_its_starting_point(
    train: Train,
    finetune: Train,
    line: Make,
    capsys: pytest.CaptureFixture[str],
    optimizer: str,
    change: dict[str, float],
) -> None:
    """The checkpoint as it was, also where training begins with its weights shrunk or perturbed."""
    held = line("held", np.linspace(-1, 1, 50))
    before = train(validation=held, optimizer=optimizer, settings={"choose": "last"})
    capsys.readouterr()
    wrong = line("wrong", y=np.full(256, 100.0))
    given = {"dataset": wrong, "validation": held, "learning_rate": 0.1, **change}
    out = finetune(milestone(before, 60), keep_optimizer=False, optimizer=optimizer, **given)
    assert "WARNING: fine-tuning did not help" in capsys.readouterr().out
    started = load_model(str(before / "model")), load_model(str(out / "model"))
    rows = pd.DataFrame({"x": np.asarray([-1, 0.3], np.float32)})
    assert started[0](rows).equals(started[1](rows))
    record = json.loads((out / "model" / "training.json").read_text())
    assert record["chosen"]["step"] == 0
    assert "the starting point" in record["chosen"]["why"]
    assert "the starting point" in (out / "report").read_text()
    again = finetune(milestone(out, 0), keep_optimizer=True, validation=held)
    record = json.loads((again / "model" / "training.json").read_text())
    assert record["curves"]["validation"][0]["step"] == 0


@pytest.mark.parametrize(
    ("settings", "steps", "labels"),
    [
        ({}, 0, None),
        ({"ema_decay": 0.9}, 0, None),
        ({"ema_decay": 0.9, "metric": "r2", **AT_TEN}, 3, np.zeros(50)),
    ],
    ids=["weights", "average", "three steps on, R² undefined"],
)
def test_a_fine_tuning_killed_once_its_starting_point_is_saved_ends_alike(
    train: Train,
    finetune: Train,
    line: Make,
    tmp_path: Path,
    settings: dict[str, Any],
    steps: int,
    labels: Any,
) -> None:
    """The milestone holds the checkpoint's weights, not the perturbed ones that training needs."""
    given = {"validation": line("held", np.linspace(-1, 1, 50), y=labels), "perturb": 0.3}
    chosen = milestone(train(), 60)
    whole = last_state(finetune(chosen, settings=settings, **given))
    (tmp_path / "fine").rename(tmp_path / "whole")
    given["checkpoint_uri"] = str(tmp_path / "another")
    with dies_after(steps):
        finetune(chosen, settings=settings, **given)
    (ledger,) = ledgers(str(tmp_path / "another"))
    assert [entry.step for entry in ledger.milestones] == [0]
    again = last_state(finetune(chosen, settings=settings, **given))
    assert again.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name
    for name in ("curves", "stopping"):
        assert again.meta[name] == whole.meta[name]
    assert whole.meta["curves"]["validation"][0]["step"] > 0


def test_a_fine_tuning_that_helps_exports_what_it_learned(
    train: Train, finetune: Train, line: Make
) -> None:
    out = finetune(milestone(train(), 2), validation=line("held", np.linspace(-1, 1, 50)))
    record = json.loads((out / "model" / "training.json").read_text())
    assert record["chosen"]["step"] > 0


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_frozen_parameters_keep_their_bits(train: Train, finetune: Train, optimizer: str) -> None:
    """Nothing moves them: no gradient, no weight decay, no average."""
    before = train()
    settings = {"freeze": ["0.*", "2.bias"], "ema_decay": 0.9}
    settings["optimizer_args"] = {"weight_decay": 0.5}
    out = finetune(
        milestone(before, 60),
        settings=settings,
        keep_optimizer=False,
        optimizer=optimizer,
        learning_rate=0.01,
    )
    old, new = last_state(before).tensors, last_state(out).tensors
    for name in ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"):
        kept = name.startswith("0.") or name == "2.bias"
        for kind in ("model", "ema"):
            same = torch.equal(old[f"model/network.{name}"], new[f"{kind}/network.{name}"])
            assert same == kept, (kind, name)
        assert any(key.startswith(f"optimizer/{name}/") for key in new) == (
            not kept and optimizer == "AdamW"
        )


def test_what_cannot_be_frozen_is_said(train: Train, finetune: Train) -> None:
    before = train()
    with pytest.raises(InvalidInput, match=r"did you mean '0.weight'"):
        train("no", settings={"freeze": ["0.wieght"]})
    with pytest.raises(InvalidInput, match="nothing to learn"):
        train("no", settings={"freeze": ["*"]})
    with pytest.raises(InvalidInput, match=r"freeze\[0\]"):
        finetune(milestone(before, 60), settings={"freeze": ["9.*"]})
    frozen = train("frozen", settings={"freeze": ["0.*"]})
    with pytest.raises(InvalidInput, match="did not learn then.*keep_optimizer"):
        finetune(milestone(frozen, 60))


def test_what_is_new_to_the_checkpoint_is_told_with_columns_and_counts(
    train: Train, finetune: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = (
        Column(name="x", kind="numeric"),
        Column(name="gap", kind="numeric"),
        Column(name="city", kind="categorical", categories=("a", "b")),
        Column(name="y", kind="numeric", role="target"),
    )

    def write(name: str, schema: Schema, **changes: Any) -> LocalArtifact:
        rows = {"x": np.arange(20.0), "gap": np.arange(20.0), "city": list("ab" * 10)}
        frame = pd.DataFrame({**rows, "y": np.arange(20.0), **changes})
        with DatasetWriter(str(tmp_path / name), schema) as writer:
            writer.write(frame)
        return LocalArtifact(str(tmp_path / name), metadata={"kind": "dataset"})

    known = Schema(columns=columns, task="regression")
    chosen = milestone(train(dataset=write("old", known)), 60)
    capsys.readouterr()
    finetune(chosen, dataset=write("same", known))
    assert "WARNING" not in capsys.readouterr().out
    wider = replace(columns[2], categories=("a", "b", "c", "d"))
    more = (*columns[:2], wider, columns[3], Column(name="extra", kind="numeric"))
    fresh = write(
        "fresh",
        Schema(columns=more, task="regression"),
        x=[*range(17), 6000.0, -6000.0, np.inf][:19] + [9.5 + 11 * 5.77],
        gap=[np.nan] * 4 + [1.0] * 16,
        city=list("abc" + "d" * 4 + "ab" * 6 + "a"),
        extra=0.0,
    )
    finetune(chosen, dataset=fresh)
    told = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(told) == 4
    for line, words in zip(
        told,
        (
            ["'extra'", "ignored"],
            ["'city'", "5 of 20 rows", "'c', 'd'"],
            ["'x'", "3 of 20 rows", "standard deviations"],
            ["'gap'", "4 of 20 rows", "mean"],
        ),
        strict=True,
    ):
        assert all(word in line for word in words), line


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


def test_replayed_rows_may_have_what_the_fresh_ones_lack_and_the_checkpoint_knows(
    train: Train, finetune: Train, tmp_path: Path
) -> None:
    old = labelled(tmp_path, "old", "abcabc", "abc")
    chosen = milestone(train(dataset=old), 60)
    fresh = labelled(tmp_path, "new", "abab", "ab")
    assert last_state(finetune(chosen, dataset=fresh, replay=old, replay_share=0.6)).meta
    foreign = labelled(tmp_path, "foreign", "abd", "abd")
    with pytest.raises(InvalidInput, match="neither the fresh rows nor the checkpoint") as caught:
        finetune(chosen, dataset=fresh, replay=foreign, resume="perhaps")
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"replay classes of 'y'", "resume"}


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
