"""Make inputs for a student to learn from."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def generate_synthetic(
    dataset: dsl.Output[dsl.Dataset],
    original: dsl.Input[dsl.Dataset] | None = None,
    method: str = "munge",
    rows: int = 32768,
    shard: int = 0,
    shards: int = 1,
    include_original: bool = True,
    seed: int = 0,
    settings: dict = {},
) -> NamedTuple("Outputs", [("dataset_uri", str)]):
    """Generate one shard of synthetic rows that follow the distribution of a real dataset.

    The union of all shards does not depend on how many there are: every row draws its random
    numbers from the seed and its global index, and shards are cut on fixed blocks of 8,192 rows.

    Args:
        original: The real dataset to augment.
        method: `munge` (Bucila et al. 2006), `mixup` (Zhang et al. 2018), `jitter`, or the import
            path of a source of your own, `package.module:Name`.
        rows: Generated rows over all shards together; the originals come on top.
        shard: Index of this shard, from 0.
        shards: How many shards there are.
        include_original: Also pass the real rows on, with their labels.
        seed: Of the random numbers.
        settings: Options of the method; unknown names are refused.

    Returns:
        dataset: The generated rows of this shard, without labels.
        dataset_uri: Where this shard lies.
    """
    from kubestill.runtime.tasks.generate_synthetic import generate_synthetic as run

    return run(
        dataset=dataset,
        original=original,
        method=method,
        rows=rows,
        shard=shard,
        shards=shards,
        include_original=include_original,
        seed=seed,
        settings=settings,
    )
