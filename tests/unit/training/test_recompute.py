"""Activation checkpointing: the same bits in less memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kubestill.errors import InvalidInput
from kubestill.runtime.models.functions import resmlp
from kubestill.runtime.models.networks import mlp
from kubestill.runtime.training.batches import Order
from kubestill.runtime.training.blocks import find_blocks, recomputing
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.steps import AutogradStep

ROWS, LEAVES = 37, 4


class Attends(nn.Module):
    """A list of blocks behind an embedding, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(2, 8), nn.Linear(8, 3)
        layer = {"dropout": 0.2, "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, **layer) for _ in range(3))
        self.mask = nn.Buffer(torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.embed(rows.view(-1, 4, 2))
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask)
        return self.last(hidden.mean(1))


class Draws(nn.Module):
    """Draws from every generator, and counts in a buffer what it then uses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.total, self.count = nn.Buffer(torch.zeros(())), nn.Buffer(torch.zeros(()))

    def forward(self, rows: Tensor) -> Tensor:
        self.total += rows.detach().mean()
        self.count = self.count + 1
        noise = torch.rand(8) + random.random() + float(np.random.rand())
        return torch.tanh(self.layer(rows * noise)) * (1 + self.total / self.count)


def conv() -> nn.Module:
    def block() -> list[nn.Module]:
        return [nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4, momentum=None), nn.ReLU()]

    layers = [nn.Unflatten(1, (4, 2)), *block(), *block(), *block(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mlp": (lambda: mlp(8, 3, hidden=[16] * 5, dropout=0.3, norm="batch"), "auto"),
    "residual mlp": (lambda: mlp(8, 3, [16] * 3, dropout=0.3, norm="layer", residual=True), "auto"),
    "resmlp": (lambda: resmlp(8, 3), "auto"),
    "convolutions": (conv, "auto"),
    "one convolution": (conv, ["1", "4"]),
    "attention": (Attends, "auto"),
    "two of its layers": (Attends, ["layers.[02]"]),
    "every generator": (lambda: nn.Sequential(Draws(), Draws(), nn.Linear(8, 3)), ["*"]),
}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(ROWS, 8, generator=generator), torch.randn(ROWS, 3, generator=generator)


def train(make: Callable[[], nn.Module], asked: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    network = make()
    around = {"around": recomputing(network, asked)} if asked else {}
    options: dict[str, Any] = {"optimizer": "AdamW", "optimizer_args": {}, **around}
    step = MicroBatches(
        AutogradStep(network, build_loss("mse"), **options), network, leaves=LEAVES, seed=0
    )
    plan = {"rows": ROWS, "batch_size": ROWS, "seed": 0, "shuffle": "none", "window_rows": ROWS}
    order = Order(**plan, virtual_workers=LEAVES)
    losses = [
        step(batch(), 0.1, order.cut(torch.arange(ROWS), position)[0]) for position in range(3)
    ]
    return {"losses": torch.stack(losses), **step.state(), **network.state_dict()}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_changes_no_bit(name: str) -> None:
    make, asked = NETWORKS[name]
    plain, again = train(make, ""), train(make, asked)
    assert plain.keys() == again.keys()
    assert [key for key in plain if not torch.equal(plain[key], again[key])] == []


@pytest.mark.parametrize(
    ("make", "asked", "most"),
    [
        (lambda: mlp(8, 3, hidden=[64] * 16, dropout=0.3), "auto", 0.5),
        (lambda: mlp(8, 3, hidden=[64] * 16, dropout=0.3, norm="batch"), "auto", 0.5),
        (lambda: resmlp(8, 3, width=64, blocks=16), "auto", 0.7),
    ],
    ids=["mlp", "normalised", "resmlp"],
)
def test_it_keeps_less(make: Any, asked: Any, most: float) -> None:
    """Counts the bytes that autograd keeps of a forward pass, parameters left out."""
    network, rows = make(), torch.randn(500, 8)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def kept(around: Any) -> int:
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in own:
                found[memory.data_ptr()] = memory.nbytes()
            return tensor

        # Inside of a recomputed block, its own hooks take what would be kept.
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), around():
            network(rows)
        return sum(found.values())

    plain = kept(contextlib.nullcontext)
    assert kept(recomputing(network, asked)) < most * plain


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["layer.*"], r"settings.recompute\[0\].*did you mean 'layers.\d'"),
        (["embed", "layers"], r"settings.recompute\[1\].*is a list of modules.*use 'layers\.\*'"),
        (["nothing", "neither"], r"recompute\[0\](.|\n)*recompute\[1\]"),
    ],
)
def test_names_that_match_nothing_are_refused(asked: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        find_blocks(Attends(), asked, field="settings.recompute")


def test_a_network_without_repetition_has_no_blocks() -> None:
    with pytest.raises(InvalidInput, match="repeats no kind of module in a list; known: 0"):
        find_blocks(nn.Sequential(nn.Linear(8, 3)), "auto", field="settings.recompute")


def test_of_blocks_in_blocks_the_outer_count() -> None:
    assert [*find_blocks(Attends(), ["layers.*"], field="")] == ["layers.0", "layers.1", "layers.2"]


def test_a_setting(train: Any) -> None:
    given = {"network_args": {"hidden": [16] * 4, "dropout": 0.2}, "steps": 10}
    plain = train("plain", **given, resume="never")
    again = train("again", **given, resume="never", settings={"recompute": "auto"})
    weights = [(out / "model" / "model.safetensors").read_bytes() for out in (plain, again)]
    assert weights[0] == weights[1]
    with pytest.raises(InvalidInput, match="step_path.*recompute is a matter of autograd"):
        train(settings={"recompute": "auto", "step_path": "fused"})
