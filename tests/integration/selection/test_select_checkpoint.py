"""select-checkpoint over real ledgers, written by the real Checkpointer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.base import LARGEST
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.checkpoints import (
    Checkpoint,
    Checkpointer,
    CheckpointSettings,
    Ledger,
    TrainingState,
    load_state,
    read_checkpoint_artifact,
    resolve_place,
    write_ledger_artifact,
)
from kubestill.runtime.checkpoints.ledger import read_ledger_artifact
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.steps.select_checkpoint import Selection, check_inputs, select_checkpoint
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.local import LocalStore
from kubestill.runtime.training.record import Chosen, Curves, read_training, training_of

SCHEMA = Schema(
    columns=(
        Column(name="x", kind="numeric"),
        Column(name="y", kind="numeric", role="target"),
    ),
    task="regression",
)
FEATURES = pd.DataFrame({"x": np.linspace(-1, 1, 400)})
ROWS = FEATURES.assign(y=3 * FEATURES["x"])
PADDING = 40_000
OLDER = Path(__file__).parents[2] / "older"
"""float32 numbers of optimizer state: what a selection should not download needlessly."""


def linear_model() -> Model:
    """Predicts slope * x, where the slope is the network's only weight that matters."""
    raw = FEATURES.to_numpy(np.float32)
    encoder = Encoder.fit([raw], RawLayout(SCHEMA))
    decoder = Decoder.fit([ROWS[["y"]].to_numpy(np.float32)])
    return Model.create(SCHEMA, encoder=encoder, decoder=decoder, network_args={"hidden": []})


def state_of(model: Model, slope: float, step: int) -> TrainingState:
    """The state of a model that predicts `slope` times the true answer."""
    with torch.no_grad():
        weight, bias = model.network.parameters()
        weight.fill_(slope)
        bias.zero_()
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors["optimizer/0/momentum"] = torch.full((PADDING,), float(step))
    return TrainingState(tensors, {"model_spec": model.spec.to_json()})


def write_history(
    root: Path,
    slopes: list[float],
    scores: Callable[[int], Mapping[str, float]],
    *,
    finish: bool = True,
) -> Ledger:
    """Save a milestone every 100 steps, with a recovery checkpoint before each tenth one."""
    place = resolve_place(str(root), "history", "abc123", "", owner="test", announce=lambda _: None)
    policy = CheckpointSettings(keep_last=1, keep_every=1, keep_recovery=9, heartbeat_seconds=60)
    model = linear_model()
    curve: list[dict[str, float]] = []
    with Checkpointer.open(place, policy, numerics={}, announce=lambda _: None) as checkpointer:
        for n, slope in enumerate(slopes, start=1):
            step = 100 * n
            position: dict[str, Any] = {"epoch": n / 10, "examples": 3200 * n}
            if n % 10 == 0:
                before = {**position, "examples": 3200 * n - 32}
                view = state_of(model, slope, step - 1)
                checkpointer.save(view, kind="recovery", step=step - 1, **before)
            metrics = scores(n)
            curve.append({"step": step, **position, **metrics})
            view = state_of(model, slope, step)
            checkpointer.save(view, kind="milestone", step=step, metrics=metrics, **position)
        if not finish:
            return checkpointer.ledger
        train = [
            {**{name: p[name] for name in ("step", "epoch", "examples")}, "loss": 1.0 / p["step"]}
            for p in curve
        ]
        # A record that the engine wrote, with the curves of this history.
        record = training_of(read_ledger_artifact(str(OLDER / "ledger.json")))
        assert record
        curves = Curves.model_validate({"train": train, "validation": curve})
        record = record.model_copy(update={"curves": curves})
        return checkpointer.finish(record.to_result())


def overfitting(n: int) -> dict[str, float]:
    """Best at milestone 30 of 50."""
    return {"rmse": 0.2 + 2.0 * 0.8**n + 0.02 * max(0, n - 30), "r2": 0.5}


class Io:
    """The artifacts of one call."""

    def __init__(self, folder: Path, ledger: Ledger):
        folder.mkdir(exist_ok=True)
        self.ledger = LocalArtifact(str(folder / "ledger.json"), metadata={"kind": "ledger"})
        write_ledger_artifact(ledger, self.ledger.path)
        self.checkpoint = LocalArtifact(str(folder / "checkpoint"))
        self.model = LocalArtifact(str(folder / "model"))
        self.report = LocalArtifact(str(folder / "report"))
        self.summary = LocalArtifact(str(folder / "summary"))

    def select(self, **options: Any) -> tuple[str, str, str]:
        return select_checkpoint(**vars(self), **options)

    @property
    def chosen(self) -> Checkpoint:
        return read_checkpoint_artifact(self.checkpoint.path)

    @property
    def predictions(self) -> np.ndarray:
        return load_model(self.model.path)(FEATURES)["prediction"].to_numpy()


