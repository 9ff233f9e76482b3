"""Which checkpoints stay: small rules whose union is kept.

A rule is given all entries in order of step and returns those it wants. An entry that no rule wants
is pruned. `keep_entries` adds what no setting may take away: the newest checkpoint, and the newest
good one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kubestill.errors import InvalidInput
from kubestill.runtime.checkpoints.ledger import CheckpointKind, LedgerEntry
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.metrics.catalog import Direction, direction

Entries = Sequence[LedgerEntry]

MOST_BY_SIZE = 200
"""Milestones that `KeepBytes` wants at most: the ledger that lists them is swapped all the time."""


class Rule(Protocol):
    """One reason to keep checkpoints."""

    def wanted(self, entries: Entries) -> Entries:
        """Return the entries this rule wants, out of all of them in order of step."""
        ...


@dataclass(frozen=True)
class KeepLast:
    """The newest `count` of one kind."""

    count: int
    kind: CheckpointKind = "milestone"

    def wanted(self, entries: Entries) -> Entries:
        """Return the last ones; none where `count` is 0."""
        of_kind = [entry for entry in entries if entry.kind == self.kind]
        return of_kind[len(of_kind) - min(self.count, len(of_kind)) :]


@dataclass(frozen=True)
class KeepBest:
    """The best `count` milestones by one metric; of two equal ones, the earlier."""

    count: int
    metric: str
    mode: Literal["auto", "min", "max"] = "auto"

    def wanted(self, entries: Entries) -> Entries:
        """Return the best ones; milestones without the metric never count."""
        measured = [e for e in entries if e.kind == "milestone" and self.metric in e.metrics]
        sign = 1 if self._way() == "min" else -1
        return sorted(measured, key=lambda e: sign * e.metrics[self.metric])[: self.count]

    def _way(self) -> Direction:
        return direction(self.metric) if self.mode == "auto" else self.mode


@dataclass(frozen=True)
class KeepEvery:
    """Every `distance`-th milestone, and the first one, whose step tells the spacing.

    Counted by step, not by position: which ones stay must not depend on which were pruned before.
    """

    distance: int

    def wanted(self, entries: Entries) -> Entries:
        """Return them; none where `distance` is 0."""
        milestones = [entry for entry in entries if entry.kind == "milestone"]
        if not self.distance or not milestones:
            return ()
        spacing = max(milestones[0].step, 1)
        return [
            entry
            for entry in milestones
            if entry is milestones[0] or round(entry.step / spacing) % self.distance == 0
        ]


@dataclass(frozen=True)
class KeepBytes:
    """All milestones while they fit into so many bytes, then ever fewer, evenly spread.

    A choice made later (the cheapest that is good enough, the last before overfitting) needs the
    whole history, not its newest end. So what does not fit leaves where its neighbours are closest:
    the first and the newest stay, and gaps grow alike everywhere.
    """

    limit: float

    def wanted(self, entries: Entries) -> Entries:
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
    """The last milestone of every phase but the one that is still going on."""

    def wanted(self, entries: Entries) -> Entries:
        """Return them; milestones whose phase is not known yet bound nothing."""
        phased = [e for e in entries if e.kind == "milestone" and e.phase is not None]
        return [a for a, b in zip(phased, phased[1:], strict=False) if a.phase != b.phase]


def keep_entries(entries: Entries, rules: Sequence[Rule]) -> tuple[LedgerEntry, ...]:
    """Return what stays of `entries`, in the same order.

    Besides what the rules want, the newest checkpoint that is not known to be damaged always stays.
    """
    wanted = {entry.manifest.key for rule in rules for entry in rule.wanted(entries)}
    good = [entry for entry in entries if not entry.damaged]
    wanted |= {entry.manifest.key for entry in good[-1:]}
    return tuple(entry for entry in entries if entry.manifest.key in wanted)


def known_metric(metric: str, mode: Literal["auto", "min", "max"]) -> bool:
    """Say whether milestones can be ranked by this metric."""
    if not metric:
        return False
    try:
        return mode != "auto" or bool(direction(metric))
    except InvalidInput:
        return False


def policy_of(settings: CheckpointSettings) -> Callable[[Entries], Entries]:
    """Combine the rules that the settings ask for."""
    rules: list[Rule] = [
        KeepLast(settings.keep_last),
        KeepLast(settings.keep_recovery, "recovery"),
        KeepEvery(settings.keep_every),
        KeepBytes(settings.keep_bytes),
    ]
    if settings.keep_phases:
        rules.append(KeepPhaseBoundaries())
    if known_metric(settings.metric, settings.mode):
        rules.append(KeepBest(settings.keep_best, settings.metric, settings.mode))
    return lambda entries: keep_entries(entries, rules)
