"""From a claimed window to the datasets that the run's other steps read."""

# pyarrow comes without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubestill.errors import counted
from kubestill.runtime.base.artifacts import Artifact
from kubestill.runtime.datasets.columns import label_codes
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.datasets.split import TRAIN, VALIDATION, entities, split_rows
from kubestill.runtime.retraining import transitions
from kubestill.runtime.retraining.collecting import CollectSettings
from kubestill.runtime.retraining.fresh import Unlabelled
from kubestill.runtime.retraining.registry import Registry
from kubestill.runtime.retraining.state import Claim, Half, State, Window
from kubestill.runtime.retraining.windows import WindowStore

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
    """To learn from: this window's training part and what earlier ones left, or all there is."""
    validation: Artifact
    """A share of the same rows, for early stopping and selection."""
    holdout: Artifact
    """This window's judging part."""
    fresh: Artifact
    """The whole window, which no model has seen."""
    replay: Artifact
    """A sample of what champions have learned from."""
    whole: Artifact
    """All that a refit learns from besides that sample: the rows to learn from and those kept back
    from them, to validate, to judge, or because they are close to such; and the registry's own
    golden rows. A user's golden rows are not among them."""


def write_unlabelled(found: Unlabelled, artifact: Artifact) -> None:
    """Write the rows whose labels are late; nothing where nobody looked for them."""
    if not found.schema.columns:
        return
    provenance = {"made-by": "collect-fresh", "part": "unlabelled"}
    with DatasetWriter(artifact.path, found.schema, provenance=provenance) as writer:
        if found.table.num_rows:
            writer.write(found.table)
    _describe(artifact, writer.dataset, found.schema)


def rebuilds(state: State, claim: Claim, settings: CollectSettings) -> int:
    """Return how many challengers have lost, where it is time to train one from scratch; else 0.

    That is after `rebuild_after` of them; and after as many again, should that one lose as well.
    """
    lost = transitions.attempts(state.windows[: claim.after])
    turn = settings.rebuild_after + 1
    return lost if claim.champion and settings.rebuild_after and lost % turn == turn - 1 else 0


def describe_rebuild(state: State, claim: Claim, settings: CollectSettings) -> str:
    """Return in a sentence that a challenger would be trained from scratch, and on how much."""
    lost = rebuilds(state, claim, settings)
    if not lost:
        return ""
    every = sum(
        window.judge_rows if half == "judge" else window.rows - window.judge_rows
        for window, half in _parts(state)
        if (window.id, half) in claim.pool or getattr(window, half) == "trained"
    )
    every += claim.window.rows - claim.window.judge_rows
    return (
        f"{counted(lost, 'challenger')} lost since the last promotion: if one is needed now, it is "
        f"trained from scratch, for which every epoch passes over all "
        f"{counted(every, 'row')} (`rebuild_after`)."
    )


def write_outputs(
    registry: Registry, state: State, claim: Claim, settings: CollectSettings, outputs: Outputs
) -> None:
    """Write all datasets; the same claim gives the same ones."""
    windows = WindowStore(registry, state)
    assert claim.contract
    schema = claim.contract.schema
    mine = {half: Dataset.open(windows.uri(claim.window.id, half)) for half in ("train", "judge")}
    anew = bool(rebuilds(state, claim, settings))
    pool = [
        windows.dataset(window, half)
        for window, half in _parts(state)
        if (window.id, half) in claim.pool or (anew and getattr(window, half) == "trained")
    ]
    golden = [
        windows.dataset(window, half).to_table()
        for window, half in _parts(state)
        if getattr(window, half) == "golden"
    ]
    names = list(schema.names)
    judged = _entities(mine["judge"].to_table(), settings)
    # In order of time: the last ones are closest to those that judge.
    own = mine["train"].to_table()
    near = own.num_rows - _gap(claim, settings)
    known = [*(part.to_table() for part in pool), own.slice(0, near)]
    found = _joined(known, names)
    learn = _without(found, judged, settings)
    parts = _split(learn, schema, settings)
    checked = _entities(learn.filter(pa.array(parts == VALIDATION)), settings)
    _write(outputs.dataset, schema, [learn.filter(pa.array(parts == TRAIN))], "train", claim)
    _write(
        outputs.validation,
        schema,
        [learn.filter(pa.array(parts == VALIDATION))],
        "validation",
        claim,
    )
    _write(outputs.holdout, schema, mine["judge"].iter_tables(), "holdout", claim)
    fresh = (table for half in mine.values() for table in half.iter_tables())
    _write(outputs.fresh, schema, fresh, "fresh", claim)
    barred = None if judged is None or checked is None else pa.concat_arrays([judged, checked])
    left: list[pa.Table] = []

    def replayed() -> Iterator[pa.Table]:
        for table in () if anew else _sample(windows, state, settings):
            left.append(_without(table, barred, settings, turned=True))
            yield _without(table, barred, settings)

    _write(outputs.replay, schema, replayed(), "replay", claim)
    whole = [found, *left, own.slice(near), mine["judge"].to_table(), *golden]
    _write(outputs.whole, schema, [_joined(whole, names)], "whole", claim)


