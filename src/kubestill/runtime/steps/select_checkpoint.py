"""Run `select-checkpoint`: choose one milestone, export it, say why.

Reads the small ledger and the chosen state; more states only where candidates are scored again.
Weights go through files, a piece at a time: only a model that is scored is ever in memory.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from kubestill.errors import CorruptData, InvalidInput, KubestillError, Problems, counted
from kubestill.runtime.base.artifacts import Artifact, check_kind
from kubestill.runtime.base.device import choose_devices
from kubestill.runtime.base.settings import Settings, read
from kubestill.runtime.checkpoints.ledger import (
    Checkpoint,
    Ledger,
    LedgerEntry,
    finite,
    read_ledger_artifact,
    write_checkpoint_artifact,
)
from kubestill.runtime.checkpoints.manifest import read_manifest
from kubestill.runtime.checkpoints.restore import stream_weights
from kubestill.runtime.datasets.manifest import Dataset, open_input
from kubestill.runtime.evaluation.evaluate import evaluate
from kubestill.runtime.metrics.catalog import METRICS, TRAIN_LOSS, metrics_of
from kubestill.runtime.metrics.outcome import Floats
from kubestill.runtime.models.export import (
    Export,
    copy_export,
    load_model,
)
from kubestill.runtime.models.serve import Serving, add_serving_file, check_serving
from kubestill.runtime.reports.selection import Account, selection_report
from kubestill.runtime.selection.criterion import (
    Criterion,
    Evidence,
    check_criterion,
    check_rule,
    metric_of,
)
from kubestill.runtime.selection.rules import Choice, select
from kubestill.runtime.steps.pages import write_pages
from kubestill.runtime.stores import join_uri, open_store
from kubestill.runtime.stores.base import Store
from kubestill.runtime.training.record import (
    Chosen,
    Curves,
    TrainingRecord,
    TrainPoint,
    ValidationPoint,
    training_of,
)
from kubestill.runtime.training.saved import read_saved

LEAST_ROWS = 30
"""Labelled rows below which a standard error is itself a guess."""


class SelectionSettings(Settings):
    """The `settings` of `select-checkpoint`."""

    step: int | None = Field(default=None, ge=0)
    """Step of the milestone, for rule `step`."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Which way the metric is better; `auto` knows every metric that is measured here."""
    device: str = "auto"
    """Device that re-scores candidates: `auto`, `cpu`, `cuda` or `cuda:1`; without a number all
    visible GPUs compute."""
    serving: Serving | Literal["auto"] = "auto"
    """A file beside the model that serves it without this package: `onnx`, `torch`, `none`; `auto`
    uses the setting of the training run."""


class _Typed(BaseModel):
    """What the component's typed parameters say about the choice."""

    model_config = ConfigDict(frozen=True)

    rule: str = "best"
    metric: str = ""
    tolerance: float = 0.0


def select_checkpoint(
    *,
    ledger: Artifact,
    checkpoint: Artifact,
    model: Artifact,
    report: Artifact,
    summary: Artifact,
    dataset: Artifact | None = None,
    rule: str = "best",
    metric: str = "",
    tolerance: float = 0.0,
    settings: Mapping[str, Any] | None = None,
) -> tuple[str, str, str]:
    """Choose one milestone of a training run by a rule, export it, and write down why.

    The component documents parameters and outputs.

    Raises:
        InvalidInput: Everything wrong with the inputs, at once, before any state is read.
        CorruptData: Rows of the dataset, or every state that could be chosen, are damaged.
        StoreError: The store did not answer.
    """
    inputs = check_inputs(ledger, dataset, rule, metric, tolerance, settings or {})
    with tempfile.TemporaryDirectory(prefix="kubestill-select-") as folder:
        selection = Selection(inputs, open_store(inputs.ledger.uri), folder)
        choice, exported = selection.run(model.path)
    add_serving_file(model.path, inputs.serving)
    chosen = next(entry for entry in inputs.entries if entry.step == choice.entry.step)
    _describe(inputs, Checkpoint.of(inputs.ledger, chosen, reason=choice.reason), checkpoint)
    model.metadata.update(
        kind="model",
        digest=exported.digest,
        parameters=exported.spec.parameters,
        fingerprint=inputs.ledger.fingerprint,
        checkpoint_uri=inputs.ledger.uri,
    )
    _write_report(selection, choice, report, summary)
    print(f"{rule}: {choice.reason}", flush=True)
    return checkpoint.metadata["checkpoint_uri"], model.uri, choice.reason


@dataclass(frozen=True, kw_only=True)
class SelectionInputs:
    """Checked inputs."""

    ledger: Ledger
    record: TrainingRecord | None
    """Of the training run; None while it is unfinished."""
    criterion: Criterion
    evidence: Evidence
    dataset: Dataset | None
    devices: Sequence[str]
    """Where candidates are scored: each has a copy of one."""
    serving: Serving

    @property
    def entries(self) -> list[LedgerEntry]:
        """Everything that is not known to be damaged."""
        return [entry for entry in self.ledger.entries if not entry.damaged]


