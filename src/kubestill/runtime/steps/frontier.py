"""What steps share that choose among models by size: checks, scores, pages and the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kubestill.errors import Problems
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, write_record
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.evaluation.evaluate import check_scorable
from kubestill.runtime.evaluation.frontier import Frontier
from kubestill.runtime.evaluation.settings import check_metric
from kubestill.runtime.metrics.intervals import Interval
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.reports.frontier import frontier_report, frontier_text
from kubestill.runtime.steps.pages import write_pages


def check_choice(tolerance: float, confidence: float, problems: Problems) -> None:
    """Note a tolerance or a confidence that no choice can be held to."""
    if not 0 <= tolerance < 1:
        remedy = "must be in [0, 1): the share of the reference's score that may be lost"
        problems.add("tolerance", tolerance, remedy)
    if not 0.5 < confidence < 1:
        problems.add("confidence", confidence, "must be in (0.5, 1), such as 0.95")


def check_alike(
    models: Sequence[Predictor], rows: Dataset | None, metric: str, problems: Problems
) -> None:
    """Note models that predict different things, or cannot be scored on the rows by the metric."""
    if not models or rows is None:
        return
    first = models[0].spec
    for one in models[1:]:
        if (one.spec.task, one.spec.outputs) != (first.task, first.outputs):
            told = f"{one.spec.task} {list(one.spec.outputs)[:12]}"
            remedy = f"predicts something else than {first.task} {list(first.outputs)[:12]}"
            problems.add("uris", told, remedy)
    with problems.collect():
        check_metric(metric, first.task, field="metric")  # pyright: ignore[reportArgumentType]
    for one in models:
        found = Problems()
        with found.collect():
            check_scorable(one.layout, rows)
        for problem in found:
            if problem not in problems:
                problems.add(problem.field, problem.value, problem.remedy)
    if not rows.rows:
        problems.add("dataset", rows.root, "is empty; give at least one labelled row")


def write_frontier(
    frontier: Frontier,
    subject: str,
    rows: Dataset,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    record: Artifact,
    *,
    notes: Sequence[str] = (),
    times_smaller: float | None = None,
) -> None:
    """Write what came of a choice, and print it.

    Args:
        frontier: The choice.
        subject: What the report is about: `students` or `int8`.
        rows: That the scores are from.
        metrics: Takes what the chosen model scores and costs.
        report: HTML.
        summary: Markdown.
        record: JSON.
        notes: What a reader should know besides; the first one is printed, too.
        times_smaller: How much smaller the chosen file is, where that is the question.
    """
    more = {} if times_smaller is None else {"times_smaller": times_smaller}
    _log(frontier, metrics)
    for name, value in more.items():
        metrics.log_metric(name, value)
    write_pages(frontier_report(frontier, subject, notes), report, summary, rows)
    write_record(record, "frontier", _to_json(frontier) | more)
    print(frontier_text(frontier), flush=True)
    print(" ".join([f"{frontier.verdict}: {frontier.reason}", *notes[:1]]), flush=True)


def _log(frontier: Frontier, metrics: MetricsArtifact) -> None:
    """Log what the chosen model scores and costs."""
    chosen = frontier.choice
    metrics.metadata["kind"] = "metrics"
    told = {
        frontier.metric.name: chosen.score.value,
        f"{frontier.metric.name}_gain": chosen.gain.value,
        f"{frontier.metric.name}_gain_low": chosen.gain.low,
        "tolerance": frontier.tolerance,
        "bytes": float(chosen.cost.bytes),
        "parameters": float(chosen.cost.parameters),
        "latency_seconds": chosen.cost.latency[1],
        "candidates": float(len(frontier.candidates)),
    }
    for name, value in told.items():
        if math.isfinite(value):  # anything else fails a finished task
            metrics.log_metric(name, value)


def _to_json(frontier: Frontier) -> dict[str, Any]:
    """Return the JSON form of a choice; a number that is not finite is null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def ends(one: Interval) -> dict[str, float | None]:
        return {end: number(getattr(one, end)) for end in ("value", "low", "high")}

    return {
        "chosen": frontier.chosen,
        "verdict": frontier.verdict,
        "reason": frontier.reason,
        "reference": frontier.reference,
        "metric": frontier.metric.name,
        "tolerance": frontier.tolerance,
        "confidence": frontier.confidence,
        "rows": frontier.rows,
        "models": {
            one.name: {
                "standing": one.standing,
                "front": one.on_front,
                "score": ends(one.score),
                "gain": ends(one.gain),
                "parameters": one.cost.parameters,
                "bytes": one.cost.bytes,
                "seconds": {str(rows): seconds for rows, seconds in one.cost.latency.items()},
            }
            for one in frontier.entries
        },
    }
