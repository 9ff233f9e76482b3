"""Nodes that are lost, with their disks: all others go on from the newest state that is whole.

Each node is a real process with a disk of its own. What a SIGKILL leaves of a disk is what it held
at that moment, so the moments of a save are copied, and every restart starts from such copies.
"""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections import deque
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from kubestill.errors import CorruptData
from kubestill.runtime.checkpoints import Checkpointer, CheckpointSettings, TrainingState, peers
from kubestill.runtime.checkpoints.near import near_states, near_store
from kubestill.runtime.checkpoints.place import resolve_place
from kubestill.runtime.checkpoints.ranks import Ranks

sys.path.insert(0, str(Path(__file__).parent))
import node_worker  # noqa: E402
from forks import run_ranks  # noqa: E402

EMPTY = "/nonexistent"
"""Where the disk of a new node is."""


def run(root: Path, world: int, act: str, lost: int | None = None, **told: Any) -> list[Any]:
    """Have so many nodes do something; returns what each did, but for one that is `lost`."""
    run_id = uuid.uuid4().hex
    logs = [root / f"log-{run_id}-{rank}" for rank in range(world)]
    given = [
        (act, told, f"file://{root}/meet-{run_id}", rank, world, str(logs[rank]))
        for rank in range(world)
    ]
    codes = run_ranks(node_worker.process, given)
    if lost is None:
        assert codes == [0] * world
    return [json.loads(log.read_text()) for log in logs if log.exists()]


@dataclass(frozen=True)
class Trained:
    """What two nodes left."""

    root: Path
    bucket: str
    moments: list[list[str]]
    """At which the disk of each was copied, in order."""

    def disk(self, node: int, moment: str) -> str:
        return f"{self.root}/images/{node}/{moment}"

    def restore(self, *scenes: list[str], lost: int | None = None) -> list[Any]:
        world, told = len(scenes[0]), {"bucket": self.bucket, "scenes": scenes, "dies": lost}
        return run(self.root, world, "restore", lost, **told)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("nodes")
    bucket, disks = str(root / "bucket"), [str(root / f"disk-{node}") for node in (0, 1, 2)]
    told = {"bucket": bucket, "disks": disks, "images": str(root / "images"), "copies": 2}
    *moments, third = run(root, 3, "train", **told)
    assert not third
    assert not Path(disks[2]).exists(), "two nodes keep it"
    return Trained(root, bucket, moments)


def newest(moments: list[str]) -> int:
    """Return the newest step that is whole, from what was being written on the disks."""
    if not moments:
        return 10
    done = any(one == "all is done" or one.endswith("all of near.json") for one in moments)
    return 13 if done else 12


def test_every_moment_of_a_save_is_known(trained: Trained) -> None:
    for moments in trained.moments:
        names = [name.partition(" ")[2] for name in moments]
        files = ("state-00000-of-00001.safetensors", "manifest.json", "near.json")
        for name in files:
            assert f"half of {name}" in names
            assert f"all of {name}" in names
        assert [name for name in names if name.startswith("all of")] == [
            f"all of {name}" for name in files
        ]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_whichever_nodes_are_lost_at_any_moment_and_however_many_go_on(
    trained: Trained, world: int
) -> None:
    first, second = trained.moments
    assert len(first) == len(second)
    # Both nodes at any two moments where two go on, at the same ones else; one of them; none.
    pairs = list(product(first, second)) if world == 2 else list(zip(first, second, strict=True))
    left = [{0: one, 1: other} for one, other in pairs if world > 1]
    left += [{node: one} for node in (0, 1) for one in trained.moments[node]] + [{}]
    scenes, expected = list[list[str]](), list[int]()
    for number, images in enumerate(left):
        disks = [trained.disk(node, moment) for node, moment in images.items()]
        disks += [EMPTY] * (world - len(disks))
        # Pods come back on any node.
        shift = number % world
        scenes.append(disks[shift:] + disks[:shift])
        expected.append(newest(list(images.values())))
    for rank, restored in enumerate(trained.restore(*scenes)):
        assert [step for step, _ in restored] == expected, f"rank {rank}"


def test_a_copy_that_is_damaged_is_got_from_the_other_node(
    trained: Trained, tmp_path: Path
) -> None:
    disks = [str(tmp_path / str(node)) for node in (0, 1)]
    for node, disk in enumerate(disks):
        shutil.copytree(trained.disk(node, "all is done"), disk)
    (state,) = Path(disks[1]).glob("*/*/000000013-*/state-*")
    content = state.read_bytes()
    state.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    first, second = trained.restore(disks)
    assert [first[0][0], second[0][0]] == [13, 13]
    (line,) = [line for line in first[0][1] if "WARNING" in line]
    assert "the state of step 13 on this node's disk cannot be used (rank 1: " in line
    assert "ranks 1 get the state of step 13 from the disks of ranks 0" in first[0][1]
    # The other is damaged, too: the state before it.
    (state,) = Path(disks[0]).glob("*/*/000000013-*/state-*")
    state.write_bytes(content[:-1])
    assert [got[0][0] for got in trained.restore(disks)] == [12, 12]


@pytest.mark.parametrize("giver", [0, 1])
def test_a_node_that_is_lost_while_it_gives_costs_that_attempt_alone(
    trained: Trained, giver: int
) -> None:
    disks = [EMPTY, EMPTY]
    disks[giver] = trained.disk(giver, "all is done")
    (said,) = trained.restore(disks, lost=giver)
    assert "gloo" in said[0], "what `processes` takes for a process that is missed"
    assert [got[0][0] for got in trained.restore(disks)] == [13, 13]


def test_what_is_sent_is_as_long_as_told_and_believed_only_if_whole(tmp_path: Path) -> None:
    """Whatever becomes of the giver's disk, both stay in step."""
    place = resolve_place(str(tmp_path / "bucket"), "exp", "f00", "", owner="me")
    settings = CheckpointSettings(near=str(tmp_path / "near"), near_seconds=1e-9)
    with Checkpointer.open(place, settings, numerics={}) as running:
        running.restore()
        state = TrainingState({"w": torch.arange(99.0)}, {"step": 1})
        running.save(state, kind="recovery", step=1, epoch=0, examples=1)
        running.flush()
    (one,) = near_states(settings.near, place, print)
    store = near_store(settings.near, place)
    sent: deque[bytes] = deque()

    def receive(content: memoryview, rank: int) -> None:
        content[:] = sent.popleft()

    ranks = Ranks(world=2, send=lambda content, _: sent.append(bytes(content)), receive=receive)

    def passed_on() -> dict[str, torch.Tensor]:
        peers._send(one.entry, store, ranks, 1)  # pyright: ignore[reportPrivateUsage]
        assert sum(map(len, sent)) == 16 + one.entry.bytes
        try:
            return peers._receive(one.entry, ranks, 0, None).tensors  # pyright: ignore
        finally:
            assert not sent

    assert torch.equal(passed_on()["w"], state.tensors["w"])
    (folder,) = Path(store.uri).iterdir()
    for name in ("state-00000-of-00001.safetensors", "manifest.json"):
        content = (folder / name).read_bytes()
        for at in range(0, len(content), 7):
            for altered in (content[:at], content[:at] + b"\xff" + content[at + 1 :]):
                (folder / name).write_bytes(altered)
                with pytest.raises(CorruptData):
                    passed_on()
        (folder / name).unlink()
        with pytest.raises(CorruptData):
            passed_on()
        (folder / name).write_bytes(content)
