"""Report models by size: what each scores and costs, and which is the smallest that is enough."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from kubestill.errors import counted
from kubestill.runtime.evaluation.frontier import Frontier, FrontierEntry, Standing
from kubestill.runtime.reports.canvas import PAINT, draw_row, log_axis, plain_axis
from kubestill.runtime.reports.markdown import bullet_list, document, markdown_table
from kubestill.runtime.reports.numbers import (
    duration,
    gain_range,
    gain_text,
    known_count,
    percent,
    range_text,
    score_text,
    size,
)
from kubestill.runtime.reports.page import (
    Cell,
    Html,
    Tile,
    bullets,
    emphasised,
    figure,
    legend,
    page,
    pill,
    section,
    table,
    tiles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TONES: dict[Standing, str] = {
    "within": "good",
    "unproven": "doubt",
    "outside": "bad",
    "reference": "teacher",
}
_COLUMNS = ("", "score", "against {}", "parameters", "size", "1 row", "1,024 rows", "")


def frontier_report(frontier: Frontier, subject: str, notes: Sequence[str] = ()) -> tuple[str, str]:
    """Write the report.

    Args:
        frontier: The models.
        subject: What the report is about: `students` or `int8`.
        notes: What a reader should know besides.

    Returns:
        The HTML page and the short Markdown.
    """
    head, rows = _rows(frontier)
    lines = [frontier.reason, *_story(frontier), *notes]
    marks = [("candidate", "student", "o"), ("chosen", "control", "D")]
    if any(one.standing == "reference" for one in frontier.entries):
        marks.append((frontier.reference, "teacher", "s"))
    title = frontier.metric.title
    note = (
        f"Bars are the intervals of {title} itself; the shaded band is what may be lost. A choice "
        "rests on the interval of the difference, row by row, which is narrower."
    )
    html = page(
        title=f"kubestill: {subject}",
        subject=f"kubestill · {subject}",
        badge=pill(frontier.verdict, _TONES[frontier.verdict]),
        headline=emphasised(f"{frontier.chosen} is chosen"),
        lead=frontier.reason,
        body=[
            tiles(_tiles(frontier)),
            section(
                f"{title} against size and time",
                legend(marks),
                figure(_plot(frontier)),
                note=note,
            ),
            section("Every candidate", _table(head, rows, frontier)),
            section("How it was chosen", bullets(lines)),
        ],
    )
    markdown = document(
        f"{frontier.chosen} is chosen", bullet_list(lines), markdown_table(head, rows)
    )
    return html, markdown


def frontier_text(frontier: Frontier) -> str:
    """Return the models as a plain, indented table for a terminal."""
    head, rows = _rows(frontier)
    lines = [head, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _story(frontier: Frontier) -> list[str]:
    candidates, tolerance = len(frontier.candidates), frontier.tolerance
    return [
        f"A candidate is within tolerance where the interval of its difference to "
        f"{frontier.reference} lies wholly above a loss of {tolerance:.3g}.",
        f"Scored on {counted(frontier.rows, 'row')}, with intervals of "
        f"{percent(frontier.confidence)} each, because any of {counted(candidates, 'candidate')} "
        "may be wrong.",
        "Latency is the median of many rounds in turns, on one thread.",
    ]


def _tiles(frontier: Frontier) -> list[Tile]:
    chosen = frontier.choice
    against = next(one for one in frontier.entries if one.name == frontier.reference)
    name, gain = frontier.metric.name, chosen.gain
    times = against.cost.bytes / max(1, chosen.cost.bytes)
    faster = against.cost.latency[1] / max(1e-9, chosen.cost.latency[1])
    return [
        Tile(
            value=score_text(name, chosen.score.value),
            label=frontier.metric.title,
            detail=f"{gain_text(name, gain.value)} than {frontier.reference}",
        ),
        Tile(
            value=size(chosen.cost.bytes),
            label="size",
            detail=f"{times:.1f} times smaller than {frontier.reference}",
        ),
        Tile(
            value=duration(chosen.cost.latency[1]),
            label="latency of one row",
            detail=f"{faster:.1f} times faster than {frontier.reference}",
        ),
    ]


def _rows(frontier: Frontier) -> tuple[list[str], list[list[str]]]:
    name, rows = frontier.metric.name, list[list[str]]()
    for one in frontier.entries:
        score, gain = one.score, one.gain
        shown = score_text(name, score.value)
        if span := range_text(name, score.low, score.high):
            shown += f" ({span})"
        against = "–"
        if one.name != frontier.reference:
            against = gain_range(name, gain.low, gain.high) or gain_text(name, gain.value)
        notes = ["chosen"] if one.name == frontier.chosen else []
        notes += ["front"] if one.on_front else []
        cost = one.cost
        rows.append(
            [
                one.name,
                shown,
                against,
                known_count(cost.parameters),
                size(cost.bytes),
                duration(cost.latency[1]),
                duration(cost.latency[1024]),
                ", ".join([one.standing, *notes]),
            ]
        )
    head = [column.format(frontier.reference) for column in _COLUMNS]
    head[1] = frontier.metric.title
    return head, rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], frontier: Frontier) -> Html:
    return table(
        head,
        [
            (row[0], [Cell(text=cell, best=row[0] == frontier.chosen) for cell in row[1:]])
            for row in rows
        ],
    )


def _plot(frontier: Frontier) -> Html:
    title = frontier.metric.title
    plots = [
        (f"{title} of each model against its {what}", partial(_draw, frontier=frontier, key=key))
        for what, key in (("size", "bytes"), ("latency", "latency"))
    ]
    return draw_row("frontier", 3.6, plots)


def _draw(axes: Axes, frontier: Frontier, key: str) -> None:
    metric = frontier.metric

    def cost(one: FrontierEntry) -> float:
        return float(one.cost.bytes) if key == "bytes" else one.cost.latency[1]

    against = next(one for one in frontier.entries if one.name == frontier.reference)
    reference = against.score.value
    limit = reference - metric.sign * frontier.tolerance
    axes.axhspan(*sorted((limit, reference)), color=PAINT["line"], alpha=0.7, linewidth=0)
    xs = [cost(one) for one in frontier.entries]
    axes.set_xlim(min(xs) / 2.5, max(xs) * 2.5)
    if key == "bytes":
        front = [one for one in frontier.candidates if one.on_front]
        line = [cost(one) for one in front], [one.score.value for one in front]
        axes.plot(*line, "-", color=PAINT["student"], linewidth=1.4, alpha=0.6)
    for one in frontier.entries:
        colour, marker = "student", "o"
        if one.name == frontier.chosen:
            colour, marker = "control", "D"
        elif one.standing == "reference":
            colour, marker = "teacher", "s"
        x, paint = cost(one), PAINT[colour]
        if one.score.known:
            axes.plot([x, x], [one.score.low, one.score.high], color=paint, alpha=0.45, lw=2.4)
        axes.plot([x], [one.score.value], marker, color=paint, markersize=9, zorder=4)
    log_axis(axes, "x", size if key == "bytes" else duration)
    axes.set_title(f"{metric.title} against {'size' if key == 'bytes' else 'time'}")
    axes.set_xlabel("size of the weights" if key == "bytes" else "latency of one row")
    plain_axis(axes, "y", lambda value: score_text(metric.name, value), 6)
    axes.margins(y=0.12)
    if metric.direction == "min":
        axes.invert_yaxis()
