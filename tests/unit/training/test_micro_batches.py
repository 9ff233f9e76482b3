"""Micro-batches in one process: what they sum to, and what they refuse."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from kubestill.errors import InvalidInput
from kubestill.runtime.training.batches import Order
from kubestill.runtime.training.demands import check_demands
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.settings import parse_settings
from kubestill.runtime.training.steps import AutogradStep, FusedStep, SplitStep
from kubestill.runtime.training.stopping import what_is_broken

ROWS, LEAVES = 37, 4


def plain() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def normalised() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def batch(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 8, generator=generator), torch.randn(rows, 3, generator=generator)


def micro(network: nn.Module, kind: Any = AutogradStep, **options: Any) -> MicroBatches:
    given = {"optimizer": "SGD", "optimizer_args": {}, **options}
    step: SplitStep = kind(network, build_loss("mse"), **given)
    return MicroBatches(step, network, leaves=LEAVES, seed=0)


def cut(rows: int = ROWS) -> Any:
    plan = {"rows": rows, "batch_size": rows, "seed": 0, "shuffle": "none", "window_rows": rows}
    return Order(**plan, virtual_workers=LEAVES).cut(torch.arange(rows), 0)[0]


@pytest.mark.parametrize("kind", [AutogradStep, FusedStep])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_they_sum_to_the_gradient_of_the_batch(kind: Any, clip: float) -> None:
    network, peer = plain(), plain()
    loss = micro(network, kind, clip=clip)(batch(), 0.5, cut())
    features, wanted = batch()
    value = nn.functional.mse_loss(peer(features), wanted)
    value.backward()
    if clip:
        nn.utils.clip_grad_norm_(peer.parameters(), clip)
    torch.optim.SGD(peer.parameters(), lr=0.5).step()
    assert float(loss) == pytest.approx(float(value.detach()))
    for ours, theirs in zip(network.parameters(), peer.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_running_statistics_are_the_means_over_micro_batches() -> None:
    network = normalised()
    peers = [deepcopy(network) for _ in range(LEAVES)]
    features, _ = batch()
    edges = [ROWS * leaf // LEAVES for leaf in range(LEAVES + 1)]
    micro(network)(batch(), 0.0, cut())
    for peer, first, last in zip(peers, edges, edges[1:], strict=False):
        peer(features[first:last])
    for name in ("running_mean", "running_var"):
        given = [getattr(peer[1], name) for peer in peers]
        shares = [(last - first) / ROWS for first, last in zip(edges, edges[1:], strict=False)]
        mean = torch.stack([w * each for w, each in zip(shares, given, strict=True)]).sum(0)
        assert torch.allclose(getattr(network[1], name), mean)
    assert network[1].num_batches_tracked == 1


def test_dropout_differs_between_micro_batches_and_positions() -> None:
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = nn.Parameter(torch.ones(3)), list[torch.Tensor]()

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            self.seen.append(nn.functional.dropout(torch.ones(50), 0.5))
            return features[:, :3] * self.weight

    network = Noise()
    step = micro(network)
    first, second = (
        cut(),
        Order(
            rows=ROWS,
            batch_size=ROWS,
            seed=0,
            shuffle="none",
            window_rows=ROWS,
            virtual_workers=LEAVES,
        ).cut(torch.arange(ROWS), 1)[0],
    )
    for part in (first, second, first):
        step(batch(), 0.1, part)
    seen = [tuple(mask.tolist()) for mask in network.seen]
    assert len(set(seen)) == 2 * LEAVES
    assert seen[:LEAVES] == seen[2 * LEAVES :]


class Writing(nn.Module):
    """A network that writes to a buffer, at every call or only at the second one."""

    def __init__(self, buffer: torch.Tensor, first: int):
        super().__init__()
        self.layer, self.first, self.calls = nn.Linear(8, 3), first, 0
        self.memory = nn.Buffer(buffer)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.calls >= self.first:
            self.memory += 1
        self.calls += 1
        return self.layer(features)


@pytest.mark.parametrize(
    ("buffer", "first", "says"),
    [
        (torch.zeros(3, dtype=torch.int64), 0, "'memory' holds torch.int64, of which there is no"),
        (torch.zeros(3), 1, "'memory' is written to at some steps"),
    ],
)
def test_buffers_that_would_depend_on_who_trains_are_refused(
    buffer: torch.Tensor, first: int, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        micro(Writing(buffer, first))(batch(), 0.1, cut())


def test_other_buffers_follow_the_batch() -> None:
    network = Writing(torch.zeros(3), 0)
    step = micro(network)
    step(batch(), 0.1, cut())
    step(batch(), 0.1, cut())
    assert network.memory.tolist() == [2, 2, 2]


def test_normalising_needs_two_rows_in_each(train: Any) -> None:
    given = {"network_args": {"norm": "batch"}, "batch_size": 6}
    with pytest.raises(InvalidInput, match="a micro-batch, which needs 2; use at most 2"):
        train(**given, settings={"virtual_workers": 4})


def test_a_network_that_mixes_the_rows_of_processes_is_refused() -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(normalised())
    settings = parse_settings({}, {"virtual_workers": 2})
    with pytest.raises(InvalidInput, match="SyncBatchNorm mixes the rows"):
        check_demands(network, torch.zeros(2, 8), settings, rows=100)


def test_more_processes_of_torchrun_than_micro_batches_are_refused(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InvalidInput, match="each of the 3 processes takes one; use 4"):
        train(settings={"virtual_workers": 2})


def test_an_infinite_buffer_is_no_broken_weight() -> None:
    network, mask = plain(), torch.tensor([0.0, -torch.inf, torch.inf])
    network.register_buffer("mask", mask)
    assert not what_is_broken(0.1, network)
    mask[0] = torch.nan
    assert what_is_broken(0.1, network)
    mask[0] = 0.0
    next(network.parameters()).data[0, 0] = torch.inf
    assert what_is_broken(0.1, network)
