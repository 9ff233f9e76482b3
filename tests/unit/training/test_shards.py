"""Parameters that are shared out between processes: the bits of one process that has all."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
from sharing import CASES, train, work
from torch import Tensor


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
    alone = train(CASES[number])
    torch.set_num_threads(threads)
    for world in (2, 3, 4):
        ranks = [rank[number] for rank in found[world]]
        union: dict[str, Tensor] = {}
        for rank in ranks:
            for name, tensor in rank.items():
                assert torch.equal(tensor, union.setdefault(name, tensor)), (world, name)
        assert union.keys() == alone.keys()
        assert [n for n in alone if not torch.equal(alone[n], union[n])] == [], world
