"""Make rows for a student to learn from."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def generate_synthetic(
    dataset: dsl.Output[dsl.Dataset],
    original: dsl.Input[dsl.Dataset] = None,
    model: dsl.Input[dsl.Model] = None,
    method: str = "auto",
    rows: int = 32768,
    shard: int = 0,
    shards: int = 1,
    include_original: bool = True,
    seed: int = 0,
    settings: dict = {},
    system: str = "",
    system_args: dict = {},
) -> NamedTuple("Outputs", [("dataset_uri", str)]):
    """Generate one shard of rows: a real dataset augmented, or a system's domain covered.

    Rows of a system carry exact labels; augmented ones get theirs from a teacher. The union of all
    shards does not depend on how many there are: every row draws its random numbers from the seed
    and its global index, and shards are cut on fixed blocks of 8,192 rows.

    Args:
        original: The dataset to augment, or to put before the rows of a system.
        model: A surrogate trained so far, which the method `adaptive` improves on.
        method: For a dataset `munge` (Bucila et al. 2006), `mixup` (Zhang et al. 2018) or `jitter`;
            for a system `grid` (complete), `sobol`, `latin-hypercube`, `random`, or `adaptive`
            (where a surrogate errs most); or the import path of a source of your own,
            `package.module:Name`. `auto` is `munge` for a dataset; for a system `grid` where
            every input is discrete, else `sobol`.
        rows: Generated rows over all shards together; the originals come on top. A grid has as many
            as its `points` make, and without those at most this many.
        shard: Index of this shard, from 0.
        shards: How many shards there are.
        include_original: Also pass the real rows on, with their labels.
        seed: Of the random numbers.
        settings: Options of the method: docs/settings.md lists them.
        system: What labels the rows exactly: a built-in name such as `heat` or `heston`, or the
            import path of a system of your own, `package.module:Name`.
        system_args: Its arguments.

    Returns:
        dataset: The rows of this shard; with labels where they come from a system.
        dataset_uri: Where this shard lies.
    """
    return call_step("generate_synthetic", locals())
