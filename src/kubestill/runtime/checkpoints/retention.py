"""Decide which checkpoints stay: small rules whose union is kept.

A rule takes all entries in order of step, and what the curves say of every milestone there was. It
returns those it wants. An entry that no rule wants is pruned. `keep_entries` adds what no setting
may take away: the newest checkpoint that is not damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kubestill.errors import InvalidInput
from kubestill.runtime.checkpoints.ledger import CheckpointKind, LedgerEntry
from kubestill.runtime.checkpoints.protocol import Keep, Marks
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.metrics.catalog import Direction, find_metric, resolve_direction

Entries = Sequence[LedgerEntry]

MOST_BY_SIZE = 200
"""Milestones that `KeepBytes` wants at most: the ledger that lists them is swapped all the time."""


class Rule(Protocol):
    """One reason to keep checkpoints."""

    def wanted(self, entries: Entries, marks: Marks) -> Entries:
        """Return the entries this rule wants, out of all of them in order of step."""
        ...


@dataclass(frozen=True)
class KeepLast:
    """The newest `count` of one kind."""

    count: int
    kind: CheckpointKind = "milestone"

    def wanted(self, entries: Entries, marks: Marks) -> Entries:
        """Return the last ones; none where `count` is 0."""
        of_kind = [entry for entry in entries if entry.kind == self.kind]
        return of_kind[len(of_kind) - min(self.count, len(of_kind)) :]


@dataclass(frozen=True)
class KeepBest:
    """The best `count` milestones by one metric; of two equal ones, the earlier."""

    count: int
    metric: str
    direction: Direction

    def wanted(self, entries: Entries, marks: Marks) -> Entries:
        """Return the best ones; milestones without the metric never count."""
        measured = [e for e in entries if e.kind == "milestone" and self.metric in e.metrics]
        sign = 1 if self.direction == "min" else -1
        return sorted(measured, key=lambda e: sign * e.metrics[self.metric])[: self.count]


@dataclass(frozen=True)
class KeepEvery:
    """Every `distance`-th milestone, and the first one.

    Counted over all that there ever were, so that which ones stay does not depend on which were
    pruned before. A step says nothing of the number: where milestones are a fraction of a step
    apart, their steps are rounded.
    """

    distance: int

    def wanted(self, entries: Entries, marks: Marks) -> Entries:
        """Return them; none where `distance` is 0. One that is not counted stays."""
        if not self.distance:
            return ()
        numbers = {step: number for number, step in enumerate(sorted(marks.phases), start=1)}
        return [
            entry
            for entry in entries
            if entry.kind == "milestone"
            and (numbers.get(entry.step, 0) % self.distance == 0 or numbers[entry.step] == 1)
        ]


@dataclass(frozen=True)
class KeepBytes:
    """All milestones while they fit into so many bytes, then ever fewer, evenly spread.

    A choice made later (the cheapest that is good enough, the last before overfitting) needs the
    whole history, not its newest end. So what does not fit leaves where its neighbours are closest:
    the first and the newest stay, and gaps grow alike everywhere.
    """

    limit: float

    def wanted(self, entries: Entries, marks: Marks) -> Entries:
        """Return them; none where `limit` has no room for two."""
        kept = [entry for entry in entries if entry.kind == "milestone" and not entry.damaged]
        while len(kept) > 2 and not self._fits(kept):
            gaps = [b.step - a.step for a, b in zip(kept, kept[2:], strict=False)]
            del kept[1 + gaps.index(min(gaps))]
        return kept if self._fits(kept) else ()

    def _fits(self, kept: Entries) -> bool:
        return len(kept) <= MOST_BY_SIZE and sum(entry.bytes for entry in kept) <= self.limit


@dataclass(frozen=True)
class KeepPhaseBoundaries:
    """The last milestone of every phase but the one that is still going on.

    Where overfitting begins shows only long after it began: until then, the last milestone before
    each step where it may turn out to begin stays, too.
    """

    def wanted(self, entries: Entries, marks: Marks) -> Entries:
        """Return them; milestones whose phase is not known yet bound nothing."""
        milestones = [entry for entry in entries if entry.kind == "milestone"]
        phased = [entry for entry in milestones if entry.phase is not None]
        known = [a for a, b in zip(phased, phased[1:], strict=False) if a.phase != b.phase]
        possible = [
            max((e for e in milestones if e.step <= step), key=lambda e: e.step, default=None)
            for step in marks.candidates
        ]
        return [*known, *(entry for entry in possible if entry is not None)]


def keep_entries(entries: Entries, rules: Sequence[Rule], marks: Marks) -> tuple[LedgerEntry, ...]:
    """Return what stays of `entries`, in the same order.

    Besides what the rules want, the newest checkpoint that is not known to be damaged always stays.
    """
    wanted = {entry.manifest.key for rule in rules for entry in rule.wanted(entries, marks)}
    good = [entry for entry in entries if not entry.damaged]
    wanted |= {entry.manifest.key for entry in good[-1:]}
    return tuple(entry for entry in entries if entry.manifest.key in wanted)


def policy_of(settings: CheckpointSettings) -> Keep:
    """Combine the rules that the settings ask for.

    Raises:
        InvalidInput: `mode` contradicts the metric, and would keep the worst milestones.
    """
    rules: list[Rule] = [
        KeepLast(settings.keep_last),
        KeepLast(settings.keep_recovery, "recovery"),
        KeepEvery(settings.keep_every),
        KeepBytes(settings.keep_bytes),
    ]
    if settings.keep_phases:
        rules.append(KeepPhaseBoundaries())
    if settings.metric and (settings.mode != "auto" or _is_known(settings.metric)):
        way = resolve_direction(settings.metric, settings.mode, field="settings.checkpoints.mode")
        rules.append(KeepBest(settings.keep_best, settings.metric, way))
    return lambda entries, marks: keep_entries(entries, rules, marks)


def _is_known(metric: str) -> bool:
    try:
        return bool(find_metric(metric))
    except InvalidInput:
        return False
