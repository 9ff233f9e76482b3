"""Writing a dataset: rows in, blocks hashed and Parquet encoded behind the caller's back."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from kubestill.errors import Problems
from kubestill.runtime.datasets.canonical import (
    BLOCK_ROWS,
    block_digest,
    canonical_table,
    storage_schema,
    unlabelled_rows,
)
from kubestill.runtime.datasets.manifest import MANIFEST, Dataset, write_manifest
from kubestill.runtime.datasets.parts import Part, absolute, is_remote
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.stores import open_store

if TYPE_CHECKING:
    import pandas as pd

_GROUP_BYTES = 32 << 20
"""Decoded bytes of a row group: the unit of reading, so it bounds every reader's memory."""
_FIRST_GROUP = 2 * BLOCK_ROWS
"""Rows of a part's first row group, at most. Nothing is read or written beside other work before
the first group is whole, nor after the last one is: in a small dataset both are small."""
_PART_GROUPS = 16
_CHUNK = 1 << 22
"""Bytes of a part that are hashed at a time."""
_QUEUE = 4
"""Blocks that may wait for the background thread before `write` blocks."""


class DatasetWriter:
    """Writes one dataset; a context manager.

    Example:
        with DatasetWriter(folder, schema, provenance={"made-by": "me"}) as writer:
            writer.write(rows)
        dataset = writer.dataset

    Nothing is visible at `root` before `close`; after an error nothing is left behind.
    """

    dataset: Dataset
    """What was written, once closed."""

    def __init__(
        self,
        root: str,
        schema: Schema,
        *,
        provenance: dict[str, Any] | None = None,
        complete_domain: bool = False,
        unlabelled: bool = False,
        part_rows: int | None = None,
    ):
        """Prepare to write.

        Args:
            root: Folder or URI; a dataset that is there already is replaced at `close`.
            schema: What the columns mean.
            provenance: How the rows came to be; JSON.
            complete_domain: The rows are all possible inputs.
            unlabelled: Rows may lack a target although there are no soft outputs: a teacher is to
                come.
            part_rows: Rows of a part, rounded up to whole blocks; by size (about 512 MiB decoded)
                where None.
        """
        self._root = root
        self._schema = schema
        self._provenance = provenance or {}
        self._complete_domain = complete_domain
        self._unlabelled = unlabelled
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._rows = self._rows_unlabelled = 0
        self._digests: list[Future[str]] = []
        self._encoded: deque[Future[None]] = deque()
        self._staging = _staging_folder(root)
        self._files = _PartFiles(self._staging, schema, part_rows)
        # One thread each: blocks must be encoded in order, and hashing takes as long as encoding.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="kubestill-encoder")
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="kubestill-hasher")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def write(self, rows: pa.Table | pd.DataFrame, *, stored: Collection[str] = ()) -> None:
        """Append rows, in any number at a time.

        `stored` names columns that are as a dataset with the same column gave them.

        Raises:
            InvalidInput: The rows do not fit the schema (see `canonical_table`).
        """
        table = canonical_table(rows, self._schema, unlabelled=self._unlabelled, stored=stored)
        if not table.num_rows:
            return
        self._held.append(table)
        self._held_rows += table.num_rows
        if self._held_rows < BLOCK_ROWS:
            return
        joined = pa.concat_tables(self._held)
        whole = self._held_rows - self._held_rows % BLOCK_ROWS
        for start in range(0, whole, BLOCK_ROWS):
            self._submit(joined.slice(start, BLOCK_ROWS))
        self._held = [joined.slice(whole)] if whole < self._held_rows else []
        self._held_rows -= whole

    def leave_out(self, rows: int, record: dict[str, Any]) -> None:
        """Say before `close` how many rows are not here that should be, and describe them."""
        self._complete_domain &= not rows
        self._provenance = {**self._provenance, "left_out": record}

    def close(self) -> Dataset:
        """Write what is left, move everything into place, the manifest last."""
        try:
            if self._held:
                self._submit(pa.concat_tables(self._held))
            while self._encoded:
                self._encoded.popleft().result()
            # On the thread whose memory and tables are warm.
            parts = self._encoder.submit(self._files.finish).result()
            self.dataset = Dataset(
                root=self._root,
                schema=self._schema,
                parts=tuple(parts),
                rows=self._rows,
                blocks=tuple(digest.result() for digest in self._digests),
                provenance=self._provenance,
                complete_domain=self._complete_domain,
                unlabelled=self._rows_unlabelled,
            )
            _publish(self._staging, self._root, parts)
            write_manifest(self.dataset)
        finally:
            self.abort()
        return self.dataset

    def abort(self) -> None:
        """Stop and remove everything that is not in place."""
        self._encoder.shutdown(cancel_futures=True)
        self._hasher.shutdown(cancel_futures=True)
        self._files.close()
        shutil.rmtree(self._staging, ignore_errors=True)

    def _submit(self, rows: pa.Table) -> None:
        block = rows.combine_chunks()
        if len(self._encoded) >= _QUEUE:
            self._encoded.popleft().result()
            self._digests[-_QUEUE].result()
        self._encoded.append(self._encoder.submit(self._files.add, block))
        self._digests.append(self._hasher.submit(block_digest, block, self._schema))
        self._rows += block.num_rows
        self._rows_unlabelled += unlabelled_rows(block, self._schema)


