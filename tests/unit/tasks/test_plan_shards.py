import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.tasks.plan_shards import plan_shards


@pytest.mark.parametrize(
    ("rows", "shards", "count"),
    [
        pytest.param(1, 1, 1, id="one-row"),
        pytest.param(8192, 4, 1, id="one-block-is-never-cut"),
        pytest.param(8193, 4, 2, id="a-begun-block-counts"),
        pytest.param(32768, 4, 4, id="a-block-each"),
        pytest.param(10**9, 256, 256, id="most-shards"),
    ],
)
def test_there_are_never_more_shards_than_blocks(rows, shards, count):
    assert plan_shards(rows, shards) == (list(range(count)), count)


@pytest.mark.parametrize("shards", [0, -1, 257])
def test_all_counts_out_of_range_are_reported(shards):
    with pytest.raises(InvalidInput) as caught:
        plan_shards(0, shards)
    assert [problem.field for problem in caught.value.problems] == ["rows", "shards"]
