"""A toy training in a process of its own, to be killed: every step's state follows from the last.

It logs `resumed <step> <digest>`, `saved <step>` after each save was handed over, and
`done <digest>` at the end. The state is large enough for a kill to hit a write half-way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.place import resolve_place
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.checkpoints.state import TrainingState

SIZE = 300_000


def fresh() -> TrainingState:
    """Step 0."""
    generator = torch.Generator().manual_seed(7)
    tensors = {
        "model/weight": torch.randn(SIZE, generator=generator),
        "model/steps": torch.zeros((), dtype=torch.int64),
        "rng/torch": torch.Generator().manual_seed(3).get_state(),
    }
    return TrainingState(tensors, {"step": 0})


def advance(state: TrainingState) -> None:
    """One step, with randomness: only a whole state reproduces it."""
    generator = torch.Generator()
    generator.set_state(state.tensors["rng/torch"])
    noise = torch.randn(SIZE, generator=generator)
    state.tensors["model/weight"].mul_(0.99).add_(noise, alpha=0.1)
    state.tensors["model/steps"].add_(1)
    state.tensors["rng/torch"].copy_(generator.get_state())
    state.meta["step"] += 1


def digest(state: TrainingState) -> str:
    """SHA-256 over all bits."""
    total = hashlib.sha256(str(state.meta["step"]).encode())
    for name in sorted(state.tensors):
        total.update(state.tensors[name].numpy().tobytes())
    return total.hexdigest()


def train(uri: str, steps: int, every: int, say: Callable[[str], None]) -> str:
    """Train to the end from wherever the place is."""
    place = resolve_place(uri, "toy", "toy", f"{uri}/ledger")
    settings = CheckpointSettings(
        recovery_seconds=0.03, keep_bytes=0, keep_last=2, keep_best=0, heartbeat_seconds=0.2
    )
    opened = Checkpointer.open(place, settings, numerics={"toy": 1}, announce=lambda _: None)
    with opened as checkpointer:
        if checkpointer.finished is not None:
            return checkpointer.finished["digest"]
        state = checkpointer.restore() or fresh()
        say(f"resumed {state.meta['step']} {digest(state)}")
        while state.meta["step"] < steps:
            advance(state)
            step = state.meta["step"]
            position = {"step": step, "epoch": step / 10, "examples": step}
            if step % every == 0:
                checkpointer.save(state, kind="milestone", **position, metrics={"loss": 1 / step})
                say(f"saved {step}")
            elif checkpointer.recovery_due():
                checkpointer.save(state, kind="recovery", **position)
                say(f"saved {step}")
        result = digest(state)
        checkpointer.finish({"digest": result})
        return result


def process(uri: str, steps: int, every: int, log: str, env: dict[str, str]) -> None:
    """Train in this process, and write what happens to the file `log`, line by line."""
    os.environ.update(env)
    torch.set_num_threads(1)
    with open(log, "w", buffering=1) as file:
        print("done", train(uri, steps, every, lambda line: print(line, file=file)), file=file)


def rank_process(uri: str, meet: str, rank: int, world: int, step: int, log: str) -> None:
    """Be one of `world` gloo ranks: restore, save `step` where it is not 0, and log as JSON."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    said: list[str] = []
    place = resolve_place(uri, "toy", "ranks", "", owner="toy")
    settings = CheckpointSettings(heartbeat_seconds=0.2)
    with Checkpointer.open(place, settings, numerics={"toy": 1}, announce=said.append) as opened:
        restored = opened.restore()
        found = restored.tensors if restored else {}
        own = found.get("rank/own")
        result = {
            "restored": restored is not None,
            "step": restored.meta["step"] if restored else None,
            "weights": str(found["model/weight"].sum().item()) if found else "",
            "own": None if own is None else int(own),
            "meta": restored.meta.get("rank") if restored else None,
            "exact": opened.exact,
            "said": "\n".join(said),
        }
        if step:
            state = fresh()
            state.tensors["rank/own"] = torch.tensor(rank)
            state.meta |= {"step": step, "rank": rank}
            opened.save(state, kind="recovery", step=step, epoch=0.0, examples=step)
            opened.flush()
            result["saved"] = str(state.tensors["model/weight"].sum().item())
    with open(log, "w") as file:
        json.dump(result, file)
    if world > 1:
        dist.destroy_process_group()
