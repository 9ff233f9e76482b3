from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.dataset import BLOCK_ROWS, Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout, decode_features, decode_target
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.datasets.shelf import Shelf

MakeRows = Callable[..., pd.DataFrame]
Write = Callable[..., Dataset]


@pytest.fixture
def dataset(tmp_path: Path, schema: Schema, make_rows: MakeRows, write: Write) -> Dataset:
    return write(tmp_path / "data", schema, make_rows(2 * BLOCK_ROWS), part_rows=BLOCK_ROWS)


def test_the_cache_holds_what_decoding_gives(dataset: Dataset) -> None:
    layout = RawLayout(dataset.schema)
    for _ in range(2):
        decoded = load_decoded(dataset, layout)
        np.testing.assert_array_equal(decoded.raw, decode_features(dataset, layout))
        np.testing.assert_array_equal(decoded.target, decode_target(dataset, layout))
        assert decoded.soft is None
        assert decoded.rows == dataset.rows


def test_the_second_time_reads_no_parquet(dataset: Dataset) -> None:
    layout = RawLayout(dataset.schema)
    first = load_decoded(dataset, layout)
    shutil.rmtree(dataset.root)
    np.testing.assert_array_equal(load_decoded(dataset, layout).raw, first.raw)


def test_arrays_are_mapped_and_private(dataset: Dataset) -> None:
    layout = RawLayout(dataset.schema)
    decoded = load_decoded(dataset, layout)
    assert isinstance(decoded.raw, np.memmap)
    decoded.raw[:] = 7
    assert not np.array_equal(load_decoded(dataset, layout).raw, decoded.raw)


def test_another_layout_is_another_entry(dataset: Dataset, cache: Path) -> None:
    load_decoded(dataset, RawLayout(dataset.schema))
    fewer = Schema(columns=dataset.schema.columns[:1])
    assert load_decoded(dataset, RawLayout(fewer)).raw.shape == (dataset.rows, 1)
    assert len(os.listdir(cache)) == 2


def test_an_error_leaves_nothing(dataset: Dataset, cache: Path) -> None:
    os.truncate(os.path.join(dataset.root, "part-00001.parquet"), 100)
    with pytest.raises(Exception, match="100 bytes"):
        load_decoded(dataset, RawLayout(dataset.schema))
    assert os.listdir(cache) == []


def test_an_empty_dataset_is_refused(tmp_path: Path, schema: Schema) -> None:
    with DatasetWriter(str(tmp_path), schema) as writer:
        pass
    with pytest.raises(InvalidInput, match="is empty"):
        load_decoded(writer.dataset, RawLayout(schema))


def test_many_at_once_agree(dataset: Dataset, cache: Path) -> None:
    layout = RawLayout(dataset.schema)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_decoded(dataset, layout).raw, range(4)))
    for raw in found[1:]:
        np.testing.assert_array_equal(raw, found[0])
    assert len(os.listdir(cache)) == 1


class TestShelf:
    @staticmethod
    def make(size: int) -> Callable[[Path], None]:
        def fill(folder: Path) -> None:
            (folder / "x").write_bytes(bytes(size))

        return fill

    def test_the_longest_unused_entry_goes_first(self, tmp_path: Path) -> None:
        shelf = Shelf(root=tmp_path, max_bytes=250)
        for age, name in enumerate(("c", "b", "a")):
            os.utime(shelf.entry(name, self.make(80)), (1000 - age, 1000 - age))
        shelf.entry("a", self.make(0))
        shelf.entry("d", self.make(80))
        assert sorted(os.listdir(tmp_path)) == ["a", "c", "d"]

    def test_dead_drafts_are_swept(self, tmp_path: Path) -> None:
        shelf = Shelf(root=tmp_path, max_bytes=1000)
        for name, age in (("draft-old", 1000.0), ("draft-new", None)):
            (tmp_path / name).mkdir()
            if age:
                os.utime(tmp_path / name, (age, age))
        shelf.entry("a", self.make(1))
        assert sorted(os.listdir(tmp_path)) == ["a", "draft-new"]

    def test_the_environment_bounds_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBESTILL_CACHE_BYTES", "123")
        assert Shelf.default().max_bytes == 123

    @pytest.mark.parametrize("given", ["abc", "-1", "1e9", "4 GiB", "²"])
    def test_what_is_no_number_of_bytes_is_refused(self, monkeypatch, given: str) -> None:
        monkeypatch.setenv("KUBESTILL_CACHE_BYTES", given)
        with pytest.raises(InvalidInput, match="KUBESTILL_CACHE_BYTES = .* whole number of bytes"):
            Shelf.default()
