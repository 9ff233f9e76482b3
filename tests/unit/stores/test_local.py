"""What only files can do wrong: dying writers, stale writers, full disks, foreign folders."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubestill.errors import Conflict, CorruptData, PermissionDenied, StoreError
from kubestill.runtime.stores import ABSENT, files, open_store
from kubestill.runtime.stores.files import temporary_beside
from kubestill.runtime.stores.local import LocalStore
from kubestill.runtime.stores.local_cell import KEPT, CellFiles

HANG_IN_A_WRITE = """
import sys, time
from kubestill.runtime.stores.files import temporary_beside, write_all
with temporary_beside(sys.argv[1]) as (path, fd):
    write_all(fd, b"half")
    print(path, flush=True)
    time.sleep(60)
"""


def advance(cell: CellFiles, version: str, times: int) -> str:
    for number in range(times):
        version = cell.swap(b"other %d" % number, expect=version)
    return version


def test_a_stale_writer_cannot_win_a_pruned_sequence(tmp_path: Path) -> None:
    cell = CellFiles(str(tmp_path / "ledger.json"))
    first = cell.swap(b"1", expect=ABSENT)
    last = advance(cell, first, 3 * KEPT)
    assert cell.sequences()[0] > 2, "pruning has to have removed what the stale writer would link"

    with pytest.raises(Conflict):
        cell.swap(b"stale", expect=first)
    with pytest.raises(Conflict):
        cell.swap(b"stale", expect=ABSENT)

    assert cell.sequences()[0] > 2
    assert cell.read()[1] == last


def test_a_writer_overtaken_between_its_link_and_its_look_backs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = CellFiles(str(tmp_path / "ledger.json"))
    first = cell.swap(b"1", expect=ABSENT)
    link = os.link

    def sleepy_link(source: str, target: str) -> None:
        monkeypatch.setattr(os, "link", link)
        advance(cell, first, 3 * KEPT)
        link(source, target)

    monkeypatch.setattr(os, "link", sleepy_link)
    with pytest.raises(Conflict):
        cell.swap(b"sleeper", expect=first)

    assert cell.sequences()[0] > 2


def test_a_removed_and_re_created_cell_is_another(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    cell = store.cell("ledger.json")
    version = cell.swap(b"first life", expect=ABSENT)
    store.delete("ledger.json")
    again = cell.swap(b"second life", expect=ABSENT)

    with pytest.raises(Conflict):
        cell.swap(b"from the first life", expect=version)
    assert cell.read() == (b"second life", again)


def test_pruning_bounds_the_folder(tmp_path: Path) -> None:
    cell = CellFiles(str(tmp_path / "ledger.json"))
    advance(cell, ABSENT, 5 * KEPT)

    assert KEPT <= len(os.listdir(tmp_path)) <= 2 * KEPT


def test_temporaries_of_killed_writers_are_swept_and_those_of_living_ones_kept(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", HANG_IN_A_WRITE, str(tmp_path / "state" / "tensors")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    left = writer.stdout.readline().strip()
    store = open_store(str(tmp_path))
    store.check_writable()
    assert os.path.exists(left)

    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert list(store.list()) == []
    store.check_writable()

    assert not os.path.exists(left)


def test_a_temporary_that_is_swept_before_its_writer_locks_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes start at once: one sweeps while the other is just writing its first file."""
    create, swept = files._create, list[int]()  # pyright: ignore[reportPrivateUsage]

    def interrupted(folder: str, temporary: str) -> int:
        fd = create(folder, temporary)
        if not swept:
            swept.append(files.sweep_temporaries(str(tmp_path)))
        return fd

    monkeypatch.setattr(files, "_create", interrupted)
    cell = open_store(str(tmp_path)).cell("ledger.json")
    cell.swap(b"one", expect=ABSENT)
    assert swept == [1]
    assert cell.read()[0] == b"one"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with temporary_beside(str(tmp_path / "x")):
            raise RuntimeError("killed by an exception")

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


