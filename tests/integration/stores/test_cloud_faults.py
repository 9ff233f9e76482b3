"""Real servers misbehaving: every fault that a store in a cloud has to survive or to report."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulators import (
    Fault,
    FaultProxy,
    GcsEmulator,
    Request,
    is_delete,
    is_list,
    is_read,
    is_upload,
)
from kubestill.errors import Conflict, NotFound, PermissionDenied, StoreUnavailable
from kubestill.runtime.stores import ABSENT, Store, open_store
from kubestill.runtime.stores.cloud import CloudStore
from kubestill.runtime.stores.gcs import GcsService

BIG = 80_000_000
"""Bytes: more than two parts."""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry as often as ever, sooner."""
    monkeypatch.setattr("kubestill.runtime.stores.retry.FIRST_WAIT", 0.01)


@pytest.fixture
def store(proxy: FaultProxy, cloud: Any) -> Store:
    return open_store(f"{cloud.uri}/root", deadline=20)


@pytest.fixture
def impatient(proxy: FaultProxy, cloud: Any) -> Store:
    return open_store(f"{cloud.uri}/root", deadline=0.5)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("big") / "big"
    path.write_bytes(random.Random(2).randbytes(BIG))
    yield path
    path.unlink()


@pytest.mark.parametrize(
    ("cloud", "status"),
    [("gcs", status) for status in (408, 429, 500, 502, 503, 504)] + [("s3", 503)],
    indirect=["cloud"],
)
def test_passing_refusals_are_retried(store: Store, proxy: FaultProxy, status: int) -> None:
    proxy.faults = [Fault("status", times=3, status=status)]
    store.put("x", b"content")
    proxy.faults = [Fault("status", times=2, status=status)]
    assert store.get("x") == b"content"
    proxy.faults = [Fault("status", times=2, status=status)]
    assert [entry.key for entry in store.list()] == ["x"]
    proxy.faults = [Fault("status", times=2, status=status)]
    store.delete("x")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
def test_lasting_refusals_are_not_retried(store: Store, proxy: FaultProxy, status: int) -> None:
    proxy.faults = [Fault("status", times=1, status=status)]
    with pytest.raises(Exception, match=r"root/x"):
        store.put("x", b"content")
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("kind", ["lost", "late"])
def test_a_write_whose_answer_was_lost_is_its_own_success(
    store: Store, proxy: FaultProxy, kind: Any
) -> None:
    cell = store.cell("ledger")
    proxy.faults = [Fault(kind, match=is_upload)]
    first = cell.swap(b"mine 1", expect=ABSENT)
    proxy.faults = [Fault(kind, times=2, match=is_upload)]
    second = cell.swap(b"mine 2", expect=first)
    proxy.faults = [Fault(kind, match=is_upload)]
    entry = store.put("created", b"mine", create=True)

    assert cell.read() == (b"mine 2", second)
    assert store.get("created") == b"mine"
    assert entry.version != ABSENT


def test_a_conflict_behind_a_lost_answer_is_still_a_conflict(
    store: Store, proxy: FaultProxy
) -> None:
    cell = store.cell("ledger")
    first = cell.swap(b"1", expect=ABSENT)
    cell.swap(b"2", expect=first)

    proxy.faults = [Fault("lost", match=is_upload)]
    with pytest.raises(Conflict):
        cell.swap(b"other", expect=first)


