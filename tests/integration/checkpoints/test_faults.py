"""Full disks, stores that misbehave or go away, and checkpoints of another version or world."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from emulators import Fault, FaultProxy, is_delete, is_list, is_read, is_upload
from kubestill.errors import InvalidInput, StoreUnavailable
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.inspection import describe, ledgers, verify
from kubestill.runtime.checkpoints.place import Place, resolve_place
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.stores import open_store

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["google.cloud.storage", "kubestill.runtime.checkpoints.checkpointer"])
ALWAYS = 1_000_000
STATE_BYTES = 4 * toy.SIZE


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry as often as ever, sooner."""
    monkeypatch.setattr("kubestill.runtime.stores.retry.FIRST_WAIT", 0.01)


class Said(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)

    def __contains__(self, text: object) -> bool:
        return any(str(text) in line for line in self)


def state(step: int) -> toy.TrainingState:
    made = toy.fresh()
    made.tensors["model/weight"].add_(step)
    made.meta["step"] = step
    return made


def opened(place: Place, said: Said | None = None, **settings: Any) -> Checkpointer:
    policy = CheckpointSettings(**{"heartbeat_seconds": 0.2, "recovery_seconds": 0, **settings})
    announce = Said() if said is None else said
    return Checkpointer.open(place, policy, numerics={"toy": 1}, announce=announce)


def save(checkpointer: Checkpointer, step: int) -> None:
    position = {"step": step, "epoch": step / 10, "examples": step}
    checkpointer.save(state(step), kind="milestone", **position)


def assert_restores(place: Place, step: int, **settings: Any) -> None:
    with opened(place, **settings) as checkpointer:
        restored = checkpointer.restore()
    assert restored is not None
    assert toy.digest(restored) == toy.digest(state(step))


def kept_in(error: StoreUnavailable) -> str:
    found = re.search(r"kept in (\S+) \(", str(error))
    assert found
    return found[1]


def steps_at(place: Place) -> list[int]:
    return [row.step for row in describe(place.uri)]


