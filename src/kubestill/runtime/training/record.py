"""Define the record of a training run: what `training.json` and a finished ledger hold.

Every part has one writer. `engine` writes what was learned (`Learned`), `run` adds where and in how
many attempts it happened (`TrainingRecord`), and `steps.train_model` adds what it exported after
all and which checkpoints are left. Whoever reads a record takes it as a value, never as JSON:
`read_training` reads it from an export, `training_of` from a ledger.

The JSON names only what was set, in the order of the fields below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict

from kubestill.errors import NotFound
from kubestill.runtime.base.values import (
    Instant,
    Number,
    Value,
    Whole,
    check_format,
    parse_json,
    read_as,
)
from kubestill.runtime.checkpoints.ledger import (
    Attempt,
    CheckpointKind,
    Ledger,
    LedgerEntry,
    Phase,
)
from kubestill.runtime.checkpoints.schedule import SavingReport
from kubestill.runtime.curves.phases import Phases
from kubestill.runtime.models.identity import TRAINING_FILE
from kubestill.runtime.stores import open_store

FORMAT = "kubestill/training/1"
PresetName = Literal["teacher", "student", "control", "finetune", "overfit"]
"""Which component trained, in which mode."""


class _Point(Value):
    """One milestone on a curve."""

    step: Whole
    """Optimizer steps done."""
    epoch: Number
    """Passes over the data done."""
    examples: Whole
    """Rows trained on."""


class TrainPoint(_Point):
    """The training loss at one milestone; what it consists of stands beside it, by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number]  # pyright: ignore[reportIncompatibleVariableOverride]

    loss: Number
    """Mean since the milestone before."""

    @property
    def costs(self) -> Mapping[str, float]:
        """The loss of the answers and of each part, weighted, whose sum is `loss`; or nothing."""
        return self.__pydantic_extra__


class ValidationPoint(_Point):
    """The scores at one milestone; in JSON they stand beside `step`, by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number]  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def scores(self) -> Mapping[str, float]:
        """Metric → value, finite."""
        return self.__pydantic_extra__


class Curves(Value):
    """What was followed while the model learned, one point a milestone, pruned ones included."""

    train: tuple[TrainPoint, ...]
    """The loss on the rows that were trained on."""
    validation: tuple[ValidationPoint, ...]
    """The scores on the rows that were followed; empty where there were none."""

    def to_json(self) -> dict[str, list[dict[str, float]]]:
        """Return both curves as lists of flat points, as `detect_phases` takes them."""
        return self.model_dump(mode="json")


class Stop(Value):
    """Why training ended."""

    reason: Literal["budget", "early-stopping", "tolerance", "converged"]
    """Which rule ended it."""
    detail: str
    """What the rule saw, in words and numbers."""


class Chosen(Value):
    """The milestone that was exported."""

    step: Whole
    """Optimizer steps done."""
    why: str
    """What made it the one."""


class AttemptRecord(Value):
    """One process (group) that worked on the training run."""

    number: Whole
    """1 is the first."""
    began: Instant
    """When it claimed the training run, in seconds since 1970."""
    last_sign: Instant
    """When it last wrote to the ledger, in seconds since 1970."""
    resumed_from: Whole | None
    """Step of the checkpoint that it resumed from; None where it began at the beginning."""
    exact: bool
    """Whether it continued with the bits of an uninterrupted training run."""
    ended: str
    """What ended it, as far as anybody could tell; empty where it finished."""

    @classmethod
    def of(cls, attempt: Attempt) -> AttemptRecord:
        """Return what a reader wants to know of an attempt in the ledger."""
        return cls(
            number=attempt.number,
            began=attempt.began,
            last_sign=attempt.beat_at,
            resumed_from=attempt.resumed_from,
            exact=attempt.exact,
            ended=attempt.ended,
        )


class KeptCheckpoint(Value):
    """One checkpoint that was left in the ledger when training ended."""

    step: Whole
    """Optimizer steps done."""
    kind: CheckpointKind
    """`milestone` or `recovery`."""
    phase: Phase | None
    """1 structure, 2 detail, 3 overfitting; None where they could not be distinguished."""
    metrics: dict[str, Number] = {}
    """Metric → value, finite; empty for a recovery checkpoint."""

    @classmethod
    def of(cls, entry: LedgerEntry) -> KeptCheckpoint:
        """Return what a reader wants to know of a ledger's entry."""
        return cls(step=entry.step, kind=entry.kind, phase=entry.phase, metrics=dict(entry.metrics))


