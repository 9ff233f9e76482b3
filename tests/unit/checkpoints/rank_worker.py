"""One of two gloo ranks, in a process of its own."""

from __future__ import annotations

import json
import os

import torch
import torch.distributed as dist

from kubestill.errors import InvalidInput
from kubestill.runtime.checkpoints.checkpointer import Checkpointer, Resume
from kubestill.runtime.checkpoints.place import resolve_place
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.checkpoints.state import TrainingState


def process(uri: str, meet: str, rank: int, resume: Resume, steps: list[int], log: str) -> None:
    """Restore, save `steps`, and write what happened to the file `log`, as JSON."""
    for variable in ("KUBESTILL_OWNER", "KFP_POD_NAME"):
        os.environ.pop(variable, None)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    said: list[str] = []
    got = {}
    place = resolve_place(uri, "exp", "f00", "", owner="me")
    settings = CheckpointSettings(heartbeat_seconds=0.2, keep_last=3, keep_bytes=0)
    with Checkpointer.open(
        place, settings, resume=resume, numerics={}, announce=said.append
    ) as checkpointer:
        got["place"] = checkpointer.place.uri
        try:
            restored = checkpointer.restore()
            got["restored"] = restored and [restored.meta["step"], restored.meta["rank"]]
        except InvalidInput as error:
            got["refused"] = [error.problems[0].field, error.problems[0].value]
        for step in steps:
            tensors = {"model/w": torch.full((9,), step), "rank/own": torch.full((9,), rank)}
            state = TrainingState(tensors, {"step": step, "rank": rank})
            checkpointer.save(state, kind="milestone", step=step, epoch=0.0, examples=step)
        checkpointer.flush()
    got["said"] = said
    with open(log, "w") as file:
        json.dump(got, file)
    dist.barrier()  # the last collective of the other rank may still be under way
    dist.destroy_process_group()