@dataclass
class Selection:
    """One selection under way: reads no more states than it must, and remembers which."""

    inputs: SelectionInputs
    store: Store
    """Rooted at the training run's place."""
    folder: str
    """For exports of candidates that are scored."""
    notices: list[str] = field(default_factory=list[str])
    bytes_read: int = 0
    """Size of the states that were read."""

    def run(self, path: str) -> tuple[Choice[LedgerEntry], Export]:
        """Choose by the rule, and export to the folder `path`.

        A damaged state is left out, loudly, and the rule is asked again.

        Raises:
            CorruptData: Every state that could be chosen is damaged.
            InvalidInput: Nothing is left that the rule could choose.
        """
        entries, evidence = self.inputs.entries, self.inputs.evidence
        if self.inputs.dataset is not None:
            entries, evidence = self._score_again(entries, self.inputs.dataset)
        while True:
            choice = select(entries, self.inputs.criterion, evidence)
            try:
                return choice, self._export(choice, path)
            except CorruptData as error:
                entries = [entry for entry in entries if entry.step != choice.entry.step]
                if self.inputs.criterion.rule == "step" or not _milestones(entries):
                    raise
                self._leave_out(choice.entry, error)

    def _export(self, choice: Choice[LedgerEntry], path: str) -> Export:
        step, record, training = choice.entry.step, self.inputs.record, None
        if record is not None:
            training = record.replace(chosen=Chosen(step=step, why=choice.reason)).to_json()
        if self.inputs.dataset is not None:
            return copy_export(self._folder(step), path, training=training)
        return self._stream(choice.entry, path, training)

    def _score_again(
        self, entries: Sequence[LedgerEntry], dataset: Dataset
    ) -> tuple[list[LedgerEntry], Evidence]:
        """Replace the metrics of every milestone by scores on `dataset`, one state at a time."""
        criterion, moved = self.inputs.criterion, dict[int, Floats]()
        scored: list[LedgerEntry] = []
        for entry in _milestones(entries):
            try:
                self._stream(entry, self._folder(entry.step))
            except CorruptData as error:
                self._leave_out(entry, error)
                continue
            predictor, *copies = (
                load_model(self._folder(entry.step), device=one) for one in self.inputs.devices
            )
            predictor.copies = tuple(copy.model for copy in copies)
            found = evaluate(predictor, dataset)
            scored.append(replace(entry, metrics=finite(found.metrics)))
            if criterion.measures_error:
                metric = metric_of(criterion, self.inputs.evidence, found.metrics)
                # A candidate whose answers are not finite has none, and does not compete.
                if math.isfinite(found.metrics[metric]):
                    moved[entry.step] = METRICS[metric].influences(found.outcome)
            print(f"step {entry.step:,} scored on {counted(dataset.rows, 'row')}", flush=True)
        return scored, replace(self.inputs.evidence, influences=moved)

    def _stream(
        self, entry: LedgerEntry, path: str, training: Mapping[str, Any] | None = None
    ) -> Export:
        """Export a state in little memory: it may be in shards, and larger than this process."""
        self.bytes_read += entry.bytes
        incoming, meta = stream_weights(self.store, entry, path)
        with closing(incoming):
            return incoming.export(meta.get("model_spec", {}), training=training)

    def _folder(self, step: int) -> str:
        return os.path.join(self.folder, str(step))

    def _leave_out(self, entry: LedgerEntry, error: CorruptData) -> None:
        self.notices.append(f"WARNING: step {entry.step:,} is damaged and was left out: {error}")
        print(self.notices[-1], flush=True)


def check_inputs(
    ledger: Artifact,
    dataset: Artifact | None,
    rule: str,
    metric: str,
    tolerance: float,
    settings: Mapping[str, Any],
) -> SelectionInputs:
    """Find every problem that can be found without reading state, and raise them together."""
    problems = Problems()
    devices, history, record = ["cpu"], None, None
    asked = {"rule": rule, "metric": metric, "tolerance": tolerance}
    typed = read(_Typed, asked, problems) or _Typed()
    parsed = read(SelectionSettings, settings, problems, prefix="settings.") or SelectionSettings()
    with problems.collect():
        devices = [str(one) for one in choose_devices(parsed.device)]
    rows = open_input(dataset, "dataset", problems)
    with problems.collect("ledger", ledger.uri):
        check_kind(ledger, "ledger")
        history = _located(read_ledger_artifact(ledger.path), ledger)
        record = training_of(history)
    serving = parsed.serving
    if serving == "auto":
        serving = _serving(record)
    else:
        with problems.collect():
            check_serving(serving, "settings.serving")
    criterion = Criterion(
        rule=typed.rule,
        metric=typed.metric,
        mode=parsed.mode,
        tolerance=typed.tolerance,
        step=parsed.step,
        rescoring=dataset is not None,
    )
    evidence = _evidence(history, record) if history else None
    with problems.collect():
        if history and evidence:
            kept = [entry for entry in history.entries if not entry.damaged]
            check_criterion(criterion, evidence, kept, _recorded(history, rows))
        else:
            check_rule(criterion)
    if rows and criterion.measures_error and (labelled := rows.rows - rows.unlabelled) < LEAST_ROWS:
        remedy = (
            f"insufficient: one standard error takes {LEAST_ROWS} labelled rows, the dataset has "
            f"{labelled}; connect more, or give a tolerance such as 0.01"
        )
        problems.add("tolerance", criterion.tolerance, remedy)
    problems.raise_if_any()
    assert history
    assert evidence
    return SelectionInputs(
        ledger=history,
        record=record,
        criterion=criterion,
        evidence=evidence,
        dataset=rows,
        devices=devices,
        serving=serving,
    )


