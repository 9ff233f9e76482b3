"""The registry's history: what each step of each run left behind, and what one run comes to.

`Registry.append` writes an entry, `Registry.run` and `Registry.runs` read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from kubestill.errors import CorruptData
from kubestill.runtime.base.values import (
    Number,
    Whole,
    WholeFloat,
    check_format,
    parse_json,
    read_as,
)
from kubestill.runtime.retraining.decision import DECISION_FORMAT, Score
from kubestill.runtime.retraining.state import FORMAT

_TAKEN_OVER = "taken-over"


class HistoryEntry(BaseModel):
    """What one step of a run left behind."""

    # A later version may add facts: they are kept, so that an entry is written as it was read.
    model_config = ConfigDict(
        frozen=True, extra="allow", populate_by_name=True, use_attribute_docstrings=True
    )

    format: str = FORMAT
    run_id: str
    """Id of the pipeline run."""
    step: str
    """What the history calls the step: letters, digits, '.', '_' and '-'."""
    at: str = ""
    """When it was written; ISO 8601, UTC. `Registry.append` sets it."""

    def to_bytes(self) -> bytes:
        """Return the JSON that `read_entry` reads; what was never said is not written."""
        told = self.model_dump(mode="json", exclude_unset=True, by_alias=True)
        told |= {"format": self.format, "step": self.step}
        return json.dumps(told, indent=1, sort_keys=True, allow_nan=False).encode()


E = TypeVar("E", bound=HistoryEntry)


class Collection(HistoryEntry):
    """Which rows a run took."""

    step: str = "collect"
    status: Literal["ready", "bootstrap", "waiting", "busy"]
    reason: str
    window: str = ""
    """Name of the window; empty where none was taken."""
    end: str = ""
    """Every row is from before this instant; ISO 8601, UTC. Empty for `busy`."""
    rows: Whole = 0
    unlabelled: Whole = 0
    """Rows that are known, and whose labels are late."""
    told: tuple[str, ...] = ()
    """What changed about the columns, in sentences."""
    method: Literal["fine-tune", "rebuild"] = "fine-tune"
    """How a challenger is made, should one be needed."""


class Gain(BaseModel):
    """How much better than the champion a challenger was in one window, to be added up.

    Its noise is kept as the moments of what each row adds to it, or, where rows have entities that
    come back in later windows, as what each entity adds.
    """

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    value: Number
    """In the unit of the metric; negative where the challenger is worse."""
    rows: Whole = Field(ge=1)
    events: Whole
    """Rows, or entities with rows, outside of the most frequent class."""
    second: Number = 0.0
    """See `metrics.intervals.Moments`."""
    third: Number = 0.0
    fourth: Number = 0.0
    entities: Mapping[str, Number] = {}
    """By a digest of the entity; empty where each row stands for itself."""
    rare: tuple[str, ...] = ()
    """The entities with such rows: over several windows each of them counts once."""


class Judgement(HistoryEntry):
    """What one evaluation decided, and what its plot is drawn from."""

    decision: str
    """One of `evaluation.decision.Verdict`, or `bootstrap`."""
    reason: str
    cause: str = ""
    """Why a candidate was rejected, in a word; older versions did not say."""
    model: str = ""
    """Digest of the judged model; empty for `bootstrap`."""
    baseline: str = ""
    """Digest of the model that it was compared with; empty where there was none."""
    dataset: str = ""
    """Fingerprint of the rows."""
    rows: WholeFloat = 0
    """Labelled rows."""
    window: str = ""
    end: str = ""
    """Until when the rows reach; ISO 8601, UTC."""
    champion: Whole = 0
    """Version of the champion; 0 where there is none."""
    metric: str = ""
    """What the decision was taken on."""
    scores: Mapping[str, Score] = {}
    """By metric."""
    baseline_scores: Mapping[str, Score] = {}
    gain: Gain | None = None
    """Of a challenger that was due whatever the scores of its window: what later ones add to."""
    expected: Mapping[str, Score] = {}
    """Scores to expect of rows whose labels are late, by metric."""
    unfit: tuple[str, ...] = ()
    """Why the rows are not fit to judge by, in sentences."""
    drift: tuple[str, ...] = ()
    decay: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The decision in today's terms: `unfit` was once recorded as a `reject` with reasons."""
        return "unfit" if self.decision == "reject" and self.unfit else self.decision


