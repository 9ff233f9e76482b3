"""Write the part of a training report that says what interrupted the training run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from kubestill.runtime.reports.markdown import markdown_table
from kubestill.runtime.reports.numbers import duration
from kubestill.runtime.reports.page import Cell, Html, section, table
from kubestill.runtime.training.record import AttemptRecord

_COLUMNS = ("attempt", "began", "last sign", "resumed from", "ended by")


def attempts_section(attempts: Sequence[AttemptRecord]) -> list[Html]:
    """Return the section on all attempts, given in order; empty where the first one finished."""
    if len(attempts) < 2:
        return []
    rows = [(number, [Cell(text=cell) for cell in cells]) for number, *cells in _rows(attempts)]
    note = "Each attempt is one process, in the same pod or another, that took over from the last."
    return [section("Attempts", table(_COLUMNS, rows), note=note)]


def attempts_table(attempts: Sequence[AttemptRecord]) -> list[str]:
    """Return the same as Markdown blocks."""
    if len(attempts) < 2:
        return []
    return ["## Attempts", markdown_table(_COLUMNS, _rows(attempts))]


def resumed_steps(attempts: Sequence[AttemptRecord]) -> list[int]:
    """Return the steps that attempts resumed from, oldest first."""
    return [one.resumed_from for one in attempts if one.resumed_from is not None]


def _rows(attempts: Sequence[AttemptRecord]) -> list[list[str]]:
    return [
        [
            str(one.number),
            datetime.fromtimestamp(one.began, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            f"after {duration(max(0.0, one.last_sign - one.began))}",
            _origin(one),
            one.ended or "finished",
        ]
        for one in attempts
    ]


def _origin(one: AttemptRecord) -> str:
    if one.resumed_from is None:
        return "the beginning"
    exact = "with the same bits" if one.exact else "NOT with the same bits"
    return f"step {one.resumed_from:,}, {exact}"