def test_no_commit_is_lost_or_doubled_while_answers_are(store: Store, proxy: FaultProxy) -> None:
    """Every acknowledged append is there once, whatever happens to one request in five."""
    dice = random.Random(3)
    kinds: list[Any] = ["lost", "late", "status", "cut"]
    proxy.faults = [
        Fault(kind, times=10_000, match=lambda request: dice.random() < 0.05) for kind in kinds
    ]

    def commit(writer: int) -> None:
        cell = store.cell("ledger")
        for number in range(10):
            item = f"{writer}-{number}"
            while True:
                content, version = cell.read()
                lines = (content or b"").decode().split()
                if item in lines:
                    break  # told of a conflict, although it was a success others built upon
                try:
                    cell.swap("\n".join([*lines, item]).encode(), expect=version)
                    break
                except Conflict:
                    continue

    writers = [threading.Thread(target=commit, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    proxy.faults = []
    lines = store.get("ledger").decode().split()
    assert sorted(lines) == sorted(f"{w}-{n}" for w in range(4) for n in range(10))


def test_a_store_that_refuses_connections_for_a_while_is_waited_for(
    store: Store, proxy: FaultProxy
) -> None:
    store.put("before", b"1")
    proxy.refuse_for(1.5)
    started = time.monotonic()
    store.put("after", b"2")

    assert time.monotonic() - started > 1.2
    assert store.get("after") == b"2"


def test_a_store_that_stays_away_is_given_up(impatient: Store, proxy: FaultProxy) -> None:
    proxy.stop()
    with pytest.raises(StoreUnavailable, match=r"create (gs|s3)://.*/root/x: gave up"):
        impatient.put("x", b"")


@pytest.mark.parametrize(
    ("cloud", "composite", "kind"),
    [
        *[("gcs", way, kind) for way in (False, True) for kind in ("status", "lost", "late")],
        ("s3", True, "lost"),
    ],
    indirect=["cloud"],
)
def test_big_uploads_survive_faults(
    store: Store, proxy: FaultProxy, cloud: Any, big: Path, composite: bool, kind: Any
) -> None:
    if isinstance(cloud.emulator, GcsEmulator):
        store = CloudStore(GcsService(cloud.bucket, "root", composite=composite), deadline=20)
    proxy.faults = [Fault(kind, times=2, match=is_upload)]
    store.upload(str(big), "big")

    assert [(entry.key, entry.size) for entry in store.list()] == [("big", BIG)]
    assert cloud.names() == ["root/big"]
    assert store.get("big", most=None) == big.read_bytes()


def test_a_broken_compose_is_retried(gcs_proxy: FaultProxy, gcs: Any, big: Path) -> None:
    store = CloudStore(GcsService(gcs.bucket, "root", composite=True), deadline=20)
    gcs_proxy.faults = [Fault("late", match=lambda request: request.path.endswith("/compose"))]
    store.put_parts("big", [memoryview(big.read_bytes())])

    assert gcs.names() == ["root/big"]
    assert store.get("big", most=None) == big.read_bytes()


def test_an_upload_in_parts_that_was_completed_unheard_is_its_own_success(
    s3_proxy: FaultProxy, s3: Any, big: Path
) -> None:
    store = open_store(f"{s3.uri}/root", deadline=20)
    s3_proxy.faults = [Fault("late", match=is_completion)]
    entry = store.put_parts("big", [memoryview(big.read_bytes())])

    assert [entry] == list(store.list())
    assert store.get("big", most=None) == big.read_bytes()


def test_an_upload_in_parts_that_fails_leaves_none(
    s3_proxy: FaultProxy, s3: Any, big: Path
) -> None:
    store = open_store(f"{s3.uri}/root", deadline=0.5)
    s3_proxy.faults = [Fault("status", times=10_000, match=is_completion)]
    with pytest.raises(StoreUnavailable, match="create s3://.*/big: gave up"):
        store.upload(str(big), "big")

    assert s3.emulator.uploads(s3.folder) == s3.names() == []


def is_completion(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.path


def test_broken_downloads_go_on_where_they_stopped(
    store: Store, proxy: FaultProxy, big: Path, tmp_path: Path
) -> None:
    store.upload(str(big), "big")
    proxy.requests.clear()
    proxy.faults = [Fault("cut", times=4, match=is_read)]
    store.download("big", str(tmp_path / "copy"))

    assert (tmp_path / "copy").read_bytes() == big.read_bytes()
    asked = [request.received for request in proxy.requests]
    assert len(asked) >= 7, "one for the metadata, a span each, and one for each break"
    assert sum(asked) < 2 * BIG, "only what was missing is asked for again"


def test_a_download_that_fails_leaves_nothing(
    impatient: Store, proxy: FaultProxy, big: Path, tmp_path: Path
) -> None:
    impatient.upload(str(big), "big")
    proxy.faults = [Fault("status", times=10_000, match=is_read)]
    with pytest.raises(StoreUnavailable):
        impatient.download("big", str(tmp_path / "copy"))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("permission", "match"),
    [("create", is_upload), ("get", is_read), ("list", is_list), ("delete", is_delete)],
    ids=["create", "get", "list", "delete"],
)
def test_check_writable_names_bucket_and_permission(
    store: Store, proxy: FaultProxy, cloud: Any, status: int, permission: str, match: Any
) -> None:
    proxy.faults = [Fault("status", status=status, match=match)]
    with pytest.raises(PermissionDenied) as caught:
        store.check_writable()

    assert f"grant {cloud.permission(permission)}" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_check_writable_names_a_bucket_that_is_not_there(cloud: Any) -> None:
    scheme = cloud.uri.partition("://")[0]
    with pytest.raises(PermissionDenied, match="no-such-bucket'? does not exist"):
        open_store(f"{scheme}://no-such-bucket/x").check_writable()


def test_what_is_not_there_is_not_found(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.get("x")
    with pytest.raises(NotFound):
        store.download("x", str(tmp_path / "x"))
    store.delete("x")


def test_missing_credentials_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(PermissionDenied, match="gcloud auth application-default login"):
        open_store("gs://bucket/x").put("x", b"")
