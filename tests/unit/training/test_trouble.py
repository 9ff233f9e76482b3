"""Trainings that meet trouble which must not cost them their result."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kubestill.errors import Diverged, InvalidInput, TrainingFailed
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.checkpoints import Checkpoint, load_state
from kubestill.runtime.checkpoints.inspection import ledgers
from kubestill.runtime.checkpoints.ledger import read_ledger_artifact
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.select_checkpoint import select_checkpoint
from kubestill.runtime.training import job as training_job
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.engine import Trainer
from kubestill.runtime.training.stopping import Stopping

Train = Callable[..., Path]
Make = Callable[..., Any]


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "model" / "training.json").read_text())


def interrupt(monkeypatch: pytest.MonkeyPatch, train: Train, **parameters: Any) -> None:
    """Let a training die at its third milestone."""
    milestone, seen = Trainer._milestone, 0  # pyright: ignore[reportPrivateUsage]

    def dying(self: Trainer) -> None:
        nonlocal seen
        milestone(self)
        seen += 1
        if seen == 3:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_milestone", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train(**parameters)


def test_scores_that_are_no_numbers_are_left_out(
    train: Train, line: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Float32 overflows on a feature of 1.9e38; the training itself is sound."""
    out = train(validation=line("held", [0.1, 1.9e38], y=[0.3, 0.0]))
    assert "WARNING: not a number" in capsys.readouterr().out
    found = record(out)
    assert found["curves"]["validation"] == []
    assert found["chosen"]["step"] == 60
    assert "never a number" in found["chosen"]["why"]


def test_what_a_divergence_leaves_is_sound(train: Train, tmp_path: Path) -> None:
    """The learning rate rises until it is too high; by then milestones have been saved."""
    settings = {"warmup_steps": 60, "milestone_every": 2, "milestone_unit": "steps"}
    given = {"network_args": {"hidden": []}, "optimizer": "SGD", "learning_rate": 1e3}
    with pytest.raises(Diverged, match=r"The state of step \d+ is kept") as caught:
        train(**given, settings=settings)
    step = int(re.findall(r"step (\d+) is kept", str(caught.value))[0])
    (ledger,) = ledgers(str(tmp_path / "store"))
    assert step == ledger.entries[-1].step
    # A selection can choose among what was saved before.
    artifact = tmp_path / "out" / "ledger"
    assert read_ledger_artifact(str(artifact)).entries == ledger.entries
    artifact.unlink()
    with pytest.raises(TrainingFailed):
        train(**given, settings=settings)
    assert read_ledger_artifact(str(artifact)).entries == ledger.entries
    for entry in ledger.entries:
        tensors = load_state(Checkpoint.of(ledger, entry)).tensors
        assert all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


def test_a_diverged_run_is_selected_from_by_what_it_followed(
    train: Train, line: Make, tmp_path: Path
) -> None:
    """No record was written, but every state carries the curves, pruned milestones included."""
    settings = {"warmup_steps": 60, "milestone_every": 1, "milestone_unit": "steps"}
    keep = {"keep_bytes": 0, "keep_last": 1, "keep_best": 1, "keep_phases": False}
    with pytest.raises(Diverged):
        train(
            network_args={"hidden": []},
            optimizer="SGD",
            learning_rate=1e2,
            validation=line("held"),
            settings={**settings, "checkpoints": keep},
        )
    ledger = LocalArtifact(str(tmp_path / "out" / "ledger"), metadata={"kind": "ledger"})
    names = ("checkpoint", "model", "report", "summary")
    out: dict[str, Any] = {name: LocalArtifact(str(tmp_path / "chosen" / name)) for name in names}
    (tmp_path / "chosen").mkdir()
    _, model, reason = select_checkpoint(ledger=ledger, **out)
    assert load_model(model).spec.task == "regression"
    assert re.search(r"with rmse \S+ is the best of the \d milestones kept of \d+", reason)


def test_weights_that_the_last_step_broke_are_not_exported(train: Train, tmp_path: Path) -> None:
    """Their loss is not known yet, and nothing is validated that would show it."""
    with pytest.raises(Diverged, match="weights became infinite or NaN.*Nothing was saved"):
        train(optimizer="SGD", learning_rate=1e39, steps=1)
    assert not (tmp_path / "out" / "model").exists()


def test_a_metric_that_begins_as_no_number_can_still_become_the_best() -> None:
    stopping = Stopping(metric="rmse", patience=3)
    assert [stopping.update(n, v) for n, v in enumerate([np.nan, np.inf, 2.0, np.nan])] == [
        None
    ] * 4
    assert (stopping.best_step, stopping.best_value, stopping.waited) == (2, 2.0, 1)
    json.dumps(stopping.to_json(), allow_nan=False)
    never = Stopping(metric="accuracy", patience=2)
    assert never.update(1, np.nan) is None
    stop = never.update(2, np.nan)
    assert stop is not None
    assert "never finite" in stop[1]


def test_the_step_that_is_chosen_gives_the_bits_of_autograd(train: Train, tmp_path: Path) -> None:
    chosen = train("chosen", settings={"threads": 1})
    elsewhere = str(tmp_path / "elsewhere")
    settings = {"threads": 1, "step_path": "autograd"}
    told = train("told", settings=settings, checkpoint_uri=elsewhere)
    assert [record(out)["step_path"] for out in (chosen, told)] == ["fused", "autograd"]
    weights = [(out / "model" / "model.safetensors").read_bytes() for out in (chosen, told)]
    assert weights[0] == weights[1]


def test_a_training_goes_on_where_the_precision_is_another(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pool of older GPUs trains in float32, by the fused step that bf16 cannot take."""
    interrupt(monkeypatch, train)
    assert "fused step" in capsys.readouterr().out
    cpu = torch.device("cpu")
    monkeypatch.setattr(
        training_job, "choose_machine", lambda _: Machine(device=cpu, precision="bf16")
    )
    found = record(train())
    assert found["step_path"] == "autograd"
    first, second = found["attempts"]
    assert first["resumed_from"] is None
    assert second["resumed_from"] > 0
    assert not second["exact"]


def test_the_next_best_is_exported_where_the_chosen_state_is_damaged(
    train: Train, line: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"validation": line("held", np.linspace(-0.9, 0.9, 50)), "dataset": line("rows")}
    chosen = record(train("first", **given))["chosen"]["step"]
    (state,) = (tmp_path / "store").rglob(f"{chosen:09d}-*/state-*")
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    found = record(train("second", **given))["chosen"]
    assert found["step"] != chosen
    assert "next best" in found["why"]
    assert "WARNING" in capsys.readouterr().out


def test_rows_that_a_network_cannot_take_are_read_once(train: Train) -> None:
    """A column with gaps becomes two features; only the rows tell that there is none."""
    given = {"network_args": {"in_features": 2, "hidden": [4]}}
    with pytest.raises(InvalidInput, match="network"):
        train(**given)
    with pytest.raises(TrainingFailed, match="network"):
        train(**given)
