"""Run `continuous-eval`: score, compare, decide, report, remember."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from kubestill.errors import counted
from kubestill.runtime.base.artifacts import (
    Artifact,
    MetricsArtifact,
    is_no_model,
    write_record,
)
from kubestill.runtime.evaluation.examine import examine, expected_of
from kubestill.runtime.evaluation.inputs import EvaluationInputs, Lineage, check_inputs
from kubestill.runtime.evaluation.publish import (
    decision_record,
    expected_scores,
    judgement,
    scalars,
)
from kubestill.runtime.reports.bootstrap import bootstrap_report
from kubestill.runtime.reports.evaluation import evaluation_report
from kubestill.runtime.reports.expected import expected_report
from kubestill.runtime.reports.scores import scores_text
from kubestill.runtime.retraining.decision import DecisionRecord
from kubestill.runtime.retraining.history import Judgement
from kubestill.runtime.steps.pages import write_pages
from kubestill.runtime.steps.tracking import Results, mirror_challenger, mirror_results


def continuous_eval(
    *,
    dataset: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    record: Artifact,
    model: Artifact | None = None,
    baseline: Artifact | None = None,
    teacher: Artifact | None = None,
    golden: Artifact | None = None,
    unlabelled: Artifact | None = None,
    thresholds: Mapping[str, Any] | None = None,
    slices: Sequence[str] | None = None,
    registry: str = "",
    run_id: str = "",
    step: str = "",
    settings: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Score a model with confidence intervals, compare it with others, and decide.

    The component documents parameters and outputs.

    Raises:
        InvalidInput: With everything that is wrong, before anything is scored.
        CorruptData: Rows of a dataset are damaged.
    """
    if is_no_model(teacher):
        teacher = None
        settings = {"model_name": "student", "baseline_name": "control", **(settings or {})}
    inputs = check_inputs(
        {"model": model, "baseline": baseline, "teacher": teacher},
        dataset,
        golden,
        unlabelled,
        thresholds=thresholds or {},
        slices=slices or [],
        registry=registry,
        run_id=run_id,
        step=step,
        settings=settings or {},
    )
    metrics.metadata["kind"] = "metrics"
    if inputs.question == "bootstrap":
        return _no_champion(inputs, metrics, report, summary, record)
    if inputs.question == "expect":
        return _no_labels(inputs, metrics, report, summary, record)
    findings = examine(inputs)
    decision = decision_record(inputs, findings)
    if inputs.lineage:
        judged = judgement(decision, findings, inputs.lineage, step=inputs.step)
        stands = _remember(inputs.lineage, judged)
        found = {"decision": stands.decision, "reason": stands.reason}
        decision = decision.model_copy(update=found)
    history = inputs.lineage.registry.runs() if inputs.lineage else []
    write_pages(evaluation_report(findings, history), report, summary, inputs.dataset)
    scores = scalars(findings)
    for name, value in scores.items():
        metrics.log_metric(name, value)
    body = {"decision": decision.to_json(), "scores": findings.to_scores()}
    write_record(record, "decision", body)
    print(scores_text(findings), flush=True)
    if findings.expected:
        print(findings.expected.sentence, flush=True)
    _mirror(inputs, decision, scores, model, record)
    print(f"{decision.decision}: {decision.reason}", flush=True)
    return decision.decision, decision.reason


def _no_labels(
    inputs: EvaluationInputs,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    record: Artifact,
) -> tuple[str, str]:
    """Report what is expected of rows of which none has a label."""
    expected = expected_of(inputs)
    assert expected
    worse = expected.worse if inputs.settings.gate_expected else ""
    decision = "degraded" if worse else "insufficient"
    reasons = [worse] if worse else ["No row has a label yet."]
    reasons.append(expected.sentence)
    reason = " ".join(reasons)
    facts = {"decision": decision, "reason": reason, "dataset": inputs.dataset.fingerprint}
    facts |= {"model": inputs.candidates["model"].digest, "rows": 0}
    scores = {name: one.model_dump() for name, one in expected_scores(expected).items()}
    if inputs.lineage:
        champion = inputs.lineage.champion.version if inputs.lineage.champion else 0
        named = {"run_id": inputs.lineage.run_id, "step": inputs.step, "champion": champion}
        _remember(inputs.lineage, Judgement.model_validate(named | facts | {"expected": scores}))
    history = inputs.lineage.registry.runs() if inputs.lineage else []
    pages = expected_report(expected, decision, reasons, history)
    write_pages(pages, report, summary, inputs.dataset)
    for name, one in expected.scores.items():
        metrics.log_metric(f"expected_{name}", one.value)
    write_record(record, "decision", {"decision": facts, "scores": {"expected": scores}})
    print(f"{decision}: {reason}", flush=True)
    return decision, reason


def _no_champion(
    inputs: EvaluationInputs,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    record: Artifact,
) -> tuple[str, str]:
    """Report that there is nothing to judge yet."""
    assert inputs.lineage is not None
    reason = (
        f"There is no champion in {inputs.lineage.registry.uri} yet: "
        f"the first one is to be trained on {counted(inputs.dataset.rows, 'row')}."
    )
    facts = {"decision": "bootstrap", "reason": reason, "dataset": inputs.dataset.fingerprint}
    facts |= {
        "rows": inputs.dataset.rows,
        "window": inputs.lineage.window,
        "end": inputs.lineage.end,
    }
    named = {"run_id": inputs.lineage.run_id, "step": inputs.step}
    _remember(inputs.lineage, Judgement.model_validate(named | facts))
    write_pages(bootstrap_report(inputs.dataset, reason), report, summary, inputs.dataset)
    metrics.log_metric("rows", float(inputs.dataset.rows))
    write_record(record, "decision", {"decision": facts, "scores": {}})
    print(f"bootstrap: {reason}", flush=True)
    return "bootstrap", reason


def _mirror(
    inputs: EvaluationInputs,
    decision: DecisionRecord,
    scores: Mapping[str, float],
    model: Artifact | None,
    record: Artifact,
) -> None:
    """Tell MLflow, where there is one: the scores, and which model was tried as a challenger."""
    told = mirror_results(
        Results(
            step=f"evaluate {inputs.step}" if inputs.lineage else "evaluate",
            output_uri=record.uri,
            metrics=scores,
            tags={"decision": decision.decision, "digest": decision.model},
        )
    )
    if told:
        print(told, flush=True)
    if inputs.lineage and model and decision.baseline:
        told = mirror_challenger(
            inputs.lineage.registry,
            model,
            digest=decision.model,
            decision=decision.decision,
            reason=decision.reason,
        )
        if told:
            print(told, flush=True)


def _remember(lineage: Lineage, judged: Judgement) -> Judgement:
    """Append to the history; the decision of an earlier attempt at this step stands.

    It stands only for the very same models and rows: a decision on another model, which a training
    run repeated elsewhere may have produced, is another entry.
    """

    def bound(one: Judgement) -> tuple[str, ...]:
        return one.model, one.baseline, one.dataset

    stands = lineage.registry.append(judged)
    if bound(stands) == bound(judged):
        return stands
    digest = hashlib.sha256("/".join(bound(judged)).encode()).hexdigest()[:8]
    return lineage.registry.append(judged.model_copy(update={"step": f"{judged.step}-{digest}"}))
