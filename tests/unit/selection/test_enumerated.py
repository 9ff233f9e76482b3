"""Every rule over every metric, pattern of NaN and retention policy, held against brute force."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pytest
from scipy import stats

from kubestill.errors import InvalidInput
from kubestill.runtime.checkpoints.ledger import LedgerEntry, ManifestRef, finite
from kubestill.runtime.checkpoints.protocol import Marks, with_phases
from kubestill.runtime.checkpoints.retention import policy_of
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.curves.phases import boundary_candidates, detect_phases, phase_of
from kubestill.runtime.metrics.catalog import METRICS, TRAIN_LOSS
from kubestill.runtime.selection.criterion import COMPARING, RULES, Criterion, Evidence
from kubestill.runtime.selection.rules import Choice, select
from kubestill.runtime.training.record import Curves

COUNT = 16
NAN: dict[str, set[int]] = {
    "none": set(),
    "first": {1},
    "last": {COUNT},
    "best": {9},
    "second half": set(range(9, COUNT + 1)),
    "all but one": set(range(1, COUNT + 1)) - {5},
    "all": set(range(1, COUNT + 1)),
}
POLICIES: dict[str, Mapping[str, float]] = {
    "everything": {},
    "bytes": {"keep_bytes": 6, "keep_last": 1, "keep_best": 0},
    "least": {"keep_bytes": 0, "keep_last": 1, "keep_best": 0, "keep_phases": 0},
    "best": {"keep_bytes": 0, "keep_last": 1, "keep_best": 3, "keep_phases": 0},
    "every third": {"keep_bytes": 0, "keep_last": 1, "keep_best": 0, "keep_every": 3},
    "phases": {"keep_bytes": 0, "keep_last": 1, "keep_best": 0},
}
MEASURED = ("log_loss", "accuracy", "rmse", "r2", "max_error", "error_rate", "auc", TRAIN_LOSS)


def measured(metric: str, step: int) -> float:
    """Worse by far at first, best at milestone 9, worse again later."""
    off = 0.05 + 1.5 * math.exp(-step / 1.5) + 0.02 * max(0, step - 9) + 0.001 * (step % 3)
    return 1 - off if METRICS[metric].sign > 0 else off


@cache
def trained(metric: str, pattern: str, policy: str) -> tuple[tuple[LedgerEntry, ...], Evidence]:
    """What is left of a training run whose metric was NaN at some milestones."""
    settings = CheckpointSettings.model_validate({"metric": metric, **POLICIES[policy]})
    keep, kept = policy_of(settings), ()
    train: list[dict[str, float]] = []
    validation: list[dict[str, float]] = []
    for step in range(1, COUNT + 1):
        # A training loss that is not finite ends the training run before the milestone.
        broken = step in NAN[pattern] and metric != TRAIN_LOSS
        metrics = finite({metric: math.nan if broken else measured(metric, step)})
        position = {"step": step, "epoch": step, "examples": 32 * step}
        train.append({**position, "loss": metrics[metric] if metric == TRAIN_LOSS else 1 / step})
        if metrics and metric != TRAIN_LOSS:
            validation.append({**position, **metrics})
        curves = {"train": train, "validation": validation}
        phases = detect_phases(curves, metric=metric)
        known = Marks(
            phases={n: phase_of(phases, n) for n in range(1, step + 1)},
            candidates=boundary_candidates(curves, metric=metric, most=COUNT),
        )
        new = LedgerEntry(
            step=step,
            epoch=step,
            examples=32 * step,
            kind="milestone",
            metrics=metrics,
            bytes=1,
            manifest=ManifestRef(key=str(step), sha256=""),
            created=0,
            attempt=1,
        )
        kept = tuple(keep(with_phases([*kept, new], known.phases), known))
    curves = Curves.model_validate({"train": train, "validation": validation})
    return kept, Evidence(curves=curves, own_metric=metric)


def rescored(kept: Sequence[LedgerEntry], evidence: Evidence, metric: str) -> Evidence:
    """As if the kept milestones were scored again on rows that are hard for all alike."""
    source = np.random.default_rng(0)
    hard = source.normal(0, 0.3, 200)
    moved = {
        entry.step: hard + source.normal(0, 0.07, 200) for entry in kept if metric in entry.metrics
    }
    influences = {step: each - each.mean() for step, each in moved.items()}
    return Evidence(curves=evidence.curves, own_metric=metric, influences=influences)


def check_reason(choice: Choice[LedgerEntry], kept: int, total: int) -> None:
    """A reason that counts milestones counts those that compete, and says what they are left of."""
    for left, whole in re.findall(r"(\d+) milestones kept of (\d+)", choice.reason):
        assert int(left) == len(choice.candidates)
        assert total - kept == int(whole) - int(left) > 0
    if kept < total and "milestone" in choice.reason and choice.rule != "before-overfitting":
        assert "kept of" in choice.reason


@pytest.mark.parametrize("metric", MEASURED)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "step"])
def test_what_is_chosen_is_what_brute_force_chooses(rule: str, metric: str) -> None:
    sign = -METRICS[metric].sign
    for pattern, policy, again in itertools.product(NAN, POLICIES, (False, True)):
        if again and rule not in COMPARING:
            continue
        kept, evidence = trained(metric, pattern, policy)
        if again:
            evidence = rescored(kept, evidence, metric)
        criterion = Criterion(rule=rule, rescoring=again)
        loss = {e.step: sign * e.metrics[metric] for e in kept if metric in e.metrics}
        history = evidence.history(metric)
        try:
            choice = select(kept, criterion, evidence)
        except InvalidInput as error:
            why = str(error)
            assert (
                (not loss and "no milestone has" in why)
                or (rule == "earliest-within" and not again and len(history) < 6)
                or (rule == "earliest-within" and again and "no standard error" in why)
                or (rule == "before-overfitting" and "keep more of them" in why)
            ), (pattern, policy, again, why)
            continue
        case = (pattern, policy, again, choice.reason)
        check_reason(choice, len(kept), COUNT)
        chosen = choice.entry.step
        if rule == "last":
            assert chosen == kept[-1].step, case
        elif rule == "before-overfitting":
            end = evidence.phases.boundaries.detail or COUNT
            assert chosen == max(e.step for e in kept if e.step <= end), case
            skipped = any(chosen < step <= end for step in set(range(1, COUNT + 1)) - {chosen})
            assert ("last milestone kept" in choice.reason) == skipped, case
            if policy == "phases" and evidence.phases.boundaries.detail:
                assert chosen == end, case
        else:
            best = min(loss, key=lambda step: (loss[step], step))
            better = [
                step for step, v in history.items() if step not in loss and sign * v < loss[best]
            ]
            if rule == "best":
                assert chosen == best, case
                assert ("was better" in choice.reason) == bool(better and not again), case
            front = [s for s in loss if all(loss[s] < loss[o] for o in loss if o < s)]
            assert [e.step for e in choice.front] == front, case
            assert chosen in front, case
        if rule == "earliest-within" and again:
            within = [
                step
                for step in loss
                if loss[step] - loss[best]
                <= stats.sem(evidence.influences[step] - evidence.influences[best])
            ]
            assert chosen == min({*within, best}), case


@pytest.mark.parametrize("policy", POLICIES)
def test_of_a_step_asked_for_only_a_kept_milestone_is_taken(policy: str) -> None:
    kept, evidence = trained("log_loss", "none", policy)
    steps = {entry.step for entry in kept}
    for step in range(COUNT + 2):
        criterion = Criterion(rule="step", step=step)
        if step in steps:
            assert select(kept, criterion, evidence).entry.step == step
        else:
            with pytest.raises(InvalidInput, match="no milestone was kept there"):
                select(kept, criterion, evidence)