class Promotion(HistoryEntry):
    """Which champion a run made."""

    step: str = "promote"
    version: Whole
    model: str
    """Digest."""
    judged: str = ""
    """Digest of the model that was judged, where the promoted one is its refit."""
    refit: str = ""
    """In sentences, whether a refit was promoted; older versions made none."""
    window: str
    reason: str


class TakeOver(HistoryEntry):
    """Which window another run took from this one."""

    window: str
    reason: str

    @classmethod
    def of(cls, run_id: str, window: str, reason: str) -> TakeOver:
        """Return the entry on the loss of one window, which has a step of its own."""
        return cls(run_id=run_id, step=f"{_TAKEN_OVER}-{window}", window=window, reason=reason)


class RunOutcome(HistoryEntry):
    """The end of a run, or what a person changed."""

    step: str = "outcome"
    outcome: str
    """`promoted`, `healthy`, `inconclusive`, `rejected`, `unfit`, `waiting`, `busy`, `failed`,
    `abandoned`, `stuck` for one more of the same rejection; by hand `rollback`, `release`,
    `quarantine`."""
    reason: str
    version: Whole | None = None
    """Version of the champion that a rollback returned to."""
    replaced: Whole | None = Field(
        default=None, validation_alias="from", serialization_alias="from"
    )
    """Version of the champion that was in production until then."""
    windows: tuple[str, ...] = ()
    """Those that a person released or quarantined."""


_KINDS: Mapping[str, type[HistoryEntry]] = {
    "collect": Collection,
    "promote": Promotion,
    "outcome": RunOutcome,
}


def is_reserved(step: str) -> bool:
    """Return whether an evaluation may not call itself `step`: other entries are called so."""
    return step in _KINDS or step.startswith(_TAKEN_OVER)


def read_entry(content: bytes, *, source: str) -> HistoryEntry:
    """Read one entry; a step that this version does not know gives a plain `HistoryEntry`.

    Raises:
        CorruptData: It is no entry.
        InvalidInput: Another version of kubestill wrote it.
    """
    what = "entry of the history"
    form = parse_json(content, source=source, what=what)
    if form.get("format") != DECISION_FORMAT:  # a judgement keeps the format of its decision
        check_format(form.get("format"), FORMAT, source=source, what=what)
    for name in ("at", "run_id", "step"):
        if not isinstance(form.get(name), str):
            raise CorruptData(f"{source} is no entry of the history: it lacks {name!r}")
    step = form["step"]
    kind = TakeOver if step.startswith(_TAKEN_OVER) else _KINDS.get(step, HistoryEntry)
    if kind is HistoryEntry and "decision" in form:
        kind = Judgement
    return read_as(kind, form, source=source, what=what)


@dataclass(frozen=True)
class RunHistory:
    """Everything that the steps of one run left behind."""

    run_id: str
    entries: Sequence[HistoryEntry]
    """In the order in which they were written."""

    @property
    def collection(self) -> Collection | None:
        """Which rows it took; None before that."""
        return next(iter(self._all(Collection)), None)

    @property
    def promotion(self) -> Promotion | None:
        """The champion that it made."""
        return next(iter(self._all(Promotion)), None)

    @property
    def outcome(self) -> RunOutcome | None:
        """The end of the run; None while it is under way."""
        return next(iter(self._all(RunOutcome)), None)

    @property
    def taken_over(self) -> list[TakeOver]:
        """The windows that other runs took from it."""
        return self._all(TakeOver)

    @property
    def judgements(self) -> list[Judgement]:
        """Every evaluation."""
        return self._all(Judgement)

    def judged(self, step: Literal["judge", "challenge", "expect"]) -> Judgement | None:
        """Return what was decided on the champion (`judge`) or on its challenger (`challenge`).

        `expect` is what is expected of the champion where no row has a label.

        A retry that judged another model has an entry beside that of the attempt before; the last
        one counts.
        """
        found = [one for one in self.judgements if one.step.startswith(step)]
        return found[-1] if found else None

    @cached_property
    def judgement(self) -> Judgement | None:
        """The decision that counts: on the challenger where there was one, else on the champion."""
        return self.judged("challenge") or self.judged("judge")

    def _all(self, kind: type[E]) -> list[E]:
        return [entry for entry in self.entries if isinstance(entry, kind)]
