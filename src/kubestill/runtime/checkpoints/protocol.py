"""The commit protocol as pure functions: how one ledger may follow another, and when it may not.

    claim      nobody, a dead attempt or my own earlier retry  ->  attempt n+1 is mine
    beat       I live
    note       I resumed from there; that ended me
    commit     one more checkpoint exists (and pruned ones do not)
    conclude   the result is final, or the training run can never succeed

Every function but `claim` asserts that the attempt is still mine. Safety rests on the ledger's
compare-and-swap alone: clocks only decide how long somebody waits before claiming, never who wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from kubestill.errors import Fenced
from kubestill.runtime.checkpoints.ledger import Attempt, Ledger, LedgerEntry

Transition: TypeAlias = Callable[[Ledger], Ledger]
"""What to do to the ledger that the cell holds now."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What the curves say of the milestones of a training run, pruned ones included."""

    phases: Mapping[int, int] = field(default_factory=dict[int, int])
    """Step of every milestone so far → its phase (1, 2 or 3), as far as it is known by now."""
    candidates: frozenset[int] = frozenset()
    """Steps after which overfitting may yet turn out to begin."""


Keep: TypeAlias = Callable[[Sequence[LedgerEntry], Marks], Sequence[LedgerEntry]]
"""Which of the entries, given in order of step, stay listed."""

MISSED_BEATS = 3
"""After how many missed heartbeats an attempt counts as dead."""
PAST_ATTEMPTS = 30
"""How many earlier attempts a ledger remembers."""
NO_WORD = "it left no word: its pod or machine is gone, or cut off"
"""What is known of an attempt that nobody saw end."""
CLOCK_SKEW_SECONDS = 300.0
"""Clocks of two machines are trusted this far: an older heartbeat needs no watching."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a newcomer should do with the ledger it found."""

    act: Literal["claim", "wait"]
    why: str
    seconds: float = 0.0
    """With `wait`: how long the heartbeat must stand still, by the newcomer's own clock."""


def judge(ledger: Ledger, *, owner: str, now: float) -> Verdict:
    """Decide whether a newcomer may claim the training run now.

    Args:
        ledger: What the cell holds, not finished.
        owner: The newcomer's task.
        now: Seconds since 1970 by the newcomer's clock.
    """
    attempt = ledger.attempt
    if attempt is None:
        return Verdict(act="claim", why="nobody trains here")
    if attempt.owner == owner:
        return Verdict(act="claim", why=f"attempt {attempt.number} was this same task's")
    patience = MISSED_BEATS * attempt.beat_seconds
    silence = now - attempt.beat_at
    if silence > patience + CLOCK_SKEW_SECONDS:
        return Verdict(act="claim", why=f"attempt {attempt.number} is silent for {silence:.0f} s")
    why = f"attempt {attempt.number} of {attempt.owner or 'an unnamed task'} may be alive"
    return Verdict(act="wait", why=why, seconds=patience)


def claim(ledger: Ledger, me: Attempt, *, ended: str = "") -> Ledger:
    """Make `me` (its number still open) the next attempt; what was listed stays listed.

    `ended` says what ended the attempt before, where it did not say so itself and that is known.
    """
    before, past = ledger.attempt, ledger.past
    if before is None:
        return advance(replace(ledger, attempt=me))
    if before.began:
        past = (*past, replace(before, ended=before.ended or ended or NO_WORD))[-PAST_ATTEMPTS:]
    return advance(replace(ledger, attempt=replace(me, number=before.number + 1), past=past))


def assert_mine(ledger: Ledger, me: Attempt) -> None:
    """Check that the ledger still names this attempt.

    Raises:
        Fenced: A higher attempt does; or one of the same number, after a lost ledger was rebuilt.
    """
    current = ledger.attempt
    if current is None or current.id == me.id or current.number < me.number:
        return
    raise Fenced(
        f"attempt {current.number} of {current.owner or 'an unnamed task'} took over the training "
        f"at {ledger.uri}; this attempt {me.number} stops and deletes nothing"
    )


def beat(ledger: Ledger, me: Attempt, *, now: float) -> Ledger:
    """Say that `me` lives.

    Raises:
        Fenced: The training run belongs to a higher attempt.
    """
    assert_mine(ledger, me)
    current = ledger.attempt
    beats = current.beat if current else me.beat
    noted = current if current and current.id == me.id else me
    return advance(replace(ledger, attempt=replace(noted, beat=beats + 1, beat_at=now)))


def note(ledger: Ledger, me: Attempt, *, now: float, **facts: Any) -> Ledger:
    """Note facts about `me`: `resumed_from` and `exact`, or `ended`.

    Raises:
        Fenced: The training run belongs to a higher attempt.
    """
    alive = beat(ledger, me, now=now)
    assert alive.attempt
    return replace(alive, attempt=replace(alive.attempt, **facts))


def commit(
    ledger: Ledger,
    me: Attempt,
    entry: LedgerEntry,
    *,
    now: float,
    keep: Keep | None = None,
    marks: Marks | None = None,
) -> Ledger:
    """List a checkpoint, in place of any of the same step and kind, and unlist what is pruned.

    Args:
        ledger: What the cell holds.
        me: The committing attempt.
        entry: The new checkpoint: all its bytes are durable.
        now: Seconds since 1970.
        keep: Which of all entries stay listed; None keeps all.
        marks: What the curves say by now.

    Raises:
        Fenced: The training run belongs to a higher attempt.
    """
    alive = beat(ledger, me, now=now)
    others = (e for e in alive.entries if (e.step, e.kind) != (entry.step, entry.kind))
    marks = marks or Marks()
    entries = with_phases(in_order((*others, entry)), marks.phases)
    return replace(alive, entries=tuple(keep(entries, marks)) if keep else entries)


def mark_damaged(
    ledger: Ledger, me: Attempt, entry: LedgerEntry, why: str, *, now: float
) -> Ledger:
    """Note for every reader that a listed checkpoint cannot be read.

    Raises:
        Fenced: The training run belongs to a higher attempt.
    """
    alive = beat(ledger, me, now=now)
    entries = tuple(
        replace(e, damaged=why) if e.manifest == entry.manifest else e for e in alive.entries
    )
    text = f"checkpoint of step {entry.step} ({entry.kind}) skipped: {why}"
    return replace(alive, entries=entries).with_notice(text, at=now)


def conclude(
    ledger: Ledger,
    me: Attempt,
    *,
    now: float,
    result: dict[str, Any] | None = None,
    failed: str = "",
    phases: Mapping[int, int] | None = None,
) -> Ledger:
    """Record how the training run ended; a result that is already there stays.

    Raises:
        Fenced: The training run belongs to a higher attempt.
    """
    alive = beat(ledger, me, now=now)
    if alive.finished is not None:
        return alive
    entries = with_phases(alive.entries, phases or {})
    return replace(alive, entries=entries, finished=result, failed=failed)


def advance(ledger: Ledger) -> Ledger:
    """Return the ledger with the next sequence number: no two swapped contents are equal."""
    return replace(ledger, sequence=ledger.sequence + 1)


def with_phases(
    entries: Iterable[LedgerEntry], phases: Mapping[int, int]
) -> tuple[LedgerEntry, ...]:
    """Write the phase of each step in `phases` into its entries."""
    return tuple(replace(e, phase=phases.get(e.step, e.phase)) for e in entries)


def in_order(entries: Iterable[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """Sort entries by step; at one step, recovery before milestone."""
    return tuple(sorted(entries, key=lambda e: (e.step, e.kind == "milestone")))
