"""States that processes share out, on their nodes' disks: what is left in pieces is one state.

Each process is real. The disk of each is copied at each moment of a save: half of a file, a file,
and each deletion. A restart finds any of these moments of one process, with all others before or
after theirs, whichever disks are lost, and in whatever number. What it has to resume from is read
off the disks: the newest state of which every piece's record is on one of them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import piece_worker  # noqa: E402
from forks import run_ranks  # noqa: E402

EMPTY = "/nonexistent"
"""Where the disk of a new node is."""
ALL = "KUBESTILL_CHAOS_KILLS" in os.environ
"""Whether every combination is tried: minutes (make bench-chaos)."""


def run(
    root: Path, act: str, nodes: Sequence[int], codes: Sequence[int] = (), **told: Any
) -> list[Any]:
    """Have so many processes on each node do something; returns what each did.

    `codes`: with which each ends, where any does not end well.
    """
    run_id = uuid.uuid4().hex
    locals_ = [local for count in nodes for local in range(count)]
    logs = [root / f"log-{run_id}-{rank}" for rank in range(len(locals_))]
    given = [
        (act, told, f"file://{root}/meet-{run_id}", rank, len(locals_), local, str(logs[rank]))
        for rank, local in enumerate(locals_)
    ]
    assert run_ranks(piece_worker.process, given) == list(codes or [0] * len(locals_))
    return [] if codes else [json.loads(log.read_text()) for log in logs]


@dataclass(frozen=True)
class Trained:
    """What some nodes left."""

    root: Path
    bucket: str
    moments: list[list[str]]
    """At which the disk of each was copied, in order."""

    def disk(self, node: int, moment: str) -> str:
        return f"{self.root}/images/{node}/{moment}"

    def restore(self, *scenes: Sequence[str], sharded: bool = True) -> list[list[Any]]:
        """Restore from sets of disks; returns the step of each, and what rank 0 said."""
        told = {"bucket": self.bucket, "scenes": scenes, "sharded": sharded}
        first, *others = run(self.root, "restore", [1] * len(scenes[0]), **told)
        for other in others:
            assert [step for step, _ in other] == [step for step, _ in first]
        return first

    def scenes(self) -> list[dict[int, str]]:
        """List each moment of each node, with all others before or after theirs."""
        nodes = range(len(self.moments))
        return [
            {other: self.disk(other, moment if other == node else rest) for other in nodes}
            for node in nodes
            for moment in self.moments[node]
            for rest in ("at first", "in the end")
        ]


def newest(disks: Sequence[str]) -> int:
    """Return the newest step that is whole on some disks, else the place's."""
    pieces: defaultdict[tuple[int, str, int], set[int]] = defaultdict(set)
    for disk in disks:
        for path in Path(disk).glob("*/*/*/near.json"):
            form = json.loads(path.read_bytes().partition(b"\n")[2])
            piece = form["piece"]
            pieces[form["entry"]["step"], piece["of"], piece["world"]].add(piece["rank"])
    whole = [step for (step, _, world), ranks in pieces.items() if len(ranks) == world]
    return max(whole, default=10)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two nodes that saved steps 10 to 14."""
    root = tmp_path_factory.mktemp("two")
    disks, images = [f"{root}/disk-0", f"{root}/disk-1"], f"{root}/images"
    told: dict[str, Any] = {"bucket": f"{root}/bucket", "disks": disks, "images": images}
    got = run(root, "train", [1, 1], steps=[10, 11, 12, 13, 14], **told)
    return Trained(root, told["bucket"], [moments for _, moments in got])


@pytest.fixture(scope="module")
def three(two: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three nodes that went on from what these two left, one of them new, and saved step 15."""
    root = tmp_path_factory.mktemp("three")
    disks, images = [f"{root}/disk-{node}" for node in range(3)], f"{root}/images"
    shutil.copytree(two.disk(1, "in the end"), disks[0])
    shutil.copytree(two.disk(0, "in the end"), disks[2])
    Path(disks[1]).mkdir()
    told = {"bucket": two.bucket, "disks": disks, "images": images}
    got = run(root, "train", [1, 1, 1], steps=[15], **told)
    assert [began for began, _ in got] == [14] * 3
    return Trained(root, two.bucket, [moments for _, moments in got])


