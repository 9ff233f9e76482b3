"""The report of a registry that has no champion yet: what the first one will learn from."""

from __future__ import annotations

from kubestill.errors import counted
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.evaluation.profile import Sketch, profile_of
from kubestill.runtime.reports.markdown import document
from kubestill.runtime.reports.numbers import percent
from kubestill.runtime.reports.page import Cell, emphasised, page, pill, section, table


def bootstrap_report(dataset: Dataset, reason: str) -> tuple[str, str]:
    """Write the report.

    Returns:
        The HTML page and the short Markdown.
    """
    profile = profile_of(dataset)
    sketches = dict(profile.columns)
    if profile.target is not None and dataset.schema.target is not None:
        sketches[dataset.schema.target.name] = profile.target
    rows = [(name, _cells(one)) for name, one in sketches.items()]
    html = page(
        title="kubestill: bootstrap",
        subject="kubestill · evaluation",
        badge=pill("bootstrap", "doubt"),
        headline=emphasised(f"No champion yet: {counted(profile.rows, 'row')} to start from."),
        lead=reason,
        body=[section("The rows", table(["column", "missing", "values"], rows))],
    )
    return html, document("No champion yet", reason)


def _cells(sketch: Sketch) -> list[Cell]:
    if sketch.numeric:
        ends = f"{sketch.quantiles[0]:g} to {sketch.quantiles[-1]:g}"
        values = f"{ends}, median {sketch.quantiles[len(sketch.quantiles) // 2]:g}"
    else:
        shown = [
            f"{name} {percent(count / max(1, sketch.present))}"
            for name, count in list(sketch.counts.items())[:5]
        ]
        values = ", ".join(shown)
    return [Cell(text=percent(sketch.missing / max(1, sketch.rows))), Cell(text=values)]
