import itertools

import numpy as np
import pytest
import torch

from kubestill.runtime.training.batches import (
    Batches,
    Order,
    ResidentRows,
    StoredArray,
    StreamedRows,
)


def order(**changes) -> Order:
    base = {"rows": 1000, "batch_size": 64, "seed": 7, "shuffle": "full", "window_rows": 256}
    return Order(**{**base, **changes})


def numbers(rows: int) -> ResidentRows:
    return ResidentRows([torch.arange(rows)[:, None].float(), torch.arange(rows)])


def epochs(batches: Batches, steps: int, start: int = 0) -> list[list[int]]:
    # Batches are views into a buffer that is used again, so they are read before the next one.
    taken = itertools.islice(batches.starting_at(start), steps)
    return [labels.tolist() for _, (_, labels) in taken]


@pytest.mark.parametrize("shuffle", ["full", "blocks", "none"])
@pytest.mark.parametrize("rows", [1000, 20_000, 30], ids=["some", "blocks", "tiny"])
def test_an_epoch_has_every_row_once(shuffle: str, rows: int) -> None:
    plan = order(rows=rows, shuffle=shuffle, window_rows=9000)
    seen = epochs(Batches(numbers(rows), plan), plan.steps_per_epoch)
    assert sorted(itertools.chain(*seen)) == list(range(rows))
    assert all(len(batch) == 64 for batch in seen[:-1])


@pytest.mark.parametrize("shuffle", ["full", "blocks", "none"])
@pytest.mark.parametrize("start", [1, 5, 312, 313, 320, 700])
def test_starting_anywhere_continues_the_same_sequence(shuffle: str, start: int) -> None:
    plan = order(rows=20_000, shuffle=shuffle, window_rows=9000)
    whole = epochs(Batches(numbers(20_000), plan), start + 20)
    assert epochs(Batches(numbers(20_000), plan), 20, start) == whole[start:]


def test_full_order_does_not_depend_on_the_window() -> None:
    small = epochs(Batches(numbers(1000), order(window_rows=64)), 40)
    large = epochs(Batches(numbers(1000), order(window_rows=10_000)), 40)
    assert small == large


def test_epochs_and_seeds_differ() -> None:
    steps = order().steps_per_epoch
    first = epochs(Batches(numbers(1000), order()), 2 * steps)
    assert first[:steps] != first[steps:]
    assert first != epochs(Batches(numbers(1000), order(seed=8)), 2 * steps)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 61])
@pytest.mark.parametrize("least_rows", [1, 2])
def test_ranks_train_on_every_row_once_and_each_counts_the_same(
    ranks: int, batch_size: int, least_rows: int
) -> None:
    for rows in range(least_rows, 130, 1 if batch_size < 61 else 7):
        if min(rows, batch_size) < least_rows:
            continue
        sizes = {"rows": rows, "batch_size": batch_size, "least_rows": least_rows}
        plans = [order(**sizes, rank=rank, world_size=ranks) for rank in range(ranks)]
        (window,) = plans[0].windows(0)
        batches = plans[0].batches(window)
        assert len(batches) == plans[0].steps_per_epoch
        assert sorted(torch.cat(batches).tolist()) == list(range(rows))
        for batch in batches:
            assert len(batch) >= least_rows
            shares = [plan.share(batch) for plan in plans]
            # What the gradient is: the mean over ranks of a weight times a mean over a share.
            counts = torch.zeros(rows)
            for weight, own in shares:
                assert len(own) >= least_rows
                counts[own.long()] += weight / len(own) / ranks
            assert torch.allclose(counts[batch.long()], torch.full((len(batch),), 1 / len(batch)))
            if len(batch) >= ranks * least_rows:
                assert torch.cat([own for _, own in shares]).tolist() == batch.tolist()
            if len(batch) % ranks == 0:
                assert {weight for weight, _ in shares} == {1.0}


@pytest.mark.parametrize(
    ("rows", "shuffle", "window_rows"),
    [
        *itertools.product([129, 65, 193, 64], ["full", "blocks", "none"], [64, 128, 10_000]),
        (2, "full", 64),
    ],
)
def test_a_row_that_would_be_alone_joins_the_batch_before(
    rows: int, shuffle: str, window_rows: int
) -> None:
    plan = order(rows=rows, shuffle=shuffle, window_rows=window_rows, least_rows=2)
    whole = epochs(Batches(numbers(rows), plan), 3 * plan.steps_per_epoch)
    assert {len(batch) for batch in whole} <= {2, 64, 65}
    assert sorted(itertools.chain(*whole)) == sorted(3 * list(range(rows)))
    for start in range(len(whole)):
        assert epochs(Batches(numbers(rows), plan), len(whole) - start, start) == whole[start:]


@pytest.mark.parametrize("rows", [129, 2], ids=["in the last batch", "in all"])
def test_a_batch_of_fewer_rows_than_ranks_is_every_ranks(rows: int) -> None:
    for rank in range(3):
        plan = order(rows=rows, rank=rank, world_size=3)
        whole = epochs(Batches(numbers(rows), plan), 3 * plan.steps_per_epoch)
        assert all(whole)
        for start in range(len(whole)):
            resumed = epochs(Batches(numbers(rows), plan), len(whole) - start, start)
            assert resumed == whole[start:]


def test_streamed_rows_are_the_resident_ones() -> None:
    raw = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    target = np.arange(500)
    features = StoredArray(stored=raw, convert=lambda x: x * 2)
    streamed = StreamedRows(features, [StoredArray(stored=target)], device=torch.device("cpu"))
    resident = ResidentRows([torch.from_numpy(raw) * 2, torch.from_numpy(target)])
    index = torch.randperm(500)[:100]
    for one, two in zip(streamed.gather(index), resident.gather(index), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("batch_size", [2, 128, 1_000_000])
@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_of_an_epoch_of_two_rows_few_are_ordered_ahead(kind: str, batch_size: int) -> None:
    """Thousands of them, each with an order of its own, took seconds before the first step."""
    rows = numbers(2)
    if kind == "streamed":
        stored = [tensor.numpy() for tensor in rows.tensors]
        features, labels = (StoredArray(stored=values) for values in stored)
        rows = StreamedRows(features, [labels], device=torch.device("cpu"))
    plan = order(rows=2, batch_size=batch_size, window_rows=batch_size)
    ordered: list[int] = []
    pieces = Order._pieces  # pyright: ignore[reportPrivateUsage]

    class Counted(Order):
        def _pieces(self, epoch: int):
            ordered.append(epoch)
            return pieces(self, epoch)

    batches = Batches(rows, Counted(**vars(plan)))
    _, (_, labels) = next(batches.starting_at(0))
    assert sorted(labels.tolist()) == [0, 1]
    assert len(ordered) <= 200
    assert len(epochs(batches, 300)) == 300
