"""Fresh rows mixed with a sample of older ones, so that learning the new does not unlearn the old.

Rehearsal (Robins 1995): the cheapest remedy for forgetting that works.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pyarrow as pa

from kubestill.errors import Problems
from kubestill.runtime.datasets.canonical import block_digest
from kubestill.runtime.datasets.columns import label_strings
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.manifest import gather
from kubestill.runtime.datasets.schema import Column, Schema, sort_labels


def check_replay(fresh: Dataset, older: Dataset, known: Schema) -> None:
    """Check that older rows mean the same as the fresh ones, and nothing new to the checkpoint.

    Args:
        fresh: Rows.
        older: Rows to replay some of. They may have classes and levels that the fresh ones lack.
        known: Features and target of the checkpoint.

    Raises:
        InvalidInput: They lack columns, hold them as something else, or hold labels that neither
            the fresh rows nor the checkpoint know; all are listed.
    """
    problems, there = Problems(), set(older.schema.names)
    for column in fresh.schema.columns:
        if column.name not in there:
            problems.add("replay columns", column.name, f"this {column.role} is missing")
            continue
        other = older.schema.column(column.name)
        if _meaning(other) != _meaning(column):
            remedy = f"the fresh rows hold {_meaning(column)}"
            problems.add(f"replay column {column.name!r}", _meaning(other), remedy)
        elif column.categories is not None:
            foreign = set(other.categories or ()) - set(_join(column, other, known))
            if foreign and (held := _labels(older, column.name) & foreign):
                what = "classes" if column.role == "target" else "levels"
                remedy = "neither the fresh rows nor the checkpoint know them; drop these rows"
                problems.add(f"replay {what} of {column.name!r}", sorted(held), remedy)
    problems.raise_if_any()


def _join(fresh: Column, older: Column, known: Schema) -> tuple[str, ...]:
    """Return the labels of a column where rows of both are mixed, as many as are needed.

    What the checkpoint reads may hold what it knows; of what it does not read, anything.
    """
    read = fresh.name in known.names
    other = known.column(fresh.name).categories if read else older.categories
    mine, others = fresh.categories or (), set(older.categories or ())
    return mine if others <= set(mine) else sort_labels({*mine, *(other or ())})


def _labels(dataset: Dataset, name: str) -> set[str]:
    found: set[str] = set()
    for table in dataset.iter_tables([name]):
        found |= set(label_strings(table.column(name).unique()).to_pylist()) - {None}
    return found


def _meaning(column: Column) -> str:
    return " ".join([column.kind, *map(str, column.shape)])


def replayed_rows(fresh: int, older: int, share: float) -> int:
    """Return how many older rows make up `share` of the mix; all there are where those are fewer.

    Args:
        fresh: Rows, all of which are used.
        older: Rows there are to choose from.
        share: Of the mix, at least 0 and below 1.
    """
    return min(older, round(fresh * share / (1 - share)))


def mix(
    fresh: Dataset, older: Dataset, known: Schema, *, share: float, seed: int, folder: str
) -> Dataset:
    """Write a dataset of the fresh rows followed by a random sample of older ones.

    The fresh rows are referred to, not copied. Equal inputs give equal rows, so that a training run
    on them resumes.

    Args:
        fresh: Rows.
        older: Rows of the same columns, which `check_replay` has seen.
        known: Features and target of the checkpoint.
        share: Of the mix that is replayed, at least 0 and below 1.
        seed: Of the sample.
        folder: Local, where the sample and the mix go.
    """
    wanted = replayed_rows(fresh.rows, older.rows, share)
    chosen = np.zeros(older.rows, dtype=bool)
    random = np.random.Generator(np.random.Philox(seed))
    chosen[random.choice(older.rows, size=wanted, replace=False)] = True
    facts = {"replayed-from": older.fingerprint, "rows": wanted, "seed": seed}
    fresh = _relabelled(fresh, older, known)
    start = 0
    with DatasetWriter(os.path.join(folder, "sample"), fresh.schema, provenance=facts) as writer:
        for table in older.iter_tables(fresh.schema.names):
            mask = chosen[start : start + table.num_rows]
            start += table.num_rows
            if mask.any():
                writer.write(table.filter(pa.array(mask)))
    provenance = {**fresh.provenance, "replay": facts}
    return gather([fresh, writer.dataset], os.path.join(folder, "mix"), provenance=provenance)


def _relabelled(fresh: Dataset, older: Dataset, known: Schema) -> Dataset:
    """Return the fresh rows under a schema that has room for the labels of the older ones."""
    columns = tuple(
        column
        if column.categories is None
        else replace(column, categories=_join(column, older.schema.column(column.name), known))
        for column in fresh.schema.columns
    )
    schema = replace(fresh.schema, columns=columns)
    if schema == fresh.schema:
        return fresh
    wider = replace(fresh, schema=schema)
    blocks = tuple(block_digest(block, schema) for block in wider.iter_blocks())
    return replace(wider, blocks=blocks)
