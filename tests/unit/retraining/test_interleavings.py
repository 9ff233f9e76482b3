"""Model-checks the registry: the real code on the memory store, one store operation at a time.

Each run is a thread that stops before every operation on the registry. A schedule says who goes
next, and what becomes of the operation: it works, the run dies before or after it, it is refused,
or it works and the answer is lost. Runs are retried under their own name, others start meanwhile,
and claims look dead at once, so that every run takes over from every other. What must hold:

- each row that was delivered falls into exactly one window, whatever happened;
- a part of a window is learned from only after its window judged, and never judges again;
- champions are numbered without a gap, and each was promoted by the run that holds its window;
- every run that ended has one outcome, and every window's run has that of its window;
- a run that never ended had its window taken over, and the history says by whom.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scene import Scene, rows

from kubestill.errors import Conflict, Fenced, StoreUnavailable
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.retraining import Registry, State, open_registry, transitions
from kubestill.runtime.retraining.collecting import CollectSettings
from kubestill.runtime.retraining.history import Judgement
from kubestill.runtime.retraining.outcomes import abandon, conclude
from kubestill.runtime.retraining.windows import WindowStore
from kubestill.runtime.steps import collect_fresh as task

Fate = Literal["works", "dies-before", "dies-after", "refused", "lost"]
Decision = Literal["healthy", "insufficient", "reject", "promote", "fails"]


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Stepped:
    """The registry's store, or a cell of it, one operation at a time."""

    def __init__(self, inner: Any, run: Run):
        self._inner, self._run = inner, run
        self.uri = getattr(inner, "uri", "")

    def cell(self, key: str) -> Any:
        return Stepped(self._inner.cell(key), self._run)

    def list(self, prefix: str = "") -> Iterator[Any]:
        return iter(self._run.operation(lambda: list(self._inner.list(prefix))))

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._inner, name)
        return lambda *args, **kwargs: self._run.operation(lambda: act(*args, **kwargs))


class Run:
    """One attempt of one run: collects, is judged, and ends."""

    def __init__(self, world: World, run_id: str, decision: Decision):
        self.world, self.run_id, self.decision = world, run_id, decision
        self.done, self.ended, self.operations = False, False, 0
        self.fate: Fate = "works"
        self._lock = threading.Lock()
        self._turn, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        self._paused.acquire()

    def step(self, fate: Fate) -> None:
        """Let it do its next operation, with this fate, and run up to the one after."""
        self.fate = fate
        self._turn.release()
        self._paused.acquire()

    def operation(self, act: Callable[[], Any]) -> Any:
        # A run reads with several threads: one at a time.
        with self._lock:
            return self._operate(act)

    def _operate(self, act: Callable[[], Any]) -> Any:
        self.operations += 1
        self._paused.release()
        self._turn.acquire()
        fate = self.fate
        if fate == "dies-before":
            raise Killed
        if fate == "refused":
            raise StoreUnavailable("503")
        answer = act()
        if fate == "dies-after":
            raise Killed
        if fate == "lost":
            raise StoreUnavailable("timed out")
        return answer

    def _live(self) -> None:
        registry = Registry(cast(Any, Stepped(self.world.store, self)))
        try:
            succeeded = self._work(registry)
            # Kubeflow starts the exit task whatever became of the others.
            conclude(registry, self.run_id, succeeded=succeeded)
            self.ended = True
        except (Killed, StoreUnavailable):
            pass
        except BaseException as error:
            self.world.errors.append(error)
        self.done = True
        self._paused.release()

    def _work(self, registry: Registry) -> bool:
        try:
            taken = task._collect(registry, self.world.settings, self.run_id)
            if taken.collected.status in ("waiting", "busy"):
                return True
            judged = Judgement(
                run_id=self.run_id, step="judge", decision=self.decision, reason="because"
            )
            stands = registry.append(judged)
            if stands.decision == "fails":
                return False
            if stands.decision == "promote":
                self._promote(registry)
            return True
        except (Conflict, Fenced):
            return False

    def _promote(self, registry: Registry) -> None:
        state = registry.read()
        if transitions.promoted(state, self.run_id) is None:
            held = transitions.holding(state, self.run_id)
            # Every other window's judge is learned from at once, by a refit.
            refit = bool(held.window.rows % 2)
            champion = self.world.scene.champion(self.run_id, held.window.id, refit=refit)
            registry.change(lambda now: transitions.promote(now, champion))


