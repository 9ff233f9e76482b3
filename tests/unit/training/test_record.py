"""The record of a training run: written by the engine, and read as earlier versions wrote it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.checkpoints.ledger import read_ledger_artifact
from kubestill.runtime.models.export import Incoming
from kubestill.runtime.models.model import ModelSpec
from kubestill.runtime.training.record import TrainingRecord, read_training, training_of

OLDER = Path(__file__).parents[2] / "older"
FORM: dict[str, Any] = json.loads((OLDER / "model" / "training.json").read_text())

Train = Callable[..., Path]
Make = Callable[..., Any]


def older() -> TrainingRecord:
    record = read_training(str(OLDER / "model"))
    assert record
    return record


def read(tmp_path: Path, form: Any) -> TrainingRecord | None:
    (tmp_path / "training.json").write_text(json.dumps(form))
    return read_training(str(tmp_path))


def shape(value: Any, *, within: str = "") -> Any:
    """Return the names and types in a JSON value; of a list, those of its first element."""
    if isinstance(value, dict):
        # The order in which a store lists scores is that of their names.
        pairs = sorted(value.items()) if within in ("validation", "metrics") else value.items()
        return [(name, shape(one, within=name)) for name, one in pairs]
    if isinstance(value, list):
        return [shape(one, within=within) for one in value[:1]]
    return type(value).__name__


def test_an_older_record_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    content = (OLDER / "model" / "training.json").read_bytes()
    spec = ModelSpec.from_json(json.loads((OLDER / "model" / "model.json").read_text()))
    incoming = Incoming(str(tmp_path))
    incoming.begin("model/network.weight", "F32", (0,), 0)
    incoming.export(spec.to_json(), training=older().to_json())
    assert (tmp_path / "training.json").read_bytes() == content


def test_a_record_is_typed_all_the_way_down() -> None:
    record = older()
    assert (record.preset, record.steps, record.stop.reason) == ("teacher", 48, "budget")
    assert record.chosen.step == record.curves.validation[-1].step == 48
    assert record.curves.validation[-1].scores["rmse"] == pytest.approx(0.2854, abs=1e-4)
    assert record.phases.boundaries.structure == 30
    assert [one.resumed_from for one in record.attempts] == [None, 18]
    assert record.saving.saves == 5
    assert [one.step for one in record.checkpoints] == list(range(6, 49, 6))


def test_an_older_ledger_holds_the_same_record_but_for_what_the_step_adds() -> None:
    record = training_of(read_ledger_artifact(str(OLDER / "ledger.json")))
    assert record
    assert not record.checkpoints
    written = {key: value for key, value in FORM.items() if key != "checkpoints"}
    assert record.to_json() == written
    assert list(record.to_json()) == list(written)


def test_what_select_checkpoint_wrote_is_read_though_its_keys_are_sorted() -> None:
    selected = read_training(str(OLDER / "selected"))
    assert selected
    assert selected.chosen.why == "step 48 is the last of 8 milestones"
    assert selected.curves == older().curves


def test_todays_engine_writes_the_keys_and_types_that_it_always_wrote(
    train: Train, line: Make
) -> None:
    held = line("held", np.linspace(-0.9, 0.9, 16))
    out = train(
        validation=held,
        steps=48,
        network_args={"hidden": [4]},
        settings={"milestone_every": 6, "milestone_unit": "steps"},
    )
    found = json.loads((out / "model" / "training.json").read_text())
    expected = copy.deepcopy(FORM)
    # Only an attempt that follows another has lost anything.
    del expected["saving"]["lost_seconds"]
    # Every version has settings of its own.
    assert isinstance(found.pop("settings"), type(expected.pop("settings")))
    assert shape(found) == shape(expected)


def test_a_record_from_before_attempts_were_kept_is_read(tmp_path: Path) -> None:
    form = {key: value for key, value in FORM.items() if key != "attempts"}
    record = read(tmp_path, form | {"resumed": [{"step": 18, "exact": True}]})
    assert record
    assert record.attempts == ()
    assert record.to_json() == form, "what was never recorded is not made up"


OPTIONAL = ("attempts", "saving", "checkpoints")


@pytest.mark.parametrize("key", [key for key in FORM if key not in OPTIONAL])
def test_a_record_without_one_of_its_facts_is_damaged(tmp_path: Path, key: str) -> None:
    form = {name: value for name, value in FORM.items() if name != key}
    with pytest.raises(CorruptData, match=f"{key}|format"):
        read(tmp_path, form)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything in a JSON value; of a list, those of its first element."""
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1])
    found = [path]
    for key, one in parts:
        found += places(one, (*path, key)) if isinstance(one, (dict, list)) else [(*path, key)]
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in places(FORM) if path and path[0] != "settings"],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_value_of_another_type_is_damage(tmp_path: Path, path: tuple[Any, ...]) -> None:
    form = copy.deepcopy(FORM)
    inner = form
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = [[1]]
    with pytest.raises((CorruptData, InvalidInput)):
        read(tmp_path, form)


def test_another_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="kubestill/training/2.*upgrade kubestill"):
        read(tmp_path, FORM | {"format": "kubestill/training/2"})


def test_an_export_without_a_record_has_none(tmp_path: Path) -> None:
    assert read_training(str(tmp_path)) is None


def test_a_run_that_begins_afresh_says_where_its_own_checkpoints_are(
    train: Train, tmp_path: Path
) -> None:
    """They are not in the place that an earlier run with equal settings trained in."""
    train(steps=4)
    out = train("again", steps=4, resume="never")
    record = read_training(str(out / "model"))
    assert record
    ledger = read_ledger_artifact(str(out / "ledger"))
    assert record.checkpoint_uri == ledger.uri
