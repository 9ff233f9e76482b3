"""Teachers of folds beside a model: each answers for the rows that it has not seen.

A model is surer of the rows that it was fitted on, and a student that learns its answers there
learns that. So K more are fitted, each without one of K parts of the rows (Wolpert 1992, "Stacked
Generalization"): the answer for a row comes from the one that has not seen it. They lie in
`folds/0`, `folds/1`, ... below the model's own folder.

Which part a row belongs to follows from what it holds, so that equal rows, and rows of one group,
are never on both sides, and nobody has to keep a list.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.base.values import Whole, parse_json, read_as, read_file
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.predict import Predictor

FOLDS_FILE = "folds.json"
FORMAT = "kubestill/folds/1"

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Written:
    format: str
    folds: Whole
    group: str
    rows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Folds:
    """The teachers of a model's folds."""

    members: tuple[Predictor, ...]
    """In the order of the folds."""
    group: str
    """Column whose equal values are in one fold; empty where equal rows are."""
    rows: tuple[str, ...]
    """Fingerprints of the rows that the folds were cut from."""

    def assign(self, dataset: Dataset) -> Ints:
        """Return the fold of each row, [N]; -1 for rows that no teacher has learned from."""
        if dataset.fingerprint not in self.rows:
            return np.full(dataset.rows, -1)
        layout = self.members[0].layout
        return assign_folds(dataset, layout, len(self.members), self.group)


def assign_folds(dataset: Dataset, layout: RawLayout, folds: int, group: str = "") -> Ints:
    """Return the fold of each row, [N] from 0: that of its group, or of what it holds.

    Args:
        dataset: The rows.
        layout: Columns that tell rows apart: the features of the model.
        folds: How many there are.
        group: Column whose equal values stay together; a row without a value goes by itself.

    Raises:
        InvalidInput: There is no such column.
        CorruptData: The rows are damaged.
    """
    if group and group not in dataset.schema.names:
        remedy = "has the folds of the teacher, and these rows lack it; label those it came from"
        raise InvalidInput([Problem("dataset", group, remedy)])
    parts = [_fold_of(block, layout, folds, group) for block in dataset.iter_blocks()]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _fold_of(block: pa.Table, layout: RawLayout, folds: int, group: str) -> Ints:
    raw = decode_features(block, layout)
    # One NaN and one zero: equal rows have equal bytes.
    raw = np.ascontiguousarray(np.where(np.isnan(raw), np.float32(np.nan), raw) + np.float32(0))
    keys = [row.tobytes() for row in raw]
    if group:
        values = block.column(group).cast(pa.string()).to_pylist()
        keys = [
            key if value is None else value.encode()
            for key, value in zip(keys, values, strict=True)
        ]
    digests = (hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(one, "little") % folds for one in digests], np.int64)


def seen_rows(dataset: Dataset) -> tuple[str, ...]:
    """Return the fingerprints of rows that a teacher has seen once it has learned from these."""
    original = dataset.provenance.get("original")
    return (dataset.fingerprint, *((original,) if isinstance(original, str) else ()))


def fold_folder(model: str, fold: int) -> str:
    """Return where the teacher of a fold lies, below the folder of its model."""
    return os.path.join(model, "folds", str(fold))


def write_folds(model: str, folds: int, *, group: str, rows: Sequence[str]) -> None:
    """Record that the folders below a model hold the teachers of its folds."""
    form: dict[str, Any] = {"format": FORMAT, "folds": folds, "group": group, "rows": list(rows)}
    with open(os.path.join(model, FOLDS_FILE), "w", encoding="utf-8") as file:
        json.dump(form, file, indent=1)


def load_folds(model: str, *, device: str = "cpu") -> Folds | None:
    """Load the teachers of a model's folds; None where it has none.

    Args:
        model: Its local folder.
        device: Where they compute.

    Raises:
        CorruptData: They are damaged.
        InvalidInput: As of `load_model`.
    """
    source = os.path.join(model, FOLDS_FILE)
    if not os.path.exists(source):
        return None
    content = read_file(source, what="list of folds")
    form = parse_json(content, source=source, what="list of folds")
    told = read_as(_Written, form, source=source, what="list of folds")
    members = tuple(load_model(fold_folder(model, k), device=device) for k in range(told.folds))
    return Folds(members=members, group=told.group, rows=told.rows)
