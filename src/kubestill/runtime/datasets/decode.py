"""From rows to the matrices that training and prediction work on.

`raw` is float32 [N, R], row-major: numeric (less its offset, NaN missing), boolean 0/1/NaN,
categorical code (NaN missing, -1 never seen), tensors flattened, text as `text.text_rows` makes
numbers of it; features in schema order. The
layout is the *model's*: another dataset, a table or a DataFrame is read by the names and categories
that the model was trained with.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import Problems, nearest_of
from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.parts import part_jobs, workers
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.stream import ahead
from kubestill.runtime.datasets.text import text_rows

if TYPE_CHECKING:
    import pandas as pd

Tabular: TypeAlias = "Dataset | pa.Table | pd.DataFrame"

_TILE_ROWS = 8192
"""Rows written column by column before moving on, so that the output tile stays in the cache."""


@dataclass(frozen=True)
class RawLayout:
    """Where each feature sits in the raw matrix.

    Raises:
        InvalidInput: The schema has no feature.
    """

    schema: Schema

    def __post_init__(self) -> None:
        problems = Problems()
        if not self.schema.features:
            problems.add("features", [], "give at least one column the role 'feature'")
        problems.raise_if_any()

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The raw columns of each feature, by name, in order."""
        found: dict[str, slice] = {}
        start = 0
        for column in self.schema.features:
            found[column.name] = slice(start, start + column.width)
            start += column.width
        return found

    @property
    def features(self) -> tuple[Column, ...]:
        """The feature columns, in the order of the raw matrix."""
        return self.schema.features

    @property
    def width(self) -> int:
        """R, the number of raw columns."""
        return sum(column.width for column in self.schema.features)

    @property
    def outputs(self) -> int:
        """What a model puts out for a row: K class logits (1 for binary), or T predictions."""
        target = self.schema.target
        if target is None:
            return self.schema.soft.width if self.schema.soft else 0
        if self.schema.task == "regression":
            return target.width
        return 1 if self.schema.task == "binary" else len(self.schema.classes)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decoding depends on."""
        text = json.dumps(self.schema.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return how `raw` is laid out, for other programs; the schema tells the rest."""
        return {
            "dtype": "float32",
            "width": self.width,
            "columns": [
                {"name": column.name, "start": place.start, "stop": place.stop}
                # What a caller takes from the values before they are rounded to float32.
                | ({"offset": column.offset} if column.offset else {})
                for column, place in zip(self.features, self.slices.values(), strict=True)
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A dataset as matrices, in memory or mapped from a file."""

    raw: NDArray[np.float32]
    """[N, R]"""
    target: NDArray[Any] | None
    """Classes int64 [N], -1 where missing; regression [N, T], NaN where missing, in float32 or, of
    an exact column, float64."""
    soft: NDArray[np.floating[Any]] | None
    """[N, K], as the target"""

    @property
    def rows(self) -> int:
        """N."""
        return len(self.raw)


def decode_features(data: Tabular, layout: RawLayout) -> NDArray[np.float32]:
    """Return the raw feature matrix [N, R].

    Raises:
        InvalidInput: Feature columns are missing, or hold what cannot be read as their kind.
        CorruptData: A part of the dataset is missing or damaged.
    """
    return decode(data, layout, ("raw",)).raw


def decode_target(data: Tabular, layout: RawLayout) -> NDArray[Any]:
    """Return the targets: int64 [N] (-1 where null) for classes, [N, T] for regression.

    Raises:
        InvalidInput: There is no target column, or it holds classes that the layout does not know.
    """
    target = decode(data, layout, ("target",)).target
    assert target is not None
    return target


def decode_soft(data: Tabular, layout: RawLayout) -> NDArray[np.floating[Any]]:
    """Return the teacher's outputs [N, K].

    Raises:
        InvalidInput: There is no such column.
    """
    soft = decode(data, layout, ("soft",)).soft
    assert soft is not None
    return soft


def decode(
    data: Tabular, layout: RawLayout, wanted: Sequence[str] = ("raw",), *, verify: bool = False
) -> Decoded:
    """Decode in memory, in parallel over row groups.

    Args:
        data: Rows.
        layout: The model's layout.
        wanted: Which of "raw", "target" and "soft".
        verify: Check a dataset's pages against their checksums, at half the speed. `load_decoded`
            and `Dataset.iter_blocks` always do.
    """
    check_columns(data, layout, wanted)
    rows = data.rows if isinstance(data, Dataset) else len(data)
    arrays: dict[str, NDArray[Any]] = {
        name: np.empty((rows, *shape), dtype)
        for name, (shape, dtype) in decoded_shapes(layout, wanted).items()
    }
    if isinstance(data, Dataset):

        def fill(first: int, table: pa.Table) -> None:
            stop = first + table.num_rows
            _fill(table, layout, {name: array[first:stop] for name, array in arrays.items()})

        for _ in _each_group(data, layout, wanted, fill, verify=verify):
            pass
    else:
        names = [column.name for column in _columns(layout, wanted)]
        _fill(
            read.arrow_table(data if isinstance(data, pa.Table) else data[names]),
            layout,
            arrays,
        )
    empty = np.empty((rows, 0), np.float32)
    return Decoded(
        raw=arrays.get("raw", empty), target=arrays.get("target"), soft=arrays.get("soft")
    )


def stream_decoded(
    dataset: Dataset,
    layout: RawLayout,
    wanted: Sequence[str],
    sink: Callable[[int, dict[str, NDArray[Any]]], None],
) -> None:
    """Decode row group by row group; `sink(first row, arrays)` is called from several threads.

    No more than a few row groups (32 MiB decoded each) are in memory at any time.
    """
    check_columns(dataset, layout, wanted)
    shapes = decoded_shapes(layout, wanted)

    def fill(first: int, table: pa.Table) -> None:
        arrays = {n: np.empty((table.num_rows, *s), d) for n, (s, d) in shapes.items()}
        _fill(table, layout, arrays)
        sink(first, arrays)

    for _ in _each_group(dataset, layout, wanted, fill, verify=True):
        pass


def decoded_shapes(
    layout: RawLayout, wanted: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Return (shape of one row, type) of each of the `wanted` arrays."""
    target, soft = layout.schema.target, layout.schema.soft
    shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {}
    if "raw" in wanted:
        shapes["raw"] = (layout.width,), np.float32
    if "target" in wanted and target:
        regression = layout.schema.task == "regression"
        shapes["target"] = ((target.width,), target.float_type) if regression else ((), np.int64)
    if "soft" in wanted and soft:
        shapes["soft"] = (soft.width,), soft.float_type
    return shapes


def _each_group(
    dataset: Dataset,
    layout: RawLayout,
    wanted: Sequence[str],
    work: Callable[[int, pa.Table], None],
    *,
    verify: bool,
) -> Iterator[None]:
    names = [column.name for column in _columns(layout, wanted)]
    threads = workers()
    jobs = (
        lambda first=first, job=job: work(first, job())
        for first, job in part_jobs(dataset.root, dataset.parts, names, verify=verify)
    )
    return ahead(jobs, workers=threads, depth=threads)


def _fill(table: pa.Table, layout: RawLayout, arrays: dict[str, NDArray[Any]]) -> None:
    problems = Problems()
    for column in _columns(layout, list(arrays)):
        values = table.column(column.name)
        try:
            if column.role == "target":
                _fill_target(values, column, arrays["target"], problems)
            elif column.role == "soft":
                arrays["soft"][:] = read.tensors(values, column.shape, column.float_type)
        except (pa.ArrowException, ValueError) as error:
            problems.add(f"column {column.name!r}", str(values.type), str(error))
    if "raw" in arrays:
        _fill_features(table, layout, arrays["raw"], problems)
    problems.raise_if_any()


def _fill_target(
    values: pa.ChunkedArray, column: Column, out: NDArray[Any], problems: Problems
) -> None:
    if column.kind == "tensor":
        out[:] = read.tensors(values, column.shape, column.float_type)
    elif column.kind == "numeric":
        out[:, 0] = read.floats(values, column.float_type)
    else:
        categories = column.categories or ()
        out[:] = read.label_codes(values, categories)
        if np.any(out == read.UNSEEN):
            labels = set(read.label_strings(values.unique()).to_pylist()) - {None, *categories}
            remedy = f"the model knows {', '.join(categories[:20])}; drop these rows or retrain"
            problems.add(f"classes of {column.name!r}", sorted(labels), remedy)


def _fill_features(
    table: pa.Table, layout: RawLayout, out: NDArray[np.float32], problems: Problems
) -> None:
    scalars: list[tuple[int, NDArray[np.float32]]] = []
    for column in layout.features:
        values, place = table.column(column.name), layout.slices[column.name]
        try:
            if column.kind == "tensor":
                rows = read.tensors(values, column.shape, column.float_type)
                out[:, place] = read.centred(rows, column.offset)
            elif column.text:
                out[:, place] = text_rows(values, column.text)
            else:
                scalars.append((place.start, _scalars(values, column)))
        except (pa.ArrowException, ValueError) as error:
            problems.add(f"column {column.name!r}", str(values.type), str(error))
    for first in range(0, len(out), _TILE_ROWS):
        tile = out[first : first + _TILE_ROWS]
        for place, numbers in scalars:
            tile[:, place] = numbers[first : first + _TILE_ROWS]


def _scalars(values: pa.ChunkedArray, column: Column) -> NDArray[np.float32]:
    if column.kind == "numeric":
        return read.centred(read.floats(values, column.float_type), column.offset)
    if column.kind == "boolean":
        return read.floats(read.flags(values))
    codes = read.label_codes(values, column.categories or ())
    # A label that the model does not know is encoded as a missing one, but is not the same.
    found = codes.astype(np.float32)
    found[codes == read.MISSING] = np.nan
    found[codes == read.UNSEEN] = -1.0
    return found


def _columns(layout: RawLayout, wanted: Sequence[str]) -> list[Column]:
    roles = {"feature" if name == "raw" else name for name in wanted}
    return [column for column in layout.schema.columns if column.role in roles]


def check_columns(data: Tabular, layout: RawLayout, wanted: Sequence[str]) -> None:
    """Check that every column is there, and in a dataset of a kind that can be read as wanted.

    Args:
        data: Rows, of which none is read.
        layout: The model's layout.
        wanted: Which of "raw", "target" and "soft".

    Raises:
        InvalidInput: With every column that is missing or cannot be read.
    """
    problems = Problems()
    for name in ("target", "soft"):
        if name in wanted and getattr(layout.schema, name) is None:
            problems.add(name, None, f"the schema has no column with the role {name!r}")
    names = Counter(_names(data))
    near = nearest_of(names)
    for column in _columns(layout, wanted):
        if names[column.name] > 1:
            problems.add(
                "columns", column.name, "is there more than once; rename or drop the others"
            )
        elif column.name not in names:
            problems.add("columns", column.name, f"{column.role} is missing; {near(column.name)}")
        elif isinstance(data, Dataset):
            found = data.schema.column(column.name)
            same_shape = found.shape == column.shape
            if (found.kind == "tensor") != (column.kind == "tensor") or not same_shape:
                remedy = f"the model reads {column.kind} {list(column.shape)}"
                problems.add(f"column {column.name!r}", f"{found.kind} {list(found.shape)}", remedy)
            elif column.kind == "text" and found.kind != "text":
                remedy = f"the model reads text; import with kinds={{{column.name!r}: 'text'}}"
                problems.add(f"kind of {column.name!r}", found.kind, remedy)
            elif found.kind in ("categorical", "text") and column.kind != found.kind:
                problems.add(
                    f"kind of {column.name!r}", found.kind, f"the model reads {column.kind}"
                )
    problems.raise_if_any()


def _names(data: Tabular) -> list[str]:
    if isinstance(data, Dataset):
        return list(data.schema.names)
    return [
        str(name) for name in (data.column_names if isinstance(data, pa.Table) else data.columns)
    ]
