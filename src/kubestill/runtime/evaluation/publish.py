"""What an evaluation leaves behind: scalars, the decision bound to digests, the history's entry."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kubestill.runtime.base.artifacts import clean
from kubestill.runtime.evaluation.expected import Expectation
from kubestill.runtime.evaluation.findings import Findings
from kubestill.runtime.evaluation.inputs import EvaluationInputs, Lineage
from kubestill.runtime.metrics.catalog import metrics_of
from kubestill.runtime.retraining.decision import DecisionRecord, Score
from kubestill.runtime.retraining.history import Judgement


def decision_record(inputs: EvaluationInputs, findings: Findings) -> DecisionRecord:
    """Return the decision, bound to what it was taken on."""
    digests = {role: candidate.digest for role, candidate in inputs.candidates.items()}
    return DecisionRecord(
        decision=findings.decision.verdict,
        reason=findings.decision.reason,
        cause=findings.decision.cause or "",
        model=digests["model"],
        baseline=digests.get("baseline", ""),
        dataset=inputs.dataset.fingerprint,
        scores=_scores(findings, findings.model.name),
        record=findings.record.model_dump(mode="json") if findings.record else {},
    )


def judgement(
    decision: DecisionRecord, findings: Findings, lineage: Lineage, *, step: str
) -> Judgement:
    """Return what the history keeps: the decision, why, and what its plot is drawn from."""
    baseline = findings.baseline
    return Judgement(
        format=decision.format,
        run_id=lineage.run_id,
        step=step,
        decision=decision.decision,
        reason=decision.reason,
        cause=decision.cause,
        model=decision.model,
        baseline=decision.baseline,
        dataset=decision.dataset,
        rows=findings.dataset.labelled,
        window=lineage.window,
        end=lineage.end,
        champion=lineage.champion.version if lineage.champion else 0,
        metric=findings.metric.name,
        scores=decision.scores,
        baseline_scores=_scores(findings, baseline.name) if baseline else {},
        expected=expected_scores(findings.expected),
        unfit=tuple(shift.statement for shift in findings.shifts if shift.unfit),
        drift=tuple(shift.statement for shift in findings.shifts if not shift.unfit),
        decay=tuple(decay.sentence for decay in findings.decay if decay.evident),
        gain=findings.gain,
    )


def expected_scores(expectation: Expectation | None) -> dict[str, Score]:
    """Return what is expected of rows without labels, as the history keeps it."""
    if expectation is None:
        return {}
    return {
        metric: Score(**clean(asdict(score)), rows=expectation.rows)
        for metric, score in expectation.scores.items()
    }


def _scores(findings: Findings, name: str) -> dict[str, Score]:
    rows = findings.dataset.labelled
    return {
        metric: Score(**clean(asdict(findings.scores.interval(name, metric))), rows=rows)
        for metric in metrics_of(findings.task)
    }


def scalars(findings: Findings) -> dict[str, float]:
    """Return what Kubeflow plots: finite numbers only."""
    found: dict[str, Any] = {}
    for role, subject in findings.subjects.items():
        prefix = "" if role == "model" else f"{role}_"
        for name, value in findings.scores.points[subject.name].items():
            found[prefix + name] = value
        found[f"{prefix}parameters"] = float(subject.cost.parameters)
        found[f"{prefix}latency_ms"] = 1e3 * subject.cost.latency[1]
    gain = findings.improvement(findings.metric)
    if gain is not None:
        found |= {f"improvement_{key}": value for key, value in asdict(gain).items()}
    gap = findings.recovered_gap(findings.metric)
    found["recovered_gap"] = gap.value if gap else None
    found["agreement"] = findings.agreement
    for name, score in findings.expected.scores.items() if findings.expected else ():
        found[f"expected_{name}"] = score.value
    found["rows"] = float(findings.dataset.labelled)
    if findings.shifts or findings.decay:
        found["unfit_columns"] = float(sum(shift.unfit for shift in findings.shifts))
        found["drifted_columns"] = float(sum(not shift.unfit for shift in findings.shifts))
        found["decayed_scores"] = float(sum(decay.evident for decay in findings.decay))
    return {name: value for name, value in clean(found).items() if value is not None}
