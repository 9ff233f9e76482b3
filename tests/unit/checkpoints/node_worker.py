"""One of several gloo ranks, each the only process of a node with a disk of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kubestill.runtime.checkpoints import peers
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.place import resolve_place
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.stores import local

SIZE = 9_999
"""Numbers of a state."""
peers._CHUNK = 16_000  # pyright: ignore[reportPrivateUsage]  # a state is sent in three


def process(act: str, told: dict[str, Any], meet: str, rank: int, world: int, log: str) -> None:
    """Do `train` or `restore` below, and write what happened to the file `log`, as JSON."""
    for variable in ("KUBESTILL_OWNER", "KFP_POD_NAME", "LOCAL_RANK"):
        os.environ.pop(variable, None)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    got = {"train": train, "restore": restore}[act](rank, **told)
    Path(log).write_text(json.dumps(got))
    dist.barrier()  # the last collective of another rank may still be under way
    dist.destroy_process_group()


def train(rank: int, bucket: str, disks: Sequence[str], images: str, copies: int) -> list[str]:
    """Save steps 10 to 13 and copy this node's disk at each moment of the last; names them."""
    moments: list[str] = []

    def picture(moment: str) -> None:
        shutil.copytree(disks[rank], f"{images}/{rank}/{moment}", dirs_exist_ok=True)
        moments.append(moment)

    with opened(bucket, disks[rank], [], near_copies=copies) as running:
        assert running.restore() is None
        save(running, 10, 11, 12)
        if rank < copies:
            with pictures_of(disks[rank], picture):
                save(running, 13)
            picture("all is done")
        else:
            save(running, 13)
    return moments


def restore(
    rank: int, bucket: str, scenes: Sequence[Sequence[str]], dies: int | None = None
) -> list[Any]:
    """Restore from each of some sets of disks; says which step that gave, and what was said.

    `dies`: the rank that is killed when it has sent two pieces.
    """
    got: list[Any] = []
    if dies == rank:
        current, sent = Ranks.current, 0

        def killed(content: memoryview, to: int) -> None:
            nonlocal sent
            sent += 1
            if sent > 3:
                os.kill(os.getpid(), signal.SIGKILL)
            current().send(content, to)

        Ranks.current = lambda: replace(current(), send=killed)
    for disks in scenes:
        with opened(bucket, disks[rank], said := []) as running:
            try:
                state = running.restore()
            except RuntimeError as error:
                return [str(error)]
            assert state is not None
            step = state.meta["step"]
            assert torch.equal(state.tensors["w"], torch.full((SIZE,), float(step)))
            assert running.exact
            got.append([step, said])
        dist.barrier()
    return got


def opened(bucket: str, disk: str, said: list[str], **options: Any) -> Checkpointer:
    """Open the checkpoints of a node."""
    settings = {"recovery_seconds": 3600, "near_seconds": 1e-9, "heartbeat_seconds": 60} | options
    return Checkpointer.open(
        resolve_place(bucket, "exp", "f00", "", owner="me"),
        CheckpointSettings(near=disk, **settings),
        numerics={},
        replicated=True,
        announce=said.append,
    )


def save(running: Checkpointer, *steps: int) -> None:
    """Save a milestone at step 10, and recovery states."""
    for step in steps:
        state = TrainingState({"w": torch.full((SIZE,), float(step))}, {"step": step})
        kind: Any = "recovery" if step % 10 else "milestone"
        while kind == "recovery" and not running.recovery_due():
            pass
        running.save(state, kind=kind, step=step, epoch=0, examples=step)
        running.flush()
        dist.barrier()


@contextmanager
def pictures_of(disk: str, picture: Any) -> Generator[None]:
    """Call `picture` with each moment of a write to the disk: half of it done, and all."""
    write, publish = local.write_all, local.publish
    numbers = iter(range(99))

    def halves(fd: int, content: Any) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if not path.startswith(disk):
            return write(fd, content)
        view = memoryview(content).cast("B")
        write(fd, view[: len(view) // 2])
        picture(f"{next(numbers):02d} half of {plain(path)}")
        write(fd, view[len(view) // 2 :])

    def published(temporary: str, fd: int, target: str) -> None:
        publish(temporary, fd, target)
        if target.startswith(disk):
            picture(f"{next(numbers):02d} all of {plain(target)}")

    local.write_all, local.publish = halves, published
    try:
        yield
    finally:
        local.write_all, local.publish = write, publish


def plain(path: str) -> str:
    """Return a file's name, also of one that is being written."""
    name = os.path.basename(path).removeprefix(".")
    with suppress(ValueError):
        return name[: name.index(".", name.index(".") + 1)]
    return name
