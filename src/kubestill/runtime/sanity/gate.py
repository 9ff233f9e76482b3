"""The flow: look at rows, loss and network; memorise a batch; where that fails, find out why."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from kubestill.runtime.sanity.batch import Batch, draw, first_rows
from kubestill.runtime.sanity.contract import check_loss, check_reduction, right_answers
from kubestill.runtime.sanity.diagnosis import find_cause
from kubestill.runtime.sanity.findings import LEARNED, Check, GateFindings
from kubestill.runtime.sanity.floor import find_floor
from kubestill.runtime.sanity.heldout import check_held_out
from kubestill.runtime.sanity.memorise import Setup, gradients, memorise
from kubestill.runtime.sanity.network import (
    check_gradients,
    check_outputs,
    check_rows_apart,
    check_trainable,
)
from kubestill.runtime.sanity.rows import (
    check_features,
    check_labels,
    check_target_scale,
    with_words,
)
from kubestill.runtime.sanity.settings import GateSettings
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.prepare import Prepared
from kubestill.runtime.training.settings import TrainingSettings

_SAMPLE = 4096
"""Rows whose features and targets are looked at."""


@dataclass(frozen=True, kw_only=True)
class GateData:
    """What the gate knows of the dataset beside what training gets."""

    labels: NDArray[Any] | None
    """Of every row: classes int64 [N] (-1 missing), or values [N, T]; None where there are none."""
    soft: NDArray[Any] | None
    """A teacher's outputs [N, K]."""
    complete: bool
    """All rows there are."""


def examine(
    prepared: Prepared,
    data: GateData,
    settings: TrainingSettings,
    machine: Machine,
    gate: GateSettings,
) -> GateFindings:
    """Ask everything; stop asking where an answer makes the next question meaningless.

    Args:
        prepared: Model, rows and loss, as training gets them from `prepare`.
        data: Labels of the dataset.
        settings: Of the training run that is to come.
        machine: Where both run.
        gate: Of this gate.
    """
    begun, deadline = time.monotonic(), time.thread_time() + gate.seconds
    index = first_rows(prepared, _SAMPLE, batch_size=settings.batch_size, seed=settings.seed)
    features, *targets = (tensor.clone() for tensor in prepared.rows.gather(index))
    batch = draw(prepared, index, data.labels, gate.rows)
    findings = GateFindings(rows=batch.rows, loss=prepared.loss_name)
    setup = Setup(
        loss=prepared.loss,
        settings=settings,
        machine=machine,
        steps=gate.steps or _steps(prepared, settings),
        near=gate.excess,
        deadline=deadline,
    )
    findings.checks += _look(prepared, data, features, targets[0], batch, setup, gate)
    if findings.verdict == "pass":
        _learn(findings, prepared, batch, setup)
    if findings.verdict == "pass":
        held_out = _held_out(findings, prepared, data, index, features, setup, gate)
        findings.checks.append(held_out)
    if findings.verdict == "pass":
        _compare(findings, prepared, batch, setup)
    findings.seconds = time.monotonic() - begun
    return findings


