"""Scores every model on the same rows, holds them against limits, record and each other."""

# pandas comes without types.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from kubestill.errors import counted
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.evaluation.comparison import agreement, mcnemar
from kubestill.runtime.evaluation.cost import running_costs
from kubestill.runtime.evaluation.decay import Decay, find_decay
from kubestill.runtime.evaluation.decision import (
    Decision,
    Rules,
    judge_alone,
    judge_challenger,
    judge_first,
)
from kubestill.runtime.evaluation.evaluate import Evaluation, entities_of, evaluate, groups_of
from kubestill.runtime.evaluation.expected import Expectation, calibrate, describe, expect
from kubestill.runtime.evaluation.findings import Findings, Role, ScoredRows, Subject
from kubestill.runtime.evaluation.fitness import Shift, compare_rows
from kubestill.runtime.evaluation.inputs import Candidate, EvaluationInputs
from kubestill.runtime.evaluation.labels import check_labels, skill
from kubestill.runtime.evaluation.pooling import Pool, entity_name, gain_of, pool
from kubestill.runtime.evaluation.profile import columns_of, is_number, profile_of
from kubestill.runtime.evaluation.record import GoldenMark, Mark, Record, bias_of, mark_of, marks_of
from kubestill.runtime.evaluation.slices import Cut, cut_of, parts_of, slice_scores, worse_slices
from kubestill.runtime.metrics.catalog import BIAS, METRICS, TASKS, metrics_of
from kubestill.runtime.metrics.intervals import Interval, Measured, measure
from kubestill.runtime.metrics.outcome import Ints, Outcome
from kubestill.runtime.retraining.history import Gain

Masks = Mapping[str, np.ndarray[Any, np.dtype[np.bool_]]]
ROUNDS = 60
"""How often each of several models is timed."""
NO_SKILL = 3.0
"""Standard errors of skill below which a first model may be guessing."""


def examine(inputs: EvaluationInputs) -> Findings:
    """Score every model, compare, judge."""
    evaluations = _evaluate(inputs.candidates, inputs.dataset)
    scores = _scores(inputs, evaluations, inputs.dataset)
    golden = None
    if inputs.golden:
        golden = _scores(inputs, _evaluate(inputs.golden_candidates, inputs.golden), inputs.golden)
    values = _slice_values(inputs, evaluations["model"])
    parts = _parts(values, inputs.record.cuts if inputs.record else {})
    masks = _named(parts)
    shifts = _shifts(inputs, evaluations)
    decay = _decay(inputs, evaluations, scores, masks)
    outcomes = {inputs.candidates[role].name: one.outcome for role, one in evaluations.items()}
    mine = evaluations["model"]
    gain = _gain(inputs, mine, scores)
    expected = expected_of(inputs, evaluations, scores.groups)
    classes = inputs.question == "compare" and inputs.task != "regression"
    subjects = _subjects(inputs, evaluations)
    return Findings(
        task=inputs.task,
        classes=inputs.candidates["model"].predictor.spec.outputs,
        subjects=subjects,
        scores=scores,
        metric=inputs.metric,
        decision=_decide(inputs, evaluations, scores, golden, masks, shifts, decay, expected, gain),
        dataset=ScoredRows(
            rows=inputs.dataset.rows,
            labelled=len(mine.rows),
            fingerprint=inputs.dataset.fingerprint,
        ),
        settings=_shown_settings(inputs),
        slices=tuple(
            scored for column in parts for scored in slice_scores(column, parts[column], outcomes)
        ),
        golden=golden,
        shifts=shifts,
        decay=decay,
        record=_record(inputs, subjects["model"], scores, golden, values),
        expected=expected,
        # A window counts for later ones if it was chosen by how many rows there were: where a
        # champion is tried because it does badly, challengers seem good.
        gain=gain if gain and unlearned(inputs) else None,
        agreement=(
            agreement(mine.outcome, evaluations["teacher"].outcome)
            if "teacher" in evaluations
            else float("nan")
        ),
        mcnemar=mcnemar(mine.outcome, evaluations["baseline"].outcome) if classes else None,
        images=_images(inputs, mine),
        references={
            **{candidate.name: candidate.digest for candidate in inputs.candidates.values()},
            "dataset": inputs.dataset.fingerprint,
        },
    )


