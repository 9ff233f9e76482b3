"""The ledger: the small JSON object that lists the checkpoints of a training run.

Its compare-and-swap is the only commit: state and manifests that it does not list do not exist. It
also names the attempt that owns the training run, and how that ended. Everything here is a value;
`protocol` says how one ledger follows from another, `commits` swaps them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, Strict

from kubestill.errors import CorruptData, InvalidInput, Problem
from kubestill.runtime.base import values
from kubestill.runtime.base.values import Digest, Flag, Instant, Key, Number, Whole, read_as

LEDGER_FORMAT = "kubestill/ledger/1"
CHECKPOINT_FORMAT = "kubestill/checkpoint/1"
LEDGER_KEY = "ledger.json"

CheckpointKind = Literal["milestone", "recovery"]
Phase: TypeAlias = Annotated[int, Strict(), Field(ge=1, le=3)]
Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ManifestRef:
    """Where a checkpoint's manifest is, and what it must hash to."""

    key: Key
    """Below the training run's place."""
    sha256: Digest


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One committed checkpoint."""

    step: Whole
    """Optimizer steps done when the state was copied."""
    epoch: Number
    examples: Whole
    """Training examples seen."""
    kind: CheckpointKind
    """Only milestones are selectable; recovery checkpoints exist to resume."""
    metrics: Mapping[str, Number] = field(default_factory=dict[str, float])
    """Validation metrics at this step, finite."""
    phase: Phase | None = None
    """1 high-level structure, 2 detail, 3 overfitting; None where not (yet) known."""
    bytes: Whole
    """Size of all its files: state and manifest."""
    manifest: ManifestRef
    created: Instant
    """When the state was copied, in seconds since 1970 by the writer's clock."""
    attempt: Whole
    """Number of the attempt that wrote it."""
    damaged: str = ""
    """Why it can no longer be read, where a restore found that out; empty otherwise."""

    def to_json(self) -> Json:
        """Return plain JSON."""
        return {**vars(self), "metrics": dict(self.metrics), "manifest": vars(self.manifest)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LedgerEntry:
        """Read what `to_json` gave.

        Raises:
            CorruptData: It is no ledger entry.
        """
        return read_as(cls, data, source="the list of checkpoints", what="ledger entry")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One process (or group of them) that owns the training run until a higher attempt does."""

    number: Whole
    id: str
    """Unique; part of the names of the state folders this attempt writes."""
    owner: str
    """Which task this is: the same across retries of one pod, different for another run."""
    beat: Whole = 0
    """Grows with every heartbeat and commit."""
    beat_at: Instant = 0.0
    """When it last grew, in seconds since 1970 by the owner's clock."""
    beat_seconds: Annotated[float, Strict(), Field(gt=0, le=1e9)] = 10.0
    """How often it promises to grow."""
    began: Instant = 0.0
    """When it claimed the training run, in seconds since 1970; 0 where that was not noted."""
    resumed_from: Whole | None = None
    """Step of the checkpoint it resumed from; None where it began at the beginning."""
    exact: Flag = True
    """Whether it resumed with the bits of an uninterrupted training run."""
    ended: str = ""
    """What ended it, as far as it or the process that restarted it could tell."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something a reader of the ledger should know, such as a damaged checkpoint."""

    at: Instant
    """Seconds since 1970."""
    attempt: Whole
    text: str


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What exists of one training run."""

    uri: str
    """The place that manifest keys are relative to: `<root>/<experiment>/<fingerprint>`."""
    experiment: str = ""
    fingerprint: str = ""
    sequence: Whole = 0
    """Grows with every swap."""
    attempt: Attempt | None = None
    """Who owns the training run; None before its first attempt."""
    past: tuple[Attempt, ...] = ()
    """Earlier owners, the newest 30."""
    entries: tuple[LedgerEntry, ...] = ()
    """In order of step."""
    finished: Json | None = None
    """The result of the training run, once complete; `training.record` writes and reads it."""
    failed: str = ""
    """Why the training run can never succeed as configured; empty while it might."""
    notices: tuple[Notice, ...] = ()

    @property
    def milestones(self) -> tuple[LedgerEntry, ...]:
        """The selectable checkpoints, in order of step."""
        return tuple(e for e in self.entries if e.kind == "milestone" and not e.damaged)

    @property
    def newest_first(self) -> tuple[LedgerEntry, ...]:
        """Every checkpoint not known to be damaged, in the order a restore tries them."""
        good = [entry for entry in self.entries if not entry.damaged]
        return tuple(sorted(good, key=lambda e: (e.step, e.attempt, e.created), reverse=True))

    def with_notice(self, text: str, *, at: float) -> Ledger:
        """Return the ledger with one more notice; only the newest 100 stay."""
        number = self.attempt.number if self.attempt else 0
        notice = Notice(at=at, attempt=number, text=text)
        return replace(self, notices=(*self.notices, notice)[-100:])

    def to_json(self) -> Json:
        """Return plain JSON."""
        return {
            "format": LEDGER_FORMAT,
            **vars(self),
            "attempt": vars(self.attempt) if self.attempt else None,
            "past": [vars(attempt) for attempt in self.past],
            "entries": [entry.to_json() for entry in self.entries],
            "notices": [vars(notice) for notice in self.notices],
        }

    def to_bytes(self) -> bytes:
        """Return canonical JSON bytes; NaN and infinities are refused."""
        return json.dumps(self.to_json(), sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str) -> Ledger:
        """Read what `to_bytes` gave.

        Args:
            content: The bytes.
            source: Where they come from, for messages.

        Raises:
            CorruptData: It is no ledger.
            InvalidInput: It was written by another format version.
        """
        form = _parse(content, source, LEDGER_FORMAT, "ledger")
        # Ledgers from before attempts were remembered have no `past`. Nothing else may be missing:
        # a ledger without entries would condemn every checkpoint that it no longer lists.
        missing = {field.name for field in fields(cls)} - form.keys() - {"past"}
        if missing:
            names = ", ".join(sorted(missing))
            raise CorruptData(f"{source} is not a complete ledger: it lacks {names}")
        return read_as(cls, form, source=source, what="ledger")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One chosen checkpoint, as it travels between components: a few hundred bytes."""

    uri: str
    """The training run's place."""
    entry: LedgerEntry
    fingerprint: str = ""
    experiment: str = ""
    reason: str = ""
    """Why it was chosen."""

    @classmethod
    def of(cls, ledger: Ledger, entry: LedgerEntry, *, reason: str = "") -> Checkpoint:
        """Return the checkpoint that one entry of a ledger lists."""
        return cls(
            uri=ledger.uri,
            entry=entry,
            fingerprint=ledger.fingerprint,
            experiment=ledger.experiment,
            reason=reason,
        )


def write_ledger_artifact(ledger: Ledger, path: str) -> None:
    """Write the ledger as the small file that travels between components."""
    _write(path, ledger.to_json())


def read_ledger_artifact(path: str) -> Ledger:
    """Read a ledger artifact.

    Raises:
        CorruptData: The file is no ledger.
        InvalidInput: It was written by another format version, or there is no such file.
    """
    remedy = "there is no ledger; connect that of a finished training run"
    return Ledger.from_bytes(_read(path, "ledger", remedy), source=path)


def write_checkpoint_artifact(checkpoint: Checkpoint, path: str) -> None:
    """Write a chosen checkpoint as the small file that travels between components."""
    entry = checkpoint.entry.to_json()
    _write(path, {"format": CHECKPOINT_FORMAT, **vars(checkpoint), "entry": entry})


def read_checkpoint_artifact(path: str) -> Checkpoint:
    """Read a checkpoint artifact.

    Raises:
        CorruptData: The file is no checkpoint artifact.
        InvalidInput: It was written by another format version, or there is no such file.
    """
    remedy = "there is no checkpoint; connect that of a select-checkpoint"
    form = _parse(_read(path, "checkpoint", remedy), path, CHECKPOINT_FORMAT, "checkpoint")
    return read_as(Checkpoint, form, source=path, what="checkpoint")


def _read(path: str, what: str, remedy: str) -> bytes:
    try:
        return values.read_file(path, what=what)
    except FileNotFoundError as error:
        raise InvalidInput([Problem(what, path, remedy)]) from error


def finite(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the metrics that are finite numbers: NaN is neither JSON nor comparable."""
    numbers = {name: float(value) for name, value in (metrics or {}).items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def check_format(found: object, expected: str, source: str, what: str) -> None:
    """Refuse JSON of another format version, saying which.

    Raises:
        CorruptData: It names no format of ours at all.
        InvalidInput: It is ours, of another version.
    """
    remedy = "use that version, another checkpoint_uri, or resume='never'"
    values.check_format(found, expected, source=source, what=what, remedy=remedy)


def _parse(content: bytes, source: str, expected: str, what: str) -> Json:
    form = values.parse_json(content, source=source, what=what)
    check_format(form.pop("format", None), expected, source, what)
    return form


def _write(path: str, data: Json) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True, allow_nan=False)
        file.write("\n")
