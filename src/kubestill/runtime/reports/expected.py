"""What is expected of a champion on rows whose labels are late."""

from __future__ import annotations

from collections.abc import Sequence

from kubestill.errors import counted
from kubestill.runtime.evaluation.expected import Expectation
from kubestill.runtime.metrics.catalog import METRICS
from kubestill.runtime.reports.history import history_section
from kubestill.runtime.reports.markdown import document
from kubestill.runtime.reports.numbers import range_text, score_text
from kubestill.runtime.reports.page import Cell, Html, emphasised, page, pill, section, table
from kubestill.runtime.retraining.history import RunHistory


def expected_section(expectation: Expectation | None) -> list[Html]:
    """Return the scores to expect; empty where no rows wait for their labels."""
    if expectation is None:
        return []
    title = "While labels are late"
    if not expectation.scores:
        return [section(title, note=expectation.sentence)]
    rows: list[tuple[str | Html, list[Cell]]] = []
    for name, score in expectation.scores.items():
        before = expectation.before.get(name)
        cells = [
            Cell(
                text=score_text(name, score.value),
                detail=range_text(name, score.low, score.high),
            ),
            Cell(text=score_text(name, before.value) if before else "–"),
        ]
        rows.append((METRICS[name].title, cells))
    note = (
        f"Of {counted(expectation.rows, 'row')} without a label, from the champion's own "
        "probabilities, corrected by how they came true at its promotion. It follows rows that "
        "move, and does not see that what they mean has changed: only labels show that."
    )
    return [section(title, table(["", "expected", "at promotion"], rows), note=note)]


def expected_report(
    expectation: Expectation,
    verdict: str,
    reasons: Sequence[str],
    history: Sequence[RunHistory] = (),
) -> tuple[str, str]:
    """Write the report of rows of which none has a label.

    Args:
        expectation: What is expected of them.
        verdict: What was decided.
        reasons: Why, in sentences.
        history: Every run of the registry, this one among them.

    Returns:
        The HTML page and the short Markdown.
    """
    headline = f"No label yet for {counted(expectation.rows, 'row')}: {verdict}."
    reason = " ".join(reasons)
    html = page(
        title=f"kubestill: {verdict}",
        subject="kubestill · evaluation",
        badge=pill(verdict, "bad" if verdict == "degraded" else "doubt"),
        headline=emphasised(headline),
        lead=reason,
        body=[
            *expected_section(expectation),
            *history_section(history, METRICS["log_loss"]),
        ],
    )
    return html, document(headline, f"**{verdict}**", reason)