def _subjects(
    inputs: EvaluationInputs, evaluations: Mapping[Role, Evaluation]
) -> dict[Role, Subject]:
    predictors = {role: candidate.predictor for role, candidate in inputs.candidates.items()}
    known = (
        {inputs.champion_role: inputs.record.flops}
        if inputs.record and inputs.champion_role
        else {}
    )
    # One alone is compared with nothing: a dozen rounds tell what it takes.
    rounds = ROUNDS if len(predictors) > 1 else ROUNDS // 5
    costs = running_costs(predictors, known=known, rounds=rounds)
    return {
        role: Subject(
            role=role,
            name=candidate.name,
            evaluation=evaluations[role],
            cost=costs[role],
            training=candidate.training,
        )
        for role, candidate in inputs.candidates.items()
    }


def _evaluate(candidates: Mapping[Role, Candidate], dataset: Dataset) -> dict[Role, Evaluation]:
    return {role: evaluate(candidate.predictor, dataset) for role, candidate in candidates.items()}


def _scores(
    inputs: EvaluationInputs, evaluations: Mapping[Role, Evaluation], dataset: Dataset
) -> Measured:
    outcomes = {inputs.candidates[role].name: one.outcome for role, one in evaluations.items()}
    groups = groups_of(dataset, evaluations["model"].rows, inputs.settings.group)
    return measure(outcomes, confidence=inputs.settings.confidence, groups=groups)


def _shifts(inputs: EvaluationInputs, evaluations: Mapping[Role, Evaluation]) -> tuple[Shift, ...]:
    """Compare the rows with those the champion has learned from: labelled or not."""
    record, schema, lineage = inputs.record, inputs.dataset.schema, inputs.lineage
    if record is None or record.profile is None or inputs.champion_role is None or lineage is None:
        return ()
    if schema.target is None:
        return ()
    target, ignore = schema.target.name, inputs.settings.ignore
    values = columns_of(inputs.dataset)
    last = lineage.before()
    found = compare_rows(
        record.profile,
        values,
        target=target,
        alpha=inputs.alpha,
        ignore=ignore,
        before=(lambda: columns_of(last)) if last else None,
    )
    if target in ignore:
        return found
    champion = evaluations[inputs.champion_role]
    labelled = {name: column.iloc[champion.rows] for name, column in values.items()}
    whole = not (inputs.challenges and lineage.is_sound())
    labels = check_labels(champion.outcome, record.skill, labelled, target, whole=whole)
    return (*labels, *found)


def _decay(
    inputs: EvaluationInputs, evaluations: Mapping[Role, Evaluation], scores: Measured, masks: Masks
) -> tuple[Decay, ...]:
    """Hold the champion against its own record."""
    record, used = inputs.record, TASKS[inputs.task]
    if record is None or inputs.champion_role is None:
        return ()
    now = marks_of(scores, inputs.candidates[inputs.champion_role].name, metrics_of(inputs.task))
    watched = dict.fromkeys([*used.watched, inputs.metric.name])
    pairs = {
        (name, "all rows"): (record.metrics[name], now[name])
        for name in watched
        if name in record.metrics and name in now
    }
    bias = bias_of(evaluations[inputs.champion_role].outcome, scores.groups)
    if record.bias and bias:
        pairs["bias", "all rows"] = (record.bias, bias)
    if inputs.settings.gate_slices:
        marks = _slice_marks(inputs, evaluations[inputs.champion_role], masks, scores.groups)
        pairs |= {
            (used.primary, part): (record.slices[part], mark)
            for part, mark in marks.items()
            if part in record.slices
        }
    return find_decay(
        pairs,
        {**METRICS, BIAS.name: BIAS},
        alpha=inputs.alpha,
        tolerance=inputs.settings.min_decay,
        max_bias=inputs.settings.max_bias,
        classes=len(inputs.candidates["model"].predictor.spec.outputs),
    )


