"""Fresh rows mixed with a sample of older ones, so that learning the new does not unlearn the old.

Rehearsal (Robins 1995): the cheapest remedy for forgetting that works.
"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa

from kubestill.errors import Problems
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.manifest import gather
from kubestill.runtime.datasets.schema import Column

__all__ = ["check_replay", "mix", "replayed_rows"]


def check_replay(fresh: Dataset, older: Dataset) -> None:
    """Check that older rows mean the same as the fresh ones.

    Raises:
        InvalidInput: They lack columns, or hold them as something else; all are listed.
    """
    problems = Problems()
    for column in fresh.schema.columns:
        if column.name not in older.schema.names:
            problems.add("replay columns", column.name, f"this {column.role} is missing")
            continue
        other = older.schema.column(column.name)
        if _meaning(other) != _meaning(column):
            remedy = f"the fresh rows hold {_meaning(column)}"
            problems.add(f"replay column {column.name!r}", _meaning(other), remedy)
    problems.raise_if_any()


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


def mix(fresh: Dataset, older: Dataset, *, share: float, seed: int, folder: str) -> Dataset:
    """Write a dataset of the fresh rows followed by a random sample of older ones.

    The fresh rows are referred to, not copied. Equal inputs give equal rows, so that a training on
    them resumes.

    Args:
        fresh: Rows.
        older: Rows of the same columns.
        share: Of the mix that is replayed, at least 0 and below 1.
        seed: Of the sample.
        folder: Local, where the sample and the mix go.
    """
    wanted = replayed_rows(fresh.rows, older.rows, share)
    chosen = np.zeros(older.rows, dtype=bool)
    random = np.random.Generator(np.random.Philox(seed))
    chosen[random.choice(older.rows, size=wanted, replace=False)] = True
    facts = {"replayed-from": older.fingerprint, "rows": wanted, "seed": seed}
    start = 0
    with DatasetWriter(os.path.join(folder, "sample"), fresh.schema, provenance=facts) as writer:
        for table in older.iter_tables(fresh.schema.names):
            mask = chosen[start : start + table.num_rows]
            start += table.num_rows
            if mask.any():
                writer.write(table.filter(pa.array(mask)))
    provenance = {**fresh.provenance, "replay": facts}
    return gather([fresh, writer.dataset], os.path.join(folder, "mix"), provenance=provenance)
