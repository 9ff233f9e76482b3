"""Model-checks the commit protocol: the real code on the memory store, one operation at a time.

Each writer is a thread that stops before every store operation. A schedule says who goes next, and
what becomes of the operation: it works, the writer dies before or after it, it is refused, or it
works and the answer is lost. After every single operation the promises of the protocol are checked.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubestill.errors import Fenced, StoreUnavailable
from kubestill.runtime.checkpoints import protocol
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.ledger import LEDGER_KEY, Attempt, Ledger
from kubestill.runtime.checkpoints.manifest import Stamp, read_manifest
from kubestill.runtime.checkpoints.place import Place
from kubestill.runtime.checkpoints.retention import KeepLast, keep_entries
from kubestill.runtime.checkpoints.writer import CheckpointWriter, Snapshot, sweep
from kubestill.runtime.stores.base import Store
from kubestill.runtime.stores.memory import MemoryStore

Fate = Literal["works", "dies-before", "dies-after", "refused", "lost"]
LAST_STEP = 3


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Writer:
    """One process that claims the training, resumes, saves every step and finishes."""

    def __init__(self, world: World, name: str, owner: str):
        self.world, self.name = world, name
        self.done = False
        self.outcome = ""
        self.fate: Fate = "works"
        self.clock = 0.0
        self._turn, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        place = Place(
            store=cast(Store, SteppedStore(world.store, self)),
            experiment="e",
            fingerprint="f",
            owner=owner,
        )
        self._thread = threading.Thread(target=self._run, args=(place,), daemon=True)
        self._thread.start()
        self._paused.acquire()

    def step(self, fate: Fate) -> None:
        """Let it do its next operation, with this outcome, and run up to the one after."""
        self.fate = fate
        self._turn.release()
        self._paused.acquire()

    def operation(self, act: Callable[[], Any]) -> Any:
        self._paused.release()
        self._turn.acquire()
        if self.fate == "dies-before":
            raise Killed
        if self.fate == "refused":
            raise StoreUnavailable("503")
        answer = act()
        if self.fate == "dies-after":
            raise Killed
        if self.fate == "lost":
            raise StoreUnavailable("timed out")
        return answer

    def _run(self, place: Place) -> None:
        try:
            self.outcome = self._train(place)
        except Killed:
            self.outcome = "killed"
        except Fenced:
            self.outcome = "fenced"
        except StoreUnavailable:
            self.outcome = "gave up"
        except BaseException as error:
            self.world.failures.append(error)
        self.done = True
        self._paused.release()

    def _train(self, place: Place) -> str:
        cell = LedgerCell(place, clock=lambda: self.clock)
        attempt = cell.claim(
            owner=place.owner,
            beat_seconds=1.0,
            announce=lambda _: None,
            sleep=self._sleep,
            monotonic=lambda: self.clock,
        )
        if attempt is None:
            return "adopted"
        sweep(place.store, cell.latest.entries, attempt)
        writer = CheckpointWriter(
            place,
            cell,
            attempt,
            rank=0,
            world=1,
            numerics={},
            keep=lambda entries, marks: keep_entries(entries, [KeepLast(2)], marks),
        )
        first = cell.latest.newest_first[0].step + 1 if cell.latest.newest_first else 1
        for step in range(first, self.world.last_step + 1):
            snapshot = Snapshot(
                stamp=Stamp(step=step, epoch=0, examples=0, kind="milestone", created=0.0),
                save=step,
                meta="{}",
                rank_meta="null",
            )
            self._insist(partial(writer.write, snapshot, [state(step)]))
            self.world.acknowledged.append((step, attempt.number))
        result = {"by": attempt.id}
        self._insist(
            lambda: cell.change(
                lambda ledger: protocol.conclude(ledger, attempt, now=0.0, result=result)
            )
        )
        self.world.results.append(cell.latest.finished)
        return "finished"

    def _insist(self, act: Callable[[], Any]) -> None:
        for _ in range(3):
            try:
                act()
                return
            except StoreUnavailable:
                continue
        raise StoreUnavailable("three times")

    def _sleep(self, seconds: float) -> None:
        # A pause may be as long as it likes: whoever is presumed dead may be only slow.
        self.clock += 10 * seconds
        self.operation(lambda: None)


class SteppedStore:
    """The memory store, one operation at a time."""

    def __init__(self, store: MemoryStore, writer: Writer):
        self._store, self._writer = store, writer
        self.uri = store.uri

    def get(self, key: str) -> bytes:
        return self._writer.operation(lambda: self._store.get(key))

    def put(self, key: str, content: Any, *, create: bool = False) -> Any:
        return self._writer.operation(lambda: self._store.put(key, content, create=create))

    def put_parts(self, key: str, parts: Any) -> Any:
        return self._writer.operation(lambda: self._store.put_parts(key, parts))

    def list(self, prefix: str = "") -> Iterator[Any]:
        return iter(self._writer.operation(lambda: list(self._store.list(prefix))))

    def delete(self, key: str) -> None:
        self._writer.operation(lambda: self._store.delete(key))

    def cell(self, key: str) -> Any:
        return SteppedCell(self._store.cell(key), self._writer)

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)


class SteppedCell:
    def __init__(self, cell: Any, writer: Writer):
        self._cell, self._writer = cell, writer

    def read(self) -> tuple[bytes | None, str]:
        return self._writer.operation(self._cell.read)

    def swap(self, content: bytes, *, expect: str) -> str:
        world = self._writer.world
        return self._writer.operation(lambda: world.swap(self._cell, content, expect))


class World:
    """Writers on one place, and what must hold at every moment."""

    def __init__(self, owners: Sequence[str], last_step: int = LAST_STEP):
        self.last_step = last_step
        self.store = MemoryStore(uuid.uuid4().hex)
        self.acknowledged: list[tuple[int, int]] = []
        self.results: list[Any] = []
        self.failures: list[BaseException] = []
        self._seen = Ledger(uri="")
        self._names: dict[int, str] = {}
        self.writers = [Writer(self, str(i), owner) for i, owner in enumerate(owners)]

    @staticmethod
    def swap(cell: Any, content: bytes, expect: str) -> str:
        return cell.swap(content, expect=expect)

    @property
    def living(self) -> list[Writer]:
        return [writer for writer in self.writers if not writer.done]

    def add(self, owner: str) -> None:
        self.writers.append(Writer(self, str(len(self.writers)), owner))

    def step(self, who: int, fate: Fate) -> None:
        self.living[who % len(self.living)].step(fate)
        self.check()

    def check(self) -> None:
        if self.failures:
            raise self.failures[0]
        content, _ = self.store.cell(LEDGER_KEY).read()
        if content is None:
            assert not self.acknowledged
            return
        ledger, before = Ledger.from_bytes(content, source="model"), self._seen
        attempt = ledger.attempt
        assert isinstance(attempt, Attempt)
        assert ledger.sequence >= before.sequence
        assert attempt.number >= (before.attempt.number if before.attempt else 0)
        # No number is ever two attempts'.
        assert self._names.setdefault(attempt.number, attempt.id) == attempt.id
        # What is listed is whole: every byte.
        for entry in ledger.entries:
            manifest = read_manifest(self.store, entry.manifest)
            whole = self.store.get(manifest.files[0].key)
            assert hashlib.sha256(whole).hexdigest() == manifest.files[0].sha256
            assert whole == state(entry.step)
        # Only the owner lists anything new.
        old = {entry.manifest.key for entry in before.entries}
        new = [entry for entry in ledger.entries if entry.manifest.key not in old]
        assert all(entry.attempt == attempt.number for entry in new)
        # Progress is never lost: what was acknowledged is listed, or something newer is.
        newest = max((entry.step for entry in ledger.entries), default=0)
        assert newest >= max((step for step, _ in self.acknowledged), default=0)
        # A result is final.
        assert before.finished in (None, ledger.finished)
        assert all(result == self.results[0] for result in self.results)
        self._seen = ledger

    def end(self) -> None:
        """Let everybody run on undisturbed, then one more: the training must be finished."""
        while self.living:
            self.step(0, "works")
        self.add("the last retry")
        while self.living:
            self.step(0, "works")
        assert self.writers[-1].outcome in ("finished", "adopted")
        assert self._seen.finished is not None
        assert self._seen.entries[-1].step == self.last_step

    def stop(self) -> None:
        for writer in self.living:
            while not writer.done:
                writer.step("dies-before")


def state(step: int) -> bytes:
    return f"state of step {step}".encode() * 3


def run(
    owners: Sequence[str],
    schedule: Sequence[tuple[int, Fate]],
    *,
    world_type: type[World] = World,
) -> World:
    world = world_type(owners)
    try:
        for who, fate in schedule:
            if not world.living:
                break
            world.step(who, fate)
            if world.writers[-1].outcome == "killed" and len(world.writers) < 5:
                world.add(owners[0])
        world.end()
    finally:
        world.stop()
    return world


FAULTS: list[Fate] = ["dies-before", "dies-after", "refused", "lost"]
WORKS: Fate = "works"
schedules = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([WORKS] * 8 + FAULTS)), min_size=10, max_size=120
)
model = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


@given(schedule=schedules)
@model
def test_retries_of_one_task_keep_every_promise(schedule: list[tuple[int, Fate]]) -> None:
    run(["a", "a", "a"], schedule)


@given(schedule=schedules)
@model
def test_runs_that_compete_keep_every_promise(schedule: list[tuple[int, Fate]]) -> None:
    run(["a", "b", "c"], schedule)


@pytest.mark.parametrize("first", range(9))
def test_every_interleaving_with_three_switches(first: int) -> None:
    # Bugs of such protocols need few switches between writers (Musuvathi & Qadeer 2007): two
    # attempts at one step take turns for every combination of turn lengths.
    for second, third in itertools.product(range(1, 10), range(1, 10)):
        world = World(["a", "a"], last_step=1)
        try:
            for who, turns in ((0, first), (1, second), (0, third)):
                for _ in range(turns):
                    if not world.writers[who].done:
                        world.writers[who].step("works")
                        world.check()
            while not world.writers[1].done:
                world.writers[1].step("works")
                world.check()
            world.end()
        finally:
            world.stop()


@pytest.mark.parametrize("fate", FAULTS)
def test_a_fault_at_every_operation(fate: Fate) -> None:
    # One training alone takes some thirty operations; each of them is hit once.
    for moment in range(40):
        turns: list[tuple[int, Fate]] = [(0, "works")] * moment
        run(["a"], [*turns, (0, fate)])


class BrokenSwap(World):
    """A cell that replaces whatever is there, as a rename would."""

    @staticmethod
    def swap(cell: Any, content: bytes, expect: str) -> str:
        return cell.swap(content, expect=cell.read()[1])


def test_the_model_notices_a_swap_that_does_not_compare() -> None:
    turns: list[tuple[int, Fate]] = [(turn % 2, "works") for turn in range(60)]
    with pytest.raises(AssertionError):
        run(["a", "a"], turns, world_type=BrokenSwap)