class Learned(Value):
    """What the engine did, from the first step to the last; the engine alone writes it."""

    format: Literal["kubestill/training/1"]
    settings: Mapping[str, Any]
    """Every training setting, as it was validated; another version may know others."""
    loss: str
    """Name of the loss."""
    metric: str
    """What early stopping and the choice of a milestone followed."""
    device: str
    """Device and arithmetic, in words."""
    step_path: str
    """How a step was computed: `fused` or `autograd`."""
    steps: Whole
    """Optimizer steps done."""
    epochs: Number
    """Passes over the data done."""
    examples: Whole
    """Rows trained on, repeated ones included."""
    rows: Whole
    """Rows of the training data."""
    seconds: Number
    """Time spent in steps and milestones, over all attempts."""
    stop: Stop
    """Why it ended."""
    chosen: Chosen
    """Which milestone is exported."""
    curves: Curves
    """What was followed."""
    phases: Phases
    """Where the three phases lie."""


class TrainingRecord(Learned):
    """Everything that is known of a finished training run."""

    preset: PresetName
    """Which component trained, in which mode."""
    fingerprint: str
    """Covers settings, data, the user's own source and the starting point; names its place."""
    checkpoint_uri: str
    """The training run's place, where its checkpoints are."""
    repeats: str = ""
    """Digest of the model whose training run this one repeats on other rows; empty where it found
    its own length."""
    recipe: Mapping[str, Any] = {}
    """What fine-tuning was asked for besides settings, by parameter; empty for other presets."""
    attempts: tuple[AttemptRecord, ...] = ()
    """Every attempt, in order; empty where an older version kept no account of them."""
    saving: SavingReport = SavingReport()
    """How often the last attempt saved its state, and what that cost."""
    checkpoints: tuple[KeptCheckpoint, ...] = ()
    """What the ledger listed when the model was exported; not part of a ledger's own result."""

    def replace(
        self, *, chosen: Chosen | None = None, checkpoints: Sequence[LedgerEntry] = ()
    ) -> TrainingRecord:
        """Return the record of an export that chose another milestone, or lists checkpoints."""
        changed: dict[str, Any] = {}
        if chosen:
            changed["chosen"] = chosen
        if checkpoints:
            changed["checkpoints"] = tuple(map(KeptCheckpoint.of, checkpoints))
        return self.model_copy(update=changed)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `training.json`."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_result(self) -> dict[str, Any]:
        """Return the result of the training run, as a finished ledger keeps it."""
        return {_RESULT: self.to_json()}


_RESULT = "training"


def training_of(ledger: Ledger) -> TrainingRecord | None:
    """Return the record of the training run that a ledger belongs to; None while it is unfinished.

    Raises:
        CorruptData: The ledger's result is no training record.
        InvalidInput: Another version of kubestill wrote it.
    """
    if ledger.finished is None:
        return None
    return _read(ledger.finished.get(_RESULT), source=f"the result in {ledger.uri}")


def read_training(uri: str) -> TrainingRecord | None:
    """Return the record in `training.json` of an export; None where the export has none.

    Raises:
        CorruptData: The file is no training record.
        InvalidInput: Another version of kubestill wrote it.
        StoreError: The store did not answer.
    """
    try:
        content = open_store(uri).get(TRAINING_FILE)
    except NotFound:
        return None
    source = f"{uri}/{TRAINING_FILE}"
    return _read(parse_json(content, source=source, what="training record"), source=source)


def _read(form: Any, *, source: str) -> TrainingRecord:
    found = form.get("format") if isinstance(form, dict) else None
    check_format(found, FORMAT, source=source, what="training record")
    return read_as(TrainingRecord, form, source=source, what="training record")
