"""Generate rows for a student to learn from."""

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
    on_failure: str = "stop",
    checkpoint_uri: str = "",
    assurance: str = "auto",
    samples: int = 0,
    certificate_settings: dict = {},
) -> NamedTuple("Outputs", [("dataset_uri", str)]):
    """Generate one shard of rows: augment a real dataset, or cover the domain of a system.

    Rows of a system carry exact labels; augmented rows get theirs from a teacher. The union of all
    shards does not depend on their number: every row draws its random numbers from the seed and its
    global index, and shards are cut on fixed blocks of 8,192 rows.

    Args:
        original: The dataset to augment, or to put before the rows of a system.
        model: A surrogate trained so far, which the method `adaptive` improves on.
        method: For a dataset `munge` (Bucila et al. 2006), `mixup` (Zhang et al. 2018), `jitter`
            or `files`, which takes rows without a label from files of yours;
            for a system `grid` (complete), `sobol`, `latin-hypercube`, `random`, or `adaptive`
            (more rows where a surrogate's error is largest); or the import path of your own source,
            `package.module:Name`. `auto` means `munge` for a dataset; for a system it means `grid`
            if every input is discrete, else `sobol`.
        rows: Generated rows over all shards together; the originals are added to them. The `points`
            of a grid determine its size; without them, it has at most this many rows.
        shard: Index of this shard, from 0.
        shards: Number of shards.
        include_original: Also include the real rows, with their labels.
        seed: Seeds the random numbers.
        settings: Options of the method, listed in docs/settings.md.
        system: The system that labels the rows exactly: a built-in name such as `heat` or `heston`,
            or the import path of your own, `package.module:Name`.
        system_args: Arguments of the system.
        on_failure: What to do about inputs on which the solver raises or gives no finite answer:
            `stop`, or `leave-out` them, described in the dataset's provenance.
        checkpoint_uri: Root, local, gs:// or s3://, below which the rows of a slow system are kept
            once solved, so that no retry solves them again; empty keeps them beside the dataset.
        assurance: That of the certificate that will be asked for; see `samples`.
        samples: Random points of that certificate, `certify-surrogate` with the same `seed`. If
            the system is slow, each shard solves its part of them (of a finite domain, of all
            points) and keeps them below `checkpoint_uri`, where the certificate finds them. 0
            leaves them to the certificate.
        certificate_settings: Further settings of the certificate.

    Returns:
        dataset: The rows of this shard, with labels if they come from a system.
        dataset_uri: Location of this shard.
    """
    return call_step("generate_synthetic", locals())
