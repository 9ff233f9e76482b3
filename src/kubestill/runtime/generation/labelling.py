"""Write the teacher's soft outputs beside the rows they belong to.

A thread reads blocks ahead, every core computes a block of its own, and others write Parquet
behind. Cores that shared each product would wait for the one that reading or writing has just
interrupted. The batch is the dataset's own block of 8,192 rows, counted from its first row, so that
labels depend neither on how rows were cut into shards or parts, nor on the number of cores or GPUs:
several GPUs have a copy of the teacher each, and blocks take turns among them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from kubestill.errors import Problems, counted
from kubestill.runtime.base.memory import keep_freed_memory
from kubestill.runtime.datasets.canonical import BLOCK_ROWS, storage_schema
from kubestill.runtime.datasets.columns import floats
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.stream import ahead
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.models.folds import Folds
from kubestill.runtime.models.model import ModelSpec
from kubestill.runtime.models.predict import Predictor

LOGITS = "teacher_logits"
"""Column of a classifier's outputs: [K], or [1] for two classes."""
PREDICTION = "teacher_prediction"
"""Column of a regression's outputs [T], in target units."""
WEIGHT = "teacher_weight"
"""Column of what a row weighs: its own weight, if any, times the agreement of several teachers."""
DEPTH = 2
"""Blocks that may wait to be written, per block that is computed at a time."""


@dataclass(frozen=True)
class TeacherCopy:
    """Who answers, on one device."""

    predictor: Predictor
    """`check_fit` says whether it can."""
    folds: Folds | None = None
    """Who answers for rows that it was fitted on; None leaves that to itself."""


def label(
    teachers: Sequence[TeacherCopy],
    dataset: Dataset,
    root: str,
    fold: NDArray[np.int64] | None = None,
) -> Dataset:
    """Write the dataset with the teacher's outputs as its soft column.

    Soft outputs of an earlier teacher are replaced. A dataset without a target gains the teacher's,
    with no value in it, so that a student knows what it learns. Where several teachers weigh rows
    by their agreement, the weights, times the dataset's own, take the place of those.

    Args:
        teachers: The same one on each device that is to compute.
        dataset: Rows to label; none is fine.
        root: Where the labelled dataset goes.
        fold: [N] the fold of the row that each was made from, of which one of the teacher's folds
            has seen nothing; -1 where the whole teacher answers. None where it does so for all.

    Raises:
        InvalidInput: The rows were weighed by teachers before; see `check_weights`.
        CorruptData: The dataset is damaged.
        Refused: The teacher's answers cost more than its budget.
    """
    predictor = teachers[0].predictor
    check_weights(predictor, dataset.schema)
    predictor.announce(dataset.rows)
    keep_freed_memory()
    schema = labelled_schema(predictor.spec, dataset.schema)
    if predictor.weighs:
        schema = _weighed_schema(schema)
    total, least = 0.0, 1.0
    provenance = {
        "made_by": "label-with-teacher",
        "teacher": predictor.digest,
        "rows_from": dataset.provenance,
    }
    with DatasetWriter(
        root, schema, provenance=provenance, complete_domain=dataset.complete_domain
    ) as writer:
        jobs = (
            partial(_compute, teachers[number % len(teachers)], block, number * BLOCK_ROWS, fold)
            for number, block in enumerate(dataset.iter_blocks())
        )
        with _threads([one.predictor.model.device for one in teachers]) as workers:
            for block, outputs, weights in ahead(jobs, workers=workers, depth=DEPTH * workers):
                _write(writer, schema, dataset.schema.weight, block, outputs, weights)
                if weights is not None and len(weights):
                    total, least = total + weights.sum(), min(least, float(weights.min()))
    if predictor.weighs and dataset.rows:
        said = f"{total / dataset.rows:.3f} on average, {least:.3f} at least"
        print(f"{counted(dataset.rows, 'row')} weighed by agreement: {said}", flush=True)
    return writer.dataset


