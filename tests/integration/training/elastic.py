"""One small training run, in any number of processes, which may be killed at any step."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

OWNER = "elastic"


class Conv(nn.Module):
    """Convolutions with batch norm over the 8 x 8 pixels of a digit, and dropout."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(216, 20), nn.BatchNorm1d(20, momentum=None), nn.ReLU())
        self.last = nn.Sequential(nn.Dropout(0.2), nn.Linear(20, out_features))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.last(self.head(self.body(rows.view(-1, 1, 8, 8))))


class Transformer(nn.Module):
    """Attention between the 8 lines of a digit, with dropout and a mask that is a buffer."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.last = nn.Linear(in_features, out_features)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        lines = self.layer(rows.view(-1, 8, 8), src_mask=self.mask)
        return self.last(lines.flatten(1))


class Fails(nn.Linear):
    """Fails in one process, at its first step."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and len(input) > 2 and os.environ.get("RANK") == "1":
            raise ValueError("only here")
        return super().forward(input.flatten(1))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of training run."""

    name: str
    network: dict[str, Any]
    leaves: int = 4
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    batch_size: int = 33
    steps: int = 30
    tunes: str = ""
    """Path of the checkpoint that it fine-tunes; empty trains from the beginning."""
    nodes: bool = False
    """Whether each process is the only one of a node, which has a disk of its own for states."""

    def __str__(self) -> str:
        return self.name


MLP = {"network": "mlp", "network_args": {"hidden": [16], "dropout": 0.3}}
CONV, TRANSFORMER = {"network": "elastic:Conv"}, {"network": "elastic:Transformer"}
CLIPPED = {"gradient_clip": 0.5, "ema_decay": 0.9}
CASES = [
    Case(name="convolutions, clipped, averaged", network=CONV, leaves=8, settings=CLIPPED),
    Case(name="MLP of 4", network=MLP, settings=CLIPPED),
    Case(name="MLP of 8", network=MLP, leaves=8),
    Case(name="convolutions of 4", network=CONV),
    Case(name="transformer of 4", network=TRANSFORMER),
    Case(name="transformer of 8", network=TRANSFORMER, leaves=8),
    Case(
        name="fused, streamed, early stop",
        network={"network": "mlp", "network_args": {"hidden": [16]}},
        settings={"shuffle": "blocks", "patience": 2, "min_delta": 0.2, "step_path": "fused"},
    ),
    Case(name="batches too short", network=CONV, batch_size=16, settings={"shuffle": "none"}),
    Case(name="momentum", network={**CONV, "optimizer": "SGD"}),
    Case(
        name="sharded transformer, recomputed",
        network=TRANSFORMER,
        settings={"shard": ["layer", "last"], "recompute": ["layer"], "gradient_clip": 0.5},
    ),
    Case(
        name="sharded, streamed, augmented, early stop",
        network=CONV,
        settings={
            "shard": ["body", "head"],
            "shuffle": "blocks",
            "augment": {"shift": 1, "flip_horizontal": 0.5},
            "patience": 2,
            "min_delta": 0.2,
        },
    ),
    Case(
        name="sharded convolutions of 8",
        network=CONV,
        leaves=8,
        settings={"shard": ["body", "head"]},
    ),
    Case(name="L-BFGS", network={"network": "mlp"}, settings={"finish_steps": 2}),
]


SHARDED = Case(
    name="sharded transformer",
    network=TRANSFORMER,
    settings={"shard": ["layer", "last"], "rank_timeout": 60.0},
    steps=15,
)
NODES = Case(
    name="nodes",
    network=MLP,
    settings={
        "checkpoints": {
            "recovery_seconds": 3600,
            "heartbeat_seconds": 300,
            "near": "disk",
            "near_seconds": 1e-4,
        }
    },
    nodes=True,
)
PIECES = Case(
    name="sharded nodes",
    network=TRANSFORMER,
    settings={**SHARDED.settings, **NODES.settings},
    nodes=True,
)
_IN_SHARES = {
    "shard": "auto",
    "step_path": "autograd",
    "rank_timeout": 60.0,
    # With two, how much memory a run takes depends on how fast the disk is.
    "checkpoints": {"recovery_seconds": 1e-4, "heartbeat_seconds": 300, "buffers": 1},
}
LARGE = Case(
    name="30 MB of weights",
    network={"network": "mlp", "network_args": {"hidden": [1024] * 8}},
    settings=_IN_SHARES,
    steps=8,
)


TUNED = Case(
    name="30 MB of weights, fine-tuned",
    network={"learning_rate": 1e-3, "shrink": 0.9},
    settings=_IN_SHARES,
    steps=5,
)


def select_within(limit: int, ledger: str, folder: Path) -> int:
    """Select the best checkpoint in a process of its own, within so many bytes; its exit code."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_select, args=(limit, ledger, folder))
    process.start()
    process.join(timeout=120)
    return -1 if process.exitcode is None else process.exitcode


