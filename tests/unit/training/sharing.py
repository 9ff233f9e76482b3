"""Small training runs whose parameters are shared out between processes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kubestill.runtime.models.functions import resmlp
from kubestill.runtime.models.networks import mlp
from kubestill.runtime.training.batches import Order
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.settings import TrainingSettings, parse_settings
from kubestill.runtime.training.shards import ShardedStep, Shards
from kubestill.runtime.training.steps import AutogradStep

ROWS = 37


class Attends(nn.Module):
    """Blocks behind an embedding, whose weight is tied to the last layer's; a weight has no use."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(2, 8), nn.Linear(2, 8, bias=False)
        self.last.weight = self.embed.weight
        layer = {"dropout": 0.2, "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, **layer) for _ in range(3))
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.embed(rows.view(-1, 4, 2))
        for layer in self.layers:
            hidden = layer(hidden)
        return (hidden.mean(1) @ self.last.weight).repeat(1, 2)[:, :3]


class Twice(nn.Module):
    """Runs a block twice, and one whose weight is complex and used conjugate."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.turn = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), Turn()
        self.outer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))

    def forward(self, rows: Tensor) -> Tensor:
        return self.outer(self.twice(self.turn(self.twice(rows))))


class Turn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, dtype=torch.complex64))

    def forward(self, rows: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.fft(rows) * self.weight.conj()).sum(-1)


def conv() -> nn.Module:
    def block() -> list[nn.Module]:
        return [nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4, momentum=None), nn.ReLU()]

    layers = [nn.Unflatten(1, (4, 2)), *block(), *block(), nn.Flatten(), nn.Linear(8, 3)]
    network: Any = nn.Sequential(*layers)
    return network.to(memory_format=torch.channels_last)


def frozen() -> nn.Module:
    network: Any = resmlp(8, 3, width=16)
    network[1].requires_grad_(False)
    network[2][0].requires_grad_(False) if isinstance(network[2], nn.Sequential) else None
    return network


class Elsewhere(nn.Module):
    """Uses a block's weight while that does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            rows = torch.tanh(rows @ layer.weight)
        return rows[:, :3]


class Otherwise(Elsewhere):
    """Runs blocks that do not learn in another order in another process: nobody waits for long."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[0].requires_grad_(False)
        self.layers[2].requires_grad_(False)

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.layers if dist.get_rank() else reversed(self.layers):
            rows = torch.tanh(layer(rows))
        return rows[:, :3]


class Overwrites(Elsewhere):
    """Changes what its backward pass needs."""

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            rows = torch.tanh(layer(rows))
            rows += 1
        return rows[:, :3]


FAULTS: dict[str, Any] = {
    "elsewhere": Elsewhere,
    "otherwise": Otherwise,
    "overwrites": Overwrites,
}


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))


NETWORKS: dict[str, Any] = {
    "mlp": lambda: mlp(8, 3, hidden=[16] * 3, dropout=0.3, norm="batch"),
    "residual mlp": lambda: mlp(8, 3, [16] * 3, dropout=0.3, norm="layer", residual=True),
    "resmlp, some frozen": frozen,
    "convolutions": conv,
    "attention": Attends,
    "twice": Twice,
    "fewer parameters than processes": small,
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Adam": {"amsgrad": True},
    "SGD": {"momentum": 0.9},
    "Adafactor": {},
}
CASES: list[dict[str, Any]] = [
    {"network": network, "optimizer": optimizer, "clip": clip, "leaves": leaves, "recompute": again}
    for network in NETWORKS
    for optimizer, clip, leaves, again in [
        ("AdamW", 0.1, 4, ""),
        ("AdamW", 0.0, 8, "auto"),
        ("Adam", 0.1, 4, "auto"),
        ("SGD", 0.1, 4, ""),
        ("Adafactor", 0.0, 4, ""),
    ]
    if network != "twice" or (optimizer != "Adafactor" and not clip)
] + [
    {"network": network, "optimizer": "AdamW", "clip": 0.1, "leaves": 4, "recompute": again}
    | {"precision": "bf16"}
    for network, again in [("mlp", ""), ("attention", "auto")]
]
SHARD = {"twice": ["twice", "turn", "outer"]}


def settings_of(case: dict[str, Any], **more: Any) -> TrainingSettings:
    name = case["optimizer"]
    recompute = case["recompute"] and SHARD.get(case["network"], "auto")
    return parse_settings(
        {"optimizer": name, "optimizer_args": OPTIMIZERS[name], "batch_size": ROWS},
        {
            "gradient_clip": case["clip"],
            "virtual_workers": case["leaves"],
            "recompute": recompute,
            **more,
        },
    )


def train(case: dict[str, Any], rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Take steps, one of them on a batch that cannot be cut; return what this process holds."""
    torch.manual_seed(1)
    network, loss = (NETWORKS | FAULTS)[case["network"]](), build_loss("mse")
    settings = settings_of(case)
    precision = case.get("precision", "float32")
    machine = Machine(device=torch.device("cpu"), precision=precision)
    shards = None
    if world > 1:
        asked = SHARD.get(case["network"], "auto")
        shards = Shards(network, asked, rank=rank, world=world, timeout=60.0)
        step: Any = ShardedStep(network, loss, settings, machine, shards)
    else:
        options: dict[str, Any] = {
            "optimizer_args": settings.optimizer_args,
            "clip": settings.gradient_clip,
        }
        options |= {"optimizer": settings.optimizer, "precision": precision}
        plain = AutogradStep(network, loss, **options)
        step = MicroBatches(plain, network, leaves=case["leaves"], seed=0)
    order = Order(
        rows=ROWS,
        batch_size=ROWS,
        seed=0,
        shuffle="none",
        window_rows=ROWS,
        least_rows=2,
        rank=rank,
        world_size=world,
        virtual_workers=case["leaves"],
        in_turn=world > 1,
    )
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(ROWS, 8, generator=generator), torch.randn(ROWS, 3, generator=generator)
    losses: list[Tensor] = []
    for position, count in enumerate((ROWS, 5, ROWS)):
        part, own = order.cut(torch.arange(count), position)
        losses.append(step(tuple(tensor[own] for tensor in rows), 0.1, part))
    absent = shards.absent if shards else ()
    every = network.state_dict(keep_vars=True)
    weights = {name: tensor.detach() for name, tensor in every.items() if id(tensor) not in absent}
    if shards:
        for i, owner in enumerate(shards.owners):
            held = shards.parameters[i].untyped_storage().nbytes()
            assert bool(held) == (owner == rank), f"{shards.names[i]}: {held} bytes"
    return {"losses": torch.stack(losses), **step.state(), **weights}


def fail(rank: int, name: str, folder: Path) -> None:
    """Leave what the processes of a network say that cannot be shared out."""
    case = {"network": name, "optimizer": "SGD", "clip": 0.0, "leaves": 2, "recompute": ""}
    try:
        work(rank, 2, folder, [case])
    except Exception as error:
        (folder / f"said-{rank}").write_text(f"{type(error).__name__}: {error}")


def work(rank: int, world: int, folder: Path, cases: Any = CASES) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet-{world}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    found = [train(case, rank, world) for case in cases]
    torch.save(found, folder / f"{world}-{rank}")
    dist.destroy_process_group()