def check_fit(spec: ModelSpec, schema: Schema) -> None:
    """Check that a teacher can label rows of this schema.

    Raises:
        InvalidInput: Columns it cannot read, another task or other classes; all of them.
    """
    problems = Problems()
    with problems.collect():
        decode_features(storage_schema(schema.columns).empty_table(), RawLayout(spec.schema))
    for column in spec.schema.features:
        found = next((c for c in schema.columns if c.name == column.name), column)
        if (found.kind, found.shape) != (column.kind, column.shape):
            remedy = f"the teacher was trained on {column.kind} {list(column.shape)}"
            problems.add(f"column {found.name!r}", f"{found.kind} {list(found.shape)}", remedy)
    if schema.task and (schema.task, schema.classes) != (spec.task, spec.schema.classes):
        remedy = f"the teacher does {spec.task} over {list(spec.schema.classes)}"
        problems.add("dataset", f"{schema.task} over {list(schema.classes)}", remedy)
    name = soft_name(spec)
    if any(c.name == name and c.role != "soft" for c in schema.columns):
        problems.add("dataset", name, "rename this column: the teacher's outputs go there")
    problems.raise_if_any()


def check_weights(predictor: Predictor, schema: Schema) -> None:
    """Check that no teachers weighed rows of this schema yet, whose agreement would stay in it.

    Raises:
        InvalidInput: They did, or the column that weights would go to is another.
    """
    problems = Problems()
    role = next((c.role for c in schema.columns if c.name == WEIGHT), None)
    if role == "weight":
        remedy = (
            "several teachers weighed these rows before, which labels of others would keep; label "
            "the rows that have not been, or rename the column if it is your own"
        )
        problems.add("dataset", WEIGHT, remedy)
    elif role and predictor.weighs:
        problems.add("dataset", WEIGHT, "rename this column: what rows weigh goes there")
    problems.raise_if_any()


def _weighed_schema(schema: Schema) -> Schema:
    own, weight = schema.weight, Column(name=WEIGHT, kind="numeric", role="weight")
    columns = tuple(weight if column is own else column for column in schema.columns)
    return replace(schema, columns=columns if own else (*columns, weight))


def soft_name(spec: ModelSpec) -> str:
    """Return the column that a teacher's outputs go to."""
    return PREDICTION if spec.task == "regression" else LOGITS


def labelled_schema(spec: ModelSpec, schema: Schema) -> Schema:
    """Return the schema of the rows once labelled."""
    width = RawLayout(spec.schema).outputs
    target = spec.schema.target
    if schema.task is None and target is not None:
        schema = Schema(columns=(*schema.columns, target), task=spec.schema.task)
    return schema.with_soft(soft_name(spec), width)


@contextmanager
def _threads(devices: Sequence[torch.device]) -> Generator[int]:
    """Give every block its own thread, and return how many may be computed at a time."""
    threads = torch.get_num_threads()
    if devices[0].type != "cpu":
        yield 2 * len(devices)  # one decodes while the device computes for the other
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _compute(
    teacher: TeacherCopy, block: pa.Table, start: int, fold: NDArray[np.int64] | None
) -> tuple[pa.Table, NDArray[np.floating[Any]], NDArray[np.float64] | None]:
    raw = decode_features(block, teacher.predictor.layout)
    outputs, weights = teacher.predictor.weighed(raw)
    if teacher.folds is not None and fold is not None:
        fold = fold[start : start + block.num_rows]
        for number in np.unique(fold[fold >= 0]):
            rows = np.flatnonzero(fold == number)
            outputs[rows] = teacher.folds.members[number].logits(raw[rows])
    return block, outputs, weights


def _write(
    writer: DatasetWriter,
    schema: Schema,
    own: Column | None,
    block: pa.Table,
    outputs: NDArray[np.floating[Any]],
    weights: NDArray[np.float64] | None,
) -> None:
    arrays: list[pa.Array | pa.ChunkedArray] = []
    there, stored = set(block.column_names), list[str]()
    for column in schema.columns:
        if column.role == "soft":
            flat = pa.array(outputs.reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, column.width))
        elif column.role == "weight" and weights is not None:
            mine = floats(block.column(own.name), np.float64) if own else 1.0
            arrays.append(pa.array((weights * mine).astype(np.float32)))
        elif column.name in there:
            arrays.append(block.column(column.name))
            stored.append(column.name)
        else:
            arrays.append(pa.nulls(block.num_rows, storage_schema([column]).types[0]))
    writer.write(pa.Table.from_arrays(arrays, names=list(schema.names)), stored=stored)
