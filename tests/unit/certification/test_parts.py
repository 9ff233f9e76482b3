"""The statistics and the table of exceptions, by themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubestill.errors import CorruptData
from kubestill.runtime.certification.exceptions import Exceptions
from kubestill.runtime.certification.labels import check_conflicts, row_hashes
from kubestill.runtime.certification.quantiles import (
    covered_share,
    quantile_bound,
    samples_needed,
    share_above,
)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_a_bound_holds_as_often_as_it_says(quantile):
    generator = np.random.default_rng(0)
    held = [
        bound >= quantile
        for _ in range(2000)
        if (bound := quantile_bound(generator.random(400), quantile, confidence=0.9)) is not None
    ]
    # Exact for a continuous distribution, up to the steps of the binomial: 90% to 92% or so.
    assert len(held) == 2000
    assert 0.885 < np.mean(held) < 0.94


@pytest.mark.parametrize(
    ("quantile", "confidence", "needed"),
    [(0.95, 0.95, 59), (0.99, 0.99, 459), (0.999, 0.95, 2995)],
)
def test_wilks_own_sample_sizes(quantile, confidence, needed):
    assert samples_needed(quantile, confidence=confidence) == needed
    errors = np.arange(needed, dtype=float)
    assert quantile_bound(errors, quantile, confidence=confidence) == needed - 1
    assert quantile_bound(errors[:-1], quantile, confidence=confidence) is None
    assert covered_share(needed, confidence=confidence) >= quantile


def test_the_share_above_a_tolerance_is_bounded_by_clopper_and_pearson():
    errors = np.zeros(1000)
    assert share_above(errors, 1.0, confidence=0.95) == (0.0, pytest.approx(1 - 0.05 ** (1 / 1000)))
    errors[:10] = 2.0
    share, bound = share_above(errors, 1.0, confidence=0.95)
    assert share == 0.01
    assert bound == pytest.approx(0.01691, abs=1e-4)


@given(
    st.sets(st.one_of(st.integers(0, 300), st.integers(0, 2**40)), max_size=60),
    st.integers(2, 40000),
)
def test_exceptions_come_back_as_they_were(rows, classes):
    numbers = np.asarray(sorted(rows), np.int64)
    codes = np.random.default_rng(len(rows)).integers(0, classes, len(numbers))
    back = Exceptions.from_bytes(Exceptions(numbers, codes).to_bytes())
    assert back.rows.tolist() == numbers.tolist()
    assert back.codes.tolist() == codes.tolist()


def test_exceptions_put_answers_right():
    table = Exceptions(np.array([3, 8]), np.array([1, 0]))
    told = table.correct(np.array([8, 2, 3, 9]), np.array([4, 4, 4, 4]))
    assert told.tolist() == [0, 4, 1, 4]
    empty = Exceptions(np.array([], np.int64), np.array([], np.int64))
    assert empty.correct(np.array([1]), np.array([2])).tolist() == [2]


@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b"x" + b[1:], lambda b: b[:9]])
def test_damaged_exceptions_are_refused(damage):
    content = Exceptions(np.arange(50) * 3, np.arange(50) % 4).to_bytes()
    with pytest.raises(CorruptData, match="exceptions"):
        Exceptions.from_bytes(damage(content))


def test_conflicts_are_told_from_repetitions():
    raw = np.array([[1, 2], [3, 4], [1, 2], [-0.0, 5], [0.0, 5]], np.float32)
    assert check_conflicts(raw, np.array([1, 2, 1, 3, 3])).status == "shown"
    assert check_conflicts(raw, np.array([1, 2, 0, 3, 3])).code == "conflicts"
    assert check_conflicts(raw, np.array([1, 2, 1, 3, 4])).code == "conflicts"


def test_unlike_rows_have_unlike_hashes():
    x, y = np.meshgrid(np.arange(500), np.arange(500))
    raw = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    assert len(np.unique(row_hashes(raw))) == 250_000