def _gap(claim: Claim, settings: CollectSettings) -> int:
    """Return how many of the window's rows lie too close to those that judge to be learned from."""
    if settings.group:  # entities, not times, keep them apart
        return 0
    window = claim.window
    return min(int(settings.judge_gap * window.rows), (window.rows - window.judge_rows) // 2)


def _entities(table: pa.Table, settings: CollectSettings) -> pa.Array | None:
    """Return the entities of some rows; None where rows have none."""
    if not settings.group:
        return None
    return pc.drop_null(_plain(table).column(settings.group)).unique()


def _without(
    table: pa.Table, entities: pa.Array | None, settings: CollectSettings, *, turned: bool = False
) -> pa.Table:
    """Return the rows of other entities: what is known of these would help to judge them.

    With `turned`, return the rows of these instead.
    """
    if entities is None or not table.num_rows:
        return table.slice(0, 0) if turned else table
    theirs = pc.is_in(table.column(settings.group), entities)
    return table.filter(theirs if turned else pc.invert(theirs))


def _joined(tables: Sequence[pa.Table], names: Sequence[str]) -> pa.Table:
    return pa.concat_tables(
        [_plain(table.select(names)) for table in tables], promote_options="permissive"
    )


def _parts(state: State) -> list[tuple[Window, Half]]:
    """Return every part of every closed window, oldest first."""
    halves: tuple[Half, ...] = ("train", "judge")
    return [(window, half) for window in state.windows for half in halves]


def _plain(table: pa.Table) -> pa.Table:
    """Return labels as text, because later windows know more of them."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(place).cast(field.type.value_type)
            table = table.set_column(place, field.name, column)
    return table


def _split(table: pa.Table, schema: Schema, settings: CollectSettings) -> NDArray[np.int8]:
    target = schema.target
    classes = None
    if target is not None and target.categories is not None:
        classes = label_codes(table.column(target.name), target.categories)
    groups = None
    if settings.group:
        groups = entities([table.column(settings.group)])
    elif table.num_rows >= LEAST_ROWS:
        # In order of time: next to rows that were learned, validation would praise what overfits.
        groups = np.arange(table.num_rows) * STRETCHES // table.num_rows
    # The share is of all rows a user counts; the judging part is gone from these already.
    share = settings.validation_fraction / (1 - settings.judge_fraction)
    return split_rows(
        table.num_rows,
        validation=share,
        holdout=0.0,
        seed=settings.seed,
        classes=classes,
        groups=groups,
    )


def _sample(windows: WindowStore, state: State, settings: CollectSettings) -> Iterator[pa.Table]:
    trained = [
        windows.dataset(window, half)
        for window, half in _parts(state)
        if getattr(window, half) == "trained"
    ]
    total = sum(dataset.rows for dataset in trained)
    wanted = min(settings.replay_rows, total)
    if not wanted:
        return
    chosen = np.random.Generator(np.random.Philox(settings.seed)).choice(
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
    _describe(artifact, writer.dataset, schema)


def _describe(artifact: Artifact, dataset: Dataset, schema: Schema) -> None:
    about = {"kind": "dataset", "fingerprint": dataset.fingerprint, "rows": dataset.rows}
    artifact.metadata.update(about, **({"task": schema.task} if schema.task else {}))
