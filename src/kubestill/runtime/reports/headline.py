"""The first screen of an evaluation report: one sentence and a row of numbers."""

from __future__ import annotations

import numpy as np

from kubestill.errors import counted
from kubestill.runtime.evaluation.findings import Findings
from kubestill.runtime.metrics.catalog import metrics_of
from kubestill.runtime.reports.numbers import (
    count,
    duration,
    gain_range,
    gain_text,
    known_count,
    percent,
    range_text,
    score_text,
)
from kubestill.runtime.reports.page import Tile


def headline(findings: Findings) -> str:
    """Return what matters most, in one sentence."""
    if findings.teacher is not None:
        return _against_teacher(findings)
    if findings.baseline is not None:
        return _against_baseline(findings)
    metric = next(iter(metrics_of(findings.task).values()))
    value = findings.scores.points[findings.model.name][metric.name]
    verdict = findings.decision.verdict
    if verdict == "unfit":
        return f"These rows are not fit to judge the {findings.model.name} by: {verdict}."
    if not np.isfinite(value):
        return f"The {findings.model.name} gives NaN or infinity: {verdict}."
    reached = f"{metric.title} {score_text(metric.name, value)}"
    return f"The {findings.model.name} reaches {reached}: {verdict}."


def _against_teacher(findings: Findings) -> str:
    assert findings.teacher is not None
    metric = next(iter(metrics_of(findings.task).values()))
    points = findings.scores.points
    mine, theirs = (
        points[findings.model.name][metric.name],
        points[findings.teacher.name][metric.name],
    )
    theirs_in_all = findings.teacher.cost.parameters
    cost = ""
    if theirs_in_all:
        cost = f" with {percent(findings.model.cost.parameters / theirs_in_all)} of its parameters"
    name = findings.model.name
    if findings.task == "regression":
        comma = "," if cost else ""
        return f"The {name}'s {metric.title} is {mine / theirs:.2f}× the teacher's{comma}{cost}."
    kept = f"keeps {percent(mine / theirs)} of the teacher's accuracy"
    if mine >= theirs:
        kept = "matches its teacher's accuracy"
    return f"The {name} {kept}{cost}."


def _against_baseline(findings: Findings) -> str:
    assert findings.baseline is not None
    gain = findings.improvement(findings.metric)
    assert gain is not None
    verdict = findings.decision.verdict
    if verdict == "unfit":
        return f"These rows are not fit to judge the {findings.model.name} by: {verdict}."
    for subject in (findings.model, findings.baseline):
        if not subject.evaluation.outcome.finite.all():
            return f"The {subject.name} gives NaN or infinity: {verdict}."
    better = "better" if gain.value >= 0 else "worse"
    size = score_text(findings.metric.name, abs(gain.value))
    certain = "" if gain.low > 0 or gain.high < 0 else ", within noise"
    return (
        f"The {findings.model.name}'s {findings.metric.title} is {size} {better} than the "
        f"{findings.baseline.name}'s{certain}: {verdict}."
    )


def lead(findings: Findings) -> str:
    """Return what the headline rests on, in one sentence."""
    rows = counted(findings.dataset.labelled, "labelled row")
    others = [s.name for s in (findings.teacher, findings.baseline) if s is not None]
    beside = f", beside the {' and the '.join(others)} on the very same ones" if others else ""
    return f"Measured on {rows}{beside}."


def tile_row(findings: Findings) -> list[Tile]:
    """Return the headline numbers that the compared models allow."""
    metric = next(iter(metrics_of(findings.task).values()))
    found = findings.scores.interval(findings.model.name, metric.name)
    row = [
        Tile(
            value=score_text(metric.name, found.value),
            label=f"{findings.model.name} {metric.title}",
            detail=range_text(metric.name, found.low, found.high),
        )
    ]
    row += _gain_tile(findings) + _gap_tile(findings)
    if findings.teacher is not None and np.isfinite(findings.agreement):
        label = "agreement"
        detail = "rows given the teacher's class"
        if findings.task == "regression":
            detail = "R² of its values by the teacher's"
        row.append(Tile(value=percent(findings.agreement), label=label, detail=detail))
    return row + _size_tiles(findings)


def _gain_tile(findings: Findings) -> list[Tile]:
    """Return the improvement over a champion, where there is no teacher."""
    gain = findings.improvement(findings.metric)
    if gain is None or findings.baseline is None or findings.teacher is not None:
        return []
    name = findings.metric.name
    label = f"{findings.metric.title} against the {findings.baseline.name}"
    detail = gain_range(name, gain.low, gain.high)
    return [Tile(value=gain_text(name, gain.value), label=label, detail=detail)]


def _gap_tile(findings: Findings) -> list[Tile]:
    """Return how much of the teacher's lead was regained, in the metric of the decision."""
    gap = findings.recovered_gap(findings.metric)
    if gap is None:
        return []
    label = "of the gap recovered"
    if not np.isfinite(gap.value):
        return [Tile(value="–", label=label, detail="the teacher has no lead over the control")]
    detail = f"in {findings.metric.title}"
    if gap.known:
        detail += f", {gap.low:.0%} to {gap.high:.0%}"
    else:
        detail += "; the gap itself is within noise"
    return [Tile(value=f"{gap.value:.0%}", label=label, detail=detail)]


def _size_tiles(findings: Findings) -> list[Tile]:
    cost, other = findings.model.cost, findings.teacher or findings.baseline
    if other is None or other.cost.parameters in (0, cost.parameters):
        rate = f"{count(max(cost.latency) / cost.latency[max(cost.latency)])} rows a second"
        return [
            Tile(value=known_count(cost.parameters), label="parameters"),
            Tile(value=duration(cost.latency[1]), label="latency of one row", detail=rate),
        ]
    smaller = other.cost.parameters / cost.parameters
    batch = max(cost.latency)
    faster = other.cost.latency[batch] / cost.latency[batch]
    return [
        Tile(
            value=_times(smaller),
            label="fewer parameters",
            detail=f"{count(cost.parameters)} against {count(other.cost.parameters)}",
        ),
        Tile(
            value=_times(faster),
            label="faster" if faster >= 1 else "the speed",
            detail=f"{count(batch / cost.latency[batch])} rows a second, in batches of {batch:,}",
        ),
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"
