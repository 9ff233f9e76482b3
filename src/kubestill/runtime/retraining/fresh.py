"""From files to the rows that no run has taken yet."""

# pyarrow and pandas come without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import Problems, nearest
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.promotion import conformed, unified
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.datasets.tables import read_table
from kubestill.runtime.datasets.times import NO_TIME, Times, read_times
from kubestill.runtime.retraining.collecting import CollectSettings, iso, micros, parse_instant
from kubestill.runtime.retraining.conform import Drift, conform, widened
from kubestill.runtime.retraining.files import SourceFile, find_files, read_file, versions
from kubestill.runtime.retraining.identity import Identities, first_of_each, identify, known
from kubestill.runtime.retraining.state import Contract, State
from kubestill.runtime.retraining.windows import Seen, WindowStore

Later: TypeAlias = tuple[pa.Table, Identities]
"""Rows without a label that can be used, as their file has them, and which ones these are."""


@dataclass(kw_only=True)
class Fresh:
    """Rows that no run has taken yet."""

    table: pa.Table
    """Conforming to `schema`."""
    schema: Schema
    micros: NDArray[np.int64]
    """[n], microseconds since 1970."""
    identities: Identities
    files: list[Seen]
    drift: Drift
    contract: Contract
    """For the runs to come."""
    end: str
    changed: bool
    """A file was replaced while it was read."""
    unlabelled: Unlabelled

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.table.num_rows

    def total(self, what: str) -> int:
        """Return the sum of one of `Seen`'s counts over all files."""
        return sum(getattr(seen, what) for seen in self.files)


def find_fresh(settings: CollectSettings, state: State, store: WindowStore) -> Fresh:
    """Read every file that may hold rows that no run took, and find those rows.

    Raises:
        InvalidInput: No file, unreadable files, no such column, times that cannot be read, another
            meaning of the rows than earlier runs agreed on; all problems together.
    """
    contract = state.contract
    if contract:
        _check_agreed(settings, contract)
    files = [file for file in find_files(settings.source) if not store.exhausted(file)]
    batches = _read(files, settings)
    schema = contract.schema if contract else None
    found = {name for batch in batches for name in batch.table.column_names}
    columns = settings.keys or (contract and contract.columns) or tuple(sorted(found))
    end = micros(settings.end)
    for batch in batches:
        batch.choose(settings, end, columns)
    later = [batch.later for batch in batches]
    _drop_repeated(batches, store, keyed=bool(settings.keys))
    drift = Drift()
    later += [batch.without_label(settings.target) for batch in batches]
    if schema is None:
        for batch in batches:
            batch.drop_unlabelled(settings.target)
        schema = _inferred(batches, settings)
    tables = [batch.conformed(schema, drift) for batch in batches]
    schema = widened(schema, drift)
    now = versions(files)
    judged = micros(parse_instant(state.judged_through)) if state.windows else None
    for batch in batches:
        batch.count_late(judged)
    return Fresh(
        table=pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({}),
        schema=schema,
        micros=np.concatenate([np.empty(0, np.int64), *(batch.micros for batch in batches)]),
        identities=Identities.joined([batch.identities for batch in batches]),
        files=[batch.seen for batch in batches],
        drift=drift,
        contract=Contract(
            timestamp=settings.timestamp,
            target=settings.target,
            keys=settings.keys,
            columns=(contract and contract.columns) or columns,
            schema=schema,
        ),
        end=iso(end),
        changed=any(now.get(file.uri) != file.version for file in files),
        unlabelled=_unlabelled(later, schema),
    )


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Rows of the past whose labels are not there yet, or are too young to be taken."""

    table: pa.Table
    schema: Schema
    """What was agreed on, without the target."""


@dataclass(kw_only=True)
class _Batch:
    """One file's rows, fewer with every step."""

    seen: Seen
    table: pa.Table
    micros: NDArray[np.int64]
    identities: Identities = field(
        default_factory=lambda: Identities(np.empty(0, np.uint64), np.empty(0, np.uint64))
    )
    later: Later = field(default_factory=lambda: (pa.table({}), Identities.joined([])))
    """Rows that are not due."""

    def keep(self, rows: NDArray[np.bool_]) -> None:
        self.table = self.table.filter(pa.array(rows))
        self.micros = self.micros[rows]
        if len(self.identities):
            self.identities = self.identities[rows]

    def choose(self, settings: CollectSettings, end: int, columns: Sequence[str]) -> None:
        """Keep what is due; equal rows are counted before, over the whole file."""
        self.identities = identify(
            self.table, columns, self.micros, settings.timestamp, counted=not settings.keys
        )
        timeless = self.micros == NO_TIME
        not_due = ~timeless & (self.micros >= end)
        since = micros(parse_instant(settings.since)) if settings.since else NO_TIME
        too_old = ~timeless & (self.micros < since)
        self.seen.timeless = int(timeless.sum())
        self.seen.not_due = int(not_due.sum())
        self.seen.too_old = int(too_old.sum())
        # A replay must not look into its future.
        known = not_due & (self.micros < micros(settings.now))
        self.later = self.table.filter(pa.array(known)), self.identities[known]
        self.keep(~(timeless | not_due | too_old))

    def without_label(self, target: str) -> Later:
        rows = ~self._labelled(target)
        return self.table.filter(pa.array(rows)), self.identities[rows]

    def drop_unlabelled(self, target: str) -> None:
        there = self._labelled(target)
        self.seen.unlabelled += int((~there).sum())
        self.keep(there)

    def _labelled(self, target: str) -> NDArray[np.bool_]:
        column = self.table.column(target)
        there = column.is_valid().to_numpy()
        if pa.types.is_floating(column.type):
            there = there & ~np.isnan(column.to_numpy())
        return there

    def conformed(self, schema: Schema, drift: Drift) -> pa.Table:
        table, usable = conform(self.table, schema, drift)
        self.seen.unlabelled += int((~usable).sum())
        self.keep(usable)
        self.seen.taken = self.table.num_rows
        return table.filter(pa.array(usable))

    def count_late(self, judged: int | None) -> None:
        self.seen.late = 0 if judged is None else int((self.micros < judged).sum())