class CountingStore(LocalStore):
    """A local store that hands out no paths, and counts every byte that is read."""

    def __init__(self, root: str):
        super().__init__(root)
        self.read: dict[str, int] = {}

    def get(self, key: str, *, most: int | None = LARGEST) -> bytes:
        content = super().get(key, most=most)
        self.read[key] = self.read.get(key, 0) + len(content)
        return content

    def download(self, key: str, path: str) -> None:
        super().download(key, path)
        self.read[key] = self.read.get(key, 0) + os.path.getsize(path)

    def local_path(self, key: str) -> None:
        return None


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """50 milestones and 5 recovery checkpoints."""
    root = tmp_path_factory.mktemp("history")
    return write_history(root, [0.02 * n for n in range(1, 51)], overfitting)


def test_the_history_is_what_the_tests_believe(history: Ledger):
    assert len(history.milestones) == 50
    assert len(history.entries) == 55
    assert sum(entry.bytes for entry in history.entries) > 55 * 4 * PADDING


def test_what_checkpoints_are_listed_to_take_is_what_they_take_on_disk(history: Ledger):
    for entry in history.entries:
        folder = Path(history.uri, os.path.dirname(entry.manifest.key))
        assert entry.bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_reads_only_the_ledger_and_the_chosen_state(history: Ledger, tmp_path: Path):
    io = Io(tmp_path / "io", history)
    inputs = check_inputs(io.ledger, None, "best", "", 0.0, {})
    store = CountingStore(history.uri)
    choice, _ = Selection(inputs, store, str(tmp_path)).run(io.model.path)
    manifest = choice.entry.manifest.key
    assert {os.path.dirname(key) for key in store.read} == {os.path.dirname(manifest)}
    assert sum(store.read.values()) == choice.entry.bytes
    everything = sum(entry.bytes for entry in history.entries)
    assert sum(store.read.values()) < 0.03 * everything


def test_writes_every_output(history: Ledger, tmp_path: Path):
    io = Io(tmp_path, history)
    checkpoint_uri, model_uri, reason = io.select()
    assert "step 3,000 with rmse 0.2025 is the best of 50 milestones" in reason

    chosen = io.chosen
    assert chosen.entry == next(e for e in history.milestones if e.step == 3000)
    assert chosen.reason == reason
    assert os.path.getsize(io.checkpoint.path) < 1200
    assert checkpoint_uri == f"{history.uri}/{os.path.dirname(chosen.entry.manifest.key)}"
    assert os.path.isdir(checkpoint_uri)
    state = load_state(chosen)
    assert float(state.tensors["optimizer/0/momentum"][0]) == 3000

    assert model_uri == io.model.uri
    assert io.predictions == pytest.approx(0.6 * ROWS["y"].to_numpy(), abs=1e-5)
    training = read_training(model_uri)
    assert training is not None
    assert training.chosen == Chosen(step=3000, why=reason)

    summary = Path(io.summary.path).read_text()
    assert "Step 3,000 chosen by rule best" in summary
    assert reason[1:] in summary
    assert summary.count("\n| ") == 52
    html = Path(io.report.path).read_text()
    assert "<svg" in html
    for kind in ("checkpoint", "model", "report", "summary"):
        assert vars(io)[kind].metadata["kind"] == kind
    with open(os.path.join(model_uri, "model.json"), "rb") as file:
        assert io.model.metadata["digest"] == hashlib.sha256(file.read()).hexdigest()
    assert io.checkpoint.metadata["digest"] == chosen.entry.manifest.sha256
    json.dumps(io.checkpoint.metadata)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"rule": "last"}, {5000}),
        ({"rule": "step", "settings": {"step": 700.0}}, {700}),
        ({"rule": "before-overfitting"}, set(range(2500, 3300, 100))),
        ({"rule": "earliest-within", "tolerance": 0.1}, {2100}),
        ({"rule": "pareto"}, set(range(400, 1500, 100))),
    ],
    ids=lambda value: value["rule"] if isinstance(value, dict) else "",
)
def test_every_rule(history: Ledger, tmp_path: Path, options: dict[str, Any], steps: set[int]):
    io = Io(tmp_path, history)
    _, _, reason = io.select(**options)
    chosen = io.chosen
    assert chosen.entry.step in steps
    assert chosen.reason == reason


