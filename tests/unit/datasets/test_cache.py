from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput, PermissionDenied
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
    assert len(entries(cache)) == 2


def test_an_error_leaves_nothing(dataset: Dataset, cache: Path) -> None:
    os.truncate(os.path.join(dataset.root, "part-00001.parquet"), 100)
    with pytest.raises(Exception, match="100 bytes"):
        load_decoded(dataset, RawLayout(dataset.schema))
    assert entries(cache) == []


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
    assert len(entries(cache)) == 1


def entries(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root) if not name.startswith("."))


class TestShelf:
    @staticmethod
    def make(size: int) -> Callable[[Path], None]:
        def fill(folder: Path) -> None:
            (folder / "x").write_bytes(bytes(size))

        return fill

    def make_elsewhere(self, shelf: Shelf, *names: str) -> None:
        """Make entries of 80 bytes in a process that ends, the first of them used longest ago."""
        process = multiprocessing.get_context("fork").Process(
            target=lambda: [
                os.utime(shelf.entry(name, self.make(80)), (1000 + age, 1000 + age))
                for age, name in enumerate(names)
            ]
        )
        process.start()
        process.join()
        assert not process.exitcode

    def test_the_longest_unused_entry_goes_first(self, tmp_path: Path) -> None:
        shelf = Shelf(root=tmp_path, max_bytes=250)
        self.make_elsewhere(shelf, "a", "b", "c")
        shelf.entry("a", self.make(0))
        shelf.entry("d", self.make(80))
        assert entries(tmp_path) == ["a", "c", "d"]

    def test_what_a_living_process_uses_stays(self, tmp_path: Path) -> None:
        # A source of many files may be larger than the shelf: none may go before all are read.
        shelf = Shelf(root=tmp_path, max_bytes=250)
        mine = [shelf.entry(name, self.make(80)) for name in "abcd"]
        self.make_elsewhere(shelf, "e", "f")
        assert all(place.joinpath("x").exists() for place in mine)
        assert entries(tmp_path) == ["a", "b", "c", "d", "e", "f"]
        shelf.entry("g", self.make(80))
        assert entries(tmp_path) == ["a", "b", "c", "d", "g"]

    def test_many_processes_take_and_evict_at_once(self, tmp_path: Path) -> None:
        # Each finds what it was given, however the others evict meanwhile.
        shelf = Shelf(root=tmp_path, max_bytes=300)

        def work(seed: int) -> None:
            for number in np.random.default_rng(seed).integers(0, 12, 60):
                place = shelf.entry(f"{seed % 2}-{number}", self.make(80))
                assert (place / "x").stat().st_size == 80

        workers = [
            multiprocessing.get_context("fork").Process(target=work, args=(seed,))
            for seed in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 4
        shelf.entry("last", self.make(80))
        assert len(entries(tmp_path)) <= 3

    def test_dead_drafts_are_swept(self, tmp_path: Path) -> None:
        shelf = Shelf(root=tmp_path, max_bytes=1000)
        for name, age in (("draft-old", 1000.0), ("draft-new", None)):
            (tmp_path / name).mkdir()
            if age:
                os.utime(tmp_path / name, (age, age))
        shelf.entry("a", self.make(1))
        assert entries(tmp_path) == ["a", "draft-new"]

    @pytest.mark.parametrize("planted", ["link", "open to all", "another user's"])
    def test_what_others_can_write_to_is_refused(self, monkeypatch, tmp_path, planted) -> None:
        monkeypatch.setenv("KUBESTILL_CACHE", str(tmp_path))
        place = tmp_path / f"kubestill-cache-{os.getuid()}"
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        if planted == "link":
            place.symlink_to(tmp_path / "elsewhere")
        else:
            place.mkdir()
            place.chmod(0o777 if planted == "open to all" else 0o700)
            if planted == "another user's":
                if os.geteuid():
                    pytest.skip("only root can give a folder away")
                os.chown(place, 12345, -1)
        with pytest.raises(PermissionDenied, match=f"{place} .*with mode 0700; remove it"):
            Shelf.default()

    def test_the_environment_bounds_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBESTILL_CACHE_BYTES", "123")
        assert Shelf.default().max_bytes == 123

    @pytest.mark.parametrize("given", ["abc", "-1", "1e9", "4 GiB", "²"])
    def test_what_is_no_number_of_bytes_is_refused(self, monkeypatch, given: str) -> None:
        monkeypatch.setenv("KUBESTILL_CACHE_BYTES", given)
        with pytest.raises(InvalidInput, match="KUBESTILL_CACHE_BYTES = .* whole number of bytes"):
            Shelf.default()
