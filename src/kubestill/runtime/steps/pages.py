"""Write what people read of a step: its page, headed by date, run and rows, and its summary."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kubestill.errors import counted
from kubestill.runtime.base.artifacts import Artifact, write_summary
from kubestill.runtime.base.redaction import redact_uris
from kubestill.runtime.reports.page import complete
from kubestill.runtime.steps.failures import find_run_root

if TYPE_CHECKING:
    from kubestill.runtime.datasets.manifest import Dataset


def write_pages(
    pages: tuple[str, str], report: Artifact, summary: Artifact, data: Dataset | None = None
) -> None:
    """Write the report and the summary of a step.

    Args:
        pages: HTML and Markdown, as the functions in `kubestill.runtime.reports` make them.
        report: Output: the HTML.
        summary: Output: the Markdown.
        data: The rows that it is about; None where there are none.
    """
    html, markdown = pages
    html = complete(
        html,
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        run=find_run_root(report.uri).rstrip("/").rpartition("/")[2],
        data=_describe(data) if data else "",
    )
    os.makedirs(os.path.dirname(report.path) or ".", exist_ok=True)
    with open(report.path, "w", encoding="utf-8") as file:
        file.write(html)
    report.metadata["kind"] = "report"
    write_summary(markdown, summary)


def _describe(data: Dataset) -> str:
    """Name rows by the table or the system that they come from, as far as that is on record."""
    settings = data.provenance.get("settings")
    source = settings.get("source") if isinstance(settings, dict) else None
    name = source or data.provenance.get("system")
    rows = counted(data.rows, "row")
    if not isinstance(name, str):
        return f"{rows} ({data.fingerprint[:8]})"
    return f"{redact_uris(name).rstrip('/').rpartition('/')[2]}, {rows}"
