"""The parts of an evaluation's report that are about keeping a champion: its record, its rows."""

from __future__ import annotations

from kubestill.errors import counted
from kubestill.runtime.evaluation.decay import Decay
from kubestill.runtime.evaluation.findings import Findings
from kubestill.runtime.reports.numbers import gain_text, score_text
from kubestill.runtime.reports.page import Cell, Html, bullets, section, subheading, table

MOST_DECAYS = 20
"""Rows of the table; the surest come first."""


def record_section(findings: Findings) -> list[Html]:
    """Return the champion's scores beside those of its promotion; empty without a record."""
    if not findings.decay:
        return []
    rows = [_decay_row(decay) for decay in findings.decay[:MOST_DECAYS]]
    columns = ["", "at promotion", "now", "change", "p, adjusted", "decay"]
    note = (
        "p is the chance of a difference like this if nothing beyond the tolerance had changed, "
        "adjusted for the number of lines."
    )
    return [section("Against its own record", table(columns, rows), note=note)]


def _decay_row(decay: Decay) -> tuple[str | Html, list[Cell]]:
    name = decay.metric.name
    where = "" if decay.part == "all rows" else f", {decay.part}"
    cells = [
        Cell(text=score_text(name, decay.before.value), detail=counted(decay.before.rows, "row")),
        Cell(text=score_text(name, decay.now.value), detail=counted(decay.now.rows, "row")),
        Cell(text=gain_text(name, -decay.worse_by)),
        Cell(text=f"{decay.p_value:.2g}"),
        Cell(text="yes" if decay.evident else "no", best=decay.evident),
    ]
    return f"{decay.metric.title}{where}", cells


def rows_section(findings: Findings) -> list[Html]:
    """Return how the rows differ from those of the promotion; empty where they do not."""
    unfit = [shift.statement for shift in findings.shifts if shift.unfit]
    drift = [shift.statement for shift in findings.shifts if not shift.unfit]
    parts: list[Html] = []
    if unfit:
        parts += [subheading("Not fit to judge or to learn from"), bullets(unfit)]
    if drift:
        parts += [subheading("Drift"), bullets(drift)]
    if not parts:
        return []
    note = (
        "Against the rows on which the champion was promoted. Drift is no verdict: the scores "
        "decide what it is worth."
    )
    return [section("What is different about these rows", *parts, note=note)]
