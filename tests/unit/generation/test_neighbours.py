import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubestill.errors import InvalidInput
from kubestill.runtime.generation import neighbours
from kubestill.runtime.generation.frame import Originals, Tensor
from kubestill.runtime.generation.neighbours import Neighbours


def originals(numeric=None, codes=None, tensors=()):
    count = len(
        numeric if numeric is not None else codes if codes is not None else tensors[0].values
    )
    return Originals(
        numeric=np.empty((count, 0)) if numeric is None else np.asarray(numeric, np.float64),
        codes=np.empty((count, 0), np.int64) if codes is None else np.asarray(codes, np.int64),
        tensors=tensors,
    )


def by_definition(rows: Originals) -> np.ndarray:
    """The nearest different row by comparing all pairs, the slow and obvious way."""
    standard = (rows.numeric - np.nanmean(rows.numeric, axis=0)) / rows.numeric_spread.std
    missing = np.isnan(standard)
    codes = np.hstack([rows.codes, missing])
    filled = np.nan_to_num(standard)
    answer = []
    for row in range(len(rows)):
        distance = np.zeros(len(rows))
        for column in filled.T:
            distance += (column - column[row]) ** 2
        distance += (codes != codes[row]).sum(axis=1)
        same = (codes == codes[row]).all(axis=1) & (filled == filled[row]).all(axis=1)
        distance[same] = np.inf
        answer.append(int(distance.argmin()))
    return np.array(answer)


def mixed(seed: int, count: int, numeric: int, codes: int) -> Originals:
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(count, numeric)) * 10.0 ** np.arange(numeric)
    numbers[random.random(numbers.shape) < 0.1] = np.nan
    return originals(numbers, random.integers(-1, 3, (count, codes)))


@pytest.mark.parametrize("seed", range(5))
def test_mixed_columns_agree_with_the_definition(seed: int):
    rows = mixed(seed, 300, 4, 3)
    found = Neighbours(rows, pool=0).nearest(np.arange(300))
    assert np.array_equal(found, by_definition(rows))


@pytest.mark.parametrize("dimensions", [2, 40], ids=["tree", "brute"])
def test_numbers_agree_with_the_definition(dimensions: int):
    rows = originals(np.random.default_rng(0).normal(size=(400, dimensions)))
    found = Neighbours(rows, pool=0).nearest(np.arange(400))
    assert np.array_equal(found, by_definition(rows))


@pytest.mark.parametrize("dimensions", [0, 20], ids=["tree", "brute"])
def test_ties_go_to_the_lower_row(dimensions: int):
    # A square lattice: inner points have four neighbours at exactly the same distance.
    down, right = np.divmod(np.arange(49), 7)
    lattice = np.column_stack([down, right, *[np.zeros(49)] * dimensions])[::-1]
    rows = originals(lattice)
    found = Neighbours(rows, pool=0).nearest(np.arange(49))
    assert np.array_equal(found, by_definition(rows))
    assert found[24] == 17


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40).filter(
        lambda rows: len(set(rows)) > 1
    )
)
def test_duplicates_and_ties_together(values: list[tuple[int, int]]):
    rows = originals(values)
    found = Neighbours(rows, pool=0).nearest(np.arange(len(values)))
    assert np.array_equal(found, by_definition(rows))


def test_both_searches_give_one_answer(monkeypatch: pytest.MonkeyPatch):
    rows = originals(np.random.default_rng(1).integers(0, 6, (500, 3)))
    tree = Neighbours(rows, pool=0).nearest(np.arange(500))
    monkeypatch.setattr(neighbours, "TREE_DIMENSIONS", 0)
    assert np.array_equal(Neighbours(rows, pool=0).nearest(np.arange(500)), tree)


def test_the_batch_does_not_matter():
    rows = mixed(3, 700, 5, 2)
    search = Neighbours(rows, pool=0)
    whole = search.nearest(np.arange(700))
    alone = [search.nearest(np.array([row]))[0] for row in (699, 0, 350)]
    assert alone == whole[[699, 0, 350]].tolist()


@pytest.mark.parametrize("codes", [0, 1], ids=["tree", "brute"])
def test_a_pool_bounds_who_can_be_a_neighbour(codes: int):
    rows = mixed(0, 200, 2 if codes else 0, codes)
    rows = rows if codes else originals(np.random.default_rng(0).normal(size=(200, 2)))
    found = Neighbours(rows, pool=20).nearest(np.arange(200))
    assert len(set(found.tolist())) <= 20
    assert not (found == np.arange(200)).any()


def test_tensors_count_by_element():
    values = np.array([[0, 0, 0], [0, 0, 9], [0, 1, 8]], np.float32)
    rows = originals(tensors=(Tensor(values=values, shape=(3,)),))
    assert Neighbours(rows, pool=0).nearest(np.arange(3)).tolist() == [2, 2, 1]


def test_a_far_outlier_does_not_blur_the_others():
    numbers = np.random.default_rng(0).normal(size=(300, 30))
    numbers[0] = 1e6
    rows = originals(numbers)
    assert np.array_equal(Neighbours(rows, pool=0).nearest(np.arange(300)), by_definition(rows))


def test_equal_rows_have_no_neighbour():
    with pytest.raises(InvalidInput, match="at least 2"):
        Neighbours(originals([[1.0, 2.0]] * 5), pool=0)
