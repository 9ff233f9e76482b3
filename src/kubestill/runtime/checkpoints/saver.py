"""Saving behind the training's back: copy now, write later, never more than two copies."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from kubestill.errors import StoreError, StoreUnavailable
from kubestill.runtime.checkpoints.arena import Arena
from kubestill.runtime.checkpoints.place import Announce
from kubestill.runtime.checkpoints.schedule import SaveCost
from kubestill.runtime.checkpoints.writer import CheckpointWriter, Snapshot
from kubestill.runtime.stores.base import Content

Spill = Callable[[Snapshot, tuple[Content, ...]], str]
_LONGEST_PAUSE = 15.0


@dataclass
class _Job:
    snapshot: Snapshot
    arena: Arena
    blocked: float
    """Seconds that training stood still for it."""
    copied: float
    """When it went on, by the monotonic clock."""


class Saver:
    """Copies state in the caller's thread and has a thread of its own write it.

    Back-pressure: a save waits while all arenas are still being written. What the thread cannot
    write it tries again, for as long as the outage may last; then it spills the newest state it
    holds, and every call raises why. When fenced, every call raises that at once.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        *,
        buffers: int,
        outage_seconds: float,
        spill: Spill | None,
        measured: Callable[[SaveCost], None],
        announce: Announce,
    ):
        self._writer = writer
        self._outage_seconds = outage_seconds
        self._spill = spill
        self._measured = measured
        self._announce = announce
        # Last in, first out: the second arena costs memory only once two saves overlap.
        self._free: queue.LifoQueue[Arena] = queue.LifoQueue()
        for _ in range(buffers):
            self._free.put(Arena())
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
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

    def submit(self, tensors: Mapping[str, torch.Tensor], snapshot: Snapshot) -> None:
        """Copy the live tensors and return; the rest happens behind.

        Raises:
            Fenced: Another attempt owns the training.
            StoreUnavailable: The store refused for longer than the bound.
        """
        started = time.monotonic()
        arena = self._acquire()
        arena.fill(tensors)
        copied = time.monotonic()
        self._jobs.put(_Job(snapshot, arena, copied - started, copied))

    def flush(self) -> None:
        """Wait until everything submitted is durable and committed.

        Raises:
            Fenced: Another attempt owns the training.
            StoreUnavailable: The store refused for longer than the bound.
        """
        self._jobs.join()
        self.check()

    def close(self) -> None:
        """Finish what is under way and end the thread; raises nothing."""
        self._jobs.put(None)
        self._thread.join()

    def _acquire(self) -> Arena:
        while True:
            self.check()
            try:
                return self._free.get(timeout=1.0)
            except queue.Empty:
                continue

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    self._persist(job)
            except BaseException as error:  # a save that failed must reach the training's thread
                self._error = self._error or error
            finally:
                self._free.put(job.arena)
                self._jobs.task_done()
        self._jobs.task_done()

    def _persist(self, job: _Job) -> None:
        cpu = time.thread_time()
        parts = job.arena.parts()
        try:
            self.insist(
                lambda: self._writer.write(job.snapshot, parts),
                what=f"the checkpoint of step {job.snapshot.stamp.step}",
            )
        except StoreError as error:
            raise StoreUnavailable(f"{error}; {self._keep_newest_locally(job)}") from error
        stolen = (time.thread_time() - cpu) / (os.cpu_count() or 1)
        behind = time.monotonic() - job.copied
        self._measured(SaveCost(blocked=job.blocked, behind=behind, stolen=stolen))

    def insist(self, act: Callable[[], object], *, what: str) -> None:
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

    def _keep_newest_locally(self, job: _Job) -> str:
        if self._spill is None:
            return "rank 0 keeps the state"
        job = self._newest(job)
        while True:
            step = job.snapshot.stamp.step
            try:
                where = self._spill(job.snapshot, job.arena.parts())
                kept = f"the state of step {step} is kept in {where}"
            except StoreError as error:
                kept = f"the state of step {step} could not be kept locally either: {error}"
            newest = self._newest(job)
            if newest is job:
                return kept
            job = newest

    def _newest(self, job: _Job) -> _Job:
        """Return the save that was submitted last: `job`, or one that waits behind it."""
        with self._jobs.mutex:
            waiting = [queued for queued in self._jobs.queue if queued is not None]
        return waiting[-1] if waiting else job
