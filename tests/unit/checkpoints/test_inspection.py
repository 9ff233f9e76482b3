"""What is seen from outside: of copies, torn and lost ledgers, and trainings beside them."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from kubestill.cli import main
from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.checkpoints import (
    Checkpointer,
    CheckpointSettings,
    TrainingState,
    load_state,
    resolve_place,
    write_ledger_artifact,
)
from kubestill.runtime.checkpoints.inspection import describe, ledgers, show, verify
from kubestill.runtime.checkpoints.ledger import Checkpoint

SETTINGS = CheckpointSettings(keep_last=3, keep_bytes=0)
LOST = "the ledger is lost; a training run that starts here rebuilds it"


def trained(root: Path, fingerprint: str = "f00", steps: int = 2) -> Path:
    """Leave a training with checkpoints below `root`; return its place."""
    place = resolve_place(str(root), "exp", fingerprint, "", owner="me")

    def ignore(_: str) -> None:
        pass

    with Checkpointer.open(place, SETTINGS, numerics={}, announce=ignore) as checkpointer:
        for step in range(1, steps + 1):
            state = TrainingState({"model/w": torch.full((9,), float(step))}, {"step": step})
            checkpointer.save(state, kind="milestone", step=step, epoch=0, examples=step)
    return Path(place.uri)


def ledger_files(place: Path) -> list[Path]:
    return sorted(place.glob("ledger.json.*"))


def lose_ledger(place: Path) -> None:
    for path in ledger_files(place):
        path.unlink()


def printed(*arguments: str) -> tuple[int, str]:
    result: Any = CliRunner().invoke(main, ["checkpoints", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_a_copy_is_looked_at_where_it_lies(tmp_path: Path) -> None:
    trained(tmp_path / "root")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "root", copy)
    for path in copy.glob("exp/f00/*/*.safetensors"):
        path.unlink()
    problems = verify(str(copy))
    assert len(problems) == 2
    assert all(line.startswith(f"{copy}/exp/f00: step ") for line in problems)
    assert all("is missing" in line for line in problems)
    assert verify(str(tmp_path / "root")) == []


def test_an_intact_copy_needs_no_original(tmp_path: Path) -> None:
    place = trained(tmp_path / "root")
    copy = tmp_path / "copy"
    shutil.move(tmp_path / "root", copy)
    moved = str(copy / "exp/f00")
    assert not place.exists()
    assert verify(str(copy)) == []
    assert verify(moved) == []
    # A file of the place itself lies in the place.
    assert verify(str(ledger_files(copy / "exp/f00")[-1])) == []
    assert [row.uri for row in show(str(copy))] == [moved]
    assert all(row.uri.startswith(f"{moved}/0000") for row in describe(str(copy)))
    (ledger,) = ledgers(str(copy))
    assert load_state(Checkpoint.of(ledger, ledger.entries[1])).meta["step"] == 2


def test_a_ledger_that_travelled_leads_to_its_place(tmp_path: Path) -> None:
    trained(tmp_path / "root")
    artifact = tmp_path / "elsewhere"
    write_ledger_artifact(ledgers(str(tmp_path / "root"))[0], str(artifact))
    assert verify(str(artifact)) == []
    shutil.rmtree(tmp_path / "root")
    assert len(verify(str(artifact))) == 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"format": "kube', "is not a ledger"),
        (b"\xff\x00", "is not a ledger"),
        (b'{"format": "kubestill/ledger/9"}', "another version of kubestill"),
        (b'{"format": "kubestill/ledger/1"}', "is not a complete ledger"),
    ],
    ids=["torn", "garbage", "another version", "incomplete"],
)
def test_one_unreadable_ledger_hides_no_other_training(
    tmp_path: Path, content: bytes, why: str
) -> None:
    torn = trained(tmp_path, "f00", steps=1)
    trained(tmp_path, "f01", steps=2)
    ledger_files(torn)[-1].write_bytes(content)

    (problem,) = verify(str(tmp_path))
    assert problem.startswith(f"{torn}: ")
    assert why in problem
    assert "\n" not in problem
    rows = describe(str(tmp_path))
    assert [(row.training, row.step, row.kind) for row in rows] == [
        ("exp/f00", 0, ""),
        ("exp/f01", 1, "milestone"),
        ("exp/f01", 2, "milestone"),
    ]
    assert why in rows[0].state
    unreadable, whole = show(str(tmp_path))
    assert unreadable.training == "exp/f00"
    assert why in unreadable.status
    assert (whole.status, whole.checkpoints) == ("open", 2)
    # Damage to the training beside it is reported all the same.
    next(tmp_path.glob("exp/f01/000000002-*/*.safetensors")).unlink()
    assert len(verify(str(tmp_path))) == 2
    with pytest.raises((CorruptData, InvalidInput), match=why):
        ledgers(str(tmp_path))


def test_a_lost_ledger_is_no_missing_training(tmp_path: Path) -> None:
    place = trained(tmp_path)
    lose_ledger(place)
    for uri in (tmp_path, tmp_path / "exp", place):
        assert verify(str(uri)) == [f"{place}: {LOST}"]
        assert [row.status for row in show(str(uri))] == [LOST]
        assert [row.state for row in describe(str(uri))] == [LOST]
    with pytest.raises(CorruptData, match="the ledger is lost"):
        ledgers(str(tmp_path))
    # As it says.
    trained(tmp_path, steps=0)
    assert verify(str(tmp_path)) == []
    assert [row.step for row in describe(str(tmp_path))] == [1, 2]


def test_where_nothing_was_committed_there_is_no_training(tmp_path: Path) -> None:
    place = trained(tmp_path, steps=1)
    lose_ledger(place)
    next(place.glob("*/manifest.json")).unlink()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/manifest.json").write_text("{}")
    with pytest.raises(InvalidInput, match="no training run keeps checkpoints there"):
        verify(str(tmp_path))


def test_the_commands_print_what_has_no_ledger(tmp_path: Path) -> None:
    lose_ledger(trained(tmp_path, "f00"))
    trained(tmp_path, "f01", steps=1)
    code, text = printed("verify", str(tmp_path))
    assert code == 1
    assert f"{tmp_path}/exp/f00: {LOST}" in text
    for command in ("ls", "show"):
        code, text = printed(command, str(tmp_path))
        assert code == 0
        assert LOST in text
        assert "exp/f01" in text


def test_the_json_of_the_commands_keeps_its_names(tmp_path: Path) -> None:
    """Scripts read it: names, order and values are an interface."""
    place = trained(tmp_path, steps=1)
    lose_ledger(trained(tmp_path, "lost", steps=1))
    (ledger,) = ledgers(str(place))
    assert ledger.attempt is not None
    (entry,) = ledger.entries

    def time(at: float) -> str:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")

    checkpoint = {
        "training": "exp/f00",
        "step": 1,
        "epoch": 0.0,
        "examples": 1,
        "kind": "milestone",
        "phase": None,
        "metrics": {},
        "bytes": entry.bytes,
        "created": time(entry.created),
        "attempt": 1,
        "state": "ok",
        "uri": f"{place}/{entry.manifest.key.rpartition('/')[0]}",
    }
    lost = {
        "training": "exp/lost",
        "step": 0,
        "epoch": 0.0,
        "examples": 0,
        "kind": "",
        "phase": None,
        "metrics": {},
        "bytes": 0,
        "created": "",
        "attempt": 0,
        "state": LOST,
        "uri": f"{tmp_path}/exp/lost",
    }
    training = {
        "training": "exp/f00",
        "uri": str(place),
        "status": "open",
        "attempt": 1,
        "owner": "me",
        "before": [],
        "last_sign": time(ledger.attempt.beat_at),
        "checkpoints": 1,
        "bytes": entry.bytes,
        "notices": [],
    }
    nothing = {
        "training": "exp/lost",
        "uri": f"{tmp_path}/exp/lost",
        "status": LOST,
        "attempt": 0,
        "owner": "",
        "before": [],
        "last_sign": "1970-01-01T00:00:00+00:00",
        "checkpoints": 0,
        "bytes": 0,
        "notices": [],
    }
    listed, shown = [checkpoint, lost], [training, nothing]
    assert printed("ls", "--json", str(tmp_path)) == (0, json.dumps(listed, indent=2) + "\n")
    assert printed("show", "--json", str(tmp_path)) == (0, json.dumps(shown, indent=2) + "\n")
