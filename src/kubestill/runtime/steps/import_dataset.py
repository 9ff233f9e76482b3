"""Task of the component `import-dataset`: split a table into three datasets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from kubestill.errors import Problems
from kubestill.runtime.base.artifacts import Artifact
from kubestill.runtime.base.settings import read
from kubestill.runtime.datasets.builtin import BUILTIN
from kubestill.runtime.datasets.columns import label_codes
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.split import HOLDOUT, TRAIN, VALIDATION, check_fractions, split_rows
from kubestill.runtime.datasets.tables import UserTable, read_table

__all__ = ["ImportOutputs", "import_dataset"]


class ImportOutputs(NamedTuple):
    """What the component gives besides its artifacts."""

    dataset_uri: str


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = ""
    target: str = ""
    task: str = "auto"
    features: list[str] = []
    kinds: dict[str, str] = {}
    validation_fraction: float = 0.15
    holdout_fraction: float = 0.2
    seed: int = Field(default=0, ge=0)


def import_dataset(
    *,
    source: str,
    dataset: Artifact,
    validation: Artifact,
    holdout: Artifact,
    target: str = "",
    task: str = "auto",
    features: list[Any] | None = None,
    kinds: dict[str, Any] | None = None,
    validation_fraction: float = 0.15,
    holdout_fraction: float = 0.2,
    require_holdout: bool = False,
    seed: int = 0,
) -> ImportOutputs:
    """Read a table, infer what its columns mean and write the three datasets.

    The component documents the parameters. A share of 0 gives a dataset without rows, but with the
    schema.

    Raises:
        InvalidInput: Whatever keeps the table from being used, all problems together; nothing is
            written.
    """
    values = {
        "source": source,
        "target": target,
        "task": task,
        "features": features or [],
        "kinds": kinds or {},
        "validation_fraction": validation_fraction,
        "holdout_fraction": holdout_fraction,
        "seed": seed,
    }
    problems = Problems()
    settings = read(_Settings, values, problems) or _Settings()
    check_fractions(settings.validation_fraction, settings.holdout_fraction, problems)
    if require_holdout and settings.holdout_fraction == 0:
        remedy = "what judges the models needs rows that none has seen; hold some out"
        problems.add("holdout_fraction", holdout_fraction, remedy)
    table = None
    if all(problem.field != "source" for problem in problems):
        with problems.collect():
            table = _open(settings)
    problems.raise_if_any()
    assert table
    for name, loss in table.losses.items():
        print(f"column {name!r}: {loss}", flush=True)
    _split(table, settings, {TRAIN: dataset, VALIDATION: validation, HOLDOUT: holdout})
    return ImportOutputs(dataset.uri)


def _open(settings: _Settings) -> UserTable:
    make, own_target = BUILTIN.get(settings.source, (None, ""))
    return read_table(
        make() if make else settings.source,
        target=settings.target or own_target,
        task=settings.task,  # pyright: ignore[reportArgumentType] (read_table checks it)
        features=settings.features,
        kinds=settings.kinds,
    )


def _classes(table: UserTable) -> NDArray[np.int32] | None:
    """Return the class of every row, or None where there are no classes to keep in proportion."""
    target = table.schema.target
    if target is None or target.categories is None:
        return None
    pieces = table.tables([target.name])
    return np.concatenate([label_codes(p.column(target.name), target.categories) for p in pieces])


def _split(table: UserTable, settings: _Settings, artifacts: dict[int, Artifact]) -> None:
    parts = split_rows(
        table.rows,
        validation=settings.validation_fraction,
        holdout=settings.holdout_fraction,
        seed=settings.seed,
        classes=_classes(table),
    )
    for part, name in ((VALIDATION, "validation"), (HOLDOUT, "holdout"), (TRAIN, "train")):
        _write(table, parts == part, name, artifacts[part], settings)


def _write(
    table: UserTable, mask: NDArray[np.bool_], part: str, artifact: Artifact, settings: _Settings
) -> None:
    provenance = {
        "made-by": "import-dataset",
        "part": part,
        "settings": settings.model_dump(),
        "left-out": table.left_out,
        "losses": table.losses,
    }
    with DatasetWriter(artifact.path, table.schema, provenance=provenance) as writer:
        first = 0
        for piece in table.tables():
            kept = mask[first : first + piece.num_rows]
            first += piece.num_rows
            writer.write(piece.filter(pa.array(kept)))
    _describe(artifact, writer.dataset)


def _describe(artifact: Artifact, dataset: Dataset) -> None:
    artifact.metadata.update(
        kind="dataset", fingerprint=dataset.fingerprint, rows=dataset.rows, task=dataset.schema.task
    )
