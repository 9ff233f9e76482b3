"""What a training loop holds: one object that resumes, saves, finishes, and says when to do so.

In use:

    place = resolve_place(checkpoint_uri, experiment, fingerprint, ledger.uri, announce=print)
    checkpointer = Checkpointer.open(place, settings, numerics=numerics(), announce=print)
    with checkpointer:
        if checkpointer.finished is None:
            if (state := checkpointer.restore()) is not None:
                load(state)  # exact if checkpointer.exact
            while training:
                train_one_step()
                if milestone:
                    checkpointer.save(view(), kind="milestone", step=..., metrics=...)
                elif checkpointer.recovery_due():
                    checkpointer.save(view(), kind="recovery", step=...)
            checkpointer.finish(result)
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from kubestill.errors import Fenced, InvalidInput, Problem, StoreError, StoreUnavailable
from kubestill.runtime.base.device import local_rank
from kubestill.runtime.checkpoints import protocol
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.ledger import (
    Attempt,
    CheckpointKind,
    Json,
    Ledger,
    LedgerEntry,
    finite,
)
from kubestill.runtime.checkpoints.manifest import Stamp
from kubestill.runtime.checkpoints.mirror import Mirror
from kubestill.runtime.checkpoints.near import Committed, Near, near_store, remove_near
from kubestill.runtime.checkpoints.peers import Copies, list_copies
from kubestill.runtime.checkpoints.place import Announce, Place
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.restore import Wanted
from kubestill.runtime.checkpoints.resuming import newest_whole, same_bits
from kubestill.runtime.checkpoints.retention import policy_of
from kubestill.runtime.checkpoints.saver import Saver
from kubestill.runtime.checkpoints.schedule import RecoverySchedule, SavingReport
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.checkpoints.signals import TerminationFlag
from kubestill.runtime.checkpoints.spill import Spill, bring_back, catch_up, waits
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.checkpoints.writer import CheckpointWriter, Snapshot, sweep

Resume = Literal["auto", "never", "must"]

_ASKED_SECONDS = 0.1
"""Between two times that ranks ask whether state is to be saved: a pod that ends has little more.
"""


@dataclass(frozen=True, kw_only=True)
class _Vote:
    """What a rank says of the next save; rank 0's word counts but where all are needed."""

    place: bool = False
    """Whether a state is due at the place."""
    near: bool = False
    """Whether one is due on the nodes' disks."""
    ready: bool = True
    """Whether this node's disk takes one."""
    ends: bool = False
    """Whether this process was told to end."""
    steps: int = 1
    """After how many steps they are asked again."""
    listed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the ledger lists."""
    written: tuple[str, ...] = ()
    """Names of the states of which this rank's piece is on its node's disk."""


@dataclass(frozen=True, kw_only=True)
class _Agreed:
    """Where the next recovery state goes: all ranks write a part of it there, or none does."""

    place: bool
    """To the place."""
    near: bool
    """To the nodes' disks."""
    ends: bool
    """Whether any rank was told to end: none trains on before it is durable."""
    complete: frozenset[str]
    """Names of those there that have all their pieces."""