def test_running_twice_gives_the_same(history: Ledger, tmp_path: Path):
    io = Io(tmp_path, history)
    names = [io.checkpoint.path, io.report.path, io.summary.path]
    outcomes = []
    for _ in range(2):
        result = io.select()
        outcomes.append((result, [Path(name).read_bytes() for name in names]))
    assert outcomes[0] == outcomes[1]


def test_a_file_to_serve_beside_the_model(history: Ledger, tmp_path: Path):
    io = Io(tmp_path, history)
    io.select(rule="last", settings={"serving": "torch"})
    program = torch.export.load(str(tmp_path / "model" / "model.pt2")).module()
    raw = torch.tensor(FEATURES.to_numpy(), dtype=torch.float32)
    served = program(raw).detach().numpy()[:, 0]
    np.testing.assert_allclose(served, io.predictions, rtol=1e-5, atol=1e-6)


@pytest.fixture
def rows(tmp_path: Path) -> LocalArtifact:
    """400 labelled rows on which the slope 1 is exact."""
    with DatasetWriter(str(tmp_path / "rows"), SCHEMA) as writer:
        writer.write(ROWS)
    return LocalArtifact(str(tmp_path / "rows"), metadata={"kind": "dataset"})


@pytest.mark.parametrize("devices", [1, 3])
def test_scores_candidates_again(
    tmp_path: Path, rows: LocalArtifact, devices: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "kubestill.runtime.steps.select_checkpoint.choose_devices",
        lambda name: [torch.device("cpu")] * devices,
    )
    slopes = [0.2, 0.7, 0.95, 1.0, 1.3, 1.6]
    misleading = write_history(tmp_path / "h", slopes, lambda n: {"rmse": 1.0 / n})
    io = Io(tmp_path / "io", misleading)
    io.select()
    assert io.chosen.entry.step == 600

    io.select(dataset=rows)
    chosen = io.chosen
    assert chosen.entry.step == 400
    assert chosen.entry.metrics == {"rmse": 0.25}  # as recorded: the artifact is the ledger's
    assert io.predictions == pytest.approx(ROWS["y"].to_numpy(), abs=1e-4)
    assert "scored again on 400 rows" in Path(io.summary.path).read_text()

    io.select(dataset=rows, rule="earliest-within", metric="r2")
    reason = io.chosen.reason
    assert "one standard error" in reason
    assert "row by row" in reason


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"rule": "best"}, 300),
        ({"rule": "earliest-within"}, 300),
        ({"rule": "earliest-within", "tolerance": 0.2}, 300),
        ({"rule": "pareto"}, 300),
    ],
    ids=["best", "standard error", "tolerance", "pareto"],
)
@pytest.mark.parametrize("metric", ["", "r2"])
def test_a_candidate_that_answers_nan_does_not_compete(
    tmp_path: Path, rows: LocalArtifact, options: dict[str, Any], step: int, metric: str
):
    ledger = write_history(tmp_path / "h", [0.2, np.nan, 1.0, 1.6], lambda n: {"rmse": 1.0 / n})
    io = Io(tmp_path / "io", ledger)
    io.select(dataset=rows, metric=metric, **options)
    assert io.chosen.entry.step == step
    assert "3 milestones" in io.chosen.reason
    summary = Path(io.summary.path).read_text()
    assert "| 200 |" not in summary


def test_too_few_rows_for_a_standard_error_are_reported_before_any_state_is_read(
    history: Ledger, tmp_path: Path
):
    with DatasetWriter(str(tmp_path / "few"), SCHEMA) as writer:
        writer.write(ROWS[:29])
    few = LocalArtifact(str(tmp_path / "few"), metadata={"kind": "dataset"})
    io = Io(tmp_path / "io", history)
    with pytest.raises(InvalidInput, match="insufficient: one standard error takes 30 .* has 29"):
        io.select(dataset=few, rule="earliest-within")
    inputs = check_inputs(io.ledger, few, "earliest-within", "", 0.1, {})
    assert not inputs.criterion.measures_error


