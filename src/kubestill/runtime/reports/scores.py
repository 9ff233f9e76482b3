"""The scores as text: for a terminal, and for interfaces that do not render HTML."""

from __future__ import annotations

from kubestill.errors import counted
from kubestill.runtime.evaluation.findings import Findings, Role, Subject
from kubestill.runtime.metrics.catalog import metrics_of
from kubestill.runtime.reports.comparison_plots import Look
from kubestill.runtime.reports.headline import headline
from kubestill.runtime.reports.markdown import bullet_list, document, markdown_table
from kubestill.runtime.reports.numbers import duration, known_count, range_text, score_text

_ORDER: tuple[Role, ...] = ("teacher", "model", "baseline")
_LOOKS: dict[Role, tuple[str, str]] = {
    "teacher": ("teacher", "D"),
    "model": ("student", "o"),
    "baseline": ("control", "s"),
}


def subjects(findings: Findings) -> list[tuple[Subject, Look]]:
    """Return the compared models in the order and the look of every plot."""
    return [
        (findings.subjects[role], Look(findings.subjects[role].name, *_LOOKS[role]))
        for role in _ORDER
        if role in findings.subjects
    ]


def markdown_scores(findings: Findings) -> str:
    """Return verdict, reasons and scores as Markdown."""
    metrics = list(metrics_of(findings.task).values())
    rows: list[list[str]] = []
    for subject, look in subjects(findings):
        scores = [findings.scores.interval(subject.name, metric.name) for metric in metrics]
        shown = [
            score_text(m.name, s.value) + (f" ({span})" if span else "")
            for m, s in zip(metrics, scores, strict=True)
            for span in [range_text(m.name, s.low, s.high)]
        ]
        cost = subject.cost
        rows.append([look.name, *shown, known_count(cost.parameters), duration(cost.latency[1])])
    columns = ["", *(metric.title for metric in metrics), "parameters", "latency of one row"]
    verdict = f"**{findings.decision.verdict}** on {counted(findings.dataset.labelled, 'row')}."
    later = [findings.expected.sentence] if findings.expected else []
    reasons = bullet_list([*findings.decision.reasons, *later])
    return document(headline(findings), verdict, reasons, markdown_table(columns, rows))


def scores_text(findings: Findings) -> str:
    """Return the scores as a plain, indented table for a terminal, and the headline below it."""
    metrics = list(metrics_of(findings.task).values())
    lines = [["", *(metric.title for metric in metrics), "parameters", "1 row"]]
    for subject, look in subjects(findings):
        shown = [score_text(m.name, findings.scores.points[subject.name][m.name]) for m in metrics]
        cost = subject.cost
        lines.append([look.name, *shown, known_count(cost.parameters), duration(cost.latency[1])])
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    written = [
        "  "
        + "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "  " + "-" * (len(written[0]) - 2)
    return "\n".join([written[0], rule, *written[1:], rule, headline(findings)])
