"""One wrong answer, whatever its status and whatever was asked, is outlived or reported.

Gateways refuse what they should pass on, and make up answers of their own. Every status meets every
verb of every store, once. Then either all went as if it had not been, or the caller hears of a
failure that says what it is: never that an object is absent, or changed by somebody else, where
that is not so, and never an exception of the vendor's library.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emulators import Fault, FaultProxy, is_upload
from kubestill.errors import Conflict, NotFound, StoreError
from kubestill.runtime.stores import Store, open_store, retry

FEW = (200, 204, 302, 400, 404, 409, 412, 429, 503, 520)
MORE = (201, 206, 301, 304, 307, 401, 402, 403, 405, 406, 408, 410, 411, 413, 416, 421, 422, 423)
MOST = (425, 499, 500, 501, 502, 504, 505, 507, 511)
STATUSES = (*FEW, *MORE, *MOST) if os.environ.get("KUBESTILL_CRASH_POINTS") == "1" else FEW

OLD, NEW = b"content", b"other content"


def _get(store: Store, key: str, folder: Path) -> bool:
    return store.get(key) == OLD


def _read(store: Store, key: str, folder: Path) -> bool:
    return store.cell(key).read()[0] == OLD


def _download(store: Store, key: str, folder: Path) -> bool:
    store.download(key, str(folder / key))
    return (folder / key).read_bytes() == OLD


def _list(store: Store, key: str, folder: Path) -> bool:
    return [entry.key for entry in store.list(key)] == [key]


def _put(store: Store, key: str, folder: Path) -> bool:
    return store.put(key, NEW).size == len(NEW)


def _upload(store: Store, key: str, folder: Path) -> bool:
    (folder / "new").write_bytes(NEW)
    return store.upload(str(folder / "new"), key).size == len(NEW)


def _create(store: Store, key: str, folder: Path) -> bool:
    return store.put(f"{key}-new", NEW, create=True).size == len(NEW)


def _swap(store: Store, key: str, folder: Path) -> bool:
    cell = store.cell(key)
    return cell.swap(NEW, expect=cell.read()[1]) == cell.read()[1]


def _delete(store: Store, key: str, folder: Path) -> bool:
    store.delete(key)
    return True


READS = {"get": _get, "read": _read, "download": _download, "list": _list}
WRITES = {"put": _put, "upload": _upload, "create": _create, "swap": _swap, "delete": _delete}
TRUE_BY_ITSELF = {("delete", 200), ("delete", 204)}
"""What a server says that has done it: nobody can tell."""


@pytest.fixture
def store(proxy: FaultProxy, cloud: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    return open_store(f"{cloud.uri}/root", deadline=1.0)


@pytest.mark.parametrize("verb", [*READS, *WRITES])
def test_one_wrong_answer_never_passes_for_the_truth(
    store: Store, proxy: FaultProxy, tmp_path: Path, verb: str
) -> None:
    kinds: tuple[Any, ...] = ("status",) if verb in READS else ("status", "late")
    taken = {
        (kind, status): _taken_for(store, proxy, tmp_path, verb, Fault(kind, status=status))
        for kind in kinds
        for status in STATUSES
        if (verb, status) not in TRUE_BY_ITSELF
    }
    wrong = {case: what for case, what in taken.items() if what not in ("outlived", "reported")}
    assert wrong == {}
    # What only says "try again", in whatever words, is.
    assert {taken[kind, status] for kind in kinds for status in (412, 429, 503)} == {"outlived"}


def _taken_for(store: Store, proxy: FaultProxy, folder: Path, verb: str, fault: Fault) -> str:
    act: Callable[..., bool] = {**READS, **WRITES}[verb]
    key = f"{fault.kind}-{fault.status}" if verb in WRITES else "kept"
    proxy.faults = []
    store.put(key, OLD)
    if verb == "swap":
        fault.match = is_upload
    proxy.faults = [fault]
    try:
        right = act(store, key, folder)
    except (NotFound, Conflict) as error:
        return f"lied: {error!r}"
    except StoreError:
        return "reported"
    except Exception as error:
        return f"raw: {error!r}"
    finally:
        unmet, proxy.faults = fault.times, []
    if unmet:
        return "never met"
    found = {entry.key: store.get(entry.key) for entry in store.list(key)}
    wanted = {"create": {key: OLD, f"{key}-new": NEW}, "delete": {}}.get(verb)
    if wanted is None:
        wanted = {key: NEW if verb in WRITES else OLD}
    return "outlived" if right and found == wanted else f"wrong: {right}, {found}"
