"""Sums along one binary tree: the same bits, whoever owns which leaves."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ranks import Rank, Threads

from kubestill.runtime.training import tree
from kubestill.runtime.training.batches import Cut, Order
from kubestill.runtime.training.micro_batches import Streams
from kubestill.runtime.training.tree import Tree, owned

WORLDS = [(leaves, world) for leaves in (2, 4, 8, 16) for world in range(1, leaves + 1)]


def summed(leaves: int, world: int, values: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """Return the total that each rank gets of a list of tensors a leaf."""
    return summed_with(leaves, world, values)[0]


def summed_with(
    leaves: int, world: int, values: list[list[torch.Tensor]]
) -> tuple[list[list[torch.Tensor]], Counter[int]]:
    """Return that, and what each rank sent in all."""
    threads = Threads(leaves, world)

    def work(rank: int) -> list[torch.Tensor]:
        groups = Rank(threads, rank) if world > 1 else None
        mine = Tree(values[0], leaves=leaves, groups=groups)  # pyright: ignore[reportArgumentType]
        for _ in range(2):  # what is left of a sum is used again
            for leaf in owned(leaves, rank, world):
                mine.add(leaf, values[leaf])
            total = [tensor.clone() for tensor in mine.total()]
        return total

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, range(world))), threads.sent


def pairwise(values: list[np.ndarray]) -> np.ndarray:
    """The definition, by numpy."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return pairwise(values[:half]) + pairwise(values[half:])


@pytest.mark.parametrize(("leaves", "world"), WORLDS)
def test_every_rank_gets_the_sum_of_the_tree(leaves: int, world: int) -> None:
    dice = np.random.default_rng(leaves)
    scale = 10.0 ** dice.integers(-6, 6, (leaves, 433))
    numbers = list((dice.normal(size=(leaves, 433)) * scale).astype(np.float32))
    values = [
        [
            torch.from_numpy(row[:400].reshape(8, 50)),
            torch.from_numpy(row[400:].reshape(3, 11)).double(),
        ]
        for row in numbers
    ]
    exact = [pairwise([v[i].numpy() for v in values]) for i in range(2)]
    naive = np.cumsum([v[0].numpy() for v in values], axis=0)[-1]
    for total in summed(leaves, world, values):
        for found, wanted in zip(total, exact, strict=True):
            assert found.numpy().tobytes() == wanted.tobytes()
    assert leaves < 4 or (naive != exact[0]).any(), "the order must matter here"


@pytest.mark.parametrize("world", [4, 8, 16])
def test_no_rank_sends_twice_the_vector(world: int) -> None:
    values = [[torch.full((1600,), float(leaf))] for leaf in range(16)]
    _, sent = summed_with(16, world, values)
    assert set(sent.values()) == {2 * 2 * 1600 * (world - 1) // world}  # two sums


@pytest.mark.parametrize("world", [4, 8])
def test_a_vector_of_fewer_numbers_than_ranks_is_summed_too(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "_ALIGNMENT", 1)
    values = [[torch.arange(1.0, 4.0) * 2**leaf] for leaf in range(8)]
    for (total,) in summed(8, world, values):
        assert total.tolist() == [255, 510, 765]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_sum_of_negative_zeros_keeps_its_sign(world: int) -> None:
    values = [[torch.full((3,), -0.0)] for _ in range(4)]
    for (total,) in summed(4, world, values):
        assert torch.signbit(total).all()


def test_complex_numbers_and_a_short_type_are_summed_too() -> None:
    values = [[torch.full((2,), 1j * leaf), torch.tensor(float(leaf))] for leaf in range(4)]
    for phases, total in summed(4, 3, values):
        assert phases.tolist() == [6j, 6j]
        assert total == 6


@pytest.mark.parametrize("rows", [16, 17, 33, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_micro_batches_do_not_depend_on_who_takes_them(rows: int, world: int) -> None:
    def cut(rank: int, ranks: int) -> tuple[Cut, torch.Tensor]:
        plan = {"rows": rows, "batch_size": rows, "seed": 0, "shuffle": "none", "least_rows": 2}
        order = Order(**plan, window_rows=rows, rank=rank, world_size=ranks, virtual_workers=8)
        return order.cut(torch.arange(rows), 5)

    whole, _ = cut(0, 1)
    shares = [cut(rank, world) for rank in range(world)]
    assert torch.cat([own for _, own in shares]).tolist() == list(range(rows))
    assert [leaf for part, _ in shares for leaf in part.leaves] == list(whole.leaves)
    assert sum(weight for _, _, weight in whole.leaves) == pytest.approx(1)
    sizes = [size for _, size, _ in whole.leaves]
    assert max(sizes) - min(sizes) <= 1
    assert all(part.shared for part, _ in shares)


def test_a_batch_of_too_few_rows_is_every_ranks_as_a_whole() -> None:
    for rank in range(3):
        order = Order(
            rows=100,
            batch_size=64,
            seed=0,
            shuffle="none",
            window_rows=64,
            rank=rank,
            world_size=3,
            virtual_workers=8,
        )
        part, own = order.cut(torch.arange(7), 1)
        assert (part.leaves, part.shared) == (((0, 7, 1.0),), False)
        assert own.tolist() == list(range(7))


def test_streams_are_those_of_philox_and_all_different() -> None:
    streams, drawn = Streams(3, 4, torch.device("cpu")), dict[tuple[int, int], float]()
    for position in (0, 1, 5000, 1):
        for leaf in range(4):
            streams.seed(position, leaf)
            value = float(torch.rand(()))
            assert drawn.setdefault((position, leaf), value) == value
    assert len(set(drawn.values())) == 12
    key = np.array([3, 0x6D6963726F], np.uint64)
    words = np.random.Philox(key=key).random_raw(5000 * 4 + 4)
    torch.manual_seed(int(words[5000 * 4 + 2]) >> 1)
    assert float(torch.rand(())) == drawn[5000, 2]