def _decide(
    inputs: EvaluationInputs,
    evaluations: Mapping[Role, Evaluation],
    scores: Measured,
    golden: Measured | None,
    masks: Masks,
    shifts: tuple[Shift, ...],
    decay: tuple[Decay, ...],
    expected: Expectation | None,
    gain: Gain | None,
) -> Decision:
    settings, model = inputs.settings, inputs.candidates["model"].name
    rules = Rules(
        thresholds=inputs.thresholds,
        min_rows=settings.min_rows,
        confidence=1 - inputs.alpha,
        min_improvement=settings.min_improvement,
        max_shift=settings.max_shift,
        max_forgetting=settings.max_forgetting,
        golden_weight=inputs.golden_weight,
    )
    mine = evaluations["model"].outcome
    skilled = _over_constant(inputs, mine, scores)
    primary = METRICS[TASKS[inputs.task].primary]
    if inputs.question == "alone":
        beaten = (
            f"A constant answer does better: its {primary.title} is lower by {-skilled.value:.3g}."
        )
        return judge_alone(
            scores,
            model,
            rules,
            shifts=shifts,
            decay=decay,
            constant=beaten if skilled.high < 0 else "",
            missing=scores.missing(model, primary),
            unlearned=unlearned(inputs),
            expected=expected.worse if expected and settings.gate_expected else "",
        )
    guessing = skilled.value <= 0 or (inputs.question == "first" and skill(mine).z < NO_SKILL)
    if inputs.question == "first":
        return judge_first(scores, model, rules, guessing=guessing, shifts=shifts)
    worse: tuple[str, ...] = ()
    theirs = evaluations["baseline"].outcome
    if settings.gate_slices and mine.finite.all() and theirs.finite.all():
        worse = worse_slices(
            masks,
            mine,
            theirs,
            alpha=inputs.alpha,
            tolerance=settings.slice_tolerance,
            min_rows=settings.min_slice_rows,
            groups=scores.groups,
        )
    return judge_challenger(
        scores,
        model,
        inputs.candidates["baseline"].name,
        rules,
        metric=inputs.metric,
        guessing=guessing,
        golden=golden,
        best=_best(inputs),
        worse_slices=worse,
        shifts=shifts,
        pooled=_pooled(inputs, gain) if inputs.pools else None,
    )


def _gain(inputs: EvaluationInputs, mine: Evaluation, scores: Measured) -> Gain | None:
    """Return what the challenger gained on the rows that its run holds."""
    if not inputs.pools:
        return None
    model, champion = inputs.candidates["model"].name, inputs.candidates["baseline"].name
    who = None
    if scores.groups is not None:
        column = entities_of(inputs.dataset, mine.rows, inputs.settings.group)
        first = np.unique(scores.groups, return_index=True)[1]
        window = inputs.lineage.window if inputs.lineage else ""
        who = [entity_name(column.iloc[place], window, int(place)) for place in first]
    return gain_of(scores, model, champion, inputs.metric, who)


def _pooled(inputs: EvaluationInputs, gain: Gain | None) -> Pool:
    """Add it to what others gained before it in this champion's time."""
    before: list[Gain] = []
    if inputs.lineage and gain and unlearned(inputs):
        found = inputs.lineage.gains(inputs.metric.name, inputs.settings.pool_days)
        before = [one for one in found if bool(one.entities) == bool(gain.entities)]
    if not gain or not before:
        return Pool(windows=1)
    return pool(
        [*before, gain], budget=inputs.pool_budget, most=(1 - inputs.settings.confidence) / 4
    )


