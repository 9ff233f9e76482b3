"""What is deleted, what is not, and what happens where deleting fails or takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kubestill.errors import InvalidInput, StoreUnavailable
from kubestill.runtime.checkpoints import (
    Checkpointer,
    CheckpointSettings,
    Place,
    TrainingState,
    resolve_place,
)
from kubestill.runtime.stores import Entry
from kubestill.runtime.stores.local import LocalStore

SETTINGS = CheckpointSettings(heartbeat_seconds=0.1, keep_last=1, keep_bytes=0, outage_seconds=1)


class Awkward(LocalStore):
    """A folder that deletes or lists as badly as a busy store."""

    refuses = ""
    """Which keys it does not delete: those that hold this text."""
    seconds = 0.0
    """How long a listing takes."""
    broken = False
    """Whether listing fails."""

    def delete(self, key: str) -> None:
        if self.refuses and self.refuses in key:
            raise StoreUnavailable("503 on delete")
        super().delete(key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        time.sleep(self.seconds)
        if self.broken:
            raise StoreUnavailable("503 on list")
        yield from super().list(prefix)


def place_at(folder: Path) -> Place:
    return resolve_place(str(folder), "exp", "f00", "", owner="me")


def opened(place: Place, said: list[str] | None = None) -> Checkpointer:
    announce: Any = (said if said is not None else []).append
    return Checkpointer.open(place, SETTINGS, numerics={}, announce=announce)


def save(checkpointer: Checkpointer, step: int) -> None:
    state = TrainingState({"model/w": torch.full((9,), float(step))}, {"step": step})
    checkpointer.save(state, kind="recovery", step=step, epoch=0, examples=step)
    checkpointer.flush()


def steps_stored(place: Place) -> list[int]:
    """Return the steps of which any file lies there."""
    return sorted({int(e.key[:9]) for e in place.store.list() if "/" in e.key})


@pytest.mark.parametrize("torn", [True, False], ids=["torn", "gone"])
def test_a_lost_ledger_does_not_cost_checkpoints_of_another_version(
    tmp_path: Path, torn: bool
) -> None:
    place = place_at(tmp_path)
    with opened(place) as checkpointer:
        save(checkpointer, 1)
    (manifest,) = tmp_path.glob("exp/f00/*/manifest.json")
    manifest.write_bytes(manifest.read_bytes().replace(b"manifest/1", b"manifest/2"))
    for path in tmp_path.glob("exp/f00/ledger.json.*"):
        path.write_bytes(b'{"format": "kube') if torn else path.unlink()
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"kubestill/manifest/2.*another version"):
            opened(place)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("refuses", ["manifest.json", "safetensors"])
def test_a_failed_delete_fails_no_save_and_is_tried_again(tmp_path: Path, refuses: str) -> None:
    said: list[str] = []
    store = Awkward(place_at(tmp_path).uri)
    place = replace(place_at(tmp_path), store=store)
    with opened(place, said) as checkpointer:
        save(checkpointer, 1)
        save(checkpointer, 2)
        store.refuses = refuses
        save(checkpointer, 3)
        save(checkpointer, 4)
        listed = [entry.step for entry in checkpointer.ledger.entries]
        assert listed[-1] == 4
        assert steps_stored(place) == [1, 2, 3, 4]
        store.refuses = ""
        save(checkpointer, 5)
        assert steps_stored(place) == [entry.step for entry in checkpointer.ledger.entries]
    assert said == []


def test_what_cannot_be_deleted_keeps_nothing_else(tmp_path: Path) -> None:
    store = Awkward(place_at(tmp_path).uri)
    place = replace(place_at(tmp_path), store=store)
    store.refuses = f"{1:09d}-"
    with opened(place) as checkpointer:
        for step in range(1, 7):
            save(checkpointer, step)
        listed = [entry.step for entry in checkpointer.ledger.entries]
    assert steps_stored(place) == [1, *listed]


def test_the_heart_beats_while_leftovers_are_swept(tmp_path: Path) -> None:
    store = Awkward(place_at(tmp_path).uri)
    store.seconds = 1.0
    with opened(replace(place_at(tmp_path), store=store)) as checkpointer:
        attempt = checkpointer.ledger.attempt
        assert attempt is not None
        assert attempt.beat >= 3


def test_where_sweeping_fails_no_heart_goes_on_beating(tmp_path: Path) -> None:
    place = place_at(tmp_path)
    with opened(place) as checkpointer:
        save(checkpointer, 1)
    store = Awkward(place.uri)
    store.broken = True
    with pytest.raises(StoreUnavailable, match="503 on list"):
        opened(replace(place, store=store))
    deadline = time.monotonic() + 10
    while any(thread.name == "checkpoint-heartbeat" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