def test_every_moment_of_a_save_is_known(two: Trained) -> None:
    files = ("state-00000-of-00001.safetensors", "manifest.json", "near.json")
    for moments in two.moments:
        names = [name.partition(" ")[2] for name in moments]
        # Its own piece, and its copy of the other's.
        for name in files:
            assert names.count(f"all of {name}") == 2
            assert names.count(f"half of {name}") >= 2
        # Both pieces of the oldest state go.
        assert sum(name.startswith("gone") for name in moments) >= 6


@pytest.mark.parametrize("world", [1, 2, 3])
def test_whichever_process_is_lost_at_any_moment_and_however_many_go_on(
    two: Trained, world: int
) -> None:
    left = [list(disks.values()) for disks in two.scenes()]
    if world == 1:
        left = [[disk] for disk in sorted({disk for disks in left for disk in disks})]
    # A new node beside those that are left; and all the moments of one that is alone.
    scenes = [[*disks, *[EMPTY] * (world - len(disks))] for disks in left]
    scenes += [[EMPTY] * (world - 1) + [disk] for disk in {d for s in left for d in s}]
    if not ALL:
        scenes = scenes[:: 3 if world == 2 else 7]
    scenes = [scene[turn % world :] + scene[: turn % world] for turn, scene in enumerate(scenes)]
    expected = [newest(disks) for disks in scenes]
    assert min(expected) == 13, "with a copy on either disk nothing that was whole is lost"
    assert max(expected) == 14
    assert [step for step, _ in two.restore(*scenes)] == expected


def test_who_goes_on_in_another_number_removes_nothing_too_early(three: Trained) -> None:
    every = three.scenes() if ALL else three.scenes()[::5]
    scenes = [list(disks.values()) for disks in every]
    expected = [newest(disks) for disks in scenes]
    assert {*expected} == {14, 15}
    assert [step for step, _ in three.restore(*scenes)] == expected
    # Each of the three disks is lost, at the worst moments.
    scenes = [
        [*(disk for node, disk in disks.items() if node != lost), EMPTY]
        for lost, disks in product(range(3), every if ALL else every[::3])
    ]
    expected = [newest(disks) for disks in scenes]
    assert [step for step, _ in three.restore(*scenes)] == expected
    # Whatever was whole on three is whole on two, but for what the new node alone had no copy of.
    assert min(expected) >= 14


def damaged(disk: str, to: Path, step: int, rank: int, name: str, damage: Any) -> str:
    """Return a copy of a disk with one file of a piece damaged."""
    shutil.copytree(disk, to)
    for record in to.glob(f"*/*/{step:09d}-*/near.json"):
        if json.loads(record.read_bytes().partition(b"\n")[2])["piece"]["rank"] == rank:
            (path,) = record.parent.glob(name)
            damage(path)
    return str(to)