def _located(ledger: Ledger, artifact: Artifact) -> Ledger:
    """Return the ledger with the place its checkpoints lie at now.

    That is where it says, or beside its own file, where somebody copied or moved the whole root: a
    ledger of one's own is `<root>/<experiment>/<fingerprint>/ledger.json`, on local disk with a
    number behind.
    """
    if not ledger.newest_first:
        return ledger
    key = ledger.newest_first[0].manifest.key
    beside = [os.path.dirname(uri.rstrip("/")) for uri in (artifact.uri, artifact.path)]
    for uri in dict.fromkeys([ledger.uri, *filter(None, beside)]):
        with suppress(KubestillError):
            if any(entry.key == key for entry in open_store(uri).list(key)):
                if uri != ledger.uri:
                    print(f"the checkpoints of {ledger.uri} are read from {uri}", flush=True)
                return replace(ledger, uri=uri)
    return ledger


def _serving(record: TrainingRecord | None) -> Serving:
    """Return what the training run was set to write, as far as this image can write it."""
    told = record.settings.get("serving", "none") if record else "none"
    try:
        check_serving(told, "serving")
    except InvalidInput as error:
        print(f"WARNING: the training run wrote {told} and this step does not: {error}", flush=True)
        return "none"
    return told if told in get_args(Serving) else "none"


def _evidence(ledger: Ledger, record: TrainingRecord | None) -> Evidence:
    """Return the curves of the training run: from its record, else from its newest checkpoint.

    Where neither has them, those of the kept milestones are left.
    """
    if record is not None:
        return Evidence(curves=record.curves, own_metric=record.metric)
    for newest in ledger.newest_first[:1]:
        with suppress(KubestillError):
            meta = read_manifest(open_store(ledger.uri), newest.manifest).meta
            saved = read_saved(meta, f"{ledger.uri}/{newest.manifest.key}")
            return Evidence(curves=saved.curves, own_metric=saved.stopping.metric)
    train: list[TrainPoint] = []
    validation: list[ValidationPoint] = []
    for entry in ledger.milestones:
        scores = dict(entry.metrics)
        position = {"step": entry.step, "epoch": entry.epoch, "examples": entry.examples}
        if TRAIN_LOSS in scores:
            train.append(TrainPoint.model_validate({**position, "loss": scores.pop(TRAIN_LOSS)}))
        validation.append(ValidationPoint.model_validate({**position, **scores}))
    return Evidence(curves=Curves(train=tuple(train), validation=tuple(validation)))


def _recorded(ledger: Ledger, dataset: Dataset | None) -> set[str]:
    if dataset is not None and dataset.schema.task is not None:
        return set(metrics_of(dataset.schema.task))
    return {name for entry in ledger.milestones for name in entry.metrics}


def _milestones(entries: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    return [entry for entry in entries if entry.kind == "milestone"]


def _describe(inputs: SelectionInputs, chosen: Checkpoint, artifact: Artifact) -> None:
    write_checkpoint_artifact(chosen, artifact.path)
    manifest = chosen.entry.manifest
    artifact.metadata.update(
        kind="checkpoint",
        checkpoint_uri=join_uri(chosen.uri, os.path.dirname(manifest.key)),
        step=chosen.entry.step,
        digest=manifest.sha256,
        fingerprint=chosen.fingerprint,
        rule=inputs.criterion.rule,
        reason=chosen.reason,
    )


def _write_report(
    selection: Selection, choice: Choice[LedgerEntry], report: Artifact, summary: Artifact
) -> None:
    inputs = selection.inputs
    again = inputs.dataset and f"scored again on {counted(inputs.dataset.rows, 'row')}"
    pages = selection_report(
        Account(
            choice=choice,
            phases=inputs.evidence.phases,
            scored_on=again or "as recorded when the checkpoints were saved",
            bytes_read=selection.bytes_read,
            bytes_kept=sum(entry.bytes for entry in inputs.ledger.entries),
            notices=selection.notices,
        )
    )
    write_pages(pages, report, summary, inputs.dataset)