class _PartFiles:
    """Encodes blocks into row groups and parts of even size."""

    def __init__(self, folder: str, schema: Schema, part_rows: int | None):
        self._folder = folder
        self._schema = schema
        most = _group_rows(schema)
        asked = -(-part_rows // BLOCK_ROWS) * BLOCK_ROWS if part_rows else 0
        self._part_rows = asked or _PART_GROUPS * most
        self._group_rows = min(most, self._part_rows)
        self._group: list[pa.Table] = []
        self._parts: list[Part] = []
        self._file: pq.ParquetWriter | None = None
        self._file_rows = 0
        self._hashed = _GrowingFile("")

    def add(self, block: pa.Table) -> None:
        """Take one more block."""
        self._group.append(block)
        most = min(max(_FIRST_GROUP, self._file_rows // 4), self._part_rows - self._file_rows)
        if sum(table.num_rows for table in self._group) >= min(most, self._group_rows):
            self._write_group()

    def finish(self) -> list[Part]:
        """Write what is left and return the parts; there is one even without rows."""
        if self._group:
            self._write_group()
        if self._file or not self._parts:
            self._finish_part(self._file or self._open_part())
        return self._parts

    def close(self) -> None:
        """Let go of a file that is still open."""
        if self._file:
            self._file.close()

    def _write_group(self) -> None:
        table = pa.concat_tables(self._group)
        self._group = []
        file = self._file or self._open_part()
        file.write_table(table, row_group_size=self._group_rows)
        self._hashed.hash_more()
        self._file_rows += table.num_rows
        if self._file_rows >= self._part_rows:
            self._finish_part(file)

    def _open_part(self) -> pq.ParquetWriter:
        labels = [c.name for c in self._schema.columns if c.kind == "categorical"]
        numbers = [c.name for c in self._schema.columns if c.kind == "numeric"]
        self._hashed = _GrowingFile(os.path.join(self._folder, _part_name(len(self._parts))))
        self._file = pq.ParquetWriter(
            self._hashed.path,
            storage_schema(self._schema.columns),
            # A dictionary of random floats is half as large again as the floats.
            use_dictionary=labels,  # pyright: ignore[reportArgumentType]
            # Those of labels take longer than the labels themselves, and rule out no row group.
            write_statistics=numbers,  # pyright: ignore[reportArgumentType]
            write_page_checksum=True,
        )
        return self._file

    def _finish_part(self, file: pq.ParquetWriter) -> None:
        file.close()
        self._hashed.hash_more()
        name, digest = _part_name(len(self._parts)), self._hashed.digest.hexdigest()
        size = self._hashed.size
        self._parts.append(Part(path=name, rows=self._file_rows, bytes=size, sha256=digest))
        self._file, self._file_rows = None, 0


class _GrowingFile:
    """Hashes a file as it grows, so that little of it is left to be read at its end."""

    def __init__(self, path: str):
        self.path = path
        self.size = 0
        self.digest = hashlib.sha256()

    def hash_more(self) -> None:
        """Hash what was written since the last time."""
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.size)
            while content := file.read(_CHUNK):
                self.digest.update(content)
                self.size += len(content)


def _part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _group_rows(schema: Schema) -> int:
    """Rows of a row group: whole blocks, or a power-of-two fraction of one where rows are wide."""
    rows = _GROUP_BYTES // sum(4 * column.width for column in schema.columns)
    if rows >= BLOCK_ROWS:
        return min(rows // BLOCK_ROWS, 16) * BLOCK_ROWS
    return max(1 << rows.bit_length() - 1, 64) if rows else 64


def _staging_folder(root: str) -> str:
    if is_remote(root):
        return tempfile.mkdtemp(prefix="kubestill-dataset-")
    folder = absolute(root, f".writing-{uuid.uuid4().hex}")
    problems = Problems()
    try:
        os.makedirs(folder)
    except (FileExistsError, NotADirectoryError) as error:
        problems.add("root", root, f"cannot hold a dataset: {error.strerror}")
    problems.raise_if_any()
    return folder


def _publish(staging: str, root: str, parts: list[Part]) -> None:
    """Put the parts in place of a dataset that was there before, whose manifest goes first."""
    names = {part.path for part in parts}
    place: Callable[[str], None]
    if is_remote(root):
        store = open_store(root)
        store.delete(MANIFEST)
        for part in parts:
            store.upload(os.path.join(staging, part.path), part.path)
        stale = [entry.key for entry in store.list("part-") if entry.key not in names]
        place = store.delete
    else:
        folder = absolute(root, "")
        if os.path.exists(os.path.join(folder, MANIFEST)):
            os.remove(os.path.join(folder, MANIFEST))
        for part in parts:
            os.replace(os.path.join(staging, part.path), os.path.join(folder, part.path))
        stale = [n for n in os.listdir(folder) if n.startswith("part-") and n not in names]
        stale = [os.path.join(folder, name) for name in stale]
        place = os.remove
    for key in stale:
        place(key)
