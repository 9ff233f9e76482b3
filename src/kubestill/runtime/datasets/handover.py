"""Hand rows over to other components: what a step of somebody else needs to write a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kubestill.errors import Problems
from kubestill.runtime.base.artifacts import Artifact
from kubestill.runtime.base.settings import read
from kubestill.runtime.datasets.columns import arrow_table
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.datasets.tables import read_table
from kubestill.runtime.datasets.writer import DatasetWriter

if TYPE_CHECKING:
    import pandas as pd


def write_dataset(
    rows: pa.Table | pd.DataFrame,
    to: str | Artifact,
    *,
    target: str = "",
    task: str = "auto",
    features: Sequence[str] = (),
    ignore: Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    schema: Schema | None = None,
    complete_domain: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Dataset:
    """Write rows as a dataset that every component takes, all of them in one part of a split.

    Args:
        rows: The rows; the index of a DataFrame is left out.
        to: Folder, URI, or the artifact of an output port, whose metadata is set.
        target: Column to predict; empty for none.
        task: `regression`, `binary`, `multiclass`, or `auto`.
        features: Columns to learn from; empty uses all but the target.
        ignore: Columns to keep and not to learn from.
        kinds: Kind by column, where inference would get it wrong.
        settings: `roles`, `soft_values` and the rest of what import-dataset takes.
        schema: What the columns mean, instead of all that: of another dataset whose rows these
            belong to, so that both have the same labels in the same order.
        complete_domain: The rows are all possible inputs.
        provenance: How the rows came to be; JSON.

    Raises:
        InvalidInput: Whatever keeps the rows from being used, all problems together; nothing is
            written.
    """
    problems = Problems()
    reading = read(Reading, settings or {}, problems, prefix="settings.") or Reading()
    given = {"target": target, "features": features, "ignore": ignore, "kinds": kinds}
    said = [name for name, value in {**given, "settings": settings}.items() if value]
    if schema is not None and said:
        problems.add("schema", ", ".join(said), "the schema says that already; leave them out")
    problems.raise_if_any()
    table = arrow_table(rows)
    pieces = iter([table])
    if schema is None:
        found = read_table(
            table,
            target=target,
            task=task,  # pyright: ignore[reportArgumentType] (read_table checks it)
            features=features,
            ignore=ignore,
            kinds=kinds,
            reading=reading,
        )
        schema, pieces = found.schema, found.tables()
    where = to if isinstance(to, str) else to.path
    with DatasetWriter(
        where, schema, provenance=dict(provenance or {}), complete_domain=complete_domain
    ) as writer:
        for piece in pieces:
            writer.write(piece)
    if not isinstance(to, str):
        annotate(to, writer.dataset)
    return writer.dataset


def annotate(artifact: Artifact, dataset: Dataset) -> None:
    """Tell the artifact of an output port what lies there; input ports ask for it."""
    artifact.metadata.update(
        kind="dataset",
        fingerprint=dataset.fingerprint,
        rows=dataset.rows,
        task=dataset.schema.task,
    )
