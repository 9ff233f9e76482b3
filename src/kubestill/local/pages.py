"""The front page of a run's folder: how it went, and links to its reports, models and logs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kubestill.errors import counted
from kubestill.runtime.reports.page import (
    Cell,
    Html,
    complete,
    definitions,
    link,
    page,
    pill,
    section,
    table,
)
from kubestill.terminal import show_duration

if TYPE_CHECKING:
    from kubestill.local.records import RunRecord

FILE = "index.html"
_TONES = {"succeeded": "good", "failed": "bad", "interrupted": "doubt"}


def write_index(run: RunRecord) -> None:
    """Put the page into the run's folder."""
    took = "" if run.seconds is None else f" after {show_duration(run.seconds)}"
    reports = [_row(name, path) for name, path in run.reports.items()]
    models = [_row(name, path) for name, path in run.models.items()]
    steps = [
        (
            step.name,
            [
                Cell(text=pill(*(("succeeded", "good") if step.ok else ("failed", "bad")))),
                Cell(text=show_duration(step.seconds)),
                Cell(text=link("what it printed", step.log) if step.log else ""),
            ],
        )
        for step in run.steps
    ]
    body = [
        *([section("Reports", table(["step", "page"], reports, prose=True))] if reports else []),
        *([section("Models", table(["name", "place"], models, prose=True))] if models else []),
        section("Steps", table(["step", "state", "took", "log"], steps, prose=True)),
        section("Parameters", definitions(run.arguments)),
    ]
    html = page(
        title=f"run of {run.pipeline}",
        subject=f"kubestill · run {run.id}",
        badge=pill(run.state, _TONES.get(run.state, "doubt")),
        headline=f"{run.pipeline} {run.state}{took}",
        lead=run.cause or f"{counted(len(run.steps), 'step')}, in the order in which they ended.",
        body=body,
    )
    data = (
        run.arguments.get("dataset") or run.arguments.get("source") or run.arguments.get("system")
    )
    html = complete(
        html,
        date=f"{run.started[:16].replace('T', ' ')} UTC",
        run=os.path.basename(run.folder),
        data=os.path.basename(data.rstrip("/")) if isinstance(data, str) else "",
    )
    with open(os.path.join(run.folder, FILE), "w", encoding="utf-8") as file:
        file.write(html)


def _row(name: str, path: str) -> tuple[str | Html, list[Cell]]:
    return name, [Cell(text=path if "://" in path else link(path, path))]
