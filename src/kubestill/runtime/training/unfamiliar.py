"""What fresh rows hold that a model never met: it learns from them, but somebody should know."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.columns import UNSEEN, label_codes, label_strings
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Column
from kubestill.runtime.models.encoder import ColumnEncoding
from kubestill.runtime.models.model import Model

FAR = 10.0
"""Standard deviations of the rows that the model was first trained on."""
_CHUNK = 65536
_SHOWN = 5


def describe_unfamiliar(dataset: Dataset, model: Model) -> list[str]:
    """Return a sentence for each kind of thing and column that is new to the model.

    New are columns that it does not read, levels of a category that it does not know, values more
    than `FAR` standard deviations off, and gaps in columns that had none.

    Args:
        dataset: Rows with every column that the model reads.
        model: Already trained.
    """
    schema, found = model.spec.schema, list[str]()
    read = set(schema.names)
    ignored = [c.name for c in dataset.schema.features if c.name not in read]
    if ignored:
        found.append(f"the checkpoint does not read {_list(ignored)}: ignored")
    for column in schema.features:
        if set(dataset.schema.column(column.name).categories or ()) - set(column.categories or ()):
            found += _unseen_levels(dataset, column)
    return [*found, *_unusual_values(dataset, model)]


def _unseen_levels(dataset: Dataset, column: Column) -> Iterator[str]:
    known = column.categories or ()
    count, levels = 0, set[str]()
    for table in dataset.iter_tables([column.name]):
        values = table.column(column.name)
        count += int((label_codes(values, known) == UNSEEN).sum())
        levels |= set(label_strings(values.unique()).to_pylist()) - {None, *known}
    if count:
        yield (
            f"{column.name!r} holds levels that the checkpoint does not know in {count:,} of "
            f"{dataset.rows:,} rows ({_list(sorted(levels))}): they count as missing"
        )


def _unusual_values(dataset: Dataset, model: Model) -> Iterator[str]:
    layout = RawLayout(model.spec.schema)
    raw = load_decoded(dataset, layout).raw
    for column in model.encoder.columns:
        if column.kind not in ("numeric", "tensor"):
            continue
        place = layout.slices[column.name]
        far = gaps = 0
        for start in range(0, len(raw), _CHUNK):
            distance = _distance(raw[start : start + _CHUNK, place], column)
            far += int((distance > FAR).any(1).sum())
            gaps += int(np.isnan(distance).any(1).sum())
        if far:
            yield (
                f"{column.name!r} lies more than {FAR:g} standard deviations off what the "
                f"checkpoint learned from in {far:,} of {len(raw):,} rows: check its unit"
            )
        if gaps and column.kind == "numeric" and not column.indicator:
            yield (
                f"{column.name!r} is missing in {gaps:,} of {len(raw):,} rows, and never was where "
                "the checkpoint learned: it is taken for the mean"
            )


def _distance(values: NDArray[np.float32], column: ColumnEncoding) -> NDArray[np.float64]:
    """Return how far values [n, width] are from the mean, in standard deviations."""
    share = column.width // len(column.mean)
    mean, std = (np.repeat(np.asarray(v, np.float64), share) for v in (column.mean, column.std))
    return np.abs(values - mean) / std


def _list(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
