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
