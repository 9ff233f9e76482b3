"""From a claimed window to the datasets that the run's other steps read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.runtime.base.artifacts import Artifact
from kubestill.runtime.datasets.columns import label_codes
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.datasets.split import TRAIN, VALIDATION, entities, split_rows
from kubestill.runtime.retraining.registry import Registry
from kubestill.runtime.retraining.request import Request
from kubestill.runtime.retraining.state import Claim, Half, State
from kubestill.runtime.retraining.windows import WindowStore

__all__ = ["Outputs", "write_outputs"]

STRETCHES = 100
"""Stretches of time that rows to learn from are cut into: whole ones become validation rows. There
are so many that each window has its share: a few may all be from before a change, and then praise
the model that has not noticed it.
"""
LEAST_ROWS = 1000
"""Below which validation rows are drawn one by one: stretches of so few would be like no other."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where the datasets go."""

    dataset: Artifact
    """To learn from: this window's training part and what earlier ones left."""
    validation: Artifact
    """A share of the same rows, for early stopping and selection."""
    holdout: Artifact
    """This window's judging part."""
    fresh: Artifact
    """The whole window, which no model has seen."""
    replay: Artifact
    """A sample of what champions have learned from."""


def write_outputs(
    registry: Registry, state: State, claim: Claim, request: Request, outputs: Outputs
) -> None:
    """Write all datasets; the same claim gives the same ones."""
    windows = WindowStore(registry, state)
    schema = Schema.from_json(claim.contract["schema"])
    mine = {half: Dataset.open(windows.uri(claim.window.id, half)) for half in ("train", "judge")}
    pool = [
        windows.dataset(window, half)
        for id, half in claim.pool
        if (window := state.window(id)) is not None
    ]
    names = list(schema.names)
    # In order of time: the last ones are closest to those that judge.
    own = mine["train"].to_table()
    own = own.slice(0, own.num_rows - _gap(claim, request))
    learn = pa.concat_tables(
        [_plain(table.select(names)) for table in (*(part.to_table() for part in pool), own)],
        promote_options="permissive",
    )
    parts = _split(learn, schema, request)
    _write(outputs.dataset, schema, [learn.filter(pa.array(parts == TRAIN))], "train", claim)
    _write(
        outputs.validation,
        schema,
        [learn.filter(pa.array(parts == VALIDATION))],
        "validation",
        claim,
    )
    _write(outputs.holdout, schema, mine["judge"].iter_tables(), "holdout", claim)
    whole = (table for half in mine.values() for table in half.iter_tables())
    _write(outputs.fresh, schema, whole, "fresh", claim)
    _write(outputs.replay, schema, _sample(windows, state, request), "replay", claim)


def _gap(claim: Claim, request: Request) -> int:
    """Return how many of the window's rows lie too close to those that judge to be learned from."""
    if request.group:  # entities, not times, keep them apart
        return 0
    window = claim.window
    return min(int(request.judge_gap * window.rows), (window.rows - window.judge_rows) // 2)


def _plain(table: pa.Table) -> pa.Table:
    """Return labels as text, because later windows know more of them."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(place).cast(field.type.value_type)
            table = table.set_column(place, field.name, column)
    return table


def _split(table: pa.Table, schema: Schema, request: Request) -> NDArray[np.int8]:
    target = schema.target
    classes = None
    if target is not None and target.categories is not None:
        classes = label_codes(table.column(target.name), target.categories)
    groups = None
    if request.group:
        groups = entities([table.column(request.group)])
    elif table.num_rows >= LEAST_ROWS:
        # In order of time: next to rows that were learned, validation would praise what overfits.
        groups = np.arange(table.num_rows) * STRETCHES // table.num_rows
    # The share is of all rows a user counts; the judging part is gone from these already.
    share = request.validation_fraction / (1 - request.judge_fraction)
    return split_rows(
        table.num_rows,
        validation=share,
        holdout=0.0,
        seed=request.seed,
        classes=classes,
        groups=groups,
    )


def _sample(windows: WindowStore, state: State, request: Request) -> Iterator[pa.Table]:
    halves: tuple[Half, ...] = ("train", "judge")
    trained = [
        windows.dataset(window, half)
        for window in state.windows
        for half in halves
        if getattr(window, half) == "trained"
    ]
    total = sum(dataset.rows for dataset in trained)
    wanted = min(request.replay_rows, total)
    if not wanted:
        return
    chosen = np.random.Generator(np.random.Philox(request.seed)).choice(
        total, size=wanted, replace=False
    )
    marks = np.zeros(total, bool)
    marks[chosen] = True
    start = 0
    for dataset in trained:
        mine = marks[start : start + dataset.rows]
        start += dataset.rows
        if mine.any():
            yield _plain(dataset.to_table().filter(pa.array(mine)))


def _write(
    artifact: Artifact, schema: Schema, tables: Iterable[pa.Table], part: str, claim: Claim
) -> None:
    provenance = {"made-by": "collect-fresh", "part": part, "window": claim.window.id}
    with DatasetWriter(artifact.path, schema, provenance=provenance) as writer:
        for table in tables:
            writer.write(table)
    artifact.metadata.update(
        kind="dataset",
        fingerprint=writer.dataset.fingerprint,
        rows=writer.dataset.rows,
        task=schema.task,
    )