def flip(at: int) -> Callable[[Path], None]:
    def flipped(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return flipped


DAMAGES = {
    "rotten": ("state-*", flip(-3)),
    "name altered": ("state-*", flip(12)),
    "cut short": ("state-*", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "state gone": ("state-*", Path.unlink),
    "manifest rotten": ("manifest.json", flip(40)),
    "record torn": ("near.json", lambda path: os.truncate(path, path.stat().st_size // 2)),
}


def test_a_damaged_piece_is_got_from_the_other_node_or_the_state_is_not_believed(
    two: Trained, tmp_path: Path
) -> None:
    ends = [two.disk(node, "in the end") for node in (0, 1)]
    scenes, expected = list[list[str]](), list[int]()
    for turn, ((name, damage), rank) in enumerate(product(DAMAGES.values(), (0, 1))):
        both = [
            damaged(ends[node], tmp_path / f"{turn}-{node}", 14, rank, name, damage)
            for node in (0, 1)
        ]
        scenes += [[both[0], ends[1]], [ends[0], both[1]], both]
        expected += [14, 14, 13]
    assert [step for step, _ in two.restore(*scenes)] == expected
    if ALL:
        assert [step for step, _ in two.restore(*[s + [EMPTY] for s in scenes])] == expected


def test_shards_may_come_and_go(two: Trained, three: Trained) -> None:
    """What was shared out is read by processes that keep all of it, and the other way."""
    ends = [two.disk(node, "in the end") for node in (0, 1)]
    got = two.restore(ends, [EMPTY, ends[0]], sharded=False)
    assert [step for step, _ in got] == [14, 14]
    disks = [f"{three.root}/disk-{node}" for node in (0, 1, 2)]
    told = {"bucket": three.bucket, "disks": disks, "images": f"{three.root}/whole"}
    got = run(three.root, "train", [1, 1, 1], steps=[16, 17, 18], sharded=False, **told)
    assert [began for began, _ in got] == [15] * 3
    assert [step for step, _ in three.restore([EMPTY, disks[1], EMPTY])] == [18]


def test_processes_of_one_node_keep_its_disk_together(tmp_path: Path) -> None:
    disk, images = f"{tmp_path}/disk", f"{tmp_path}/images"
    told: dict[str, Any] = {"bucket": f"{tmp_path}/bucket", "disks": [disk] * 2, "images": images}
    run(tmp_path, "train", [2], steps=[10, 11, 12, 13, 14, 15], **told, slow=1)
    left = Trained(tmp_path, told["bucket"], [])
    got = left.restore([EMPTY, disk, EMPTY], [disk] * 3, [EMPTY] * 3)
    assert [step for step, _ in got] == [15, 15, 10]
    names = {path.parent.name for path in Path(disk).glob("*/*/*/near.json")}
    assert {int(name[:9]) for name in names} == {13, 14, 15}, "three states, and no more"


def test_who_is_told_to_end_alone_has_all_save_to_the_bucket(tmp_path: Path) -> None:
    """Its pod takes the disk along, and the others cannot go on without its share."""
    disks, images = [f"{tmp_path}/disk-{node}" for node in (0, 1)], f"{tmp_path}/images"
    told: dict[str, Any] = {"bucket": f"{tmp_path}/bucket", "disks": disks, "images": images}
    run(tmp_path, "train", [1, 1], [1, -15], steps=[10, 11, 12], ends=1, slow=0, **told)
    left = Trained(tmp_path, told["bucket"], [])
    assert [step for step, _ in left.restore([EMPTY, EMPTY])] == [12]


def test_without_copies_a_lost_disk_leaves_the_bucket(tmp_path: Path) -> None:
    disks, images = [f"{tmp_path}/disk-{node}" for node in (0, 1)], f"{tmp_path}/images"
    told: dict[str, Any] = {"bucket": f"{tmp_path}/bucket", "disks": disks, "images": images}
    run(tmp_path, "train", [1, 1], steps=[10, 11, 12], copies=1, **told)
    got = Trained(tmp_path, told["bucket"], []).restore(disks, [disks[1], EMPTY])
    assert [step for step, _ in got] == [12, 10]
    (line,) = [line for line in got[1][1] if "pieces" in line]
    assert "of step 12, for one, those of ranks 0 are on none" in line


def test_a_disk_that_takes_nothing_costs_the_states_near_and_nothing_else(tmp_path: Path) -> None:
    disks, images = [f"{tmp_path}/disk-{node}" for node in (0, 1)], f"{tmp_path}/images"
    told: dict[str, Any] = {"bucket": f"{tmp_path}/bucket", "disks": disks, "images": images}
    Path(disks[1]).write_text("in the way")
    run(tmp_path, "train", [1, 1], steps=[10, 11, 12, 13], slow=0, **told)
    left = Trained(tmp_path, told["bucket"], [])
    assert [step for step, _ in left.restore(disks)] == [10]
    assert len([*Path(disks[0]).glob("*/*/*/near.json")]) == 1, "a piece that nobody completes"
    Path(disks[1]).unlink()
    run(tmp_path, "train", [1, 1], steps=[11, 12], slow=0, **told)
    assert [step for step, _ in left.restore(disks, [EMPTY, disks[0]])] == [12, 12]
