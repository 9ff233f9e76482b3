"""A store that hangs: training goes on, nothing is committed out of turn, and no milestone is lost.

The model: saves are numbered as training makes them; some are milestones. At any moment, the states
that a next attempt would find are those in the store's ledger, then those on local disk. For the
same bits and the same milestones, whatever ends a run, it is enough that

    the newest state found has every milestone before it among those found,

since training is a function of the state it resumes from. Every history of saves, hangs and ends up
to a length is run through the real saver, writer and ledger, and held against that.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch

from kubestill.errors import StoreUnavailable
from kubestill.runtime.checkpoints import saver as saver_module
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.inspection import ledgers, verify
from kubestill.runtime.checkpoints.place import Place
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.stores.base import Content, Entry, Store
from kubestill.runtime.stores.memory import MemoryStore

Event = Literal["milestone", "recovery", "hangs", "answers", "refuses"]
BYTES = 4_000


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Gate(MemoryStore):
    """A store that, once it hangs, takes nothing until it answers or refuses."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        super().__init__(self.name, "exp/f00")
        self.open = threading.Event()
        self.open.set()
        self.refuses = False
        self.killed = False
        self.cells_hang = False

    def put_parts(self, key: str, parts: Any) -> Entry:
        """Write, as soon as the store answers."""
        assert self.open.wait(20)
        if self.killed:
            raise Killed
        if self.refuses:
            raise StoreUnavailable("gone")
        return super().put_parts(key, cast("list[Content]", parts))

    def cell(self, key: str) -> Any:
        """Return a cell that hangs with the store, if `cells_hang`."""
        return _GatedCell(self, super().cell(key))


class _GatedCell:
    def __init__(self, store: Gate, cell: Any):
        self._store, self.read, self._swap = store, cell.read, cell.swap

    def swap(self, content: bytes, *, expect: str) -> str:
        if self._store.cells_hang:
            assert self._store.open.wait(20)
            if self._store.killed:
                raise Killed
        return self._swap(content, expect=expect)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "_SHORTEST_HANG", 0.02)
    monkeypatch.setattr(saver_module, "_TYPICAL_SECONDS", 0.001)


def place_on(store: Store) -> Place:
    return Place(store=store, experiment="exp", fingerprint="f00", owner="me")


def opened(place: Place, spill: Path, said: Callable[[str], None] = print, **settings: Any):
    settings = {"heartbeat_seconds": 60, "keep_recovery": 99, "recovery_seconds": 1e-9, **settings}
    policy = CheckpointSettings(spill_folder=str(spill), **settings)
    return Checkpointer.open(place, policy, numerics={}, announce=said)


