"""The user's own golden rows: copied into the registry once, and then as fixed as it is."""

from __future__ import annotations

import uuid

import pyarrow as pa

from kubestill.errors import CorruptData, InvalidInput, Problem, Problems, counted, nearest_of
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.datasets.sources import open_source
from kubestill.runtime.retraining.conform import Drift, conform, widened
from kubestill.runtime.retraining.registry import Registry
from kubestill.runtime.retraining.state import Golden, State
from kubestill.runtime.stores import join_uri


def import_golden(registry: Registry, state: State, source: str, schema: Schema) -> Golden | None:
    """Copy the rows at `source` below the registry, unless that was done before.

    Args:
        registry: Where to.
        state: As it is.
        source: Parquet or CSV; empty for none.
        schema: What the registry's rows are agreed to be.

    Returns:
        The copy; None where there is nothing new.

    Raises:
        InvalidInput: Everything that keeps the rows from being scored on.
    """
    if not source or (state.golden is not None and state.golden.source == source):
        return None
    try:
        table = open_source(source).to_table()
    except InvalidInput as error:
        told = [Problem("golden_source", given.value, given.remedy) for given in error.problems]
        raise InvalidInput(told) from error
    _check_columns(table, schema)
    drift = Drift()
    rows, usable = conform(table, schema, drift)
    _check_rows(usable, drift, source)
    folder = f"golden/{uuid.uuid4().hex}"
    provenance = {"made-by": "collect-fresh", "part": "golden", "source": source}
    uri = join_uri(registry.uri, folder)
    with DatasetWriter(uri, widened(schema, drift), provenance=provenance) as writer:
        writer.write(rows.filter(pa.array(usable)))
    made = writer.dataset
    return Golden(source=source, folder=folder, fingerprint=made.fingerprint, rows=made.rows)


def open_golden(registry: Registry, golden: Golden) -> Dataset:
    """Open the copy.

    Raises:
        CorruptData: It is gone, or is another.
    """
    uri = join_uri(registry.uri, golden.folder)
    remedy = (
        f"restore it, or give `golden_source` another name than {golden.source!r} to import it anew"
    )
    try:
        dataset = Dataset.open(uri)
    except InvalidInput as error:
        raise CorruptData(f"the golden rows are gone from {uri}: {remedy}") from error
    if dataset.fingerprint != golden.fingerprint:
        raise CorruptData(f"{uri} is not what was imported: {remedy}")
    return dataset


def _check_columns(table: pa.Table, schema: Schema) -> None:
    there, near = set(table.column_names), nearest_of(table.column_names)
    problems = Problems()
    for column in schema.columns:
        if column.role != "ignored" and column.name not in there:
            remedy = f"the golden rows have no such column; {near(column.name)}"
            problems.add("golden_source", column.name, remedy)
    problems.raise_if_any()


def _check_rows(usable: object, drift: Drift, source: str) -> None:
    problems = Problems()
    for label, count in drift.classes.items():
        problems.add(
            "golden_source",
            label,
            f"is no class of the target, in {counted(count, 'row')}; drop them",
        )
    for name, what in drift.retyped.items():
        problems.add(f"golden_source column {name!r}", source, f"is {what}")
    if not pa.array(usable).true_count:
        problems.add("golden_source", source, "no row has a target that can be used")
    problems.raise_if_any()
