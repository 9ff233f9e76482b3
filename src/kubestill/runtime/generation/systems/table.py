"""A user's own table as a system: its rows are the domain, and a look-up is the solution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.canonical import canonical_table
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.tables import read_table
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Floats, Indices
from kubestill.runtime.generation.systems.system import Axis, Output, System

Keys = list[bytes]


class Table(System):
    """A Parquet or CSV table in which equal inputs always have the same target.

    Its rows are the whole domain: a grid over it is the table itself, without duplicate rows.

    Args:
        source: Path, glob, folder or URI of Parquet or CSV files.
        target: Column to look up.
        features: Columns to look it up by; empty uses all others.
        task: regression, binary or multiclass, if inference would get it wrong.
        kinds: Kind by column, if inference would get it wrong.
    """

    name = "table"

    def __init__(
        self,
        source: str,
        target: str,
        features: list[str] = [],  # noqa: B006
        task: str = "auto",
        kinds: dict[str, str] = {},  # noqa: B006
    ) -> None:
        found = read_table(  # A look-up table's inputs are all of its columns.
            source,
            target=target,
            features=features,
            task=task,  # pyright: ignore[reportArgumentType] (read_table checks it)
            kinds=kinds,
            complete=True,
        )
        columns = tuple(c for c in found.schema.columns if c.role in ("feature", "target"))
        schema = Schema(columns=columns, task=found.schema.task)
        pieces = list(found.tables(schema.names))
        rows = pa.concat_tables([canonical_table(piece, schema) for piece in pieces])
        keys = _keys(rows, schema)
        answers = _answers(pieces, schema)
        first = _first_of_each(keys, answers, source)
        assert schema.target
        self._rows = read.pandas_frame(rows.take(first))
        self._answers = answers[first]
        self._place = {keys[row]: place for place, row in enumerate(first)}
        self._given = schema
        self.domain = _Rows(self._rows, schema, self._place)
        axes = [
            Axis(name=f"axis {n}", values=tuple(map(float, range(size))))
            for n, size in enumerate(schema.target.shape)
        ]
        self.output = Output(
            name=target,
            axes=tuple(axes),
            classes=schema.classes,
            offset=schema.target.offset,
        )

    @property
    def schema(self) -> Schema:
        """The table's columns in their order, features and target only."""
        return Schema(columns=(*self.domain.columns, self.output.column), task=self._given.task)

    def solve(self, inputs: pd.DataFrame) -> NDArray[Any]:
        """Look the rows up: [N, *shape], or labels [N].

        Raises:
            InvalidInput: Rows that are not in the table.
        """
        found = _look_up(inputs, self._given, self._place)
        if (found < 0).any():
            where = inputs.iloc[int(np.argmin(found))].to_dict()
            remedy = f"{int((found < 0).sum())} rows are not in it, the first is {where}"
            raise InvalidInput([Problem("table", self.output.name, remedy)])
        return self._answers[found].reshape(-1, *self.output.shape)


class _Rows(Domain):
    """The rows of a table as a domain: each is one level of a single discrete choice."""

    def __init__(self, rows: pd.DataFrame, schema: Schema, place: Mapping[bytes, int]):
        self.inputs = ()
        self._rows, self._schema, self._place = rows, schema, place

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self._schema.features)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._schema.features

    @property
    def width(self) -> int:
        return 1

    @property
    def grid_rows(self) -> int:
        return len(self._rows)

    def at(self, unit: Floats) -> pd.DataFrame:
        return self._take((unit[:, 0] * len(self._rows)).astype(np.int64))

    def points(self, asked: int | Mapping[str, int] | None = None, *, rows: int) -> dict[str, int]:
        if asked is None:
            return {"row": len(self._rows)}
        remedy = "a table is covered by all of its rows; leave `points` out"
        raise InvalidInput([Problem("points", asked, remedy)])

    def grid(self, rows: Indices, points: Mapping[str, int]) -> pd.DataFrame:
        return self._take(rows)

    def complete(self, points: Mapping[str, int]) -> bool:
        return True

    def contains(self, inputs: pd.DataFrame) -> NDArray[np.bool_]:
        return _look_up(inputs, self._schema, self._place) >= 0

    def describe(self) -> list[str]:
        return [f"{len(self._rows):,} rows of {', '.join(self.names)}"]

    def _take(self, rows: Indices) -> pd.DataFrame:
        return self._rows[list(self.names)].iloc[rows].reset_index(drop=True)


def _keys(rows: pa.Table | pd.DataFrame, schema: Schema) -> Keys:
    # Adding 0 makes -0 and 0 the same bits.
    raw = np.ascontiguousarray(decode_features(rows, RawLayout(schema)) + np.float32(0))
    return [row.tobytes() for row in raw]


def _look_up(inputs: pd.DataFrame, schema: Schema, place: Mapping[bytes, int]) -> Indices:
    """Return each row's place in the table, -1 where it has none: [N]."""
    return np.array([place.get(key, -1) for key in _keys(inputs, schema)], np.int64)


def _answers(pieces: Iterable[pa.Table], schema: Schema) -> NDArray[Any]:
    """Return the targets as the table holds them: labels [N], or float64 [N, T].

    Not as a dataset stores them: float32 would turn 1.7e9 + 0.5 into 1.7e9.
    """
    target = schema.target
    assert target
    columns = [piece.column(target.name) for piece in pieces]
    if target.kind == "categorical":
        return np.concatenate([np.asarray(read.label_strings(c).to_pylist()) for c in columns])
    numbers = [read.tensors(column, target.shape, np.float64) for column in columns]
    return np.concatenate(numbers)


def _first_of_each(keys: Keys, answers: NDArray[Any], source: str) -> list[int]:
    """Return the rows that stand for all others with their inputs.

    Raises:
        InvalidInput: Equal inputs have different targets: no function can be both.
    """
    first: dict[bytes, int] = {}
    before = np.array([first.setdefault(key, row) for row, key in enumerate(keys)])
    unlike = answers[before] != answers
    conflicts = np.flatnonzero(unlike.reshape(len(answers), -1).any(axis=1))
    if len(conflicts):
        row = int(conflicts[0])
        other = int(before[row])
        remedy = (
            f"{len(conflicts)} rows contradict an earlier one with the same inputs (in float32): "
            f"rows {other} and {row} say {_said(answers[other])} and {_said(answers[row])}; drop "
            "one of each, or add the column that tells them apart"
        )
        raise InvalidInput([Problem("source", source, remedy)])
    return list(first.values())


def _said(answer: Any) -> str:
    values = np.ravel(answer).tolist()
    return repr(values[0] if len(values) == 1 else values)