class Checkpointer:
    """One attempt at one training run.

    Make it with `open`; use it as a context manager, or `close` it. With several processes every
    rank opens one and makes the same calls in the same order.
    """

    def __init__(
        self,
        place: Place,
        settings: CheckpointSettings,
        *,
        cell: LedgerCell,
        attempt: Attempt | None,
        ranks: Ranks,
        resume: Resume,
        numerics: dict[str, Any],
        replicated: bool,
        sharded: bool,
        copies: Sequence[Copies] | None,
        announce: Announce,
    ):
        self._place = place
        self._cell = cell
        self._attempt = attempt
        self._ranks = ranks
        self._writers = 1 if replicated and not sharded else ranks.world
        """Ranks that save a part of the state."""
        self._replicated, self._sharded = replicated, sharded and ranks.world > 1
        self._resume = resume
        self._numerics = numerics
        self._announce = announce
        self._settings = settings
        self._resumed: LedgerEntry | None = None
        self._exact = True
        self._saves = 0
        self._unasked, self._asked = 0, (time.monotonic(), 1)
        self._closed = threading.Event()
        self._failed = False
        """Whether the training run ends by an error, here: the other ranks may be gone."""
        self._flag = TerminationFlag()
        self._schedule = _schedule_of(settings, settings.recovery_seconds)
        self._near: Near | None = None
        self._found: Committed | None = None
        """What the ledger listed before this attempt; rank 0 alone knows."""
        self._told: Committed | None = None
        """What it lists, as rank 0 said last."""
        self._agreed: _Agreed | None = None
        """What ranks that write pieces of near states agreed on; None where they do not."""
        self._copies = copies
        """The states on the nodes' disks, where they are known already."""
        self._milestone: int | None = None
        """Step of the last one."""
        self._marks = protocol.Marks()
        self._writer: CheckpointWriter | None = None
        self._saver: Saver | None = None
        if attempt is not None:
            self._start(attempt, settings)
        else:
            self._remove_near()

    @classmethod
    def open(
        cls,
        place: Place,
        settings: CheckpointSettings,
        *,
        resume: Resume = "auto",
        numerics: Mapping[str, Any],
        replicated: bool = False,
        sharded: bool = False,
        announce: Announce = print,
    ) -> Checkpointer:
        """Become the next attempt at this training run, or adopt the result of one that finished.

        A retry of the same task takes over at once. Where another run may be training at this
        place, this waits until that one finishes (and adopts its result) or misses three
        heartbeats.

        Args:
            place: From `resolve_place`.
            settings: How often to save and what to keep; `metric` should be the training run's own.
            resume: `never` starts afresh, in a place of its own; `must` fails where there is
                nothing to resume.
            numerics: Everything besides state and data that changes bits. Plain JSON.
            replicated: The state is the same on every rank, and their number changes no bit: rank 0
                saves it alone, and any number of ranks resumes from it.
            sharded: As `replicated`, but each rank has, and saves, tensors that no other has.
            announce: Takes progress and warnings, one line each.

        Raises:
            InvalidInput: `resume="must"` found nothing; or a ledger of another format version.
            TrainingFailed: An earlier attempt recorded that this training run cannot succeed.
            StoreError: The store did not answer.
        """
        ranks = Ranks.current()
        if resume == "never":
            place = place.fresh(ranks.share)
        cell = LedgerCell(place)
        attempt, copies = None, None
        if resume == "must":
            shared = ranks.world == 1 or replicated or sharded
            lost = False
            if ranks.rank == 0 and _starts_afresh(cell.read()[0], place.owner):
                lost = not shared or not waits(settings.spill_folder, place, announce)
            lost = json.loads(ranks.share(json.dumps(lost)))
            if lost and shared and settings.near:
                copies = list_copies(settings.near, place, ranks, announce)
                committed = Committed.of(cell.read()[0])
                lost = all(committed.outdates(one.any) for one in copies)
                lost = json.loads(ranks.share(json.dumps(lost)))
            if lost:
                raise _nothing_to_resume(place)
        if ranks.rank == 0:
            attempt = cell.claim(
                owner=place.owner, beat_seconds=settings.heartbeat_seconds, announce=announce
            )
        told = json.loads(ranks.share(json.dumps(vars(attempt) if attempt else None)))
        if ranks.rank:
            cell.refresh()
            attempt = Attempt(**told) if told else None
        return cls(
            place,
            settings,
            cell=cell,
            attempt=attempt,
            ranks=ranks,
            resume=resume,
            numerics=json.loads(json.dumps(dict(numerics))),
            replicated=replicated or sharded,
            sharded=sharded,
            copies=copies,
            announce=announce,
        )

    @property
    def place(self) -> Place:
        """Where the checkpoints are."""
        return self._place

    @property
    def ledger(self) -> Ledger:
        """The ledger as this attempt last read or committed it."""
        return self._cell.latest

    @property
    def finished(self) -> Json | None:
        """The result that an earlier attempt recorded, or None: then this attempt has to train."""
        return self.ledger.finished if self._attempt is None else None

    @property
    def resumed(self) -> LedgerEntry | None:
        """The checkpoint that `restore` read."""
        return self._resumed

    @property
    def exact(self) -> bool:
        """Whether what was restored continues with the bits of an uninterrupted training run.

        False where the numerics key or the number of ranks differs from when the state was saved.
        """
        return self._exact

    def restore(self, wanted: Wanted | None = None) -> TrainingState | None:
        """Read the newest checkpoint that is whole, or None where there is none.

        Args:
            wanted: What this rank needs of a state that is shared out; None for all.

        One that any rank finds missing, torn or altered is skipped loudly by all, and the ledger
        says so. All tensors are on the CPU, in fresh memory. Bytes are checked by CRC-32C;
        `checksum` says why.

        Raises:
            InvalidInput: The newest checkpoint was written by another format version; or
                `resume="must"`, and none is whole.
            StoreError: The store did not answer.
            Fenced: Another attempt owns the training run.
        """
        ranks = self._ranks
        store = self._place.store
        own = {"rank": ranks.rank if self._writers > 1 else 0, "world": self._writers}
        near, copies = self._settings.near, self._copies or ()
        if near and self._is_one:
            if self._copies is None:
                copies = list_copies(near, self._place, ranks, self._announce)
            if (found := self._found) is not None:
                copies = [one for one in copies if not found.outdates(one.any)]
        restored = newest_whole(
            store,
            self._cell,
            self._mine(),
            ranks,
            self._announce,
            **own,
            near=near_store(near, self._place) if near else None,
            copies=copies,
            wanted=wanted,
        )
        if restored is None and self._resume == "must":
            damaged = bool(self.ledger.entries or copies)
            why = "every checkpoint there is damaged" if damaged else ""
            raise _nothing_to_resume(self._place, why)
        chosen, is_near = restored or (None, False)
        newest = chosen.entry.step if chosen else -1
        self._milestone = max(
            (entry.step for entry in self.ledger.milestones if entry.step <= newest), default=None
        )
        if is_near:
            self._schedule.hurry()
        if self._near is not None:
            older = [one for one in copies if one.any.entry.step <= newest]
            self._near.found(name for one in older for name in one.names)
        if chosen is not None:
            # Not the state, which would take as much memory again for as long as training goes on.
            self._resumed = chosen.entry
            world = None if self._replicated else self._writers
            self._exact = same_bits(chosen, self._numerics, world, self._announce)
            self._note(resumed_from=chosen.entry.step, exact=self._exact)
        # From here on there is something to save before a signal ends the process.
        self._flag.install()
        return chosen.state if chosen else None

    def recovery_due(self) -> bool:
        """Say whether to take a recovery checkpoint now; cheap enough for every step.

        Several ranks must do so at the same step. Rank 0 decides, and they ask it as many steps
        apart as take a tenth of a second.

        Raises:
            Fenced: Another attempt owns the training run: stop.
            StoreError: The store refused everything for longer than the bound.
        """
        if self._ranks.world == 1:
            return self._due()
        self._unasked -= 1
        if self._unasked > 0:
            return False
        pieces = self._near is not None and self._writers > 1
        mine = json.dumps(vars(self._vote()))
        votes = self._ranks.gather(mine) if pieces else [self._ranks.share(mine)]
        said = [_Vote(**json.loads(vote)) for vote in votes]
        first = said[0]
        self._unasked, self._told = first.steps, Committed(**first.listed)
        if not pieces:
            return first.place or first.near
        complete = set(said[0].written).intersection(*(vote.written for vote in said))
        ends = any(vote.ends for vote in said)
        self._agreed = _Agreed(
            place=first.place or ends,
            ends=ends,
            near=first.near and all(vote.ready for vote in said),
            complete=frozenset(complete),
        )
        return self._agreed.place or self._agreed.near

    def _vote(self) -> _Vote:
        near = self._near
        if self._saves_here:
            self._running().check()
        if near is not None:
            near.check()
        if self._ranks.rank:
            return _Vote(
                ready=near is None or near.ready,
                ends=self._flag.raised,
                written=near.written if near else (),
            )
        return _Vote(
            place=self._due_at_the_place(),
            near=near is not None and near.due(time.monotonic()),
            ready=near is None or near.ready,
            ends=self._flag.raised,
            steps=self._steps_until_asked(),
            listed=vars(Committed.of(self.ledger)),
            written=near.written if near else (),
        )

    def _due(self) -> bool:
        self._running().check()
        near = self._near
        return self._due_at_the_place() or (near is not None and near.due(time.monotonic()))

    def _due_at_the_place(self) -> bool:
        due = self._schedule.due(time.monotonic()) and not self._running().busy
        return self._flag.raised or due

    def _steps_until_asked(self) -> int:
        """Return after how many steps rank 0 is asked again."""
        now = time.monotonic()
        since, steps = self._asked
        fitting = int(steps * _ASKED_SECONDS / max(now - since, 1e-9))
        steps = max(1, min(fitting, 2 * steps))
        self._asked = now, steps
        return steps

    @property
    def _is_one(self) -> bool:
        """Whether all ranks resume from one state, however many there are."""
        return self._ranks.world == 1 or self._replicated

    @property
    def _saves_here(self) -> bool:
        """Whether this rank saves anything."""
        return self._writers > 1 or self._ranks.rank == 0

    def save(
        self,
        view: TrainingState,
        *,
        kind: CheckpointKind,
        step: int,
        epoch: float,
        examples: int,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copy the state and return; writing and committing happen behind.

        Blocks for the copy, and where both host buffers are still being written until one is free.
        Where SIGTERM asked for this save, or comes meanwhile, it makes everything durable, on local
        disk where the store hangs, and passes the signal on.

        Args:
            view: The live tensors (copied before this returns) and plain JSON.
            kind: `milestone` (evaluated, selectable) or `recovery` (only ever resumed from).
            step: Optimizer steps done.
            epoch: Passes over the data done.
            examples: Training examples seen.
            metrics: Validation metrics; those that are not finite are left out.

        Raises:
            Fenced: Another attempt owns the training run.
            StoreError: The store refused everything for longer than the bound.
        """
        self._saves += 1
        if kind == "milestone":
            self._milestone = step
        if self._saves_here or self._near is not None:
            stamp = Stamp(
                step=step,
                epoch=epoch,
                examples=examples,
                kind=kind,
                metrics=finite(metrics),
                created=time.time(),
            )
            self._put(view, stamp)
        if self._flag.raised and not self._saves_here:
            self._flag.pass_on()

    def _put(self, view: TrainingState, stamp: Stamp) -> None:
        """Copy the state for the node's disk, the place, or both, as each is due."""
        snapshot = Snapshot(
            stamp=stamp,
            save=self._saves,
            meta=json.dumps({k: v for k, v in view.meta.items() if k != "rank"}),
            rank_meta=json.dumps(view.meta.get("rank")),
            marks=self._marks,
        )
        own, ends = view.tensors if self._sharded else view.of_rank(self._ranks.rank), False
        if stamp.kind == "recovery" and self._near is not None:
            agreed = self._agreed
            if agreed is None:
                self._near.save(view.of_rank(0), snapshot, after=self._milestone)
                here = self._saves_here and self._due_at_the_place()
            else:
                if agreed.near:
                    after, complete = self._milestone, agreed.complete
                    self._near.save(own, snapshot, after=after, complete=complete)
                here, ends = agreed.place, agreed.ends
            if not here:
                return
        if not self._saves_here:
            return
        saver, step = self._running(), stamp.step
        while not saver.submit(own, snapshot):
            self._announce(f"SIGTERM: there is no more room for step {step}, which is not saved")
            saver.flush()
            self._flag.pass_on()
        self._schedule.saved(time.monotonic())
        if self._flag.raised:
            self._announce(f"SIGTERM: making step {step} durable before stopping")
            saver.call(lambda: self._note_end(step), what="the end of this attempt")
            saver.flush()
            self._flag.pass_on()
        elif ends:
            saver.flush()

    def flush(self) -> None:
        """Wait until everything that was saved is durable and committed.

        Where SIGTERM comes meanwhile and the store hangs, what it lacks is kept on local disk, and
        the signal is passed on.

        Raises:
            Fenced: Another attempt owns the training run.
            StoreError: The store refused everything for longer than the bound.
        """
        while self._saves_here and not self._running().flush():
            self._flag.pass_on()
        if self._near is not None:
            self._near.wait()

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt at this training run, this one last."""
        ledger = self.ledger
        return (*ledger.past, ledger.attempt) if ledger.attempt else ledger.past

    def mark_phases(self, phases: Mapping[int, int], candidates: Iterable[int] = ()) -> None:
        """Note what the curves say by now; the next save writes it into the ledger.

        Args:
            phases: Step of every milestone so far → its phase (1, 2 or 3).
            candidates: Steps after which overfitting may yet turn out to begin.
        """
        self._marks = protocol.Marks(phases=dict(phases), candidates=frozenset(candidates))

    def report(self) -> SavingReport:
        """Return how often state was saved, what that cost, and what a kill costs."""
        report = self._schedule.report(time.monotonic())
        if self._near is not None:
            near = self._near.report(time.monotonic())
            report = report.model_copy(update={"near": near})
        before = self._cell.predecessor
        if before is None or self._resumed is None:
            return report
        lost = max(0.0, before.beat_at - self._resumed.created)
        return report.model_copy(update={"lost_seconds": lost})

    def finish(self, result: Mapping[str, Any]) -> Ledger:
        """Wait until everything is durable, then record the result for later attempts to adopt.

        Calling it again, or after another attempt's result was adopted, changes nothing.

        Raises:
            Fenced: Another attempt owns the training run.
            StoreError: The store refused everything for longer than the bound.
        """
        if self._attempt is None:
            return self.ledger
        self.flush()
        body = json.loads(json.dumps(dict(result), allow_nan=False))
        if self._ranks.rank == 0:
            self._running().call(lambda: self._conclude(result=body), what="the result")
            self.flush()
        self._ranks.share("")
        self._remove_near()
        if self._ranks.rank:
            self._cell.refresh()
        return self.ledger

    def fail(self, reason: str) -> None:
        """Record that no retry can succeed (divergence, bad data): the next one raises at once.

        A store that does not answer is announced, not raised: the caller has a better error.

        Raises:
            Fenced: Another attempt owns the training run.
        """
        # There is nothing left to save: a signal need not wait for the store.
        self._flag.restore()
        if self._ranks.rank == 0 and self._attempt is not None:
            try:
                self._conclude(failed=reason)
            except StoreError as error:
                self._announce(f"WARNING: the failure could not be recorded: {error}")
        if self._attempt is not None:
            self._remove_near()

    def close(self) -> None:
        """Let a save that is under way end, stop the threads and put the signal handler back."""
        self._closed.set()
        self._flag.restore()
        if self._saver is not None:
            self._saver.close()
        if self._near is not None:
            self._near.wait()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._writers > 1 and self._saver is not None:
            self._failed = True
            self._saver.stop(StoreUnavailable("the training run has ended by an error"))
        self.close()

    def _start(self, attempt: Attempt, settings: CheckpointSettings) -> None:
        if settings.near:
            self._start_near(attempt, settings)
        if not self._saves_here:
            return
        self._writer = CheckpointWriter(
            self._place,
            self._cell,
            attempt,
            rank=self._ranks.rank,
            world=self._writers,
            sharded=self._sharded,
            leaves=lambda: self._failed,
            numerics=self._numerics,
            keep=policy_of(settings),
        )
        spill = Spill(settings.spill_folder, self._place, self._numerics)
        self._saver = Saver(
            self._writer,
            buffers=settings.buffers,
            outage_seconds=settings.outage_seconds,
            # A shard is no state.
            spill=None if self._ranks.rank or self._sharded else spill,
            backlog=spill.folder,
            backlog_bytes=settings.backlog_bytes,
            measured=self._schedule.measured,
            leaving=lambda: self._flag.raised,
            announce=self._announce,
        )
        if self._ranks.rank == 0:
            beating = threading.Thread(
                target=self._beat,
                args=(attempt, self._saver),
                name="checkpoint-heartbeat",
                daemon=True,
            )
            # Before the sweep, which may take longer than others wait for a sign of life.
            beating.start()
            try:
                if self._writers == 1:
                    self._bring_back(attempt, settings)
                sweep(self._place.store, self.ledger.entries, attempt)
            except BaseException:
                self.close()  # nobody else can: `open` fails, and the heart would go on beating
                raise

    def _start_near(self, me: Attempt, settings: CheckpointSettings) -> None:
        say, rank = self._announce, self._ranks.rank
        if not self._is_one:
            if rank == 0:
                say("WARNING: checkpoints.near is not used: each rank has state of its own")
            return
        if rank == 0:
            # Before what was spilled comes back, which this attempt then has committed.
            self._found = Committed.of(self.ledger)
        nodes: list[list[int]] = []
        for one, told in enumerate(self._ranks.gather(str(local_rank()))):
            if told == "0" or not nodes:
                nodes.append([])
            nodes[-1].append(one)
        mirror = None
        if self._writers == 1:
            if self._ranks.world > 1 and rank not in [n[0] for n in nodes[: settings.near_copies]]:
                return
        elif min(settings.near_copies, len(nodes)) > 1:
            mirror = Mirror(nodes, rank=rank, copies=settings.near_copies)
        self._near = Near(
            settings.near,
            self._place,
            me,
            self._numerics,
            rank=rank,
            pieces=self._writers,
            mirror=mirror,
            schedule=_schedule_of(settings, settings.near_seconds),
            committed=self._listed,
            # Rank 0 alone announces; this is about another node.
            announce=(lambda text: print(f"rank {rank}: {text}", flush=True)) if rank else say,
        )

    def _listed(self) -> Committed:
        """Return what the ledger lists; other ranks than 0 know what that said last."""
        told = None if self._ranks.rank == 0 else self._told
        return told or Committed.of(self.ledger)

    def _remove_near(self) -> None:
        if self._near is not None:
            self._near.wait()
        if self._settings.near:
            remove_near(self._settings.near, self._place)

    def _bring_back(self, me: Attempt, settings: CheckpointSettings) -> None:
        """Take over what waits on local disk since a store was gone."""
        place, cell, folder, say = (
            self._place,
            self._cell,
            settings.spill_folder,
            self._announce,
        )
        keep = policy_of(settings)
        self._saves += bring_back(folder, place, cell, me, keep=keep, announce=say)
        self._saves += catch_up(place, cell, me, folder=folder, announce=say)

    def _beat(self, me: Attempt, saver: Saver) -> None:
        while not self._closed.wait(me.beat_seconds):
            try:
                self._cell.change(lambda ledger: protocol.beat(ledger, me, now=time.time()))
            except Fenced as error:
                saver.stop(error)
                return
            except StoreError:
                continue  # the saver is the one that says so, and decides for how long

    def _note(self, **facts: Any) -> None:
        if self._ranks.rank:
            return
        me = self._mine()
        self._cell.change(lambda ledger: protocol.note(ledger, me, now=time.time(), **facts))

    def _note_end(self, step: int) -> None:
        with suppress(StoreError, Fenced):
            self._note(ended=f"stopped by SIGTERM, after step {step} was saved")

    def _conclude(self, *, result: Json | None = None, failed: str = "") -> None:
        me = self._mine()
        phases = self._marks.phases
        self._cell.change(
            lambda ledger: protocol.conclude(
                ledger, me, now=time.time(), result=result, failed=failed, phases=phases
            )
        )

    def _mine(self) -> Attempt:
        assert self._attempt is not None, "the training run is finished: adopt `finished`"
        return self._attempt

    def _running(self) -> Saver:
        assert self._saver is not None, "the training run is finished: adopt `finished`"
        return self._saver


def _schedule_of(settings: CheckpointSettings, seconds: float) -> RecoverySchedule:
    return RecoverySchedule(
        seconds=seconds,
        auto=settings.recovery_auto,
        budget=settings.overhead_budget,
        interruptions_per_hour=settings.interruptions_per_hour,
        now=time.monotonic(),
    )


def _starts_afresh(ledger: Ledger, owner: str) -> bool:
    """Return whether a claim would begin a new training run, not adopt, await or resume one."""
    if ledger.finished is not None or ledger.failed or ledger.newest_first:
        return False
    return protocol.judge(ledger, owner=owner, now=time.time()).act == "claim"


def _nothing_to_resume(place: Place, why: str = "") -> InvalidInput:
    found = f"nothing to resume at {place.uri}" + (f" ({why})" if why else "")
    remedy = f"{found}: use 'auto', or restore that place"
    return InvalidInput([Problem("resume", "must", remedy)])