@dataclass
class World:
    """Runs on one registry, the rows that were delivered, and what must hold."""

    scene: Scene
    delivered: list[int] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = self.scene.registry.store
        self.settings = CollectSettings(
            source=str(self.scene.source),
            timestamp="t",
            target="y",
            as_of="2014-01-01",
            min_rows=1,
            min_judge_rows=0,
            min_events=0,
            judge_fraction=0.5,
            validation_fraction=0.0,
            lease_hours=1e-12,
        )

    def deliver(self, how: int) -> None:
        """Let rows arrive: in a file of their own, behind those of the last, or once more."""
        first = len(self.delivered)
        # Every other file is older than all before it, that is, late.
        day = f"2013-{1 + how % 12:02d}-01"
        kind = how % 3
        if kind == 0 or not first:
            frame = rows(first, 3, day=day)
            self.scene.deliver(f"{first}.csv", frame)
            self.last = (f"{first}.csv", frame)
            self.delivered += range(first, first + 3)
        elif kind == 1:
            name, frame = self.last
            self.scene.deliver(f"copy-{first}-{how}.csv", frame)
        else:
            name, frame = self.last
            frame = pd.concat([frame, rows(first, 2, day=day)])
            self.scene.deliver(name, frame)
            self.last = (name, frame)
            self.delivered += range(first, first + 2)

    def start(self, run_id: str, decision: Decision) -> Run:
        """Start a run, or the next attempt of one."""
        self.runs[run_id] = Run(self, run_id, decision)
        return self.runs[run_id]

    def finish(self, run: Run) -> None:
        while not run.done:
            run.step("works")
        self.check()

    def drain(self) -> None:
        """Let everybody end, and take what is left."""
        for run in list(self.runs.values()):
            self.finish(run)
        self.finish(self.start("last", "promote"))
        # The first may have found a claim of a dead run and the second nothing at all.
        self.finish(self.start("really-last", "promote"))

    def check(self) -> None:
        assert self.errors == []
        state = open_registry(self.store.uri).read()
        ids = [window.id for window in state.windows]
        assert len(ids) == len(set(ids))
        made = [one for one in (state.champion, *state.previous) if one]
        assert [one.version for one in made] == list(range(state.versions, 0, -1))
        for champion in made:
            window = state.window(champion.window)
            assert window is not None
            assert window.run_id == champion.run_id
            assert window.trained_by["train"] == champion.version
        for window in state.windows:
            assert (window.train == "trained") == ("train" in window.trained_by)
            assert window.judge != "trained" or "judge" in window.trained_by
            own = [one for one in made if one.window == window.id]
            if own and "judge" in window.trained_by:
                # Its judging rows were for later runs, never for the model they judged.
                assert window.trained_by["judge"] >= own[0].version + (not own[0].judged)

    def check_end(self) -> None:
        registry = open_registry(self.store.uri)
        state = registry.read()
        assert state.claim is None
        assert Counter(taken_rows(registry, state)) == Counter(self.delivered)
        runs = registry.runs()
        outcomes = {run.run_id: run.outcome.outcome for run in runs if run.outcome}
        for window in state.windows:
            assert outcomes[window.run_id] == window.verdict
        lost = {run.run_id for run in runs if run.taken_over}
        claimed = {run.run_id for run in runs if run.collection and run.collection.window}
        assert claimed <= outcomes.keys() | lost
        for run_id, run in self.runs.items():
            assert run_id in outcomes or not run.ended


def taken_rows(registry: Registry, state: State) -> list[int]:
    windows = WindowStore(registry, state)
    found: list[int] = []
    for window in state.windows:
        for half in ("train", "judge"):
            frame = Dataset.open(windows.uri(window.id, half)).to_pandas()
            found += [int(value) for value in frame["id"]]
    return found


