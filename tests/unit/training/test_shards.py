"""Parameters that are shared out between processes: the bits of one process that has all."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sharing import CASES, FAULTS, fail, work
from sharing import train as train_case
from torch import Tensor, nn

from kubestill.errors import InvalidInput
from kubestill.runtime.training.batches import Order
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.settings import parse_settings
from kubestill.runtime.training.shards import ShardedStep, Shards, _Spare, share_out


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[dict[str, Tensor]]]]:
    """What each process of 2, 3 and 4 holds after each case."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kubestill.runtime.training.shards"])
    held: dict[int, list[list[dict[str, Tensor]]]] = {}
    for world in (2, 3, 4):
        processes = [
            context.Process(target=work, args=(rank, world, folder)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=200)
        assert [process.exitcode for process in processes] == [0] * world
        held[world] = [torch.load(folder / f"{world}-{rank}") for rank in range(world)]
    return held


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[" ".join(map(str, case.values())) for case in CASES]
)
def test_it_changes_no_bit(number: int, found: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train_case(CASES[number])
    torch.set_num_threads(threads)
    for world in (2, 3, 4):
        ranks = [rank[number] for rank in found[world]]
        union: dict[str, Tensor] = {}
        for rank in ranks:
            for name, tensor in rank.items():
                assert torch.equal(tensor, union.setdefault(name, tensor)), (world, name)
        assert union.keys() == alone.keys()
        assert [n for n in alone if not torch.equal(alone[n], union[n])] == [], world


SAYS = {
    "elsewhere": "InvalidInput.*a parameter is used while the block that has it does not run",
    "otherwise": "InvalidInput.*other blocks ran in other processes, or in another order",
    "overwrites": "RuntimeError.*modified by an inplace operation",
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_shared_out_is_refused(name: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=fail, args=(rank, name, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=100)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    assert any(re.search(SAYS[name], one, re.DOTALL) for one in said), said


FORWARD = "get 0, get 1, run 0, get 2, run 1, get 3, run 2, run 3, get 2, "


@pytest.mark.parametrize(
    ("recompute", "expected"),
    [
        ("", FORWARD + "get 1, get 0"),
        ("auto", FORWARD + "run 3, get 1, run 2, get 0, run 1, run 0"),
    ],
    ids=["kept", "recomputed"],
)
def test_the_next_block_comes_while_one_runs(
    recompute: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the second micro-batch on; what the forward pass ends with stays for the backward."""
    seen: list[str] = []
    broadcast, learn = dist.broadcast, Shards.learn
    monkeypatch.setattr(
        dist,
        "broadcast",
        lambda flat, *args, **named: (
            seen.append(f"get {len(flat) // 64 - 1}"),
            broadcast(flat, *args, **named),
        )[1],
    )
    monkeypatch.setattr(Shards, "learn", lambda *args: (seen.append("begin"), learn(*args))[1])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = nn.Sequential(*[Wide(8 * (i + 1)) for i in range(4)])
        for i, block in enumerate(network):
            block.register_forward_pre_hook(lambda *_, i=i: seen.append(f"run {i}"))
        given = {"virtual_workers": 2, "shard": "auto"}
        if recompute:
            given |= {"recompute": [str(i) for i in range(4)]}
        settings = parse_settings({"optimizer": "SGD", "batch_size": 4}, given)
        shards = Shards(network, "auto", rank=0, world=1, timeout=20.0)
        machine = Machine(device=torch.device("cpu"), precision="float32")
        step = ShardedStep(network, build_loss("mse"), settings, machine, shards)
        plan: dict[str, Any] = {"rows": 4, "batch_size": 4, "seed": 0, "shuffle": "none"}
        plan |= {"window_rows": 4, "rank": 0, "world_size": 1, "virtual_workers": 2}
        order = Order(**plan, in_turn=True)
        for position in range(2):
            part, _ = order.cut(torch.arange(4), position)
            step((torch.ones(4, 8), torch.ones(4, 8)), 0.1, part)
    finally:
        dist.destroy_process_group()
    first, *later = ", ".join(seen).removeprefix("begin, ").split(", begin, ")
    assert first.startswith("get 0, run 0, get 1, run 1")
    assert later == [expected] * 3


class Wide(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, width))

    def forward(self, rows: Tensor) -> Tensor:
        return torch.tanh(rows @ self.weight @ self.weight.T)


def test_memory_that_somebody_still_sees_is_not_used_again() -> None:
    spare, wanted = _Spare(1 << 20), torch.empty(4)
    first = spare.take(wanted)
    seen = torch.empty(0).set_(first)  # pyright: ignore
    spare.give(first)
    second = spare.take(wanted)
    spare.give(second)
    assert seen.untyped_storage().nbytes() == 0
    assert spare.take(wanted) is second


def test_the_largest_go_to_whom_has_least() -> None:
    assert share_out([1, 8, 4, 4, 1], 2) == [0, 0, 1, 1, 1]
    assert share_out([5], 3) == [0]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"step_path": "fused"}, "step_path"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"finish_steps": 2}, "finish_steps"),
        ({"precision": "fp16"}, "precision"),
        ({"imitate": {"features": {"weight": 1.0}}}, "imitate"),
        ({"quantise_aware": 0.5}, "quantise_aware"),
        ({"virtual_workers": 1}, "shard"),
    ],
)
def test_settings_that_need_all_of_the_state_are_refused(
    settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput, match=f"settings.{field} "):
        parse_settings({}, {"virtual_workers": 4, "shard": "auto", **settings})


def test_a_run_that_began_with_the_fused_step_goes_on_with_it(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharded or recomputed, it would round otherwise from here on."""
    given = {"network_args": {"hidden": [8, 8]}}
    step, taken = MicroBatches.__call__, 0

    def ends(self: Any, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > 20:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(MicroBatches, "__call__", ends)
    with pytest.raises(KeyboardInterrupt):
        train(**given, settings={"virtual_workers": 2})
    monkeypatch.undo()
    with pytest.raises(InvalidInput, match="settings.recompute.*began with the fused step"):
        train(**given, settings={"virtual_workers": 2, "recompute": "auto"})
    train(**given, settings={"virtual_workers": 2})
