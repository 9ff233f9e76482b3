"""What makes a row the same row, wherever and however often it is delivered.

A row's identity is a 128-bit hash of its values, by column name. It does not depend on the type a
file reader chose (3, 3.0 and a null beside it), on the order of columns, nor on columns without a
value. Rows that are equal in every column are distinguished by their count within one file: a file
may hold the same row k times, and another file, or the same one written anew, adds none while it
holds no more than k.
"""

# pyarrow and pandas come without types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kubestill.errors import CorruptData, counted
from kubestill.runtime.datasets.columns import is_list, nested_lists
from kubestill.runtime.datasets.extent import check_extent

_MUCH, _DENSEST = 64 << 20, 100
"""Bytes of identities that may be read whatever the file's size, and for each of its bytes."""
U64 = np.uint64
_FRACTIONAL = U64(0x9E3779B97F4A7C15)
"""Keeps numbers with a fraction apart from whole ones that have the same bits."""


@dataclass(frozen=True)
class Identities:
    """Row identities, as two independent 64-bit lanes."""

    a: NDArray[np.uint64]
    """[n]"""
    b: NDArray[np.uint64]
    """[n]"""

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Identities:
        return Identities(self.a[rows], self.b[rows])

    @classmethod
    def joined(cls, many: Sequence[Identities]) -> Identities:
        """Put several one after the other."""
        empty = np.empty(0, U64)
        return cls(
            np.concatenate([empty, *(one.a for one in many)]),
            np.concatenate([empty, *(one.b for one in many)]),
        )

    @property
    def shares(self) -> NDArray[np.float64]:
        """A number per row in [0, 1) that depends on its identity alone: what splits are cut by."""
        return (self.b >> U64(11)).astype(np.float64) / float(1 << 53)

    def to_bytes(self) -> bytes:
        """Return them as Parquet."""
        sink = io.BytesIO()
        pq.write_table(pa.table({"a": self.a, "b": self.b}), sink, use_dictionary=False)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str) -> Identities:
        """Read what `to_bytes` gave.

        Raises:
            CorruptData: It is something else, or has far more rows than its bytes are for.
        """
        try:
            file = pq.ParquetFile(pa.BufferReader(content))
            if file.schema_arrow != pa.schema({"a": pa.uint64(), "b": pa.uint64()}):
                raise KeyError("its columns are not those of identities")
            check_extent(pa.BufferReader(content), file.metadata, ["a", "b"], name=source)
            if 16 * file.metadata.num_rows > _MUCH + _DENSEST * len(content):
                raise CorruptData(
                    f"{source} has {counted(len(content), 'byte')} for more rows than that"
                )
            table = file.read()
            return cls(table.column("a").to_numpy(), table.column("b").to_numpy())
        except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
            raise CorruptData(f"{source} holds no row identities: {error}") from error


def identify(
    table: pa.Table,
    columns: Sequence[str],
    micros: NDArray[np.int64],
    timestamp: str,
    *,
    counted: bool = True,
) -> Identities:
    """Return the identity of every row of one file.

    Args:
        table: The rows.
        columns: By which columns; those that are not there count as empty.
        micros: [n], the rows' times, which stand for the column `timestamp`.
        timestamp: That column's name.
        counted: Tell equal rows apart by their count; not where the columns are a key.
    """
    lanes = [np.zeros(table.num_rows, U64), np.zeros(table.num_rows, U64)]
    present = set(table.column_names)
    for name in columns:
        if name == timestamp:
            hashes = [micros.view(U64)] * 2
            filled = np.ones(len(micros), bool)
        elif name in present:
            *hashes, filled = _hashes(table.column(name))
        else:
            continue
        salts = _text_hash(name)
        for lane, values, salt in zip(lanes, hashes, salts, strict=True):
            lane += np.where(filled, _mixed(values ^ salt), U64(0))
    found = Identities(_mixed(lanes[0]), _mixed(lanes[1]))
    return _told_apart(found) if counted else found


def first_of_each(found: Identities) -> NDArray[np.bool_]:
    """Return which rows are the first of their identity [n]."""
    order = np.lexsort((np.arange(len(found)), found.b, found.a))
    a, b = found.a[order], found.b[order]
    first = np.ones(len(found), bool)
    first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    marks = np.empty(len(found), bool)
    marks[order] = first
    return marks


