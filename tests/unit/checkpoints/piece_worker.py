"""One of several gloo ranks that share a state out; each node has a disk of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from node_worker import pictures_of, plain

from kubestill.runtime.checkpoints import peers
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.place import resolve_place
from kubestill.runtime.checkpoints.restore import Wanted
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.stores.local import LocalStore

PARAMETERS = 7
DAY = 86_400.0
peers._CHUNK = 2_000  # pyright: ignore[reportPrivateUsage]  # a piece is sent in several


def process(
    act: str, told: dict[str, Any], meet: str, rank: int, world: int, local: int, log: str
) -> None:
    """Do `train` or `restore` below, and write what happened to the file `log`, as JSON."""
    for variable in ("KUBESTILL_OWNER", "KFP_POD_NAME"):
        os.environ.pop(variable, None)
    os.environ["LOCAL_RANK"] = str(local)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    # No two nodes agree on the time.
    now = time.time
    time.time = lambda: now() + DAY * ((2 * rank) % 3 - rank)
    got = {"train": train, "restore": restore}[act](rank, world, **told)
    Path(log).write_text(json.dumps(got))
    dist.barrier()  # the last collective of another rank may still be under way
    dist.destroy_process_group()


def values(step: int) -> dict[str, torch.Tensor]:
    """Return the whole state of a step."""
    tensors = {"model/buffer": torch.tensor([step]), "loss_sum": torch.tensor(step / 7)}
    for i in range(PARAMETERS):
        tensors[f"model/p{i}"] = torch.full((200 + i, 2), step + i / 8)
        tensors[f"optimizer/p{i}/m"] = torch.full((200 + i, 2), -step - i / 8)
    return tensors


def owner(name: str, world: int) -> int | None:
    """Return who keeps a tensor; None for what all have, and the first rank saves."""
    parts = name.split("/")
    return int(parts[1][1:]) % world if len(parts) > 1 and parts[1][0] == "p" else None


def restore(
    rank: int, world: int, bucket: str, scenes: Sequence[Sequence[str]], sharded: bool = True
) -> list[Any]:
    """Restore from each of some sets of disks; says which step that gave, and what was said."""
    got: list[Any] = []
    for disks in scenes:
        with opened(bucket, disks[rank], said := [], sharded) as running:
            got.append([restored(running, rank, world, sharded), said])
        dist.barrier()
    return got


def restored(running: Checkpointer, rank: int, world: int, sharded: bool) -> int:
    """Restore what this rank wants, and check that it is that and nothing else."""

    def takes(name: str) -> bool:
        return not sharded or world == 1 or owner(name, world) in (None, rank)

    wanted = None
    if sharded and world > 1:
        names = [name for name in values(0) if name.startswith("model/") and takes(name)]
        wanted = Wanted(names=frozenset(names), takes=takes)
    state = running.restore(wanted)
    if state is None:
        return 0
    assert running.exact
    expected = {name: one for name, one in values(state.meta["step"]).items() if takes(name)}
    assert state.tensors.keys() == expected.keys()
    assert all(torch.equal(state.tensors[name], one) for name, one in expected.items())
    return state.meta["step"]


def train(
    rank: int,
    world: int,
    bucket: str,
    disks: Sequence[str],
    images: str,
    steps: Sequence[int],
    copies: int = 2,
    sharded: bool = True,
    slow: int | None = None,
    ends: int | None = None,
) -> list[Any]:
    """Go on, save some steps, and copy this node's disk at each moment of the last; names them.

    `slow`: the rank whose disk takes long. `ends`: the rank that is told to end before the last.
    """
    moments: list[str] = []

    def picture(moment: str) -> None:
        shutil.copytree(disks[rank], f"{images}/{rank}/{moment}", dirs_exist_ok=True)
        moments.append(moment)

    if rank == slow:
        put = LocalStore.put

        def late(self: LocalStore, *args: Any, **named: Any) -> Any:
            if self.uri.startswith(disks[rank]):
                time.sleep(0.1)
            return put(self, *args, **named)

        LocalStore.put = late
    with opened(bucket, disks[rank], [], sharded, near_copies=copies) as running:
        began = restored(running, rank, world, sharded)
        # What the place gets would hide what a disk lacks.
        running._schedule.saved(time.monotonic())  # pyright: ignore[reportPrivateUsage]
        for step in steps[:-1]:
            save(running, step, rank, world, sharded, waits=slow is None)
        if rank == ends:
            os.kill(os.getpid(), signal.SIGTERM)
        if slow is None:
            picture("at first")
            with pictures_of(disks[rank], picture), deletions_of(disks[rank], picture):
                save(running, steps[-1], rank, world, sharded)
            picture("in the end")
        else:
            save(running, steps[-1], rank, world, sharded)
    return [began, moments]


@contextmanager
def deletions_of(disk: str, picture: Any) -> Generator[None]:
    """Call `picture` after each deletion on the disk."""
    delete, numbers = LocalStore.delete, iter(range(99))

    def deleted(self: LocalStore, key: str) -> None:
        delete(self, key)
        if self.uri.startswith(disk):
            picture(f"gone {next(numbers):02d} {plain(key)}")

    LocalStore.delete = deleted
    try:
        yield
    finally:
        LocalStore.delete = delete


def opened(bucket: str, disk: str, said: list[str], sharded: bool, **options: Any) -> Checkpointer:
    """Open the checkpoints of a node."""
    settings = {"recovery_seconds": 3600, "near_seconds": 1e-9, "heartbeat_seconds": 60} | options
    return Checkpointer.open(
        resolve_place(bucket, "exp", "f00", "", owner="me"),
        CheckpointSettings(near=disk, **settings),
        numerics={},
        replicated=True,
        sharded=sharded,
        announce=said.append,
    )


def save(
    running: Checkpointer, step: int, rank: int, world: int, sharded: bool, *, waits: bool = True
) -> None:
    """Save a milestone at a multiple of 10, and a recovery state else."""
    tensors = values(step)
    if sharded:
        tensors = {k: t for k, t in tensors.items() if (owner(k, world) or 0) == rank}
    kind: Any = "recovery" if step % 10 else "milestone"
    while kind == "recovery" and not running.recovery_due():
        pass
    state = TrainingState(tensors, {"step": step})
    running.save(state, kind=kind, step=step, epoch=0, examples=step)
    if waits:
        running.flush()
        dist.barrier()
