"""The report of the gate: did it learn one batch, how fast, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kubestill.errors import counted
from kubestill.runtime.reports.canvas import PAINT, WHOLE, draw, log_axis, plain_axis
from kubestill.runtime.reports.markdown import bullet_list, document, markdown_table
from kubestill.runtime.reports.numbers import count, duration, percent
from kubestill.runtime.reports.page import (
    Cell,
    Html,
    Tile,
    definitions,
    emphasised,
    figure,
    heading,
    page,
    pill,
    section,
    table,
    tiles,
)
from kubestill.runtime.sanity.findings import CODES, Check, GateFindings, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TONES = {"pass": "good", "fail": "bad", "undetermined": "doubt"}
_WORDS = {
    "ok": ("fine", "good"),
    "fail": ("wrong", "bad"),
    "undetermined": ("open", "doubt"),
    "note": ("noted", "student"),
    "skipped": ("not asked", "muted"),
}
_COLOURS = ("student", "control", "fourth", "fifth", "teacher", "doubt", "good", "bad")
LOWEST = 1e-4
"""Excesses are drawn from here up."""


def gate_report(findings: GateFindings, told: Mapping[str, Any]) -> tuple[str, str]:
    """Return (HTML, Markdown).

    Args:
        findings: What the gate found.
        told: Its settings, to be listed.
    """
    html = page(
        title=f"overfit-batch: {findings.verdict}",
        subject="overfit-batch",
        badge=pill(findings.verdict, _TONES[findings.verdict]),
        headline=emphasised(_headline(findings)),
        lead=_lead(findings),
        body=_body(findings, told),
    )
    return html, document(f"overfit-batch: {findings.verdict}", *_markdown(findings))


def gates_report(
    title: str, verdict: str, gates: Mapping[str, tuple[GateFindings, Mapping[str, Any]]]
) -> tuple[str, str]:
    """Return (HTML, Markdown) of several trainings' gates on one page.

    Args:
        title: What asked them.
        verdict: Of all together.
        gates: Findings and settings of each, by the name of its training run.
    """
    decisive = next(found for found, _ in gates.values() if found.verdict == verdict)
    body = [
        part
        for name, (found, told) in gates.items()
        for part in (
            heading(name, pill(found.verdict, _TONES[found.verdict])),
            *_body(found, told, f"-{name}"),
        )
    ]
    html = page(
        title=f"{title}: {verdict}",
        subject=title,
        badge=pill(verdict, _TONES[verdict]),
        headline=emphasised(_headline(decisive)),
        lead=_lead(decisive),
        body=body,
    )
    parts = [
        part for name, (found, _) in gates.items() for part in (f"## {name}", *_markdown(found))
    ]
    return html, document(f"{title}: {verdict}", *parts)


def _body(findings: GateFindings, told: Mapping[str, Any], suffix: str = "") -> list[Html]:
    body = [tiles(_facts(findings))]
    if findings.traces:
        note = (
            "Share of the way from the best constant answer (100%) to the least loss that any "
            "function of these features can have (0%). The curve has to reach the shaded band."
        )
        plot = figure(_plot(findings, f"excess{suffix}"))
        body.append(section("Learning one batch", plot, note=note))
    body.append(section("What was asked", _checks(findings.checks)))
    body.append(section("How it was asked", definitions(told)))
    return body


def _headline(findings: GateFindings) -> str:
    if findings.verdict == "pass":
        assert findings.learned
        rows, steps = findings.learned.rows, findings.learned.steps[-1]
        left = findings.learned.best
        much = "" if left < 0.1 else f"{percent(1 - left)} of "
        learned = f"{much}{counted(rows, 'row')} by heart in {counted(steps, 'step')}"
        return f"The training run learns: {learned}."
    meaning = CODES[findings.diagnoses[0].code]
    if findings.verdict == "undetermined":
        return f"Undetermined: {meaning}."
    return f"Stopped before the expensive step: {meaning}."


def _lead(findings: GateFindings) -> str:
    if findings.verdict != "pass":
        return " ".join(f"{check.said} {check.remedy}" for check in findings.diagnoses)
    return (
        "Rows, loss, gradients and optimizer work together: one small batch goes to the floor of "
        "its loss. Whether the model will be good is another question."
    )


def _facts(findings: GateFindings) -> list[Tile]:
    found: list[Tile] = []
    if findings.traces:
        best = findings.traces[0]
        reached = (
            f"in {counted(best.reached, 'step')}"
            if best.reached is not None
            else f"after {counted(best.steps[-1], 'step')}"
        )
        found.append(Tile(value=percent(min(best.best, 99.0)), label="excess loss", detail=reached))
    if floor := findings.floor:
        least = "0" if floor.value < 1e-6 * abs(floor.baseline) else f"{floor.value:.3g}"
        detail = f"a constant answer costs {floor.baseline:.4g}"
        found.append(Tile(value=least, label="floor of the loss", detail=detail))
        detail = f"of {findings.rows}: equal features, unlike labels"
        found.append(Tile(value=str(floor.conflicts), label="conflicting rows", detail=detail))
    if asked := findings.held_out:
        detail = f"of rows never seen, {asked.sigmas:.0f} standard errors"
        found.append(Tile(value=percent(max(asked.skill, 0.0)), label="explained", detail=detail))
    found.append(Tile(value=duration(findings.seconds), label="for all of it"))
    return found


def _checks(checks: Sequence[Check]) -> Html:
    rows = [
        (
            Html("{}&nbsp; {}").format(pill(*_WORDS[check.status]), check.name),
            [Cell(text=check.said, detail=check.remedy)],
        )
        for check in checks
    ]
    return table(["question", "answer"], rows, prose=True)


def _plot(findings: GateFindings, name: str) -> Html:
    traces = sorted(findings.traces[:8], key=lambda trace: trace.steps[-1])

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        for trace in traces:
            _curve(axes, trace, _COLOURS[findings.traces.index(trace)])
        axes.axhspan(LOWEST, findings.excess, color=PAINT["good"], alpha=0.13, linewidth=0)
        axes.set_ylim(LOWEST, 3)
        axes.set_xlim(0, max(trace.steps[-1] for trace in traces) * 1.16 + 1)
        axes.set_xlabel("optimizer step")
        log_axis(axes, "y", lambda value: f"{100 * value:g}%")
        plain_axis(axes, "x", count, 8)

    what = "Excess of the loss over its floor, by optimizer step, for every attempt"
    return draw(name, WHOLE, 3.9, build, description=what)


def _curve(axes: Axes, trace: Trace, colour: str) -> None:
    paint = PAINT[colour]
    values = np.clip(np.asarray(trace.excess, dtype=float), LOWEST, 3)
    axes.plot(trace.steps, values, color=paint, zorder=3)
    axes.plot(trace.steps[-1:], values[-1:], "o", color=paint, markersize=6, zorder=4)
    axes.annotate(
        trace.name,
        (trace.steps[-1], values[-1]),
        xytext=(8, 0),
        textcoords="offset points",
        color=paint,
        va="center",
        fontweight="bold",
    )


def _markdown(findings: GateFindings) -> list[str]:
    rows = [[check.name, _WORDS[check.status][0], check.said] for check in findings.checks]
    reasons = (
        [f"{c.said} {c.remedy}" for c in findings.diagnoses] if findings.verdict != "pass" else []
    )
    table_of_checks = markdown_table(["question", "answer", "seen"], rows)
    return [_headline(findings), bullet_list(reasons), table_of_checks]