def _unlabelled(later: Sequence[Later], schema: Schema) -> Unlabelled:
    """Bring rows into the agreed form, each once; what is odd about them is reported then."""
    drift = Drift()
    plain = Schema(columns=tuple(column for column in schema.columns if column.role != "target"))
    tables = [conform(table, plain, drift)[0] for table, _ in later if table.num_rows]
    if not tables or not schema.columns:
        return Unlabelled(table=pa.table({}), schema=plain)
    table = pa.concat_tables(tables, promote_options="permissive")
    table = table.filter(
        pa.array(first_of_each(Identities.joined([who for _, who in later if len(who)])))
    )
    return Unlabelled(table=table, schema=widened(plain, drift))


def _read(files: Sequence[SourceFile], settings: CollectSettings) -> list[_Batch]:
    problems = Problems()
    wanted = {settings.timestamp, settings.target, *settings.features, *settings.keys}
    batches: list[_Batch] = []
    zoned: list[str] = []
    naive: list[str] = []
    for file in files:
        with problems.collect():
            table = read_file(file, wanted, kinds=settings.kinds, reading=settings)
            for field_, name in (("timestamp", settings.timestamp), ("target", settings.target)):
                if name not in table.column_names:
                    remedy = f"{file.uri} has no such column; {nearest(name, table.column_names)}"
                    problems.add(field_, name, remedy)
            if settings.timestamp in table.column_names:
                times = _times(table, file, settings, problems)
                zoned += [file.uri] * times.zoned
                naive += [file.uri] * times.naive
                batches.append(_batch(file, table, times.micros, settings.timestamp))
    if zoned and naive and not settings.timezone:
        remedy = (
            f"{naive[0]} has times without a zone, {zoned[0]} has times with one; say what the "
            "former mean: settings={'timezone': 'Europe/Berlin'} or 'UTC'"
        )
        problems.add("timestamp", settings.timestamp, remedy)
    problems.raise_if_any()
    return batches


def _times(
    table: pa.Table, file: SourceFile, settings: CollectSettings, problems: Problems
) -> Times:
    column = table.column(settings.timestamp)
    try:
        times = read_times(column, zone=settings.timezone, form=settings.timestamp_format)
    except (ValueError, pa.ArrowException) as error:
        problems.add(f"timestamp {settings.timestamp!r}", file.uri, str(error))
        return Times(micros=np.full(table.num_rows, NO_TIME), zoned=False, naive=False)
    if table.num_rows and (times.micros == NO_TIME).all():
        example = next((str(v) for v in column.to_pylist() if v is not None), "nothing")
        remedy = (
            f"no time can be read from {example!r}; give another column, or "
            "settings={'timestamp_format': '%d.%m.%Y %H:%M'}"
        )
        problems.add(f"timestamp {settings.timestamp!r}", file.uri, remedy)
    return times


def _batch(file: SourceFile, table: pa.Table, times: NDArray[np.int64], timestamp: str) -> _Batch:
    place = table.column_names.index(timestamp)
    mask = times == NO_TIME
    stamps = pa.array(np.where(mask, 0, times), pa.timestamp("us", "UTC"), mask=mask)
    return _Batch(
        seen=Seen(uri=file.uri, version=file.version, rows=table.num_rows),
        table=table.set_column(place, timestamp, stamps),
        micros=times,
    )


def _drop_repeated(batches: Sequence[_Batch], store: WindowStore, *, keyed: bool) -> None:
    together = Identities.joined([batch.identities for batch in batches])
    times = np.concatenate([np.empty(0, np.int64), *(batch.micros for batch in batches)])
    span = (int(times.min()), int(times.max())) if len(times) else (0, 0)
    before = store.identities(None if keyed else span) if len(times) else Identities.joined([])
    new = first_of_each(together) & ~known(together, before)
    start = 0
    for batch in batches:
        mine = new[start : start + len(batch.micros)]
        start += len(mine)
        batch.seen.repeated = int((~mine).sum())
        batch.keep(mine)


def _inferred(batches: Sequence[_Batch], settings: CollectSettings) -> Schema:
    problems = Problems()
    files = [batch.seen.uri for batch in batches]
    schema = unified([batch.table.schema for batch in batches], files, problems)
    problems.raise_if_any()
    assert schema
    try:
        table = pa.concat_tables([conformed(batch.table, schema) for batch in batches])
    except pa.ArrowException as error:
        problems.add("source", settings.source, f"its files contradict each other: {error}")
        problems.raise_if_any()
        raise AssertionError from error
    if not table.num_rows:
        return Schema(columns=())
    return read_table(
        table,
        target=settings.target,
        task=settings.task,
        features=settings.features,
        kinds=settings.kinds,
        reading=Reading(roles=settings.roles),
    ).schema


def _check_agreed(settings: CollectSettings, contract: Contract) -> None:
    problems = Problems()
    for name in ("timestamp", "target", "keys"):
        asked, agreed = getattr(settings, name), getattr(contract, name)
        if asked != agreed:
            agreed = list(agreed) if isinstance(agreed, tuple) else agreed
            remedy = (
                f"earlier runs with this registry agreed on {agreed!r}; keep that, or use "
                "another registry"
            )
            problems.add(name, list(asked) if isinstance(asked, tuple) else asked, remedy)
    problems.raise_if_any()
