"""Save while training goes on: copy now, write later, in order.

Commits come in the order of the saves. So whatever state is the newest in the ledger, every
milestone before it was listed, too, and resuming from it misses none. What may be left out is a
recovery checkpoint: nobody takes one while another save is under way. A milestone never is: while
the store hangs, milestones wait in memory, then on local disk, and only where that is full does
training wait. Nothing waits any longer once the process was told to end: what the store has not
taken is then kept on local disk.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import torch

from kubestill.errors import Fenced, StoreError, StoreUnavailable
from kubestill.runtime.checkpoints.arena import Arena
from kubestill.runtime.checkpoints.place import Announce
from kubestill.runtime.checkpoints.schedule import SaveCost
from kubestill.runtime.checkpoints.spill import Spill, name_states
from kubestill.runtime.checkpoints.state import Layout
from kubestill.runtime.checkpoints.writer import CheckpointWriter, Snapshot

_LONGEST_PAUSE = 15.0
_SHORTEST_HANG = 1.0
_GRACE_SECONDS = 10.0
"""How long a process that was told to end waits for a store that is slow: pods get 30 s by default,
and local copies need some of it."""
_POLL_SECONDS = 0.02
_TYPICAL_SECONDS = 1.5
"""What a save is expected to take before any was measured."""


@dataclass(eq=False)
class _Job:
    snapshot: Snapshot
    arena: Arena
    blocked: float
    """Seconds that training stood still for it."""
    copied: float
    """When it went on, by the monotonic clock."""
    done: bool = False
    """Whether it needs no more than its arena's release: it is kept, or left out."""


@dataclass(eq=False)
class _Call:
    """Something else to do with the store, in its turn."""

    act: Callable[[], object]
    what: str
    """Names it in messages."""