def unlearned(inputs: EvaluationInputs) -> str:
    """Return in a sentence that many rows wait to be learned from; empty where few do."""
    most, lineage = inputs.settings.max_unlearned, inputs.lineage
    held = lineage.state.claim if lineage else None
    if not most or lineage is None or held is None or held.run_id != lineage.run_id:
        return ""
    sound = [window for window in lineage.state.windows if window.verdict != "unfit"]
    tried = [place for place, w in enumerate(sound) if w.verdict in ("promoted", "rejected")]
    since = tried[-1] + 1 if tried else 0
    before = sum(window.rows for window in sound[:since])
    waiting = sum(window.rows for window in sound[since:]) + held.window.rows
    if waiting < most * before:
        return ""
    return (
        f"It shows no decay, and {counted(waiting, 'row')} arrived since a challenger was last "
        f"tried, {waiting / max(1, before):.0%} of the {before:,} before them: one is tried now."
    )


def expected_of(
    inputs: EvaluationInputs,
    evaluations: Mapping[Role, Evaluation] | None = None,
    groups: Ints | None = None,
) -> Expectation | None:
    """Return what the champion, or a model alone, leads one to expect of rows without labels."""
    if inputs.unlabelled is None or inputs.question not in ("alone", "expect"):
        return None
    rows, predictor = inputs.unlabelled.rows, inputs.candidates["model"].predictor
    late = f"of {counted(rows, 'row')} whose labels are late"
    if inputs.task == "regression":
        why = f"Nothing is expected {late}: a regression states no chances of being wrong."
        return Expectation(rows=rows, sentence=why)
    calibration = inputs.record.calibration if inputs.record else None
    if calibration is None and evaluations:
        calibration = calibrate(evaluations["model"].outcome, groups)
    raw = load_decoded(inputs.unlabelled, predictor.layout).raw
    answers = Outcome.from_logits(inputs.task, predictor.logits(raw), np.zeros(rows, np.int64))
    if calibration is None or not answers.finite.all():
        why = "it gives NaN or infinity there"
        if calibration is None and evaluations:
            why = "too few labelled rows tell how its probabilities come true"
        elif calibration is None:
            why = "its promotion did not keep how its probabilities came true, as a later one will"
        return Expectation(rows=rows, sentence=f"Nothing is expected {late}: {why}.")
    confidence = 1 - inputs.alpha if inputs.settings.gate_expected else inputs.settings.confidence
    scores = expect(
        answers.predictions,
        calibration,
        confidence=confidence,
        weights=inputs.unlabelled.weights(),
    )
    marks = inputs.record.metrics if inputs.record else {}
    return describe(
        rows,
        scores,
        {name: marks[name] for name in scores if name in marks},
        confidence=confidence,
        tolerance=inputs.settings.min_decay,
    )


def _over_constant(inputs: EvaluationInputs, outcome: Outcome, scores: Measured) -> Interval:
    """Return how much better the answers are than the best one that is the same for every row."""
    if not outcome.finite.all():
        return Interval(float("nan"))
    if inputs.task == "regression":
        answer = np.average(outcome.targets, axis=0, weights=outcome.weights)
    else:
        classes = outcome.predictions.shape[1]
        counts = np.bincount(outcome.targets, outcome.weights, minlength=classes)
        with np.errstate(divide="ignore"):
            answer = np.log(counts / counts.sum())
    # A class that does not occur has no chance in it, and no row asks for one.
    answer = np.maximum(answer, -1e3) if inputs.task != "regression" else answer
    constant = replace(outcome, predictions=np.tile(answer, (outcome.rows, 1)))
    found = measure({"": outcome, "constant": constant}, groups=scores.groups)
    metric = METRICS[TASKS[inputs.task].primary]
    return found.improvement("", "constant", metric, 1 - inputs.alpha)


def _best(inputs: EvaluationInputs) -> GoldenMark | None:
    """Return the best score a champion had on the golden set, if it was this very set."""
    mark = inputs.record.golden if inputs.record else None
    return (
        mark if mark and inputs.golden and mark.fingerprint == inputs.golden.fingerprint else None
    )