def _steps(prepared: Prepared, settings: TrainingSettings) -> int:
    """Return the training run's own number, within reason: a slow rate needs its time."""
    per_epoch = -(-prepared.rows.count // settings.batch_size)
    own = settings.steps or round(settings.epochs * per_epoch)
    return min(max(own, 2000), 4000)


def _look(
    prepared: Prepared,
    data: GateData,
    features: Tensor,
    targets: Tensor,
    batch: Batch,
    setup: Setup,
    gate: GateSettings,
) -> list[Check]:
    """Everything that can be seen without memorising: milliseconds."""
    model = prepared.model
    task, outputs = model.spec.task, len(model.spec.outputs) if model.spec.task != "binary" else 1
    checks = [check_labels(data.labels), check_features(features, model.encoder)]
    if task == "regression":
        checks.append(check_target_scale(targets, data.labels))
    if any(check.status == "fail" for check in checks):
        return checks
    temperature = setup.settings.temperature if "distil" in prepared.loss_name else 1.0
    perfect = right_answers(batch, task=task, outputs=outputs, temperature=temperature)
    checks.append(check_loss(prepared.loss, batch, perfect, outputs=outputs))
    checks.append(check_reduction(prepared.loss, batch, outputs=outputs))
    untrained = [*gate.untrained, *setup.settings.freeze]
    checks.append(check_trainable(model.network, untrained))
    if not any(parameter.requires_grad for parameter in model.network.parameters()):
        return checks
    checks.append(check_rows_apart(model.network, batch))
    checks.append(check_outputs(model.network, batch, task, perfect))
    if all(check.status != "fail" for check in checks):
        checks.append(check_gradients(gradients(model.network, batch, setup), untrained))
    return checks


def _learn(findings: GateFindings, prepared: Prepared, batch: Batch, setup: Setup) -> None:
    """Memorise the batch."""
    network = prepared.model.network
    outputs = 1 if prepared.model.spec.task == "binary" else len(prepared.model.spec.outputs)
    floor = findings.floor = find_floor(prepared.loss, batch, outputs)
    findings.steps, findings.excess = setup.steps, setup.near
    if floor.gap < 1e-6 * max(abs(floor.baseline), 1e-6):
        said = (
            "In this batch no function of the features beats a constant: equal features have "
            "unlike labels, or all rows have one."
        )
        findings.checks.append(
            Check(
                name=LEARNED,
                status="fail",
                code="features-constant",
                said=said,
                remedy="Give features that tell its rows apart.",
            )
        )
        return
    real = memorise("the batch", network, batch, floor, setup)
    findings.traces.append(real)
    if real.reached is None:
        findings.checks.append(find_cause(findings, prepared, batch, floor, setup))
        return
    findings.learned = real
    said = f"To {100 * real.best:.2g}% above its floor in {real.reached} steps."
    findings.checks.append(Check(name=LEARNED, status="ok", said=said))


def _compare(findings: GateFindings, prepared: Prepared, batch: Batch, setup: Setup) -> None:
    """Memorise the same rows under each other's labels, to compare with."""
    real = findings.traces[0]
    if real.reached is None:
        return
    outputs = 1 if prepared.model.spec.task == "binary" else len(prepared.model.spec.outputs)
    mixed = batch.shuffled(setup.settings.seed + 1)
    # Ten times as long is long enough.
    setup = replace(setup, steps=min(setup.steps, max(200, 10 * real.reached)))
    floor = find_floor(prepared.loss, mixed, outputs)
    control = memorise("shuffled labels", prepared.model.network, mixed, floor, setup)
    findings.traces.append(control)
    steps = control.steps[-1]
    ended = f"takes {control.reached}" if control.reached else f"is not reached in {steps}"
    said = f"With its labels shuffled the floor {ended} steps; with its own, {real.reached}."
    findings.checks.append(Check(name="the control", status="note", said=said))


def _held_out(
    findings: GateFindings,
    prepared: Prepared,
    data: GateData,
    index: Tensor,
    features: Tensor,
    setup: Setup,
    gate: GateSettings,
) -> Check:
    labels = data.soft if data.soft is not None and "distil" in prepared.loss_name else data.labels
    name = "labels belong to their rows"
    if labels is None or not gate.held_out_rows:
        return Check(name=name, status="skipped", said="Not asked.")
    count = min(len(index), gate.held_out_rows)
    check, findings.held_out = check_held_out(
        with_words(features[:count].flatten(1).cpu().numpy(), prepared.model.encoder),
        labels,
        index[:count].numpy(),
        codes=len(prepared.model.encoder.vocabulary),
        complete=data.complete,
        seed=setup.settings.seed % 2**31,
        deadline=setup.deadline,
    )
    if check.status == "undetermined" and gate.undetermined == "accept":
        return replace(check, status="note")
    return check