def _select(limit: int, ledger: str, folder: Path) -> None:
    from kubestill.runtime.base.artifacts import LocalArtifact
    from kubestill.runtime.steps.select_checkpoint import select_checkpoint

    sys.stdout = sys.stderr = (folder / "log").open("w", buffering=1)
    names = ("checkpoint", "model", "report", "summary")
    outputs: dict[str, Any] = {name: LocalArtifact(str(folder / name)) for name in names}
    limit_memory(limit)
    select_checkpoint(ledger=LocalArtifact(ledger, metadata={"kind": "ledger"}), **outputs)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """So many processes, and how they end."""

    world: int
    kill: tuple[int, ...] = ()
    """Ranks that are killed."""
    at: int = 0
    """After so many steps of the attempt."""
    put: int = 0
    """Instead: before they write so many objects below the place, 1 for the first."""
    limit: int = 0
    """Bytes that each process may take once its network is built; 0 sets no limit."""
    says: str = ""
    """How it fails; empty where it does not."""
    begins: int | None = None
    """The step that it has to resume from; None for any."""
    lost: tuple[int, ...] = ()
    """Nodes that take their disks along."""


def run(case: Case, data: Path, root: Path, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Run attempts one after the other, the last to its end; returns what has to be equal."""
    from crashes import outcome

    root.mkdir(exist_ok=True)
    for attempt in attempts:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        processes = [
            _start(case, data, root, attempt, rank, store.port) for rank in range(attempt.world)
        ]
        for process in processes:
            process.join(timeout=120)
        codes = [process.exitcode for process in processes]
        log = (root / "log-0").read_text()
        if attempt.says:
            assert all(codes)
            assert attempt.says in log
        elif attempt.kill:
            assert all(codes), f"{attempt}: {codes}\n{log}"
            for rank in attempt.kill:
                assert codes[rank] == -signal.SIGKILL, f"{attempt}: {codes}\n{log}"
        else:
            assert not any(codes), f"{attempt}: {codes}\n{log}"
        assert "NOT with the same bits" not in log
        if attempt.begins is not None:
            assert f"resuming from step {attempt.begins}," in log, log
        for rank in attempt.lost:
            shutil.rmtree(root / f"node-{rank}")
    return {} if attempts[-1].says else outcome(root)


def _start(
    case: Case, data: Path, root: Path, attempt: Attempt, rank: int, port: int
) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kubestill.runtime.steps.train_teacher", "matplotlib.pyplot"])
    local = 0 if case.nodes else rank
    group = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": attempt.world, "MASTER_PORT": port}
    group |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    group |= {"KUBESTILL_OWNER": OWNER, "KUBESTILL_CACHE": str(root.parent / "cache")}
    environment = {name: str(value) for name, value in group.items()}
    dies = attempt.at if rank in attempt.kill else None
    told = (case, data, root, rank, environment, dies, attempt.put, attempt.limit)
    process = context.Process(target=_train, args=told)
    process.start()
    return process


def _train(
    case: Case,
    data: Path,
    root: Path,
    rank: int,
    environment: dict[str, str],
    dies: int | None,
    put: int,
    limit: int,
) -> None:
    from kubestill.runtime.base.artifacts import LocalArtifact
    from kubestill.runtime.steps import finetune_fresh, train_model
    from kubestill.runtime.steps.train_teacher import train_teacher
    from kubestill.runtime.stores.local import LocalStore
    from kubestill.runtime.training.engine import Trainer
    from kubestill.runtime.training.micro_batches import MicroBatches
    from kubestill.runtime.training.shards import ShardedStep
    from kubestill.runtime.training.steps import AutogradStep

    if limit:
        fit = Trainer.fit

        def limited(self: Trainer) -> Any:
            limit_memory(limit)
            return fit(self)

        Trainer.fit = limited
    os.environ |= environment
    sys.stdout = sys.stderr = (root / f"log-{rank}").open("w", buffering=1)
    train_model.training_report = lambda *_: ("", "")
    if case.nodes:
        _stay_on(root / f"node-{rank}")
    if dies is not None and put:
        done = 0

        def written(act: Any) -> Any:
            def counted(self: LocalStore, key: str, *args: Any, **options: Any) -> Any:
                nonlocal done
                done += bool(re.match(r"\d+-a", key))
                if done == put:
                    os.kill(os.getpid(), signal.SIGKILL)
                return act(self, key, *args, **options)

            return counted

        LocalStore.put, LocalStore.put_parts = (
            written(LocalStore.put),
            written(LocalStore.put_parts),
        )
    elif dies is not None:
        kind = MicroBatches if case.leaves > 1 else AutogradStep
        if "shard" in case.settings and environment["WORLD_SIZE"] != "1":
            kind = ShardedStep
        step, taken = kind.__call__, 0

        def counted(self: Any, *args: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken > dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *args)

        kind.__call__ = counted  # pyright: ignore[reportAttributeAccessIssue]
    outputs: dict[str, Any] = {
        name: LocalArtifact(str(root / name))
        for name in ("model", "ledger", "metrics", "report", "summary")
    }
    given: dict[str, Any] = {
        "dataset": LocalArtifact(str(data / "dataset"), metadata={"kind": "dataset"}),
        "validation": LocalArtifact(str(data / "validation"), metadata={"kind": "dataset"}),
        "checkpoint_uri": str(root / "store"),
        "steps": case.steps,
        "batch_size": case.batch_size,
        **case.network,
        **outputs,
        "settings": {
            "virtual_workers": case.leaves,
            "milestone_every": 5,
            "milestone_unit": "steps",
            "checkpoints": {"recovery_seconds": 1e-4, "heartbeat_seconds": 300},
            **case.settings,
        },
    }
    if case.tunes:
        given["checkpoint"] = LocalArtifact(case.tunes, metadata={"kind": "checkpoint"})
        finetune_fresh.finetune_fresh(**given)
    else:
        train_teacher(**given)


def limit_memory(more: int) -> None:
    """Limit this process to so many bytes more than it has, of private memory to write to."""
    # Torch maps gigabytes of other memory.
    (taken,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    most = 1024 * int(taken) + more
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _stay_on(disk: Path) -> None:
    """Have this process find its node's disk here, and let each step's state get there."""
    from kubestill.runtime.checkpoints import checkpointer

    disk.mkdir(exist_ok=True)
    os.chdir(disk)
    checkpointer._ASKED_SECONDS = 0.0  # pyright: ignore[reportPrivateUsage]
    saved = checkpointer.Checkpointer.save

    def save(self: checkpointer.Checkpointer, *args: Any, **named: Any) -> None:
        saved(self, *args, **named)
        self.flush()

    checkpointer.Checkpointer.save = save