def _record(
    inputs: EvaluationInputs,
    subject: Subject,
    scores: Measured,
    golden: Measured | None,
    values: pd.DataFrame,
) -> Record | None:
    """Return what the judged model is to be remembered by, should it be promoted."""
    if inputs.lineage is None or inputs.champion_role == "model":
        return None
    name, metric, mine = subject.name, inputs.metric, subject.evaluation
    mark = None
    if golden is not None and inputs.golden is not None:
        value = golden.points[name][metric.name]
        reached = [value]
        if inputs.champion_role:
            reached.append(golden.points[inputs.candidates[inputs.champion_role].name][metric.name])
        if before := _best(inputs):
            reached.append(before.best)
        finite = filter(np.isfinite, reached)
        best = max(finite, key=lambda one: metric.sign * one, default=value)
        mark = GoldenMark(fingerprint=inputs.golden.fingerprint, value=value, best=best)
    # The next windows are compared with these rows: cut anew, not as the champion's were.
    cuts = {str(column): cut_of(values[column]) for column in values}
    return Record(
        metric=metric.name,
        metrics=marks_of(scores, name, metrics_of(inputs.task)),
        slices=_slice_marks(inputs, mine, _named(_parts(values, cuts)), scores.groups),
        cuts=cuts,
        golden=mark if mark and np.isfinite(mark.value) else None,
        bias=bias_of(mine.outcome, scores.groups),
        skill=skill(mine.outcome),
        calibration=calibrate(mine.outcome, scores.groups),
        flops=subject.cost.flops,
        profile=profile_of(*(inputs.lineage.learned() or [inputs.dataset])),
    )


def _parts(values: pd.DataFrame, cuts: Mapping[str, Cut]) -> dict[str, Masks]:
    """Cut every column as it was cut before, where it was."""
    found: dict[str, Masks] = {}
    for name, column in values.items():
        known = cuts.get(str(name))
        if known is None or (known.edges and not is_number(column)):
            known = cut_of(column)
        found[str(name)] = parts_of(column, known)
    return found


def _named(parts: Mapping[str, Masks]) -> Masks:
    return {
        f"{column} = {value}": mask
        for column, masks in parts.items()
        for value, mask in masks.items()
    }


def _slice_marks(
    inputs: EvaluationInputs, evaluation: Evaluation, masks: Masks, groups: Ints | None
) -> dict[str, Mark]:
    found: dict[str, Mark] = {}
    primary = METRICS[TASKS[inputs.task].primary]
    for name, mask in masks.items():
        if mask.sum() < inputs.settings.min_slice_rows:
            continue
        held = None if groups is None else np.unique(groups[mask], return_inverse=True)[1]
        scores = measure({name: evaluation.outcome.take(mask)}, groups=held)
        mark = mark_of(scores, name, primary)
        if mark is not None:
            found[name] = mark
    return found


def _slice_values(inputs: EvaluationInputs, evaluation: Evaluation) -> pd.DataFrame:
    table = (
        inputs.dataset.to_pandas(columns=list(inputs.slices)) if inputs.slices else pd.DataFrame()
    )
    return table.iloc[evaluation.rows].reset_index(drop=True) if inputs.slices else table


def _images(inputs: EvaluationInputs, evaluation: Evaluation) -> np.ndarray | None:
    """Return [N, H, W] of the scored rows where a row is one picture of at most 64 by 64."""
    predictor = inputs.candidates["model"].predictor
    features = predictor.layout.features
    shape = [size for size in features[0].shape if size != 1]
    if len(features) != 1 or len(shape) != 2 or max(shape) > 64 or min(shape) < 4:
        return None
    raw = load_decoded(inputs.dataset, predictor.layout).raw
    return np.asarray(raw)[evaluation.rows].reshape(-1, *shape)


def _shown_settings(inputs: EvaluationInputs) -> dict[str, Any]:
    return {
        **inputs.settings.model_dump(),
        "metric": inputs.metric.name,
        "thresholds": ", ".join(map(str, inputs.thresholds)),
        "slices": list(inputs.slices),
    }
