"""A dataset's parts lie below its root, or in the one store and bucket that an index points to."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from files import DIGEST

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.manifest import gather, write_manifest
from kubestill.runtime.datasets.parts import Part, check_places
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.stores import open_store

SCHEMA = Schema(columns=(Column(name="x", kind="numeric"),))
REMOTE = "gs://mine/data"
POD = "/gcs/mine/data"
DISK = "/data/rows"


def part(path: str) -> Part:
    return Part(path=path, rows=1, bytes=1, sha256=DIGEST)


@pytest.mark.parametrize(
    ("root", "paths"),
    [
        (DISK, ["part-0.parquet", "sub/part-1.parquet"]),
        (DISK, ["/data/other/part-0.parquet", "/scratch/part-0.parquet"]),
        (DISK, ["gs://mine/a/part-0.parquet", "gs://mine/b/part-0.parquet"]),
        (REMOTE, ["part-0.parquet", "gs://mine/other/part-0.parquet"]),
        (POD, ["part-0.parquet", "gs://mine/other/part-0.parquet"]),
        ("/minio/mine/data", ["minio://mine/other/part-0.parquet"]),
        ("minio://mine/data", ["minio://mine/other/part-0.parquet"]),
    ],
)
def test_where_parts_may_lie(root: str, paths: list[str]) -> None:
    assert check_places(root, [part(path) for path in paths]) == ""


@pytest.mark.parametrize("root", [DISK, REMOTE, POD, "memory://mine/data"])
@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../x.parquet",
        "a/../../x.parquet",
        "a//x.parquet",
        "/",
        "/data/../etc/x.parquet",
        "a\0b",
        "file:///etc/x.parquet",
        "gs://mine/../theirs/x.parquet",
        "gs://mine",
        "gs://mine/",
        "://x",
    ],
)
def test_where_no_part_may_lie(root: str, path: str) -> None:
    assert check_places(root, [part(path)])


@pytest.mark.parametrize(
    ("root", "paths"),
    [
        (REMOTE, ["/etc/x.parquet"]),
        (REMOTE, ["gs://theirs/x.parquet"]),
        (REMOTE, ["s3://mine/x.parquet"]),
        (POD, ["/etc/x.parquet"]),
        (POD, ["gs://theirs/x.parquet"]),
        (DISK, ["gs://mine/x.parquet", "gs://theirs/x.parquet"]),
        (DISK, ["gs://mine/x.parquet", "/etc/x.parquet"]),
    ],
)
def test_an_index_does_not_mix_stores(root: str, paths: list[str]) -> None:
    assert check_places(root, [part(path) for path in paths])


def written(root: str) -> Dataset:
    with DatasetWriter(root, SCHEMA) as writer:
        writer.write(_rows())
    return writer.dataset


def _rows() -> object:
    import pandas as pd

    return pd.DataFrame({"x": [1.0, 2.0, 3.0]})


def test_a_remote_manifest_reads_no_local_file(tmp_path: Path) -> None:
    secret = written(str(tmp_path / "secret"))
    there = written("memory://places/rows")
    stolen = replace(secret.parts[0], path=f"{secret.root}/part-00000.parquet")
    write_manifest(replace(there, parts=(stolen,)))
    with pytest.raises(CorruptData, match="outside of the dataset's own bucket, memory://places"):
        Dataset.open("memory://places/rows")


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    written(str(tmp_path / "outside"))
    dataset = written(str(tmp_path / "rows"))
    name = tmp_path / "rows" / "part-00000.parquet"
    name.unlink()
    name.symlink_to(tmp_path / "outside" / "part-00000.parquet")
    with pytest.raises(CorruptData, match="a link that leads out of its dataset"):
        dataset.to_table()
    # Links within it are nobody's business.
    name.unlink()
    os.link(tmp_path / "outside" / "part-00000.parquet", tmp_path / "rows" / "kept")
    name.symlink_to("kept")
    assert dataset.to_table().num_rows == 3


def test_errors_say_nothing_of_files_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 4242)
    shard = written(str(tmp_path / "shard"))
    index = gather([shard], str(tmp_path / "index"), provenance={})
    path = tmp_path / "index" / "dataset.json"
    form = json.loads(path.read_text())
    form["parts"][0]["path"] = str(tmp_path / "secret")
    path.write_text(json.dumps(form))
    with pytest.raises(CorruptData) as caught:
        Dataset.open(index.root).to_table()
    assert "4242" not in str(caught.value)
    assert "another size" in str(caught.value)


def test_shards_of_several_buckets_are_refused_before_an_index_is_written(tmp_path: Path) -> None:
    one, other = written("memory://one/rows"), written("memory://other/rows")
    with pytest.raises(InvalidInput, match="several stores or buckets"):
        gather([one, other], str(tmp_path / "index"), provenance={})
    with pytest.raises(InvalidInput, match="points to one store and bucket"):
        gather([one], "memory://other/index", provenance={})
    assert not (tmp_path / "index").exists()
    assert not list(open_store("memory://other/index").list())
    assert gather([one, one], "memory://one/index", provenance={}).to_table().num_rows == 6
