from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.split import HOLDOUT, TRAIN, VALIDATION, split_rows


@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    validation=st.sampled_from([0.0, 0.15, 0.3]),
    holdout=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_classes_are_spread_in_proportion(
    seed: int, sizes: list[int], validation: float, holdout: float
) -> None:
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rows = len(classes)
    try:
        parts = split_rows(rows, validation=validation, holdout=holdout, seed=seed, classes=classes)
    except InvalidInput:
        assert rows * min(filter(None, (validation, holdout))) < len(sizes) + 1
        return
    for number, size in enumerate(sizes):
        mine = parts[classes == number]
        assert abs(np.sum(mine == VALIDATION) - size * validation) <= 2
        assert abs(np.sum(mine == HOLDOUT) - size * holdout) <= 2
        assert np.any(mine == TRAIN)


def test_the_seed_decides() -> None:
    def split(seed: int) -> np.ndarray:
        return split_rows(1000, validation=0.1, holdout=0.2, seed=seed)

    np.testing.assert_array_equal(split(1), split(1))
    assert np.any(split(1) != split(2))
    assert np.bincount(split(1)).tolist() == [700, 100, 200]


def test_shares_of_zero_leave_parts_empty() -> None:
    assert np.all(split_rows(10, validation=0, holdout=0, seed=0) == TRAIN)


@pytest.mark.parametrize(
    ("validation", "holdout", "count"),
    [
        pytest.param(-0.1, 0.2, 1, id="negative"),
        pytest.param(1.0, 0.2, 1, id="everything"),
        pytest.param(1.5, float("nan"), 2, id="both out of range"),
        pytest.param(0.5, 0.5, 1, id="nothing left to train on"),
        pytest.param(1e-9, 0.2, 1, id="no row in a part"),
    ],
)
def test_bad_shares(validation: float, holdout: float, count: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        split_rows(10, validation=validation, holdout=holdout, seed=0)
    assert len(caught.value.problems) == count


@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 12), min_size=12, max_size=60),
    classed=st.booleans(),
)
def test_rows_of_a_group_stay_together(seed: int, sizes: list[int], classed: bool) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    random = np.random.default_rng(seed)
    groups = random.permutation(groups)
    classes = random.integers(0, 2, len(groups)) if classed else None
    parts = split_rows(
        len(groups), validation=0.2, holdout=0.3, seed=seed, classes=classes, groups=groups
    )
    for group in range(len(sizes)):
        assert len(set(parts[groups == group])) == 1
    for share, part in ((0.2, VALIDATION), (0.3, HOLDOUT)):
        assert abs(np.sum(parts == part) - share * len(groups)) <= 2 * max(sizes) + 2
    if classes is not None:
        assert set(classes) == set(classes[parts == TRAIN])


def test_groups_of_one_row_are_spread_as_classes_are() -> None:
    classes = np.repeat([0, 1], [900, 100])
    parts = split_rows(
        1000, validation=0.1, holdout=0.2, seed=0, classes=classes, groups=np.arange(1000)
    )
    assert np.bincount(parts[classes == 1]).tolist() == [70, 10, 20]


@given(
    seed=st.integers(0, 2**32),
    instants=st.integers(10, 80),
    rows=st.integers(100, 300),
)
def test_time_is_cut_between_instants(seed: int, instants: int, rows: int) -> None:
    times = np.random.default_rng(seed).integers(0, instants, rows)
    parts = split_rows(rows, validation=0.2, holdout=0.2, seed=seed, times=times)
    ends = [times[parts == part] for part in (TRAIN, VALIDATION, HOLDOUT)]
    assert ends[0].max() < ends[1].min() <= ends[1].max() < ends[2].min()
    most = np.bincount(times).max()
    assert abs(len(ends[2]) - 0.2 * rows) <= most + 1
    np.testing.assert_array_equal(
        parts, split_rows(rows, validation=0.2, holdout=0.2, seed=seed + 1, times=times)
    )


def test_a_group_belongs_where_its_last_row_is() -> None:
    times = np.arange(100)
    groups = times // 10
    groups[3] = 9
    parts = split_rows(100, validation=0.1, holdout=0.1, seed=0, times=times, groups=groups)
    assert parts[3] == HOLDOUT
    assert np.all(parts[np.setdiff1d(np.arange(80), [3])] == TRAIN)
    with pytest.raises(InvalidInput, match="of 1 group is none"):
        split_rows(100, validation=0.1, holdout=0.1, seed=0, times=times, groups=groups * 0)
    with pytest.raises(InvalidInput, match="leave no row to train on"):
        split_rows(100, validation=0.6, holdout=0.3, seed=0, groups=groups * 0)
    with pytest.raises(InvalidInput, match="of 2 groups is none"):
        split_rows(100, validation=0.1, holdout=0.2, seed=0, groups=times % 2)
    with pytest.raises(InvalidInput, match="holdout_fraction.*is none"):
        split_rows(100, validation=0.1, holdout=0.2, seed=0, times=times * 0)
