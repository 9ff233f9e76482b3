"""Task of the component `import-dataset`: split a table into three datasets."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from kubestill.errors import Problems, counted
from kubestill.runtime.base.artifacts import Artifact
from kubestill.runtime.base.settings import Settings, read
from kubestill.runtime.datasets.builtin import BUILTIN
from kubestill.runtime.datasets.canonical import canonical_table
from kubestill.runtime.datasets.columns import floats, label_codes, tensors
from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.handover import annotate
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.split import (
    HOLDOUT,
    TRAIN,
    VALIDATION,
    check_fractions,
    entities,
    split_rows,
)
from kubestill.runtime.datasets.tables import UserTable, read_table
from kubestill.runtime.reports.imported import columns_text, import_report
from kubestill.runtime.steps.pages import write_pages

_LEFT_OUT = -1
_NAMES = {VALIDATION: "validation", HOLDOUT: "holdout", TRAIN: "train"}


class ImportOutputs(NamedTuple):
    """What the component gives besides its artifacts."""

    dataset_uri: str


class _Settings(Settings):
    source: str = ""
    target: str = ""
    task: str = "auto"
    features: list[str] = []
    ignore: list[str] = []
    kinds: dict[str, str] = {}
    validation_fraction: float = 0.15
    holdout_fraction: float = 0.2
    seed: int = Field(default=0, ge=0)


def import_dataset(
    *,
    dataset: Artifact,
    validation: Artifact,
    holdout: Artifact,
    report: Artifact,
    summary: Artifact,
    source: str = "",
    table: Artifact | None = None,
    target: str = "",
    task: str = "auto",
    features: list[Any] | None = None,
    ignore: list[Any] | None = None,
    kinds: dict[str, Any] | None = None,
    validation_fraction: float = 0.15,
    holdout_fraction: float = 0.2,
    require_holdout: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
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
        "ignore": ignore or [],
        "kinds": kinds or {},
        "validation_fraction": validation_fraction,
        "holdout_fraction": holdout_fraction,
        "seed": seed,
    }
    problems = Problems()
    asked = read(_Settings, values, problems) or _Settings()
    reading = read(Reading, settings or {}, problems, prefix="settings.") or Reading()
    check_fractions(asked.validation_fraction, asked.holdout_fraction, problems)
    if require_holdout and asked.holdout_fraction == 0:
        remedy = "what judges the models needs rows that none has seen; hold some out"
        problems.add("holdout_fraction", holdout_fraction, remedy)
    if table is not None:
        _check_artifact(table, source, problems)
    found = None
    if all(problem.field not in ("source", "table") for problem in problems):
        with problems.collect():
            found = _open(table.path if table is not None else asked.source, asked, reading)
    problems.raise_if_any()
    assert found
    for line in columns_text(found):
        print(line, flush=True)
    told = {**asked.model_dump(), "settings": reading.model_dump(exclude_defaults=True)}
    rows = _split(found, asked, told, {TRAIN: dataset, VALIDATION: validation, HOLDOUT: holdout})
    write_pages(import_report(found, rows), report, summary, Dataset.open(dataset.path))
    return ImportOutputs(dataset.uri)


def _check_artifact(table: Artifact, source: str, problems: Problems) -> None:
    kind = table.metadata.get("kind", "dataset")
    if source:
        problems.add("source", source, "is given beside a `table`; give one of the two")
    if kind != "dataset":
        problems.add("table", table.uri, f"this is a {kind}; connect a dataset")


def _open(source: str, asked: _Settings, reading: Reading) -> UserTable:
    make, own_target = BUILTIN.get(source, (None, ""))
    return read_table(
        make() if make else source,
        target=asked.target or own_target,
        task=asked.task,  # pyright: ignore[reportArgumentType] (read_table checks it)
        features=asked.features,
        ignore=asked.ignore,
        kinds=asked.kinds,
        reading=reading,
    )


def _parts(table: UserTable, asked: _Settings) -> NDArray[np.int8]:
    """Return the part of each row; rows that only a teacher has labelled are all trained on."""
    schema = table.schema
    classes = None
    if schema.target is not None and schema.target.categories is not None:
        pieces = table.tables([schema.target.name])
        codes = [label_codes(p.column(0), schema.target.categories) for p in pieces]
        classes = np.concatenate(codes)
    labelled = _labelled(table, classes)
    groups = None
    if schema.group is not None:
        groups = entities([piece.column(0) for piece in table.tables([schema.group.name])])
    parts = np.full(table.rows, TRAIN, np.int8)
    parts[labelled] = split_rows(
        int(labelled.sum()),
        validation=asked.validation_fraction,
        holdout=asked.holdout_fraction,
        seed=asked.seed,
        classes=None if classes is None else classes[labelled],
        groups=None if groups is None else np.unique(groups[labelled], return_inverse=True)[1],
        times=None if table.times is None else table.times[labelled],
    )
    if groups is not None:
        # An unlabelled row of an entity that judges must not be learned from either.
        part_of = np.full(int(groups.max()) + 1, TRAIN, np.int8)
        part_of[groups[labelled]] = parts[labelled]
        judged = ~labelled & (part_of[groups] != TRAIN)
        parts[judged] = _LEFT_OUT
        if judged.any():
            rows = counted(int(judged.sum()), "row")
            print(f"{rows} without a label left out: their entities judge", flush=True)
    return parts


def _labelled(table: UserTable, classes: NDArray[np.int32] | None) -> NDArray[np.bool_]:
    """Return which rows have a label: all of them, unless a teacher answers for them."""
    target = table.schema.target
    if target is None or table.answers is None:
        return np.ones(table.rows, bool)
    if classes is not None:
        return classes >= 0
    values = (piece.column(0) for piece in table.tables([target.name]))
    if target.kind == "tensor":
        return np.concatenate([~np.isnan(tensors(v, target.shape)).any(axis=1) for v in values])
    return np.concatenate([~np.isnan(floats(v)) for v in values])


def _split(
    table: UserTable, asked: _Settings, told: Mapping[str, Any], artifacts: dict[int, Artifact]
) -> dict[str, int]:
    """Write the three datasets; return the rows of each."""
    parts = _parts(table, asked)
    about = {
        "made-by": "import-dataset",
        "settings": told,
        "left-out": table.left_out,
        "losses": table.losses,
    }
    writers: dict[int, DatasetWriter] = {}
    with ExitStack() as stack:
        for part, name in _NAMES.items():
            provenance = {**about, "part": name}
            writer = DatasetWriter(artifacts[part].path, table.schema, provenance=provenance)
            writers[part] = stack.enter_context(writer)
        first = 0
        for piece in table.tables():
            # Once for all three: it is most of the work where columns are many.
            rows = canonical_table(piece, table.schema)
            chosen = parts[first : first + rows.num_rows]
            first += rows.num_rows
            for part, writer in writers.items():
                writer.write(rows.filter(pa.array(chosen == part)))
    for part, writer in writers.items():
        annotate(artifacts[part], writer.dataset)
    return {_NAMES[part]: writer.dataset.rows for part, writer in writers.items()}
