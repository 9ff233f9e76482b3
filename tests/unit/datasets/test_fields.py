"""Fields, tensors of several dimensions: what Arrow writes is read, and the other way round."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.tables import read_table
from kubestill.runtime.retraining.identity import identify

SHAPE = (2, 3, 4)
FIELDS = np.random.default_rng(0).random((9_000, *SHAPE)).astype(np.float32)
KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "FixedShapeTensor": pa.FixedShapeTensorArray.from_numpy_ndarray,
    "FixedShapeTensor, permuted": lambda fields: permuted(fields),
    "lists of a fixed size": lambda fields: lists(fields),
    "lists": lambda fields: pa.array(fields.tolist()),
}


def permuted(fields: np.ndarray) -> pa.Array:
    """The same fields, the last dimension outermost in memory."""
    memory = np.ascontiguousarray(np.moveaxis(fields, -1, 1))
    kind = pa.fixed_shape_tensor(
        pa.from_numpy_dtype(fields.dtype), memory.shape[1:], permutation=[1, 2, 0]
    )
    stored = pa.FixedSizeListArray.from_arrays(pa.array(memory.reshape(-1)), memory[0].size)
    return pa.ExtensionArray.from_storage(kind, stored)


def lists(fields: np.ndarray) -> pa.Array:
    array = pa.array(fields.reshape(-1))
    for size in reversed(fields.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def imported(source: str | pa.Table, folder: Path) -> Dataset:
    table = read_table(source)
    with DatasetWriter(str(folder), table.schema) as writer:
        for rows in table.tables():
            writer.write(rows)
    return Dataset.open(str(folder))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8], ids=lambda t: t.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_fields_goes_in_and_comes_out(kind: str, dtype: Any, tmp_path: Path) -> None:
    fields = (200 * FIELDS).astype(dtype)
    pq.write_table(pa.table({"field": KINDS[kind](fields)}), tmp_path / "fields.parquet")
    dataset = imported(str(tmp_path / "fields.parquet"), tmp_path / "dataset")
    assert dataset.schema.column("field").shape == SHAPE
    wanted = fields.astype(np.float32)
    # By pyarrow alone, as any other program would.
    part = pq.read_table(tmp_path / "dataset" / dataset.parts[0].path).column("field")
    kept = np.concatenate([chunk.to_numpy_ndarray() for chunk in part.chunks])
    np.testing.assert_array_equal(kept, wanted)
    cells = dataset.to_pandas()["field"]
    np.testing.assert_array_equal(np.stack(cells.to_list()), wanted)
    raw = decode_features(dataset, RawLayout(dataset.schema))
    np.testing.assert_array_equal(raw, wanted.reshape(len(wanted), -1))


def test_rows_are_the_same_however_they_came(tmp_path: Path) -> None:
    fields = FIELDS[:50]
    frame = pd.DataFrame({"field": list(fields)})
    schema = Schema(columns=(Column(name="field", kind="tensor", shape=SHAPE),))
    sources = [*(pa.table({"field": make(fields)}) for make in KINDS.values()), frame]
    fingerprints: set[str] = set()
    for number, source in enumerate(sources):
        with DatasetWriter(str(tmp_path / str(number)), schema) as writer:
            writer.write(source)
        fingerprints.add(writer.dataset.fingerprint)
    assert len(fingerprints) == 1
    times = np.zeros(len(fields), np.int64)
    found = [identify(table, ["field"], times, "when") for table in sources[:-1]]
    assert all((found[0].a == other.a).all() for other in found)


def test_a_missing_field_is_missing_everywhere(tmp_path: Path) -> None:
    stored = pa.FixedSizeListArray.from_arrays(
        pa.array(FIELDS[:3].reshape(-1)), 24, mask=pa.array([False, True, False])
    )
    column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), SHAPE), stored)
    for number, source in enumerate(
        [column, pa.array([FIELDS[0].tolist(), None, FIELDS[2].tolist()])]
    ):
        dataset = imported(pa.table({"field": source}), tmp_path / str(number))
        raw = decode_features(dataset, RawLayout(dataset.schema))
        assert np.isnan(raw[1]).all()
        np.testing.assert_array_equal(raw[[0, 2]], FIELDS[[0, 2]].reshape(2, -1))
    frame = pd.DataFrame({"field": [FIELDS[0], None, FIELDS[2]]})
    np.testing.assert_array_equal(decode_features(frame, RawLayout(dataset.schema)), raw)


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_another_shape_is_no_field(kind: str) -> None:
    layout = RawLayout(Schema(columns=(Column(name="field", kind="tensor", shape=(4, 3, 2)),)))
    with pytest.raises(InvalidInput, match=r"shape \[2, 3, 4\] where \[4, 3, 2\] is expected"):
        decode_features(pa.table({"field": KINDS[kind](FIELDS[:5])}), layout)


def test_flat_lists_are_read_where_the_shape_is_known() -> None:
    layout = RawLayout(Schema(columns=(Column(name="field", kind="tensor", shape=SHAPE),)))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(FIELDS.reshape(-1)), 24)
    raw = decode_features(pa.table({"field": flat}), layout)
    np.testing.assert_array_equal(raw, FIELDS.reshape(len(FIELDS), -1))


def test_a_dataset_of_an_earlier_version_kept_fields_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = imported(pa.table({"field": lists(FIELDS)}), tmp_path / "new")
    path = tmp_path / "new" / dataset.parts[0].path
    element = pa.field("element", pa.float32(), nullable=False)
    kind = pa.list_(element, 24)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(FIELDS.reshape(-1)), type=kind)
    schema = pa.schema([pa.field("field", kind, nullable=False)])
    pq.write_table(pa.Table.from_arrays([flat], schema=schema), path, write_page_checksum=True)
    manifest = (tmp_path / "new" / "dataset.json").read_text()
    size = f'"bytes": {path.stat().st_size}'
    (tmp_path / "new" / "dataset.json").write_text(
        manifest.replace(f'"bytes": {dataset.parts[0].bytes}', size)
    )
    older = Dataset.open(str(tmp_path / "new"))
    assert (
        older.to_table() == imported(pa.table({"field": lists(FIELDS)}), tmp_path / "x").to_table()
    )