FILL_THE_DISK = """
from kubestill.errors import StoreError
from kubestill.runtime.stores import open_store
store = open_store("{root}")
store.put("kept", b"x" * 100_000)
for write in (lambda: store.put("big", bytes(2_000_000)), lambda: store.upload("{big}", "big")):
    try:
        write()
    except StoreError as error:
        print(error)
print([entry.key for entry in store.list()], store.get("kept") == b"x" * 100_000)
"""


def test_a_full_disk_is_a_store_error_that_says_so(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    (tmp_path / "big").write_bytes(bytes(2_000_000))
    (tmp_path / "fill.py").write_text(FILL_THE_DISK.format(root=root, big=tmp_path / "big"))
    mount = f"mount -t tmpfs -o size=1m tmpfs {root}"
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, mount]).returncode:
        pytest.skip("no small disk: mount namespaces are not allowed here")

    script = f"{mount} && exec {sys.executable} {tmp_path}/fill.py"
    done = subprocess.run([*namespace, script], capture_output=True, text=True, check=True)

    assert done.stdout.count("No space left on device: free some space below") == 2
    assert done.stdout.endswith("['kept'] True\n")


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Root may write anywhere, so act as somebody else."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_folder_that_is_not_ours_names_itself(as_nobody: None) -> None:
    if os.access("/", os.W_OK, effective_ids=True):
        pytest.skip("this user may write anywhere")
    with pytest.raises(PermissionDenied, match=r"/below.* must be able to write below /"):
        open_store("/below/here").check_writable()


def test_a_file_in_the_way_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"")
    with pytest.raises(StoreError, match="in the way"):
        open_store(str(tmp_path / "root")).check_writable()


def test_folders_may_vanish_while_others_are_written(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            store.put("a/b/gone", b"")
            store.delete("a/b/gone")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for number in range(100):
            store.put(f"a/b/{number}", b"x")
            store.delete(f"a/b/{number}")
    finally:
        stop.set()
        thread.join()

    assert list(store.list()) == []


def test_nothing_is_deleted_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"mine")
    store = LocalStore(str(tmp_path / "root"))
    store.put("0001-a/state", b"old")
    (tmp_path / "root" / "0002-b").symlink_to(elsewhere)
    (tmp_path / "root" / "0003-c").symlink_to(elsewhere / "precious")
    for entry in list(store.list()):
        store.delete(entry.key)
    assert (elsewhere / "precious").read_bytes() == b"mine"
    assert [entry.key for entry in store.list()] == ["0002-b/precious"]


@pytest.mark.parametrize("target", [".", "..", "itself", "nowhere"])
def test_a_link_in_a_circle_is_no_object(tmp_path: Path, target: str) -> None:
    store = LocalStore(str(tmp_path / "root"))
    store.put("kept", b"x")
    (tmp_path / "root" / "itself").symlink_to(target)
    assert [entry.key for entry in store.list()] == ["kept"]
    store.check_writable()


def test_a_root_that_is_a_link_is_a_root(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    store = LocalStore(str(tmp_path / "root"))
    store.put("a/b", b"x")
    store.delete("a/b")
    assert list(store.list()) == []
    assert list((tmp_path / "real").iterdir()) == []


def test_a_file_of_any_size_takes_no_more_memory_than_its_reader_allows(tmp_path: Path) -> None:
    for name in ("huge", "cell.0000000001"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 36)
    for key in ("huge", "cell"):
        with pytest.raises(CorruptData, match=f"{key} is larger than 1000 bytes"):
            LocalStore(str(tmp_path)).get(key, most=1000)
    content, version = CellFiles(str(tmp_path / "cell")).read(1000)
    assert content == bytes(1001)
    assert CellFiles(str(tmp_path / "cell")).swap(b"whole", expect=version)
    assert LocalStore(str(tmp_path)).get("cell") == b"whole"