def test_a_damaged_state_is_left_out_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ledger = write_history(tmp_path / "h", [0.1] * 8, lambda n: {"rmse": 1.0 / n})
    best = ledger.milestones[-1]
    folder = Path(ledger.uri, os.path.dirname(best.manifest.key))
    state = next(path for path in folder.iterdir() if path.name != "manifest.json")
    content = bytearray(state.read_bytes())
    content[-100] ^= 1
    state.write_bytes(content)
    io = Io(tmp_path / "io", ledger)
    io.select()
    assert io.chosen.entry.step == 700
    assert "WARNING: step 800 is damaged" in capsys.readouterr().out
    assert "step 800 is damaged" in Path(io.summary.path).read_text()
    with pytest.raises(CorruptData):
        io.select(rule="step", settings={"step": 800})


def test_a_training_that_never_finished_can_be_selected_from(tmp_path: Path):
    write_history(tmp_path / "h", [0.1] * 8, overfitting, finish=False)
    place = tmp_path / "h" / "history" / "abc123"
    content, _ = open_store(str(place)).cell("ledger.json").read()
    assert content is not None
    ledger = Ledger.from_bytes(content, source="test")
    io = Io(tmp_path / "io", ledger)
    io.select(metric="rmse")
    assert io.chosen.entry.step == 800
    assert read_training(io.model.path) is None


@pytest.mark.parametrize("at", ["path", "uri"])
def test_a_copied_root_is_selected_from_where_it_lies(
    tmp_path: Path, at: str, capsys: pytest.CaptureFixture[str]
):
    write_history(tmp_path / "h", [0.1] * 8, overfitting)
    shutil.move(tmp_path / "h", tmp_path / "copy")
    place = tmp_path / "copy" / "history" / "abc123"
    newest = max(place.glob("ledger.json.*"))
    io = Io(tmp_path / "io", Ledger.from_bytes(newest.read_bytes(), source="test"))
    # Kubeflow fetches an imported file to a path of its own, and names where it is from.
    io.ledger = LocalArtifact(
        str(newest) if at == "path" else io.ledger.path,
        uri=str(newest) if at == "uri" else "",
        metadata={"kind": "ledger"},
    )
    io.select()
    assert io.chosen.entry.step == 800
    assert io.chosen.uri == str(place)
    assert load_state(io.chosen).tensors
    assert f"are read from {place}" in capsys.readouterr().out


def test_every_problem_at_once_before_any_state_is_read(history: Ledger, tmp_path: Path):
    io = Io(tmp_path, history)
    wrong = LocalArtifact(str(tmp_path), metadata={"kind": "model"})
    with pytest.raises(InvalidInput) as caught:
        io.select(
            dataset=wrong,
            rule="bets",
            metric="rmsee",
            tolerance=2.0,
            settings={"stepp": 3, "device": "tpu"},
        )
    text = str(caught.value)
    for expected in (
        "did you mean 'best'",
        "connect a dataset",
        "settings.stepp",
        "metric = 'rmsee'",
    ):
        assert expected in text
    assert not os.path.exists(io.model.path)


def test_a_damaged_ledger_hides_nothing_else(history: Ledger, tmp_path: Path):
    io = Io(tmp_path, history)
    Path(io.ledger.path).write_text("{")
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "dataset.json").write_text("{")
    with pytest.raises(InvalidInput) as caught:
        io.select(
            dataset=LocalArtifact(str(rows), metadata={"kind": "dataset"}),
            rule="bets",
            tolerance=2.0,
            settings={"stepp": 3, "mode": "up", "device": "tpu"},
        )
    assert {problem.field for problem in caught.value.problems} == {
        "ledger",
        "dataset",
        "rule",
        "tolerance",
        "settings.stepp",
        "settings.mode",
        "device",
    }
    assert not os.path.exists(io.model.path)


def test_a_tolerance_that_is_no_number_is_reported_with_the_rest(history: Ledger, tmp_path: Path):
    io = Io(tmp_path, history)
    with pytest.raises(InvalidInput) as caught:
        io.select(rule="bets", tolerance="much")
    assert [problem.field for problem in caught.value.problems] == ["tolerance", "rule"]


def test_a_ledger_that_is_not_there(history: Ledger, tmp_path: Path):
    io = Io(tmp_path, history)
    os.remove(io.ledger.path)
    with pytest.raises(InvalidInput, match=r"ledger = .*no ledger"):
        io.select()


def test_refuses_what_is_no_ledger(history: Ledger, tmp_path: Path):
    io = Io(tmp_path, history)
    io.ledger.metadata["kind"] = "model"
    with pytest.raises(InvalidInput, match="this is a model; connect a ledger"):
        io.select()
