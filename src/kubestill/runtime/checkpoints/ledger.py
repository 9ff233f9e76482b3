"""The ledger: the small JSON object that says which checkpoints of a training exist.

Its compare-and-swap is the only commit: state and manifests that it does not list do not exist. It
also names the attempt that owns the training, and how the training ended. Everything here is a
value; `protocol` says how one ledger follows from another, `commits` swaps them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

from kubestill.errors import CorruptData, InvalidInput, Problem

LEDGER_FORMAT = "kubestill/ledger/1"
CHECKPOINT_FORMAT = "kubestill/checkpoint/1"
LEDGER_KEY = "ledger.json"

CheckpointKind = Literal["milestone", "recovery"]
Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ManifestRef:
    """Where a checkpoint's manifest is, and what it must hash to."""

    key: str
    """Below the training's place."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One committed checkpoint."""

    step: int
    """Optimizer steps done when the state was copied."""
    epoch: float
    examples: int
    """Training examples seen."""
    kind: CheckpointKind
    """Only milestones are selectable; recovery checkpoints exist to resume."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """Validation metrics at this step, finite."""
    phase: int | None = None
    """1 high-level structure, 2 detail, 3 overfitting; None where not known (yet)."""
    bytes: int
    """Size of the state in all its files."""
    manifest: ManifestRef
    created: float
    """When the state was copied, in seconds since 1970 by the writer's clock."""
    attempt: int
    """Number of the attempt that wrote it."""
    damaged: str = ""
    """Why it cannot be read any more, where a restore found that out; empty otherwise."""

    def to_json(self) -> Json:
        """Return plain JSON."""
        return {**vars(self), "metrics": dict(self.metrics), "manifest": vars(self.manifest)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LedgerEntry:
        """Read what `to_json` gave."""
        fields: Json = {**data, "manifest": ManifestRef(**data["manifest"])}
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One process (or group of them) that owns the training until a higher attempt does."""

    number: int
    id: str
    """Unique; part of the names of the state folders this attempt writes."""
    owner: str
    """Which task this is: the same across retries of one pod, different for another run."""
    beat: int = 0
    """Grows with every heartbeat and commit."""
    beat_at: float = 0.0
    """When it last grew, in seconds since 1970 by the owner's clock."""
    beat_seconds: float = 10.0
    """How often it promises to grow."""
    began: float = 0.0
    """When it claimed the training, in seconds since 1970; 0 where nobody noted it."""
    resumed_from: int | None = None
    """Step of the checkpoint it went on from; None where it began at the beginning."""
    exact: bool = True
    """Whether it went on with the bits of an uninterrupted training."""
    ended: str = ""
    """What ended it, as far as itself or the process that started it again could tell."""

    def to_record(self) -> Json:
        """Return what a reader of the training's record wants to know."""
        return {
            "number": self.number,
            "began": self.began,
            "last_sign": self.beat_at,
            "resumed_from": self.resumed_from,
            "exact": self.exact,
            "ended": self.ended,
        }


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something a reader of the ledger should know, such as a damaged checkpoint."""

    at: float
    """Seconds since 1970."""
    attempt: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What exists of one training."""

    uri: str
    """The place that manifest keys are relative to: `<root>/<experiment>/<fingerprint>`."""
    experiment: str = ""
    fingerprint: str = ""
    sequence: int = 0
    """Grows with every swap."""
    attempt: Attempt | None = None
    """Who owns the training; None before anybody did."""
    past: tuple[Attempt, ...] = ()
    """Those who owned it before, the newest 30."""
    entries: tuple[LedgerEntry, ...] = ()
    """In order of step."""
    finished: Json | None = None
    """The training's result, once it is complete."""
    failed: str = ""
    """Why the training can never succeed as it is configured; empty while it might."""
    notices: tuple[Notice, ...] = ()

    @property
    def training(self) -> Json | None:
        """The training's own record, once it is finished."""
        return (self.finished or {}).get("training")

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
            CorruptData: Not a ledger.
            InvalidInput: A ledger of another format version.
        """
        data = _parse(content, source, LEDGER_FORMAT, "ledger")
        try:
            attempt = data["attempt"]
            return cls(
                uri=data["uri"],
                experiment=data["experiment"],
                fingerprint=data["fingerprint"],
                sequence=data["sequence"],
                attempt=Attempt(**attempt) if attempt else None,
                past=tuple(Attempt(**one) for one in data.get("past", ())),
                entries=tuple(LedgerEntry.from_json(entry) for entry in data["entries"]),
                finished=data["finished"],
                failed=data["failed"],
                notices=tuple(Notice(**notice) for notice in data["notices"]),
            )
        except (KeyError, TypeError) as error:
            raise CorruptData(f"{source} is not a complete ledger: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One chosen checkpoint, as it travels between components: a few hundred bytes."""

    uri: str
    """The training's place."""
    entry: LedgerEntry
    fingerprint: str = ""
    experiment: str = ""
    reason: str = ""
    """Why it was chosen."""

    @classmethod
    def of(cls, ledger: Ledger, entry: LedgerEntry, *, reason: str = "") -> Checkpoint:
        """Pick one entry out of its ledger."""
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
    remedy = "there is no ledger; connect that of a training that finished"
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
    data = _parse(_read(path, "checkpoint", remedy), path, CHECKPOINT_FORMAT, "checkpoint")
    try:
        fields: Json = {**data, "entry": LedgerEntry.from_json(data["entry"])}
        return Checkpoint(**fields)
    except (KeyError, TypeError) as error:
        raise CorruptData(f"{path} is not a complete checkpoint artifact: {error}") from error


def _read(path: str, what: str, remedy: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError) as error:
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
    if found == expected:
        return
    family = expected.rpartition("/")[0]
    if not isinstance(found, str) or found.rpartition("/")[0] != family:
        raise CorruptData(f"{source} is not a {what}: its format is {found!r}, not {expected!r}")
    remedy = (
        f"this {what} was written by another version of kubestill; this one reads {expected!r}: "
        "use that version, another checkpoint_uri, or resume='never'"
    )
    raise InvalidInput([Problem(f"{source} format", found, remedy)])


def _parse(content: bytes, source: str, expected: str, what: str) -> Json:
    try:
        data: object = json.loads(content)
    except ValueError as error:
        raise CorruptData(f"{source} is not a {what}: {error}") from error
    if not isinstance(data, dict):
        raise CorruptData(f"{source} is not a {what}: it holds no JSON object")
    fields = cast(Json, data)
    check_format(fields.pop("format", None), expected, source, what)
    return fields


def _write(path: str, data: Json) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True, allow_nan=False)
        file.write("\n")