def state(step: int) -> TrainingState:
    return TrainingState({"w": torch.full((BYTES // 4,), float(step))}, {"step": step})


def save(checkpointer: Checkpointer, step: int, kind: Any = "milestone") -> None:
    checkpointer.save(state(step), kind=kind, step=step, epoch=0, examples=step)


def test_training_goes_on_while_a_save_hangs_and_every_milestone_is_saved(tmp_path: Path) -> None:
    said: list[str] = []
    store = Gate()
    with opened(place_on(store), tmp_path / "spill", said.append) as running:
        store.open.clear()
        longest = 0.0
        for step in range(1, 20):
            began = time.monotonic()
            save(running, step)
            assert not running.recovery_due()
            longest = max(longest, time.monotonic() - began)
        assert longest < 1
        assert [e.step for e in running.ledger.entries] == []
        store.open.set()
        running.finish({})
    (ledger,) = ledgers(f"memory://{store.name}")
    assert [entry.step for entry in ledger.milestones] == list(range(1, 20))
    assert verify(f"memory://{store.name}") == []
    (private,) = (tmp_path / "spill").iterdir()
    begins, ends = [line for line in said if "attempt" not in line]
    assert begins == (
        f"WARNING: the store hangs: training goes on. Milestones from step 3 on wait in "
        f"{private}, on up to 2,000 MB; recovery checkpoints are left out until it "
        "answers"
    )
    assert ends.startswith("the store answers again: all milestones that waited are saved")
    assert list(private.iterdir()) == []


@pytest.mark.parametrize("bound", [0, BYTES, 3 * BYTES])
def test_training_waits_once_the_disk_that_it_may_take_is_full(tmp_path: Path, bound: int) -> None:
    said: list[str] = []
    store = Gate()
    place, room = place_on(store), 2 + bound // BYTES
    with opened(place, tmp_path / "spill", said.append, backlog_bytes=bound) as running:
        store.open.clear()
        for step in range(1, room + 1):
            save(running, step)
        blocked = threading.Thread(target=save, args=(running, room + 1))
        blocked.start()
        blocked.join(0.3)
        assert blocked.is_alive()
        assert f"training waits at step {room + 1}" in said[-1]
        assert "backlog_bytes" in said[-1]
        store.open.set()
        blocked.join(20)
        running.finish({})
    (ledger,) = ledgers(f"memory://{store.name}")
    assert [entry.step for entry in ledger.milestones] == list(range(1, room + 2))


@pytest.mark.parametrize("fault", ["a file", "open to others"])
def test_a_disk_that_takes_nothing_makes_training_wait(tmp_path: Path, fault: str) -> None:
    said: list[str] = []
    store, spill = Gate(), tmp_path / "spill"
    if fault == "a file":
        spill.write_text("")
    else:
        (spill / f"kubestill-spilled-{os.getuid()}").mkdir(parents=True)
        (spill / f"kubestill-spilled-{os.getuid()}").chmod(0o775)
    with opened(place_on(store), spill, said.append) as running:
        store.open.clear()
        threading.Timer(0.3, store.open.set).start()
        for step in range(1, 5):
            save(running, step)
        running.finish({})
    assert any("training waits at step 3" in line and str(spill) in line for line in said)
    assert [e.step for e in ledgers(f"memory://{store.name}")[0].milestones] == [1, 2, 3, 4]


def test_a_signal_while_the_store_hangs_leaves_the_state_on_local_disk(tmp_path: Path) -> None:
    said: list[str] = []
    store, spill = Gate(), tmp_path / "spill"
    stopped: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    try:
        with opened(place_on(store), spill, said.append) as running:
            running.restore()
            save(running, 1)
            running.flush()
            store.open.clear()
            save(running, 2)
            save(running, 3)
            os.kill(os.getpid(), signal.SIGTERM)
            assert running.recovery_due()
            save(running, 4, "recovery")
            assert stopped == [signal.SIGTERM]
            store.killed = True
            store.open.set()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "the store hangs; the states of steps 2, 3 and 4 are kept in" in said[-1]
    store.killed = False
    with opened(place_on(store), spill) as running:
        assert [(e.step, e.kind) for e in running.ledger.entries] == [
            (1, "milestone"),
            (2, "milestone"),
            (3, "milestone"),
            (4, "recovery"),
        ]


def finish(running: Checkpointer) -> None:
    running.finish({})


def wait_for_room(running: Checkpointer) -> None:
    save(running, 4)


def wait_for_the_result(running: Checkpointer) -> None:
    running.flush()
    store = cast("Gate", running.place.store)
    store.cells_hang = True
    store.open.clear()
    running.finish({})


@pytest.mark.parametrize(
    ("wait", "slow", "told"),
    [
        (Checkpointer.flush, False, "hangs; the states of steps 2 and 3 are kept in"),
        (Checkpointer.flush, True, "is too slow; the states of steps 2 and 3 are kept in"),
        (wait_for_room, False, "hangs; the states of steps 2 and 3 are kept in"),
        (finish, False, "hangs; the states of steps 2 and 3 are kept in"),
        (wait_for_the_result, False, "hangs; all that was saved is committed"),
        (wait_for_the_result, True, "is too slow; all that was saved is committed"),
    ],
    ids=["flush", "slow flush", "room", "finish", "result", "slow result"],
)
def test_a_signal_ends_every_wait_for_the_store(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wait: Callable[[Checkpointer], Any],
    slow: bool,
    told: str,
) -> None:
    """Wherever the thread that trains waits, a pod's grace must do; nothing saved is lost."""
    if slow:
        monkeypatch.setattr(saver_module, "_SHORTEST_HANG", 100.0)
        monkeypatch.setattr(saver_module, "_GRACE_SECONDS", 0.05)
    said: list[str] = []
    store, spill = Gate(), tmp_path / "spill"

    def end(number: int, _: object) -> None:
        store.killed = True
        store.open.set()
        raise Killed

    before = signal.signal(signal.SIGTERM, end)
    try:
        with opened(place_on(store), spill, said.append, backlog_bytes=0) as running:
            assert signal.getsignal(signal.SIGTERM) is end  # there is nothing to save yet
            running.restore()
            save(running, 1)
            running.flush()
            if wait is not wait_for_the_result:
                store.open.clear()
            save(running, 2)
            save(running, 3)
            telling = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
            telling.start()
            began = time.monotonic()
            with pytest.raises(Killed):
                wait(running)
            assert time.monotonic() - began < 3
            telling.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert f"the store {told}" in said[-1]
    assert any("step 4, which is not saved" in line for line in said) == (wait is wait_for_room)
    store.killed = store.cells_hang = False
    with opened(place_on(store), spill) as running:
        assert [entry.step for entry in running.ledger.milestones] == [1, 2, 3]
        assert running.finished is None


HISTORIES = [
    history
    for length in (3, 4, 5)
    for history in itertools.product(
        ("milestone", "recovery", "hangs", "answers", "refuses"), repeat=length
    )
    if history[0] == "hangs"
    and history.count("hangs") <= 2
    and history.count("answers") <= 1
    and ("refuses" not in history or history.index("refuses") == length - 1)
    and not any(
        a == b and a in ("hangs", "answers", "refuses") for a, b in itertools.pairwise(history)
    )
]


@pytest.mark.parametrize("near", [False, True], ids=["", "near"])
@pytest.mark.parametrize(
    "length", [3, 4, 5] if os.environ.get("KUBESTILL_CRASH_POINTS") else [3, 4]
)
def test_no_state_is_found_without_the_milestones_before_it(
    tmp_path: Path, length: int, near: bool
) -> None:
    histories = [history for history in HISTORIES if len(history) == length]
    assert len(histories) > 10
    nearer = 0
    for number, history in enumerate(histories):
        store, spill = Gate(), tmp_path / str(number)
        options = {"near": str(tmp_path / f"near {number}"), "near_seconds": 1e-9} if near else {}
        saves = _live(history, store, spill, options)
        killed, store.killed, store.refuses = store.killed, False, False
        with opened(place_on(store), spill, lambda _: None, **options) as after:
            found = {entry.step: entry.kind for entry in after.ledger.entries}
            state = after.restore()
        newest = state.meta["step"] if state else 0
        assert newest >= max(found, default=0)
        nearer += newest not in found and newest > 0
        milestones = [step for step, kind in saves if kind == "milestone" and step <= newest]
        assert [step for step in sorted(found) if found[step] == "milestone"] == milestones, history
        if not killed:
            assert newest == max((step for step, _ in saves), default=0), history
    assert bool(nearer) == near, "states on the node's disk were the newest"


def _live(
    history: tuple[Event, ...], store: Gate, spill: Path, options: dict[str, Any]
) -> list[tuple[int, str]]:
    """Let a run live through a history, and end with the store as it is then; return its saves."""
    running = opened(place_on(store), spill, lambda _: None, outage_seconds=0, **options)
    saves: list[tuple[int, str]] = []
    for event in history:
        if event == "hangs":
            store.open.clear()
        elif event in ("answers", "refuses"):
            store.refuses = event == "refuses"
            store.open.set()
            with suppress(StoreUnavailable):
                running.flush()
        elif event == "milestone" or running.recovery_due():
            saves.append((len(saves) + 1, event))
            save(running, *saves[-1])
    # Where it hangs still, the process is killed: what it asked the store for is not carried out.
    store.killed = not store.open.is_set()
    store.open.set()
    running.close()
    return saves
