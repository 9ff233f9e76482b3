import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.tasks.plan_shards import plan_shards


@pytest.mark.parametrize("shards", [1, 3, 128])
def test_every_shard_is_listed_once(shards):
    assert plan_shards(shards) == list(range(shards))


@pytest.mark.parametrize("shards", [0, -1, 129])
def test_a_count_out_of_range_is_refused(shards):
    with pytest.raises(InvalidInput, match=f"shards = {shards}: give 1 to 128"):
        plan_shards(shards)
