"""Refuse Parquet files that are small on disk and would fill the memory of whoever reads them.

A cell of two gigabytes compresses to 62 kB, and a dictionary of one long text gives it to every row
for a few bits. Real tables compress well, too; no real one comes near these factors.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kubestill.errors import CorruptData

_MUCH = 256 << 20
"""Bytes in memory that no file is refused for."""
_DENSEST = 100
"""Bytes that one byte of a larger file may unpack to: snappy reaches 21, and encodings count
before compression, so that a column of one value is small before it, too."""
_MOST_REPEATED = 1000
"""Bytes of text that one byte of a dictionary-encoded column may stand for."""
_BATCH_ROWS = 1 << 17
"""Rows that are in memory at once."""


def check_extent(
    source: pa.NativeFile, metadata: pq.FileMetaData, columns: Collection[str], *, name: str
) -> None:
    """Check what a Parquet file holds against the bytes that are there.

    Args:
        source: The open file.
        metadata: Its footer.
        columns: Those that will be read.
        name: Of the file, for messages.

    Raises:
        CorruptData: It would unpack to far more than any table does.
        pa.ArrowException: It cannot be read at all.
    """
    size = source.size()
    unpacked = 0
    texts: list[tuple[int, str, int]] = []
    wanted = set(columns)
    paths = [metadata.schema.column(at).path for at in range(metadata.num_columns)]
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        for at, path in enumerate(paths):
            if path.partition(".")[0] not in wanted:
                continue
            chunk = rows.column(at)
            unpacked += max(0, chunk.total_uncompressed_size)
            if chunk.physical_type == "BYTE_ARRAY" and "." not in path:
                # The longest text is no longer than all of the chunk.
                if min(rows.num_rows, _BATCH_ROWS) * chunk.total_uncompressed_size > _MUCH:
                    texts.append((group, path, chunk.total_compressed_size))
    if unpacked > _MUCH and unpacked > _DENSEST * size:
        raise CorruptData(f"{name} has {size:,} bytes and would unpack to {unpacked:,}")
    if not texts:
        return
    # As dictionaries, so that a text is in memory once, however many rows have it. Columns that
    # are dictionaries by the file's own word stay that wherever they are read.
    types = metadata.schema.to_arrow_schema()
    paths = {path for _, path, _ in texts}
    plain = [path for path in paths if not pa.types.is_dictionary(types.field(path).type)]
    file = pq.ParquetFile(source, metadata=metadata, read_dictionary=plain)
    for group, path, held in texts:
        if path in plain:
            column = file.read_row_group(group, columns=[path], use_threads=False).column(0)
            length = _expanded(column)
            at_once = length * min(1.0, _BATCH_ROWS / max(1, len(column)))
            if at_once > _MUCH and length > _MOST_REPEATED * min(held, size):
                raise CorruptData(
                    f"{name} repeats texts of column {path!r}: {length:,} bytes out of {size:,}"
                )


def _expanded(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column's texts once each row has its own."""
    total = 0
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            lengths = pc.call_function("binary_length", [chunk.dictionary]).cast(pa.int64())
            total += pc.call_function("sum", [lengths.take(chunk.indices)]).as_py() or 0
        else:
            total += chunk.nbytes
    return total