class Disk:
    """A folder on a disk that can be filled up and freed again."""

    def __init__(self, folder: Path, kind: Literal["tmpfs", "limit"]):
        self.folder = folder
        self._kind = kind
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        if self._kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (STATE_BYTES // 2, self._limits[1]))
            return
        with open(self.folder / "ballast", "wb", buffering=0) as file:
            try:
                while file.write(bytes(STATE_BYTES // 2)) == STATE_BYTES // 2:
                    pass
            except OSError:
                pass

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        (self.folder / "ballast").unlink(missing_ok=True)


@contextmanager
def disk(folder: Path, kind: Literal["tmpfs", "limit"]) -> Iterator[Disk]:
    """A real disk of 8 MB where this process may mount one, or a limit on the size of files."""
    folder.mkdir()
    if kind == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("may not mount a tmpfs")
    made = Disk(folder, kind)
    try:
        yield made
    finally:
        made.free()
        if kind == "tmpfs":
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["tmpfs", "limit"])
def test_a_full_disk_is_waited_for(tmp_path: Path, kind: Literal["tmpfs", "limit"]) -> None:
    said = Said()
    with disk(tmp_path / "disk", kind) as full:
        place = resolve_place(str(full.folder / "root"), "", "f00", "", owner="me")
        with opened(place, said) as checkpointer:
            save(checkpointer, 1)
            checkpointer.flush()
            full.fill()
            save(checkpointer, 2)
            until(lambda: "cannot be saved" in said)
            full.free()
            save(checkpointer, 3)
            checkpointer.finish({})
        assert "step 2 is saved after all" in said
        assert steps_at(place) == [1, 2, 3]
        assert verify(place.uri) == []


def test_a_disk_that_stays_full_stops_training_with_its_state_elsewhere(tmp_path: Path) -> None:
    spill, said = tmp_path / "spill", Said()
    with disk(tmp_path / "disk", "tmpfs") as full:
        place = resolve_place(str(full.folder / "root"), "", "f00", "", owner="me")
        with opened(place, said, outage_seconds=1, spill_folder=str(spill)) as checkpointer:
            save(checkpointer, 1)
            checkpointer.flush()
            full.fill()
            save(checkpointer, 2)
            kept = r"free some space.*step 2 is kept in .*spi"
            with pytest.raises(StoreUnavailable, match=kept) as caught:
                checkpointer.flush()
        assert "No space left on device" in said
        assert_restores(resolve_place(kept_in(caught.value), "", "f00", "", owner="me"), 2)
        # Nothing torn is left where it was: what is listed there is whole.
        full.free()
        assert verify(place.uri) == []
        assert_restores(place, 1)
        assert_restores(place, 2, spill_folder=str(spill))


def test_a_state_that_fits_nowhere_is_said_to_be_lost(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "limit") as full:
        place = resolve_place(str(full.folder / "root"), "", "f00", "", owner="me")
        spill = str(tmp_path / "spill")
        with opened(place, outage_seconds=1, spill_folder=spill) as checkpointer:
            full.fill()
            save(checkpointer, 1)
            with pytest.raises(StoreUnavailable, match="step 1 could not be kept locally either"):
                checkpointer.flush()
            full.free()


def distant(uri: str, *, deadline: float) -> Place:
    """A place whose store gives up sooner than the two minutes that are usual."""
    store = open_store(f"{uri}/root/toy/f00", deadline=deadline)
    return Place(store=store, experiment="toy", fingerprint="f00", owner="me")


def until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("action", "match"),
    [("create", is_upload), ("get", is_read), ("list", is_list), ("delete", is_delete)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_permission_fails_before_training(
    gcs_proxy: FaultProxy, gcs: Any, action: str, match: Any
) -> None:
    gcs_proxy.faults = [Fault("status", times=ALWAYS, status=403, match=match)]
    started = time.monotonic()
    with pytest.raises(InvalidInput) as caught:
        resolve_place(f"{gcs.uri}/root", "toy", "f00", "", owner="me")
    assert time.monotonic() - started < 10
    assert f"checkpoint_uri = '{gcs.uri}/root'" in str(caught.value)
    assert f"grant storage.objects.{action} on {gcs.uri}" in str(caught.value)


@pytest.mark.parametrize(
    ("cloud", "status"), [("gcs", 429), ("gcs", 500), ("s3", 503)], indirect=["cloud"]
)
def test_a_store_that_refuses_now_and_then_is_not_noticed(
    proxy: FaultProxy, cloud: Any, status: int
) -> None:
    place, said = distant(cloud.uri, deadline=20), Said()
    with opened(place, said, keep_bytes=0, keep_last=2) as checkpointer:
        for step in range(1, 5):
            # Refused before, and again after it was carried out: every write, also of the ledger.
            proxy.faults = [
                Fault("status", times=2, status=status),
                Fault("late", times=2, status=status, match=is_upload),
                Fault("late", times=1, status=status, match=is_delete),
            ]
            save(checkpointer, step)
            checkpointer.flush()
            assert not any(fault.times for fault in proxy.faults[:2])
        proxy.faults = []
        checkpointer.finish({"done": True})
    assert said == []
    assert steps_at(place) == [3, 4]
    assert verify(place.uri) == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_refuses_longer_than_one_request_retries(
    gcs_proxy: FaultProxy, gcs: Any, status: int
) -> None:
    place, said = distant(gcs.uri, deadline=0.5), Said()
    with opened(place, said) as checkpointer:
        save(checkpointer, 1)
        checkpointer.flush()
        gcs_proxy.faults = [Fault("status", times=ALWAYS, status=status)]
        save(checkpointer, 2)
        until(lambda: "step 2 cannot be saved, trying again" in said)
        gcs_proxy.faults = []
        checkpointer.finish({})
    assert "step 2 is saved after all" in said
    assert steps_at(place) == [1, 2]
    assert verify(place.uri) == []


def test_a_store_that_answers_too_late(
    gcs_proxy: FaultProxy, gcs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("gcs", "gcs_transfer"):
        monkeypatch.setattr(f"kubestill.runtime.stores.{module}.TIMEOUT", (1.0, 0.3))
    place = distant(gcs.uri, deadline=20)
    with opened(place, heartbeat_seconds=60) as checkpointer:
        for step in (1, 2):
            # The client hangs up, tries again, and then the first request is carried out after all.
            gcs_proxy.faults = [Fault("delay", times=3, seconds=0.8, match=is_upload)]
            save(checkpointer, step)
            checkpointer.flush()
        time.sleep(1.0)
        checkpointer.finish({})
    assert steps_at(place) == [1, 2]
    assert verify(place.uri) == []
    assert_same_ledger_everywhere(place)


def assert_same_ledger_everywhere(place: Place) -> None:
    (ledger,) = ledgers(place.uri)
    listed = {entry.manifest.key.partition("/")[0] for entry in ledger.entries}
    stored = {e.key.partition("/")[0] for e in place.store.list() if "/" in e.key}
    assert stored == listed


def test_a_store_that_refuses_connections_for_a_while(gcs_proxy: FaultProxy, gcs: Any) -> None:
    place, said = distant(gcs.uri, deadline=0.5), Said()
    with opened(place, said) as checkpointer:
        save(checkpointer, 1)
        checkpointer.flush()
        gcs_proxy.refuse_for(1.5)
        started = time.monotonic()
        save(checkpointer, 2)
        save(checkpointer, 3)
        # Two saves find a buffer each: training goes on through the outage.
        assert time.monotonic() - started < 1.0
        checkpointer.finish({})
    assert "step 2 is saved after all" in said
    assert steps_at(place) == [1, 2, 3]
    assert verify(place.uri) == []


def test_a_store_that_vanishes_for_good(gcs_proxy: FaultProxy, gcs: Any, tmp_path: Path) -> None:
    place, said, spill = distant(gcs.uri, deadline=0.5), Said(), tmp_path / "spill"
    state, trained = toy.fresh(), 0

    def train_on(checkpointer: Checkpointer) -> None:
        nonlocal trained
        while time.monotonic() - vanished < 30:
            toy.advance(state)
            trained += 1
            checkpointer.recovery_due()

    with opened(place, said, outage_seconds=2, spill_folder=str(spill)) as checkpointer:
        save(checkpointer, 1)
        checkpointer.flush()
        gcs_proxy.stop()
        vanished = time.monotonic()
        save(checkpointer, 2)
        with pytest.raises(StoreUnavailable) as caught:
            train_on(checkpointer)
    assert time.monotonic() - vanished > 1.0
    assert trained > 10  # it went on meanwhile
    assert f"the state of step 2 is kept in {spill}" in str(caught.value)
    assert f"give {kept_in(caught.value)} as checkpoint_uri to resume" in str(caught.value)
    assert_restores(resolve_place(kept_in(caught.value), "toy", "f00", "", owner="me"), 2)
    gcs_proxy.start()
    assert_restores(place, 1)
    assert_restores(place, 2, spill_folder=str(spill))
    assert steps_at(place) == [1, 2]


def test_training_goes_on_while_a_store_accepts_requests_and_never_answers(
    proxy: FaultProxy, cloud: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubestill.runtime.checkpoints.saver._SHORTEST_HANG", 0.3)
    monkeypatch.setattr("kubestill.runtime.checkpoints.saver._TYPICAL_SECONDS", 0.1)
    place, said, longest = distant(cloud.uri, deadline=20), Said(), 0.0
    spill = str(tmp_path / "spill")
    with opened(place, said, spill_folder=spill, recovery_seconds=0.05) as checkpointer:
        save(checkpointer, 1)
        checkpointer.flush()
        proxy.hang()
        began = time.monotonic()
        for step in range(2, 9):
            before = time.monotonic()
            save(checkpointer, step)
            longest = max(longest, time.monotonic() - before)
            time.sleep(0.06)
            assert not checkpointer.recovery_due()
        assert longest < 2.0, time.monotonic() - began
        assert [entry.step for entry in checkpointer.ledger.entries] == [1]
        proxy.resume()
        checkpointer.finish({})
    assert "the store hangs: training goes on. Milestones from step 4 on wait in" in said
    assert "the store answers again: all milestones that waited are saved, 5 of them from d" in said
    assert steps_at(place) == list(range(1, 9))
    assert verify(place.uri) == []


def test_a_manifest_of_another_format_version_is_refused(tmp_path: Path) -> None:
    place = resolve_place(str(tmp_path / "root"), "", "f00", "", owner="me")
    with opened(place) as checkpointer:
        save(checkpointer, 1)
    (ledger,) = ledgers(place.uri)
    ref = ledger.entries[0].manifest
    content = place.store.get(ref.key).replace(b"manifest/1", b"manifest/2")
    place.store.put(ref.key, content)
    newest = max(Path(place.uri).glob("ledger.json.*"))
    rewritten = hashlib.sha256(content).hexdigest()
    newest.write_text(newest.read_text().replace(ref.sha256, rewritten))
    with opened(place) as checkpointer:
        with pytest.raises(InvalidInput) as caught:
            checkpointer.restore()
        # It is whole, only not ours to read: nobody calls it damaged, or trains over it.
        assert not checkpointer.ledger.entries[0].damaged
    assert "kubestill/manifest/2" in str(caught.value)
    assert "another version of kubestill wrote this checkpoint" in str(caught.value)
    assert "kubestill/manifest/1" in str(caught.value)
    assert "another version" in verify(place.uri)[0]


def run_ranks(root: Path, world: int, step: int) -> list[dict[str, Any]]:
    """Restore with so many gloo ranks, then save `step` unless it is 0; say what each one got."""
    logs = [root / f"log-{world}-{step}-{rank}" for rank in range(world)]
    meet = f"file://{root}/meet-{world}-{step}"
    arguments = [
        (str(root / "root"), meet, rank, world, step, str(logs[rank])) for rank in range(world)
    ]
    processes = [FORKS.Process(target=toy.rank_process, args=a, daemon=True) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [json.loads(log.read_text()) for log in logs]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_restoring_at_another_world_size(tmp_path: Path, before: int, after: int) -> None:
    fresh = run_ranks(tmp_path, before, step=7)
    assert [got["restored"] for got in fresh] == [False] * before
    again = run_ranks(tmp_path, after, step=0)
    assert [got["step"] for got in again] == [7] * after
    assert {got["weights"] for got in again} == {fresh[0]["saved"]}
    assert [got["exact"] for got in again] == [False] * after
    own = [0] if after == 1 else [None] * after
    assert [got["own"] for got in again] == own
    assert [got["meta"] for got in again] == own
    said = f"NOT with the same bits: ranks: {before} then, {after} now"
    assert all(said in got["said"] for got in again)
