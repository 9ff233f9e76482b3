"""What the registry's one object says. Everything here is a value with a JSON form.

A *window* is the rows that one run took. It has two parts: rows to *train* on, and rows that only
*judge*. A run holds its window as the *claim*; when the run ends well the claim becomes one of
`windows`, and only then were its rows taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PlainSerializer

from kubestill.runtime.base.values import Instant, Key, Seconds, StrictValue, Time, Whole
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.retraining.decision import DecisionRecord

FORMAT = "kubestill/registry/1"

Half: TypeAlias = Literal["train", "judge"]
Part: TypeAlias = Literal["trainable", "trained", "quarantined", "golden"]
"""What may become of a part of a window: learn from it later; it was learned from; never learn
from it, because its rows are unfit or what they taught was given up; keep it as the fixed set that
catches forgetting."""
Verdict: TypeAlias = Literal["", "healthy", "inconclusive", "rejected", "unfit", "promoted"]
"""The end of the run that took the window; empty while it is under way. `rejected` was the
challenger, `unfit` are the rows."""


class Champion(StrictValue):
    """The model in production, or one that was."""

    version: Whole = Field(ge=1)
    run_id: str
    """Id of the run that promoted it."""
    window: str
    """The window whose rows judged it."""
    promoted_at: Time
    """ISO 8601, UTC."""
    folder: Key
    """Key below the registry: `model/`, `ledger.json` and the state before overfitting lie there.
    `Registry.model_uri` and `ledger_uri` make URIs of it."""
    model_digest: str
    """See `models.identity`."""
    judged: str = ""
    """Digest of the model that was judged, where this one is its refit: the same recipe, trained
    once more with the rows that judged it. Empty where this very model was judged."""
    ledger_digest: str = ""
    """SHA-256 of `ledger.json`; empty where the model came without one."""
    datasets: Mapping[str, str] = Field(default_factory=dict[str, str])
    """Fingerprints by use: `trained`, `judged`."""
    decision: DecisionRecord
    """What continuous-eval decided when it was judged, with its scores then."""


class Window(StrictValue):
    """The rows that one run took."""

    id: Key
    """Also its folder's name below `windows/`."""
    run_id: str
    end: Time
    """ISO 8601, UTC: every row is from before this instant."""
    first: Time
    """Time of the earliest row; ISO 8601, UTC."""
    last: Time
    """Time of the latest row."""
    rows: Whole = Field(ge=1)
    judge_rows: Whole
    late: Whole = 0
    """Rows from before the end of an earlier window."""
    manifest: str
    """SHA-256 of `windows/<id>/window.json`, which lists files, fingerprints and identities."""
    holdout: str
    """Fingerprint of the dataset of its judging rows."""
    verdict: Verdict = ""
    train: Part = "trainable"
    judge: Part = "trainable"
    """Rows that have judged may be learned from by later runs, which never judge by them again. A
    refit learns from them at once; the model that was judged, and what is made of it, has not."""
    trained_by: Mapping[Half, Whole] = Field(default_factory=dict[Half, int])
    """Version of the first champion that learned from a part."""


class Golden(StrictValue):
    """The user's own fixed rows, as they were when they were imported."""

    source: str
    """Where they came from; another one is imported anew."""
    folder: Key
    """Key of the copy below the registry."""
    fingerprint: str
    rows: Whole = Field(ge=1)


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What the rows mean, as the runs of a registry agreed on it."""

    timestamp: str
    target: str
    keys: tuple[str, ...]
    columns: tuple[str, ...] = ()
    """What tells rows apart where there are no keys."""
    schema: Schema

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**vars(self), "schema": self.schema.to_json()}


Agreed: TypeAlias = Annotated[
    Contract | None,
    BeforeValidator(lambda form: form or None),
    PlainSerializer(lambda contract: contract.to_json() if contract else {}),
]
"""A contract; before there is one, an empty object."""


class Claim(StrictValue):
    """A run under way, and the window it holds."""

    run_id: str
    owner: str = ""
    """Names the process that drives the run, where that can be looked up; see `ownership`."""
    at: Instant
    """When it was claimed or last renewed, in seconds since 1970 by the claimant's clock."""
    lease_seconds: Seconds
    champion: Whole = 0
    """Version of the champion that is judged; 0 where there is none."""
    after: Whole = 0
    """Number of windows that were closed when this one was planned."""
    window: Window
    pool: tuple[tuple[str, Half], ...] = ()
    """Parts of earlier windows that the run trains on as well."""
    took_over: tuple[tuple[str, str], ...] = ()
    """Runs that seemed dead, and the windows that were taken from them: the rows are these now."""
    contract: Agreed = None
    """Becomes the registry's when the run ends well."""
    golden: Golden | None = None
    """Rows that were imported for this run and those after it; they are the registry's at once."""


class State(StrictValue):
    """Everything that must never disagree with itself."""

    format: Literal["kubestill/registry/1"] = FORMAT
    sequence: Whole = 0
    """Grows with every change."""
    writer: str = ""
    """Unique to the change that wrote this: tells one's own success after a lost answer."""
    contract: Agreed = None
    champion: Champion | None = None
    previous: tuple[Champion, ...] = ()
    """Former champions, newest first; those rolled back are gone from here."""
    versions: Whole = 0
    """Champions ever made: version numbers are not used twice."""
    golden: Golden | None = None
    """What catches forgetting, where it is the user's own; else the parts of windows named so."""
    claim: Claim | None = None
    windows: tuple[Window, ...] = ()
    """In the order in which their runs ended."""

    @property
    def champions(self) -> tuple[Champion, ...]:
        """The champion and its predecessors, newest first."""
        return (self.champion, *self.previous) if self.champion else self.previous

    @property
    def judged_through(self) -> str:
        """The latest end of a window: rows from before it are late. Empty before the first."""
        return max((window.end for window in self.windows), default="")

    @property
    def trained_through(self) -> str:
        """Time of the latest row that a champion learned from; empty before the first."""
        trained = (w.last for w in self.windows if "trained" in (w.train, w.judge))
        return max(trained, default="")

    def window(self, id: str) -> Window | None:
        """Return the window called `id`, or None."""
        return next((window for window in self.windows if window.id == id), None)
