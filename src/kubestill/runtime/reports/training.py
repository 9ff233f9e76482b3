"""Write the report of one training run, from its record and the model's spec alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from kubestill.errors import counted
from kubestill.runtime.metrics.catalog import METRICS, Metric, headline_metric
from kubestill.runtime.models.model import ModelSpec
from kubestill.runtime.reports.attempts import attempts_section, attempts_table, resumed_steps
from kubestill.runtime.reports.markdown import bullet_list, document, markdown_table
from kubestill.runtime.reports.numbers import count, duration, score_text
from kubestill.runtime.reports.page import (
    Html,
    Tile,
    bullets,
    definitions,
    emphasised,
    figure,
    flatten,
    legend,
    page,
    pill,
    section,
    tiles,
)
from kubestill.runtime.reports.plots import PHASES, Curve, CurveMarks, Panel, Phase, training_plot
from kubestill.runtime.training.record import TrainingRecord

_PRESETS = {
    "teacher": "The teacher",
    "student": "The student",
    "control": "The control",
    "finetune": "The fine-tuned model",
    "overfit": "The surrogate",
}
_COST_COLOURS = ("ink", "control", "fourth", "fifth", "teacher", "doubt")
_STOPS = {
    "budget": "It ran to the end of its budget.",
    "early-stopping": "It stopped early: the milestones no longer improved.",
    "tolerance": "It stopped as soon as it was good enough.",
    "converged": "It stopped because it had converged.",
}


def training_report(record: TrainingRecord, spec: ModelSpec, digest: str) -> tuple[str, str]:
    """Write the report of one training run.

    Args:
        record: Of the training run.
        spec: Of the exported model.
        digest: Of the exported model.

    Returns:
        The HTML page and the short Markdown.
    """
    name = _PRESETS[record.preset]
    size = Tile(
        value=count(spec.parameters), label="parameters", detail=str(spec.network["factory"])
    )
    facts, reasons = [*_facts(record), size], _story(record)
    body = [
        tiles(facts),
        _plot_section(record),
        section("What happened", bullets(reasons)),
        *attempts_section(record.attempts),
        section("The model", definitions(_model_facts(spec, digest))),
        section(
            "Settings",
            definitions(record.settings),
            note="All that shaped this training run. Equal settings on equal data give equal bits.",
        ),
    ]
    headline = _headline(name, record)
    reason = record.stop.reason
    html = page(
        title=f"{name}: training",
        subject="kubestill · training",
        badge=pill(reason, "doubt" if reason == "budget" else "good"),
        headline=emphasised(headline),
        lead=(
            f"{count(record.examples)} examples in {counted(record.steps, 'step')} "
            f"({record.epochs:.3g} epochs) on {record.device}. {_STOPS[reason]}"
        ),
        body=body,
    )
    markdown = document(
        headline,
        bullet_list(reasons),
        markdown_table(("", "value", ""), [(f.label, f.value, f.detail) for f in facts]),
        *attempts_table(record.attempts),
        markdown_table(("setting", "value"), list(flatten(record.settings))),
    )
    return html, markdown


def validation_panels(
    runs: Sequence[tuple[str, str, str, TrainingRecord]], axis: Literal["step", "examples"]
) -> list[Panel]:
    """Return up to two panels of the validation metrics that all training runs share.

    The one that decides, between milestones and on when to stop, is among them.

    Args:
        runs: (name, colour, marker, record) of each.
        axis: What the curves are drawn over.
    """
    held = [entry for entry in runs if entry[3].curves.validation]
    points = [point for *_, one in held for point in one.curves.validation]
    shared = [
        metric
        for metric in METRICS.values()
        if points and all(metric.name in point.scores for point in points)
    ]
    where = " and ".join(sorted({_followed(one) for *_, one in held}))
    deciding = {one.metric for *_, one in held}
    shown = sorted(shared, key=lambda metric: metric.name not in deciding)[:2]
    panels: list[Panel] = []
    for metric in (metric for metric in shared if metric in shown):
        scale = 100 if metric.unit == "share" else 1
        decides = " (decides)" if deciding == {metric.name} else ""
        curves = [
            Curve(
                name=name,
                colour=colour,
                marker=marker,
                x=[getattr(point, axis) for point in one.curves.validation],
                y=[scale * point.scores[metric.name] for point in one.curves.validation],
            )
            for name, colour, marker, one in held
        ]
        title = f"{where} {metric.title}{decides}"
        panels.append(Panel(title=title, curves=curves, share=scale == 100))
    return panels


def _followed(record: TrainingRecord) -> str:
    """Name the rows that the scores were followed on."""
    return "whole-domain" if record.preset == "overfit" else "validation"


def _plot_section(record: TrainingRecord) -> Html:
    followed = _followed(record)
    key = [("training", "muted", "-")]
    loss = Curve(
        name="training",
        colour="muted",
        x=[point.step for point in record.curves.train],
        y=[point.loss for point in record.curves.train],
    )
    panels = [Panel(title="training loss", curves=[loss])]
    if costs := _cost_curves(record):
        key += [(curve.name, curve.colour, "-") for curve in costs]
        panels.append(Panel(title="what the training loss consists of", curves=costs))
    if validated := validation_panels([(followed, "student", "o", record)], "step"):
        key.append((followed, "student", "o"))
        panels += validated
    marks = _marks(record)
    if marks.milestones:
        key.append(("milestone", "ink", "^"))
    if marks.recovery:
        key.append(("recovery checkpoint", "muted", "|"))
    if marks.resumed:
        key.append(("resumed after an interruption", "bad", "|"))
    caption = ""
    if marks.phases:
        names = ", ".join(title for _, title, _ in PHASES)
        caption = f"Shaded: the phases of training ({names}). {_sentence(record.phases.why)}"
    drawn = training_plot(panels, marks)
    note = "The ring marks the checkpoint that was exported."
    return section("How it learned", legend(key), figure(drawn, caption), note=note)


def _cost_curves(record: TrainingRecord) -> list[Curve]:
    """Return a curve of each part of the loss, weighted; none where it has a single one."""
    points = [point for point in record.curves.train if point.costs]
    names = list(dict.fromkeys(name for point in points for name in point.costs))
    return [
        Curve(
            name=name,
            colour=colour,
            x=[point.step for point in points if name in point.costs],
            y=[point.costs[name] for point in points if name in point.costs],
        )
        for name, colour in zip(names, itertools.cycle(_COST_COLOURS), strict=False)
    ]


def _marks(record: TrainingRecord) -> CurveMarks:
    def steps(kind: str) -> list[float]:
        return [float(kept.step) for kept in record.checkpoints if kept.kind == kind]

    return CurveMarks(
        milestones=steps("milestone"),
        recovery=steps("recovery"),
        resumed=resumed_steps(record.attempts),
        phases=_phases(record),
        chosen=record.chosen.step,
    )


def _phases(record: TrainingRecord) -> list[Phase]:
    """Return where the three phases lie; none where they could not be distinguished."""
    structure, detail = record.phases.boundaries.structure, record.phases.boundaries.detail
    if structure is None and detail is None:
        return []
    end = float(record.steps)
    first = end if structure is None else float(structure)
    second = end if detail is None else float(detail)
    spans = [(1, 0.0, min(first, second)), (2, first, second), (3, second, end)]
    return [Phase(number=n, start=start, end=stop) for n, start, stop in spans if stop > start]


def _best(record: TrainingRecord) -> tuple[Metric, float] | None:
    """Return the headline metric at the exported milestone; None where it has no score."""
    for point in record.curves.validation:
        if point.step == record.chosen.step and (quoted := headline_metric(point.scores.keys())):
            return quoted, point.scores[quoted.name]
    return None


def _headline(name: str, record: TrainingRecord) -> str:
    best, spent = _best(record), duration(record.seconds)
    if best is None:
        return f"{name} trained for {counted(record.steps, 'step')} in {spent}."
    metric, value = best
    shown = score_text(metric.name, value)
    reached = f"{shown} {metric.title}"
    if metric.unit != "share":
        reached = f"a {_followed(record)} {metric.title} of {shown}"
    return f"{name} reaches {reached} after {spent}."


def _facts(record: TrainingRecord) -> list[Tile]:
    facts: list[Tile] = []
    if best := _best(record):
        metric, value = best
        label, shown = f"{_followed(record)} {metric.title}", score_text(metric.name, value)
        facts.append(Tile(value=shown, label=label, detail="of the exported model"))
    rate = record.examples / record.seconds if record.seconds else 0.0
    step = f"{record.step_path} step"
    total = f"of {record.steps:,}"
    return [
        *facts,
        Tile(value=duration(record.seconds), label="training time", detail=record.device),
        Tile(value=f"{count(rate)}/s", label="examples a second", detail=step),
        Tile(value=f"{record.chosen.step:,}", label="exported step", detail=total),
    ]


def _story(record: TrainingRecord) -> list[str]:
    stop, chosen = record.stop, record.chosen
    lines = [
        f"{_STOPS[stop.reason]} {_sentence(stop.detail)}",
        f"Exported step {chosen.step:,}: {chosen.why}",
    ]
    if resumed := len(resumed_steps(record.attempts)):
        exact = all(one.exact for one in record.attempts)
        bits = "with the same bits" if exact else "NOT always with the same bits"
        times = "once" if resumed == 1 else f"{resumed} times"
        lines.append(f"Resumed {times} after an interruption, {bits}: see Attempts.")
    if record.checkpoints:
        lines.append(
            f"{counted(len(record.checkpoints), 'checkpoint')} in {record.checkpoint_uri}."
        )
    return lines


def _sentence(words: str) -> str:
    shown = words[:1].upper() + words[1:]
    return shown if shown.endswith((".", "!")) else shown + "."


def _model_facts(spec: ModelSpec, digest: str) -> dict[str, Any]:
    outputs = spec.outputs
    shown = ", ".join(outputs[:12]) + (
        f" and {len(outputs) - 12} more" if len(outputs) > 12 else ""
    )
    return {
        "task": spec.task,
        "network": spec.network["factory"],
        "arguments": spec.network["args"],
        "parameters": f"{spec.parameters:,}",
        "outputs": shown,
        "digest": digest[:16],
    }
