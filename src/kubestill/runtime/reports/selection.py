"""Report a selection: what was compared and what was chosen, as a page and in short."""

# matplotlib is only partly typed.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from kubestill.runtime.curves.phases import Phases, phase_of
from kubestill.runtime.reports.canvas import PAINT, WHOLE, draw, plain_axis
from kubestill.runtime.reports.markdown import bullet_list, document, markdown_table
from kubestill.runtime.reports.numbers import count, score_text, size
from kubestill.runtime.reports.page import (
    Cell,
    Html,
    Tile,
    bullets,
    figure,
    legend,
    page,
    pill,
    section,
    table,
    tiles,
)
from kubestill.runtime.selection.criterion import Milestone
from kubestill.runtime.selection.rules import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

M = TypeVar("M", bound=Milestone)


@dataclass(frozen=True, kw_only=True)
class Account(Generic[M]):
    """One selection, as far as its report shows it."""

    choice: Choice[M]
    phases: Phases
    scored_on: str
    """Which rows the compared scores are from."""
    bytes_read: int
    """State that was read in order to choose and export."""
    bytes_kept: int
    """State of all checkpoints that are kept."""
    notices: Sequence[str] = ()
    """What went wrong on the way, one sentence each."""


def selection_report(account: Account[M]) -> tuple[str, str]:
    """Write the report of one selection.

    Returns:
        The HTML page and the short Markdown.
    """
    choice = account.choice
    headline = f"Step {choice.entry.step:,} chosen by rule {choice.rule}"
    reason = f"{choice.reason[:1].upper()}{choice.reason[1:]}."
    lines = _story(account)
    head, rows = _rows(account)
    chosen = f"{choice.entry.step:,}"
    cells = [(one, [Cell(text=cell, best=one == chosen) for cell in rest]) for one, *rest in rows]
    drawn = [_plot_section(account)] if choice.metric else []
    html = page(
        title=headline,
        subject="kubestill · selection",
        badge=pill(choice.rule, "good"),
        headline=headline,
        lead=reason,
        body=[
            tiles(_tiles(account)),
            *drawn,
            section("How it was chosen", bullets(lines)),
            section("Candidates", table(head, cells)),
        ],
    )
    markdown = document(headline, reason, bullet_list(lines), markdown_table(head, rows))
    return html, markdown


def _story(account: Account[M]) -> list[str]:
    share = f"{size(account.bytes_read)} of the {size(account.bytes_kept)} kept"
    compared = [f"Scores compared: {account.scored_on}."] if account.choice.metric else []
    return [
        *account.notices,
        *compared,
        f"Phases: {account.phases.why}.",
        f"State read in order to choose and export: {share}.",
    ]


def _rows(account: Account[M]) -> tuple[list[str], list[list[str]]]:
    choice = account.choice
    names = sorted({name for entry in choice.candidates for name in entry.metrics})
    names.sort(key=lambda name: name != choice.metric)
    rows: list[list[str]] = []
    for entry in choice.candidates:
        notes = ["chosen"] if entry.step == choice.entry.step else []
        notes += ["front"] if entry in choice.front else []
        scores = [score_text(name, entry.metrics.get(name, float("nan"))) for name in names]
        phase = str(phase_of(account.phases, entry.step))
        rows.append([f"{entry.step:,}", f"{entry.examples:,}", phase, *scores, ", ".join(notes)])
    return ["step", "examples", "phase", *names, ""], rows


def _tiles(account: Account[M]) -> list[Tile]:
    choice, entry = account.choice, account.choice.entry
    dearest = max(candidate.examples for candidate in choice.candidates)
    share = f"of {count(dearest)} for the longest" if dearest else ""
    phase = phase_of(account.phases, entry.step)
    shown = [
        Tile(value=f"{entry.step:,}", label="chosen step", detail=f"in phase {phase}"),
        Tile(value=count(entry.examples), label="training examples", detail=share),
    ]
    if choice.metric:
        value = score_text(choice.metric, entry.metrics[choice.metric])
        shown.insert(1, Tile(value=value, label=choice.metric, detail=account.scored_on))
    return shown


def _plot_section(account: Account[M]) -> Html:
    choice = account.choice

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        _points(axes, choice)
        axes.set_xlabel("training examples")
        axes.set_title(choice.metric)
        plain_axis(axes, "x", count, 8)
        plain_axis(axes, "y", lambda value: f"{value:g}")

    drawn = draw(
        "selection", WHOLE, 3.8, build, description=f"{choice.metric} over training examples"
    )
    key = [("milestone", "muted", "o"), ("front", "student", "o"), ("chosen", "control", "D")]
    note = "On the front nothing is both cheaper and better."
    return section("Accuracy against cost", legend(key), figure(drawn), note=note)


def _points(axes: Axes, choice: Choice[M]) -> None:
    def drawn(entries: Sequence[M], style: str, colour: str, width: float) -> None:
        x = [entry.examples for entry in entries]
        y = [entry.metrics[choice.metric] for entry in entries]
        axes.plot(x, y, style, color=PAINT[colour], markersize=width, zorder=3)

    drawn(choice.candidates, "o", "muted", 5)
    drawn(choice.front, "o-", "student", 6)
    drawn([choice.entry], "D", "control", 10)
