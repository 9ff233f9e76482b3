"""What every store promises: the local one, the one in memory, Cloud Storage, S3."""

from __future__ import annotations

import os
import random
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kubestill.errors import Conflict, CorruptData, InvalidInput, NotFound
from kubestill.runtime.stores import ABSENT, Store, fetch, join_uri, open_store, read_any
from kubestill.runtime.stores.cloud import CloudStore


@pytest.fixture(params=["local", "memory", "gcs", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in ("gcs", "s3"):
        cloud: Any = request.getfixturevalue(request.param)
        return f"{cloud.uri}/some/root"
    return str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def store(uri: str) -> Store:
    return open_store(uri)


def keys(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


def test_what_was_put_is_got_until_it_is_deleted(store: Store) -> None:
    entry = store.put("a/b.bin", b"\x00one")

    assert (entry.key, entry.size) == ("a/b.bin", 4)
    assert store.get("a/b.bin") == b"\x00one"
    assert list(store.list()) == [entry]

    store.delete("a/b.bin")
    store.delete("a/b.bin")
    with pytest.raises(NotFound, match="a/b.bin"):
        store.get("a/b.bin")
    assert keys(store) == []


def test_no_more_is_read_than_the_reader_takes(store: Store) -> None:
    content = random.Random(2).randbytes(3_000_000)
    store.put("x", content)

    for most in (3_000_000, 3_000_001, None):
        assert store.get("x", most=most) == content
    for most in (0, 1, 1 << 20, 2_999_999):
        with pytest.raises(CorruptData, match=f"x is larger than {most} bytes"):
            store.get("x", most=most)
    if isinstance(store, CloudStore):
        assert store.read("x", 1 << 20)[0] == content[: (1 << 20) + 1]


def test_put_replaces_and_the_version_tells(store: Store) -> None:
    first = store.put("x", b"1")
    second = store.put("x", b"2")

    assert store.get("x") == b"2"
    assert first.version != second.version


def test_create_fails_on_other_content_and_forgives_its_own(store: Store) -> None:
    first = store.put("x", b"mine", create=True)

    assert store.put("x", b"mine", create=True) == first
    with pytest.raises(Conflict):
        store.put("x", b"theirs", create=True)
    assert store.get("x") == b"mine"


@pytest.mark.parametrize("size", [0, 1, 9_000_000], ids=["empty", "byte", "beyond one request"])
def test_parts_are_joined(store: Store, size: int) -> None:
    content = random.Random(0).randbytes(size)
    cut = size // 3
    parts = [content[:cut], b"", memoryview(content)[cut : 2 * cut], bytearray(content[2 * cut :])]

    assert store.put_parts("joined", parts).size == size
    assert store.get("joined") == content


def test_list_is_in_key_order_and_by_string_prefix(store: Store) -> None:
    names = ["b", "a/x", "a.txt", "a/y/z", "ab/c", "a/y.json", "A", "é"]
    for name in names:
        store.put(name, b"")

    assert keys(store) == sorted(names)
    assert keys(store, "a") == ["a.txt", "a/x", "a/y.json", "a/y/z", "ab/c"]
    assert keys(store, "a/y") == ["a/y.json", "a/y/z"]
    assert keys(store, "nothing/here") == []


@pytest.mark.parametrize("size", [0, 3, 20_000_003], ids=["empty", "small", "big"])
def test_files_go_up_and_come_down(store: Store, tmp_path: Path, size: int) -> None:
    content = random.Random(1).randbytes(size)
    (tmp_path / "source").write_bytes(content)

    entry = store.upload(str(tmp_path / "source"), "deep/er/file")
    store.download("deep/er/file", str(tmp_path / "new" / "copy"))

    assert entry.size == size
    assert list(store.list()) == [entry]
    assert (tmp_path / "new" / "copy").read_bytes() == content
    assert os.listdir(tmp_path / "new") == ["copy"]


def test_a_download_of_nothing_leaves_what_was_there(store: Store, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(b"before")
    with pytest.raises(NotFound):
        store.download("missing", str(tmp_path / "copy"))

    assert (tmp_path / "copy").read_bytes() == b"before"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", "a.tmp", "a.0000000001"])
def test_keys_that_cannot_work_are_refused(store: Store, key: str) -> None:
    with pytest.raises(InvalidInput, match="key"):
        store.put(key, b"")


def test_check_writable_leaves_nothing(store: Store) -> None:
    store.check_writable()

    assert keys(store) == []


def test_uris_lead_to_objects(store: Store, uri: str, tmp_path: Path) -> None:
    store.put("a/data.json", b"{}")
    address = join_uri(store.uri, "a/data.json")

    assert store.uri == uri
    assert read_any(address) == b"{}"
    assert Path(fetch(address, str(tmp_path / "cache"))).read_bytes() == b"{}"
    assert open_store(join_uri(uri, "a")).get("data.json") == b"{}"


def test_a_cell_starts_absent_and_only_the_expected_version_is_replaced(store: Store) -> None:
    cell = store.cell("p/ledger.json")
    assert cell.read() == (None, ABSENT)

    first = cell.swap(b"1", expect=ABSENT)
    assert cell.read() == (b"1", first)
    with pytest.raises(Conflict):
        cell.swap(b"other", expect=ABSENT)

    second = cell.swap(b"2", expect=first)
    with pytest.raises(Conflict):
        cell.swap(b"3", expect=first)
    assert cell.read() == (b"2", second)


def test_the_same_swap_again_is_its_own_success(store: Store) -> None:
    cell = store.cell("ledger.json")
    first = cell.swap(b"1", expect=ABSENT)

    assert cell.swap(b"1", expect=ABSENT) == first
    second = cell.swap(b"2", expect=first)
    assert cell.swap(b"2", expect=first) == second


def test_a_cell_is_an_object_to_those_who_only_read(store: Store) -> None:
    cell = store.cell("p/ledger.json")
    version, number = ABSENT, 0
    # A disk prunes old versions, after more than a hundred.
    for number in range(20 if "://" in store.uri else 200):
        version = cell.swap(b"%d" % number, expect=version)
    store.put("p/other", b"")

    assert store.get("p/ledger.json") == b"%d" % number
    assert keys(store) == ["p/ledger.json", "p/other"]
    assert [entry.size for entry in store.list("p/led")] == [len(b"%d" % number)]

    store.delete("p/ledger.json")
    assert keys(store) == ["p/other"]
    assert cell.read() == (None, ABSENT)
    with pytest.raises(Conflict):
        cell.swap(b"after removal", expect=version)


@pytest.mark.parametrize("via", ["create", "cell"])
def test_of_many_at_once_exactly_one_wins(store: Store, via: str) -> None:
    barrier = threading.Barrier(8)

    def attempt(number: int) -> bool:
        content = b"writer %d" % number
        barrier.wait()
        try:
            if via == "create":
                store.put("x", content, create=True)
            else:
                store.cell("x").swap(content, expect=ABSENT)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))

    assert won.count(True) == 1
    assert store.get("x") == b"writer %d" % won.index(True)


def append(store: Store, name: str, item: str) -> None:
    """Add a line to the cell, however often others come first."""
    cell = store.cell(name)
    while True:
        content, version = cell.read()
        try:
            cell.swap((content or b"") + f"{item}\n".encode(), expect=version)
            return
        except Conflict:
            continue


def test_no_commit_of_many_threads_is_lost(store: Store) -> None:
    def commit(writer: int) -> None:
        for number in range(15):
            append(store, "ledger", f"{writer}-{number}")

    run_all([lambda writer=writer: commit(writer) for writer in range(4)])

    lines = store.get("ledger").decode().split()
    assert sorted(lines) == sorted(f"{w}-{n}" for w in range(4) for n in range(15))


def run_all(jobs: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(jobs)) as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()