def known(found: Identities, before: Identities) -> NDArray[np.bool_]:
    """Return which rows [n] have an identity that is among those `before`."""
    if not len(before):
        return np.zeros(len(found), bool)
    both = Identities.joined([before, found])
    # The earlier ones come first, so a row that is not the first of its identity is one of them,
    # or equals a row beside it: which must not count.
    order = np.lexsort((np.arange(len(both)), both.b, both.a))
    a, b = both.a[order], both.b[order]
    starts = np.ones(len(both), bool)
    starts[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    from_before = order < len(before)
    group = np.cumsum(starts) - 1
    marks = np.empty(len(both), bool)
    marks[order] = from_before[starts][group]
    return marks[len(before) :]


def _told_apart(found: Identities) -> Identities:
    """Mix into each row the number of rows before it that are equal."""
    order = np.lexsort((np.arange(len(found)), found.b, found.a))
    a, b = found.a[order], found.b[order]
    starts = np.ones(len(found), bool)
    starts[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    if starts.all():
        return found
    places = np.arange(len(found))
    rank = (places - np.maximum.accumulate(np.where(starts, places, 0))).astype(U64)
    count = np.empty(len(found), U64)
    count[order] = rank
    again = count > 0
    return Identities(
        np.where(again, _mixed(found.a + count), found.a),
        np.where(again, _mixed(found.b ^ _mixed(count)), found.b),
    )


def _hashes(
    values: pa.ChunkedArray | pa.Array,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]:
    """Return two hashes of each value, and which values are there at all."""
    joined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(joined.type, pa.FixedShapeTensorType):
        joined = nested_lists(joined)
    kind = joined.type
    filled = joined.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_null(kind):
        return np.zeros(len(joined), U64), np.zeros(len(joined), U64), filled
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = pc.cast(joined, pa.float64()).to_numpy(zero_copy_only=False)
        whole = np.isfinite(numbers) & (np.abs(numbers) < 2**63) & (numbers == np.floor(numbers))
        bits = np.where(whole, np.where(whole, numbers, 0).astype(np.int64).view(U64), 0)
        bits = np.where(whole, bits, numbers.view(U64) ^ _FRACTIONAL)
        return bits, bits, filled & ~np.isnan(numbers)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        wide = pa.uint64() if pa.types.is_uint64(kind) else pa.int64()
        bits = pc.fill_null(pc.cast(joined, wide), 0).to_numpy(zero_copy_only=False).view(U64)
        return bits, bits, filled
    if pa.types.is_temporal(kind):
        return _hashes(pc.cast(joined, pa.string()))
    if is_list(kind):
        return *_list_hashes(joined), filled
    if not pa.types.is_dictionary(kind):
        joined = pc.dictionary_encode(joined)
    words: list[object] = joined.dictionary.to_pylist()
    table = np.array([_text_hash(str(word)) for word in [*words, ""]], U64)
    codes = pc.fill_null(pc.cast(joined.indices, pa.int64()), -1).to_numpy(zero_copy_only=False)
    found = table[codes]
    return found[:, 0], found[:, 1], filled


def _list_hashes(values: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hash lists by their elements' hashes and places; an empty or missing list is zero."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(values)), lengths)
    starts = np.cumsum(lengths) - lengths
    places = (np.arange(len(rows)) - np.repeat(starts, lengths)).astype(U64)
    first, second, filled = _hashes(pc.list_flatten(values))
    lanes: list[NDArray[np.uint64]] = []
    for lane in (first, second):
        total = np.zeros(len(values), U64)
        np.add.at(total, rows, np.where(filled, _mixed(lane ^ _mixed(places + U64(1))), U64(0)))
        lanes.append(total)
    return lanes[0], lanes[1]


def _text_hash(text: str) -> tuple[np.uint64, np.uint64]:
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return U64(int.from_bytes(digest[:8], "little")), U64(int.from_bytes(digest[8:], "little"))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter bits: the finalizer of splitmix64 (Steele et al. 2014)."""
    values = (values ^ (values >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> U64(27))) * U64(0x94D049BB133111EB)
    return values ^ (values >> U64(31))
