"""A damaged ledger costs neither its training run nor the sight of those beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from damage import DEEP, RAW

from kubestill.cli import main
from kubestill.runtime.checkpoints import (
    Checkpointer,
    CheckpointSettings,
    TrainingState,
    resolve_place,
)
from kubestill.runtime.stores import open_store

SETTINGS = CheckpointSettings(keep_last=3, keep_bytes=0)


def trained(root: Path, fingerprint: str) -> str:
    place = resolve_place(str(root), "exp", fingerprint, "", owner="me")
    with Checkpointer.open(place, SETTINGS, numerics={}, announce=print) as checkpointer:
        for step in (1, 2):
            state = TrainingState({"model/w": torch.full((9,), float(step))}, {"step": step})
            checkpointer.save(state, kind="milestone", step=step, epoch=0, examples=step)
    return place.uri


def damage(place: str, change: Callable[[Any], object]) -> None:
    cell = open_store(place).cell("ledger.json")
    content, version = cell.read()
    assert content
    form = json.loads(content)
    change(form)
    text = json.dumps(form).replace(json.dumps(DEEP), RAW[DEEP])
    cell.swap(text.encode(), expect=version)


DAMAGES: dict[str, Callable[[Any], object]] = {
    "a step beyond all numbers": lambda form: form["entries"][1].update(step=10**30),
    "nesting": lambda form: form.update(notices=DEEP),
    "wrong types": lambda form: form.update(attempt=[1, 2]),
    "no entries": lambda form: form.pop("entries"),
    "a year that no calendar has": lambda form: form["entries"][0].update(created=1e300),
    "a key that leads out": lambda form: form["entries"][0]["manifest"].update(key="../x"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_retry_goes_on_from_the_checkpoints_and_says_so(tmp_path: Path, what: str) -> None:
    damage(trained(tmp_path, "f00"), DAMAGES[what])
    said: list[str] = []
    place = resolve_place(str(tmp_path), "exp", "f00", "", owner="me")
    with Checkpointer.open(place, SETTINGS, numerics={}, announce=said.append) as checkpointer:
        state = checkpointer.restore()
    assert state
    assert state.meta["step"] == 2
    (warning,) = [line for line in said if line.startswith("WARNING: ledger lost")]
    assert warning.endswith("rebuilt from 2 manifests")


def test_a_ledger_that_leaves_nothing_to_rebuild_from_is_announced_too(tmp_path: Path) -> None:
    place = resolve_place(str(tmp_path), "exp", "f00", "", owner="me")
    place.store.cell("ledger.json").swap(b"{", expect="0")
    said: list[str] = []
    with Checkpointer.open(place, SETTINGS, numerics={}, announce=said.append) as checkpointer:
        assert checkpointer.restore() is None
    assert "no checkpoint lies here: training starts anew" in said[0]


def test_ls_shows_what_can_be_read_and_one_line_for_each_that_cannot(tmp_path: Path) -> None:
    for number, change in enumerate(DAMAGES.values()):
        damage(trained(tmp_path, f"bad{number}"), change)
    trained(tmp_path, "good")
    result: Any = CliRunner().invoke(main, ["checkpoints", "ls", str(tmp_path), "--json"])
    rows = json.loads(result.output)
    assert [row["step"] for row in rows if row["training"] == "exp/good"] == [1, 2]
    damaged = [row["training"] for row in rows if row["kind"] == ""]
    assert damaged == [f"exp/bad{number}" for number in range(len(DAMAGES))]
    assert len(rows) == 2 + len(DAMAGES)
