import numpy as np
import pytest

from kubestill.runtime.base.random import Draws, normals, uniforms


@pytest.mark.parametrize("width", [1, 3, 4, 5, 64])
def test_a_row_has_the_same_numbers_whatever_the_batch(width: int):
    whole = uniforms(7, 0, 0, 1000, width=width)
    cuts = [0, 1, 2, 500, 999, 1000]
    pieces = [uniforms(7, 0, a, b, width=width) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_far_rows_need_no_near_ones():
    far = uniforms(7, 0, 10**12, 10**12 + 3, width=6)
    assert np.array_equal(far[2:], uniforms(7, 0, 10**12 + 2, 10**12 + 3, width=6))


@pytest.mark.parametrize(
    ("seed", "stream", "start"), [(8, 0, 0), (7, 1, 0), (7, 0, 1)], ids=["seed", "stream", "row"]
)
def test_everything_in_the_key_matters(seed: int, stream: int, start: int):
    other = uniforms(seed, stream, start, start + 10, width=4)
    assert not np.isin(other[-1:], uniforms(7, 0, 0, 10, width=4)).any()


def test_uniforms_are_uniform_and_open():
    numbers = uniforms(2**63 - 1, 0, 0, 50_000, width=4)
    assert 0 < numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    # The mean of 200,000 uniforms has a standard error of 0.00065.
    assert abs(numbers.mean() - 0.5) < 0.003
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.025


def test_normals_are_standard_and_finite_at_the_ends():
    numbers = normals(uniforms(3, 0, 0, 50_000, width=2))
    assert abs(numbers.mean()) < 0.015
    assert abs(numbers.std() - 1) < 0.015
    ends = normals(np.array([0.5, 2.0**52 - 0.5]) * 2.0**-52)
    assert np.isfinite(ends).all()


def test_draws_deal_each_number_once():
    draws = Draws(1, 0, 5, 9, width=5)
    assert np.array_equal(
        np.hstack([draws.take(2), draws.take(0), draws.take(3)]), uniforms(1, 0, 5, 9, width=5)
    )