class Saver:
    """Copies state in the caller's thread and has a thread of its own write it.

    Back-pressure: a save waits while all arenas are still being written. Where that takes three
    times as long as usual, the store hangs: then the copy goes to local disk, up to a bound, and
    training goes on. What the thread cannot write it tries again, for as long as the outage may
    last; then it spills what it holds, and every call raises why. When fenced, every call raises
    that at once.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        *,
        buffers: int,
        outage_seconds: float,
        spill: Spill | None,
        backlog: Callable[[], str],
        backlog_bytes: float,
        measured: Callable[[SaveCost], None],
        leaving: Callable[[], bool],
        announce: Announce,
    ):
        """Start the thread.

        Args:
            writer: Writes one checkpoint.
            buffers: Arenas in memory.
            outage_seconds: How long what fails is tried again.
            spill: Keeps what the store never took; None where another rank does, or none can.
            backlog: Gives a folder on local disk for copies that wait while the store hangs.
            backlog_bytes: How much they may take there.
            measured: Takes what each save cost.
            leaving: Says whether the process was told to end.
            announce: Takes progress and warnings, one line each.
        """
        self._writer = writer
        self._outage_seconds = outage_seconds
        self._spill = spill
        self._measured = measured
        self._leaving = leaving
        self._announce = announce
        # Last in, first out: the second arena costs memory only once two saves overlap.
        self._free: queue.LifoQueue[Arena] = queue.LifoQueue()
        for _ in range(buffers):
            self._free.put(Arena())
        self._jobs: queue.Queue[_Job | _Call | None] = queue.Queue()
        self._backlog_folder, self._backlog_bytes = backlog, backlog_bytes
        self._backlog: dict[Arena, int] = {}
        """Bytes of the arenas on disk."""
        self._overflowed = self._full = 0
        """Copies that went to disk, and that had to wait, since the store began to hang."""
        self._job: _Job | _Call | None = None
        """What is under way."""
        self._begun: float | None = None
        """When that began, by the monotonic clock."""
        self._typical: deque[float] = deque([_TYPICAL_SECONDS], maxlen=9)
        """Seconds that the last saves took to be written."""
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="checkpoint-saver", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a save is still being written."""
        return self._jobs.unfinished_tasks > 0

    def check(self) -> None:
        """Raise what stopped the saver, if anything did."""
        if self._error is not None:
            raise self._error

    def stop(self, error: BaseException) -> None:
        """Let every further call raise `error`: somebody else found out that we were fenced."""
        self._error = self._error or error
        self._stop.set()

    def submit(self, tensors: Mapping[str, torch.Tensor], snapshot: Snapshot) -> bool:
        """Copy the live tensors and return; the rest happens behind.

        Returns:
            Whether they were copied. Not where the store hangs, there is no more room for a copy,
            and the process was told to end.

        Raises:
            Fenced: Another attempt owns the training run.
            StoreUnavailable: The store refused for longer than the bound.
        """
        started = time.monotonic()
        arena = self._acquire(tensors, snapshot.stamp.step)
        if arena is None:
            return False
        arena.fill(tensors)
        copied = time.monotonic()
        self._jobs.put(_Job(snapshot, arena, copied - started, copied))
        return True

    def call(self, act: Callable[[], object], *, what: str) -> None:
        """Do something else with the store once everything submitted is committed.

        In the saver's thread, so that a store that never answers does not keep the caller. It is
        tried again for as long as an outage may last: doing it twice must be harmless.

        Args:
            act: What to do.
            what: Names it in messages.
        """
        self._jobs.put(_Call(act, what))

    def flush(self) -> bool:
        """Wait until everything submitted is durable and committed, and every call done.

        Returns:
            Whether it is. Not where the process was told to end and the store hangs, or takes
            longer than such a process may wait: what the store lacks is then kept on local disk.

        Raises:
            Fenced: Another attempt owns the training run.
            StoreUnavailable: The store refused for longer than the bound.
        """
        told = None
        while self.busy:
            self.check()
            job = self._job
            if job is not None and self._leaving():
                told = told or time.monotonic()
                hangs = self._seconds_until_it_hangs() <= 0
                if hangs or time.monotonic() - told > _GRACE_SECONDS:
                    why = "hangs" if hangs else "is too slow"
                    self._announce(f"WARNING: the store {why}; {self._keep_locally(job)}")
                    return False
            with self._jobs.all_tasks_done:
                if self.busy:
                    self._jobs.all_tasks_done.wait(_POLL_SECONDS)
        self.check()
        return True

    def close(self) -> None:
        """Finish what is under way and end the thread; raises nothing."""
        self._jobs.put(None)
        self._thread.join()

    def _acquire(self, tensors: Mapping[str, torch.Tensor], step: int) -> Arena | None:
        while True:
            self.check()
            wait = self._seconds_until_it_hangs()
            with suppress(queue.Empty):
                return self._free.get(block=wait > 0, timeout=min(wait, 1.0))
            if wait <= 0:
                if (arena := self._reserve_on_disk(tensors, step)) is not None:
                    return arena
                if self._leaving():
                    return None
                with suppress(queue.Empty):
                    return self._free.get(timeout=1.0)

    def _seconds_until_it_hangs(self) -> float:
        """Return after how many seconds the save under way will count as one that hangs."""
        patience = max(3 * median(self._typical), _SHORTEST_HANG)
        begun = self._begun
        return patience if begun is None else begun + patience - time.monotonic()

    def _reserve_on_disk(self, tensors: Mapping[str, torch.Tensor], step: int) -> Arena | None:
        """Return an arena on local disk, or None where there is no room; announce what that means.

        Called only while a save hangs and every arena in memory waits behind it.
        """
        limit = self._backlog_bytes
        size, used = Layout.of(tensors).size, sum(list(self._backlog.values()))
        why = f"they may take {limit / 1e6:,.0f} MB (checkpoints.backlog_bytes)"
        if used + size <= limit:
            try:
                arena = Arena(folder := self._backlog_folder())
                arena.reserve(tensors)
            except (StoreError, OSError) as error:
                why = str(error)
            else:
                self._backlog[arena] = size
                self._overflowed += 1
                if self._overflowed == 1:
                    self._announce(
                        f"WARNING: the store hangs: training goes on. Milestones from step {step} "
                        f"on wait in {folder}, on up to {limit / 1e6:,.0f} MB; recovery "
                        "checkpoints are left out until it answers"
                    )
                return arena
        self._full += 1
        if self._full == 1:
            self._announce(
                f"WARNING: the store hangs, and no more milestones can wait on disk ({why}): "
                f"training waits at step {step}"
            )
        return None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._begun, self._job = time.monotonic(), job
            try:
                if self._error is None:
                    if isinstance(job, _Call):
                        self._insist(job.act, what=job.what)
                    else:
                        self._persist(job)
            except BaseException as error:  # a save that failed must reach the thread that trains
                self._error = self._error or error
            finally:
                if isinstance(job, _Job):
                    self._release(job, seconds=time.monotonic() - self._begun)
                self._begun = self._job = None
                self._jobs.task_done()
                self._say_caught_up()
                del job
        self._jobs.task_done()

    def _release(self, job: _Job, *, seconds: float) -> None:
        """Take back the arena of a save that took so long."""
        # Cut off, so that one that hung does not make the next seem usual.
        longest = 2 * max(3 * median(self._typical), _SHORTEST_HANG)
        self._typical.append(min(seconds, longest))
        if self._backlog.pop(job.arena, None) is None:
            self._free.put(job.arena)

    def _say_caught_up(self) -> None:
        if self._overflowed and not self._backlog and self._error is None:
            self._announce(
                f"the store answers again: all milestones that waited are saved, "
                f"{self._overflowed} of them from disk"
            )
            self._overflowed = self._full = 0

    def _persist(self, job: _Job) -> None:
        cpu = time.thread_time()
        parts = job.arena.parts()
        try:
            self._insist(
                lambda: self._writer.write(job.snapshot, parts),
                what=f"the checkpoint of step {job.snapshot.stamp.step}",
            )
        except StoreError as error:
            raise StoreUnavailable(f"{error}; {self._keep_locally(job)}") from error
        stolen = (time.thread_time() - cpu) / (os.cpu_count() or 1)
        behind = time.monotonic() - job.copied
        self._measured(SaveCost(blocked=job.blocked, behind=behind, stolen=stolen))

    def _insist(self, act: Callable[[], object], *, what: str) -> None:
        """Do something with the store again and again, for as long as an outage may last.

        Args:
            act: What to do; doing it twice must be harmless.
            what: Names it in messages.

        Raises:
            StoreUnavailable: The store refused for longer than the bound.
        """
        refused, pause = 0.0, 0.5
        while True:
            try:
                act()
                break
            except StoreError as error:
                now = time.monotonic()
                refused = refused or now
                if now - refused + pause > self._outage_seconds:
                    bound = f"for {self._outage_seconds:.0f} s"
                    message = f"{what} could not be saved {bound}, training stops: {error}"
                    raise StoreUnavailable(message) from error
                if now == refused:
                    self._announce(f"WARNING: {what} cannot be saved, trying again: {error}")
            self._stop.wait(pause)
            self.check()
            pause = min(2 * pause, _LONGEST_PAUSE)
        if refused:
            self._announce(f"{what} is saved after all")

    def _keep_locally(self, job: _Job | _Call) -> str:
        """Commit what the store has not taken to local disk, in order; say what became of it.

        Every milestone, and the newest state whatever its kind. None is kept behind a milestone
        that is not: who resumed from it would miss that one for good.
        """
        if self._spill is None:
            return "this process keeps nothing on local disk"
        kept: list[int] = []
        root = lost = ""
        while not lost and (pending := [one for one in self._unsaved(job) if not one.done]):
            for one in pending:
                one.done = True
                if one.snapshot.stamp.kind != "milestone" and one is not pending[-1]:
                    continue
                step = one.snapshot.stamp.step
                try:
                    root = self._spill.keep(one.snapshot, one.arena.parts())
                except (StoreError, Fenced) as error:
                    lost = f"the state of step {step} could not be kept locally either: {error}"
                    break
                kept.append(step)
        if not kept:
            return lost or "all that was saved is committed"
        again = (
            f"{name_states(kept)} {'is' if len(kept) == 1 else 'are'} kept in {root} (start again "
            "with the same checkpoint_uri on this machine, or with the same spill_folder, and "
            f"training goes on from there; where the store is gone for good, instead give {root} "
            "as checkpoint_uri to resume)"
        )
        return f"{again}; {lost}" if lost else again

    def _unsaved(self, job: _Job | _Call) -> list[_Job]:
        """Return `job` and those that wait behind it, in the order in which they were submitted."""
        with self._jobs.mutex:
            return [one for one in (job, *self._jobs.queue) if isinstance(one, _Job)]
