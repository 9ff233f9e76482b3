"""A dataset: a folder of Parquet parts and the manifest `dataset.json`, which is written last.

What the manifest does not list does not exist. The rows are one global stream, cut in blocks of
`BLOCK_ROWS` whatever the parts are; the fingerprint covers schema and blocks, never the layout in
files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, NotFound, Problem, Problems, nearest_of
from kubestill.runtime.base.artifacts import Artifact, check_kind
from kubestill.runtime.base.values import (
    Digest,
    Flag,
    JsonObject,
    Whole,
    check_format,
    parse_json,
    read_as,
    read_file,
)
from kubestill.runtime.datasets.canonical import (
    BLOCK_ROWS,
    block_digest,
    fingerprint,
    storage_schema,
    stored_table,
)
from kubestill.runtime.datasets.columns import floats, pandas_frame
from kubestill.runtime.datasets.parts import (
    Part,
    absolute,
    check_places,
    is_remote,
    part_jobs,
    workers,
)
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.stream import ahead, cut
from kubestill.runtime.stores import open_store
from kubestill.runtime.stores.files import write_file

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "dataset.json"
FORMAT = "kubestill/dataset/2"


@dataclass(frozen=True, kw_only=True)
class _Form:
    """The content of `dataset.json`, besides its format."""

    fingerprint: Digest
    rows: Whole
    unlabelled_rows: Whole
    complete_domain: Flag
    schema: Schema
    provenance: JsonObject
    parts: tuple[Part, ...]
    block_rows: Literal[8192]
    blocks: tuple[Digest, ...]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An opened dataset: its manifest. Rows are read on demand."""

    root: str
    """Local folder or URI."""
    schema: Schema
    parts: tuple[Part, ...]
    rows: int
    blocks: tuple[str, ...]
    """SHA-256 of each block of `BLOCK_ROWS` rows, in order; the last block may be short."""
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])
    """How it was made."""
    complete_domain: bool = False
    """Every possible input is in it: there is nothing unseen to generalise to."""
    unlabelled: int = 0
    """Rows without a target."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the schema and the ordered rows; independent of parts and compression."""
        return fingerprint(self.schema, self.rows, self.blocks)

    @classmethod
    def open(cls, uri: str) -> Dataset:
        """Read the manifest of the dataset at a local folder or a store's URI.

        Raises:
            InvalidInput: There is no dataset, or one of another format version.
            CorruptData: The manifest cannot be read, contradicts itself, or names parts where none
                may lie.
        """
        source = f"{uri}/{MANIFEST}"
        content = parse_json(_read_manifest(uri), source=source, what="dataset manifest")
        found = content.pop("format", None)
        remedy = "make the dataset anew, or use that version"
        check_format(found, FORMAT, source=source, what="dataset manifest", remedy=remedy)
        form = read_as(_Form, content, source=source, what="dataset manifest")
        dataset = cls(
            root=uri,
            schema=form.schema,
            parts=form.parts,
            rows=form.rows,
            blocks=form.blocks,
            provenance=form.provenance,
            complete_domain=form.complete_domain,
            unlabelled=form.unlabelled_rows,
        )
        if dataset.fingerprint != form.fingerprint:
            raise CorruptData(f"{source} contradicts its own fingerprint")
        listed = sum(part.rows for part in form.parts)
        if listed != form.rows or len(form.blocks) != -(-form.rows // BLOCK_ROWS):
            raise CorruptData(f"{source} lists {listed} rows in its parts, and claims {form.rows}")
        if form.unlabelled_rows > form.rows:
            raise CorruptData(f"{source} claims more rows without a target than rows")
        if problem := check_places(uri, form.parts):
            raise CorruptData(f"{source}: {problem}")
        return dataset

    def to_json(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "unlabelled_rows": self.unlabelled,
            "complete_domain": self.complete_domain,
            "schema": self.schema.to_json(),
            "provenance": self.provenance,
            "parts": [asdict(part) for part in self.parts],
            "block_rows": BLOCK_ROWS,
            "blocks": list(self.blocks),
        }

    def iter_tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows in order as canonical tables of storage's own size, read ahead in threads.

        Args:
            columns: Which columns; all, in schema order, where None.

        Raises:
            InvalidInput: Unknown columns.
            CorruptData: A part is missing, truncated or damaged.
        """
        wanted = self._columns(columns)
        names = [column.name for column in wanted]
        jobs = (job for _, job in part_jobs(self.root, self.parts, names, verify=True))
        threads = workers()
        for table in ahead(jobs, workers=threads, depth=threads):
            try:
                stored = stored_table(table, wanted)
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise CorruptData(
                    f"{self.root}: rows are not as its schema says: {error}"
                ) from error
            yield stored

    def iter_blocks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the global row stream in blocks of `BLOCK_ROWS`; only the last may be short.

        Numbers and tensors are NaN where missing, truth values and labels null. See `iter_tables`.
        """
        return cut(self.iter_tables(columns), BLOCK_ROWS)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows in memory as one canonical Arrow table."""
        empty = storage_schema(self._columns(columns)).empty_table()
        return pa.concat_tables([empty, *self.iter_tables(columns)])

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return all rows in memory as a DataFrame; a cell of a tensor is an array of its shape."""
        return pandas_frame(self.to_table(columns))

    def weights(self) -> NDArray[np.float32] | None:
        """Return how many rows each row counts for, [N]; None where the dataset has no weights.

        Raises:
            InvalidInput: All of them are zero.
        """
        column = self.schema.weight
        if column is None:
            return None
        pieces = [floats(table.column(0)) for table in self.iter_tables([column.name])]
        found = np.concatenate([np.empty(0, np.float32), *pieces])
        if len(found) and not found.any():
            remedy = "no row counts for anything; give some rows a weight above 0"
            raise InvalidInput([Problem(f"weight {column.name!r}", "all zero", remedy)])
        return found

    def _columns(self, names: Sequence[str] | None) -> tuple[Column, ...]:
        if names is None:
            return self.schema.columns
        problems = Problems()
        known, near = set(self.schema.names), nearest_of(self.schema.names)
        for name in names:
            if name not in known:
                problems.add("columns", name, near(name))
        problems.raise_if_any()
        return tuple(self.schema.column(name) for name in names)


def gather(
    datasets: Sequence[Dataset],
    root: str,
    *,
    provenance: dict[str, Any],
    complete_domain: bool = False,
) -> Dataset:
    """Write an index of several datasets' parts, in order, to `root`: no row is copied.

    The result has the fingerprint that one dataset with all the rows would have. Where every shard
    but the last ends on a block boundary the manifests are enough; otherwise the rows are read
    once.

    Args:
        datasets: In the order of their rows.
        root: Where the index goes.
        provenance: How the rows came to be; JSON.
        complete_domain: All of them together are all possible inputs.

    Raises:
        InvalidInput: No datasets, schemas that differ, or rows where an index at `root` must not
            point: in another bucket than its own, or in several.
    """
    problems = Problems()
    if not datasets:
        problems.add("uris", [], "give at least one dataset")
    for other in datasets[1:]:
        if other.schema != datasets[0].schema:
            remedy = f"its schema differs from that of {datasets[0].root}"
            problems.add("uris", other.root, remedy)
    parts = tuple(
        replace(part, path=absolute(dataset.root, part.path))
        for dataset in datasets
        for part in dataset.parts
    )
    if wrong := check_places(root, parts):
        remedy = f"{wrong}; an index at {root} points to one store and bucket: copy the rows there"
        problems.add("uris", [dataset.root for dataset in datasets], remedy)
    problems.raise_if_any()
    index = Dataset(
        root=root,
        schema=datasets[0].schema,
        parts=parts,
        rows=sum(dataset.rows for dataset in datasets),
        blocks=tuple(block for dataset in datasets for block in dataset.blocks),
        provenance=provenance,
        complete_domain=complete_domain,
        unlabelled=sum(dataset.unlabelled for dataset in datasets),
    )
    if any(dataset.rows % BLOCK_ROWS for dataset in datasets[:-1]):
        digests = (block_digest(block, index.schema) for block in index.iter_blocks())
        index = replace(index, blocks=tuple(digests))
    write_manifest(index)
    return index


def write_manifest(dataset: Dataset) -> None:
    """Write `dataset.json`, whole or not at all: from here on the dataset exists."""
    # Nobody reads a list of thousands, and Python takes ten times as long to break its lines.
    indent = 1 if len(dataset.schema.columns) <= 1000 else None
    content = json.dumps(dataset.to_json(), indent=indent).encode()
    if is_remote(dataset.root):
        open_store(dataset.root).put(MANIFEST, content)
        return
    write_file(absolute(dataset.root, MANIFEST), content)


def _read_manifest(uri: str) -> bytes:
    try:
        if is_remote(uri):
            return open_store(uri).get(MANIFEST)
        return read_file(absolute(uri, MANIFEST), what="dataset manifest")
    except (NotFound, FileNotFoundError) as error:
        remedy = f"there is no {MANIFEST}: not a dataset, or one whose writing did not finish"
        raise InvalidInput([Problem("dataset", uri, remedy)]) from error


def open_input(artifact: Artifact | None, field: str, problems: Problems) -> Dataset | None:
    """Open the dataset that a step was given, or add what is wrong with it to the problems.

    Args:
        artifact: The input; None where an optional one was not connected.
        field: Name of its port.
        problems: Where InvalidInput goes.

    Raises:
        CorruptData: The description is damaged.
    """
    if artifact is None:
        return None
    with problems.collect(field, artifact.uri):
        check_kind(artifact, "dataset", field)
        return Dataset.open(artifact.path)
    return None
