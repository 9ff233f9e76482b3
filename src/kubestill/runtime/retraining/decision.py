"""The decision on a model, bound to what it was taken on: a promotion blesses nothing else.

`evaluation.publish` writes it, promote-model reads it, and a champion keeps it in the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from kubestill.runtime.base.artifacts import clean
from kubestill.runtime.base.values import WholeFloat, read_as

DECISION_FORMAT: Literal["kubestill/decision/1"] = "kubestill/decision/1"


class Score(BaseModel):
    """One score with its interval; None where a number is not finite."""

    model_config = ConfigDict(frozen=True, extra="allow")

    value: int | float | None
    low: int | float | None
    high: int | float | None
    rows: WholeFloat
    """Labelled rows that it was measured on."""


class DecisionRecord(BaseModel):
    """What continuous-eval decided, on which model, against which one, and on which rows."""

    # A later version may add facts: they are kept, so that a registry is written as it was read.
    model_config = ConfigDict(frozen=True, extra="allow")

    format: Literal["kubestill/decision/1"] = DECISION_FORMAT
    decision: str
    """One of `evaluation.decision.Verdict`."""
    reason: str
    """The decision in sentences."""
    cause: str = ""
    """Why a candidate was rejected, in a word: `evaluation.decision.Cause`; empty otherwise."""
    model: str
    """Digest of the judged model."""
    baseline: str
    """Digest of the model that it was compared with; empty where there was none."""
    dataset: str
    """Fingerprint of the rows."""
    scores: Mapping[str, Score] = {}
    """By metric."""
    record: Mapping[str, Any] = {}
    """What the model is to be remembered by if it is promoted, as `evaluation.record` writes and
    reads it; empty where no registry remembers it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return clean(self.model_dump(mode="json"))


def read_decision(form: Mapping[str, Any], *, source: str) -> DecisionRecord:
    """Read what `DecisionRecord.to_json` gave, even after Kubeflow turned its numbers into floats.

    Raises:
        CorruptData: It is no decision on a model.
    """
    return read_as(DecisionRecord, dict(form), source=source, what="decision on a model")