Step = tuple[str, int, Fate, Decision]
FATES: list[Fate] = [*(["works"] * 12), "dies-before", "dies-after", "refused", "lost"]  # pyright: ignore
DECISIONS: list[Decision] = ["healthy", "insufficient", "reject", "promote", "promote", "fails"]
turns = st.tuples(
    st.sampled_from(["step"] * 8 + ["start", "deliver"]),
    st.integers(0, 11),
    st.sampled_from(FATES),
    st.sampled_from(DECISIONS),
)


def play(world: World, schedule: list[Step]) -> None:
    world.deliver(0)
    names = ["r0", "r1", "r2"]
    for act, number, fate, decision in schedule:
        if act == "deliver":
            world.deliver(number)
            continue
        name = names[number % 3]
        run = world.runs.get(name)
        if run is None or (run.done and not run.ended) or (run.done and act == "start"):
            if run is not None and run.ended:
                name = names[number % 3] = f"{name.partition('-')[0]}-{uuid.uuid4().hex[:6]}"
            run = world.start(name, decision)
        if not run.done:
            # A burst, so that runs get somewhere before another has its turn.
            for left in range(number, -1, -1):
                if not run.done:
                    run.step("works" if left else fate)
        world.check()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    # A failing schedule is short enough to be read as it is; shrinking it takes minutes.
    phases=[Phase.generate],
)
@given(schedule=st.lists(turns, min_size=5, max_size=30))
def test_no_interleaving_loses_or_repeats_a_row(
    tmp_path_factory: pytest.TempPathFactory, schedule: list[Step]
) -> None:
    folder: Path = tmp_path_factory.mktemp("world")
    world = World(Scene(folder, f"memory://{uuid.uuid4().hex}/registry"))
    play(world, schedule)
    world.drain()
    world.check_end()


@pytest.mark.parametrize("retried", [True, False], ids=["retried", "followed"])
def test_death_at_every_single_operation(tmp_path: Path, retried: bool) -> None:
    """A second run, which has a champion to judge, dies before its n-th operation, for each n."""
    operations = 1
    for place in itertools.count():
        if place > operations:
            break
        world = World(Scene(tmp_path / str(place), f"memory://{uuid.uuid4().hex}/registry"))
        world.deliver(0)
        world.finish(world.start("first", "promote"))
        world.deliver(3)
        run = world.start("second", "promote")
        for number in range(place + 1):
            if not run.done:
                run.step("dies-before" if number == place else "works")
        operations = run.operations
        if retried and not run.ended:
            world.finish(world.start("second", "promote"))
        world.drain()
        world.check_end()
    assert operations > 15


class Freeing(Run):
    """Somebody from outside, who gives back what the second run holds."""

    def _live(self) -> None:
        registry = Registry(cast(Any, Stepped(self.world.store, self)))
        try:
            abandon(registry, "second", "It was terminated by hand.")
        except Killed:
            pass
        except BaseException as error:
            self.world.errors.append(error)
        self.done = True
        self._paused.release()


@pytest.mark.parametrize("decision", ["promote", "healthy"])
def test_freed_at_every_single_operation_of_a_live_run(tmp_path: Path, decision: Decision) -> None:
    """Freeing dies at each of its own operations, too, and is repeated after the run's end."""
    place, operations = 0, 1
    while place <= operations:
        world = World(Scene(tmp_path / str(place), f"memory://{uuid.uuid4().hex}/registry"))
        world.deliver(0)
        world.finish(world.start("first", "promote"))
        world.deliver(3)
        run = world.start("second", decision)
        for _ in range(place):
            if not run.done:
                run.step("works")
        freeing = Freeing(world, "freeing", "fails")
        for number in itertools.count():
            if freeing.done:
                break
            freeing.step("dies-before" if number == place % 7 else "works")
            if not run.done:
                run.step("works")
        world.finish(run)
        operations = run.operations
        world.finish(Freeing(world, "freeing", "fails"))
        world.drain()
        world.check_end()
        place += 1
    assert operations > 15
