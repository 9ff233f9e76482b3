"""States on the node's own disk: which is resumed from, which is never believed, what is outlived.

That a training run that is ended anywhere ends alike with them is shown point by point by
`test_crash_points` (the case "near tier") and, for saves, hangs and ends, by `test_hanging`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.checkpoints import Checkpointer, CheckpointSettings, TrainingState
from kubestill.runtime.checkpoints.inspection import describe, verify
from kubestill.runtime.checkpoints.near import NearState, near_states
from kubestill.runtime.checkpoints.place import Place, resolve_place

SECONDS: dict[str, Any] = {
    "recovery_seconds": 3600.0,
    "near_seconds": 1e-9,
    "heartbeat_seconds": 60.0,
}


def place_in(root: Path, owner: str = "me") -> Place:
    return resolve_place(str(root / "bucket"), "exp", "f00", "", owner=owner)


def opened(root: Path, said: Callable[[str], None] = print, **options: Any) -> Checkpointer:
    settings = CheckpointSettings(**{"near": str(root / "near"), **SECONDS, **options})
    return Checkpointer.open(place_in(root), settings, numerics={"threads": 1}, announce=said)


def save(running: Checkpointer, step: int, kind: Any = "recovery") -> None:
    state = TrainingState({"w": torch.full((999,), float(step))}, {"step": step})
    running.save(state, kind=kind, step=step, epoch=0, examples=step)
    running.flush()


def train(root: Path, *steps: int, **options: Any) -> list[str]:
    """Save milestones at multiples of 10 and recovery states else, and end without a result."""
    said: list[str] = []
    with opened(root, said.append, **options) as running:
        running.restore()
        for step in steps:
            save(running, step, "recovery" if step % 10 else "milestone")
    return said


def resumed(root: Path, **options: Any) -> int:
    """Return the step that the next attempt resumes from; 0 where it starts afresh."""
    with opened(root, **options) as running:
        state = running.restore()
        assert running.exact
        if state is None:
            return 0
        assert torch.equal(state.tensors["w"], torch.full((999,), float(state.meta["step"])))
        return state.meta["step"]


def files(root: Path, name: str, step: int) -> Path:
    (found,) = root.glob(f"near/*/*/{step:09d}-*/{name}")
    return found


def test_a_restart_on_the_node_goes_on_from_its_disk_and_the_bucket_follows(tmp_path: Path) -> None:
    train(tmp_path, 10, 11, 12)
    assert [row.step for row in describe(str(tmp_path / "bucket"))] == [10]
    said: list[str] = []
    with opened(tmp_path, said.append) as running:
        state = running.restore()
        assert state is not None
        assert state.meta == {"step": 12}
        assert running.resumed is not None
        assert said[-1] == "resuming from step 12, with the same bits"
        assert running.ledger.attempt is not None
        assert running.ledger.attempt.resumed_from == 12
        # The node may be the next to go.
        assert running.recovery_due()
        save(running, 13)
        save(running, 14)
        near = running.report().near
        assert near is not None
        assert near.saves == 2
    assert [row.step for row in describe(str(tmp_path / "bucket"))] == [10, 13]
    assert verify(str(tmp_path / "bucket")) == []


def test_another_node_goes_on_from_the_bucket(tmp_path: Path) -> None:
    train(tmp_path, 10, 11)
    (tmp_path / "near").rename(tmp_path / "another node's")
    assert resumed(tmp_path) == 10


def test_a_state_behind_a_milestone_that_the_bucket_lacks_waits_for_it(tmp_path: Path) -> None:
    """The one before that milestone is kept for as long."""
    train(tmp_path, 10, 11)
    with opened(tmp_path) as running:
        running.restore()
        saver = running._saver  # pyright: ignore[reportPrivateUsage]
        assert saver is not None
        # Under way for as long as this runs.
        submit, saver.submit = saver.submit, lambda tensors, snapshot: True
        save(running, 20, "milestone")
        for step in (21, 22, 23):
            save(running, step)
        saver.submit = submit
    kept = sorted(int(one.parent.name[:9]) for one in tmp_path.glob("near/*/*/*/near.json"))
    assert kept == [11, 22, 23]
    assert resumed(tmp_path) == 11
    train(tmp_path, 20)
    # The same milestone again: it is there, and so what came behind it counts.
    assert resumed(tmp_path) == 20


def test_a_later_attempt_that_went_on_elsewhere_ends_the_earlier_ones_states(
    tmp_path: Path,
) -> None:
    train(tmp_path, 10, 18)
    (tmp_path / "near").rename(tmp_path / "away")
    train(tmp_path, 10, near="")
    (tmp_path / "away").rename(tmp_path / "near")
    assert resumed(tmp_path) == 10


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped": lambda path: path.write_bytes(
        path.read_bytes()[:-3] + b"#" + path.read_bytes()[-2:]
    ),
    "torn": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["near.json", "manifest.json", "state-00000-of-00001.safetensors"])
def test_what_is_damaged_is_never_believed(
    tmp_path: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    train(tmp_path, 10, 11, 12)
    damage(files(tmp_path, name, 12))
    assert resumed(tmp_path) == 11
    damage(files(tmp_path, name, 11))
    assert resumed(tmp_path) == 10
    assert verify(str(tmp_path / "bucket")) == []


def test_no_byte_of_a_record_can_change_unnoticed(tmp_path: Path) -> None:
    train(tmp_path, 10, 11)
    content = files(tmp_path, "near.json", 11).read_bytes()
    assert NearState.from_bytes(content, source="it").after == 10
    for at in range(len(content)):
        for altered in (content[:at], content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]):
            with pytest.raises((CorruptData, InvalidInput)):
                NearState.from_bytes(altered, source="it")


@pytest.mark.parametrize("fault", ["a file in the way", "open to others", "full", "full at last"])
def test_a_disk_that_takes_nothing_is_named_once_and_costs_nothing(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = tmp_path / "near"
    if fault == "a file in the way":
        near.write_text("")
    elif fault == "open to others":
        (near / f"kubestill-near-{os.getuid()}").mkdir(parents=True)
        (near / f"kubestill-near-{os.getuid()}").chmod(0o777)
    else:
        from kubestill.runtime.stores import local

        write = local.write_all

        def refuse(fd: int, content: Any) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path.startswith(str(near)) and (fault == "full" or "near.json" in path):
                raise OSError(28, "No space left on device")
            write(fd, content)

        monkeypatch.setattr(local, "write_all", refuse)
    said: list[str] = []
    with opened(tmp_path, said.append, near_seconds=1000) as running:
        running.restore()
        for step in (10, 11, 12):
            save(running, step, "recovery" if step % 10 else "milestone")
        on_disk, now = running._near, time.monotonic()  # pyright: ignore[reportPrivateUsage]
        assert on_disk is not None
        assert not on_disk.due(now + 9_000)
        assert on_disk.due(now + 11_000), "it is tried again, though less often"
        assert not list(near.glob("*/*/*")), "what was not finished takes no room"
        running.finish({})
    (warning,) = [line for line in said if "does not take" in line]
    assert f"checkpoints.near: {near} does not take the state of step 11" in warning
    assert ("No space left" in warning) == fault.startswith("full")
    assert [row.step for row in describe(str(tmp_path / "bucket"))] == [10]
    assert verify(str(tmp_path / "bucket")) == []


def test_a_disk_that_takes_states_again_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "near").write_text("")
    said: list[str] = []
    with opened(tmp_path, said.append) as running:
        running.restore()
        save(running, 11)
        (tmp_path / "near").unlink()
        save(running, 12)
    assert said[-1].endswith("takes states again, from step 12 on")
    assert resumed(tmp_path) == 12


def test_a_disk_that_cannot_be_read_leaves_the_bucket(tmp_path: Path) -> None:
    train(tmp_path, 10, 11)
    (folder,) = (tmp_path / "near").iterdir()
    folder.chmod(0o777)
    said: list[str] = []
    with opened(tmp_path, said.append) as running:
        state = running.restore()
    assert state is not None
    assert state.meta == {"step": 10}
    assert any("not looked for" in line and str(folder) in line for line in said)


@pytest.mark.parametrize("end", ["finished", "adopted", "failed"])
def test_the_end_of_the_run_clears_the_disk(tmp_path: Path, end: str) -> None:
    with opened(tmp_path) as running:
        running.restore()
        save(running, 11)
        assert near_states(str(tmp_path / "near"), running.place, print)
        if end == "finished":
            running.finish({})
        elif end == "failed":
            running.fail("the loss is not finite")
    if end == "adopted":
        with opened(tmp_path, near="") as running:
            running.finish({})
        assert list(tmp_path.glob("near/*/*/*"))
        with opened(tmp_path) as running:
            assert running.finished == {}
    assert not list(tmp_path.glob("near/*/*"))


def test_a_state_near_is_something_to_resume(tmp_path: Path) -> None:
    train(tmp_path, 1)
    settings = CheckpointSettings(near=str(tmp_path / "near"), **SECONDS)
    with Checkpointer.open(
        place_in(tmp_path), settings, resume="must", numerics={"threads": 1}
    ) as running:
        state = running.restore()
        assert state is not None
        assert state.meta == {"step": 1}
