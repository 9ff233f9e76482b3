"""The report of one training, made from its `training.json` and the model's spec alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kubestill.runtime.metrics.catalog import METRICS, headline_metric
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
    text,
    tiles,
)
from kubestill.runtime.reports.plots import PHASES, Curve, Marks, Panel, Phase, training_plot

__all__ = ["training_report", "validation_panels"]

_PRESETS = {
    "teacher": "The teacher",
    "student": "The student",
    "control": "The control",
    "finetune": "The fine-tuned model",
    "overfit": "The surrogate",
}
_STOPS = {
    "budget": "It ran to the end of its budget.",
    "early-stopping": "It stopped early: no milestone got better any more.",
    "tolerance": "It stopped as soon as it was good enough.",
    "converged": "It stopped because it had converged.",
}

Training = Mapping[str, Any]


def training_report(
    training: Training,
    spec: Mapping[str, Any],
    *,
    title: str = "",
    extra: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Write the report of one training.

    Args:
        training: Content of `training.json`.
        spec: Content of `model.json`.
        title: What to call the model; by default the preset says it.
        extra: More facts for the table of what the model is, name → value.

    Returns:
        The HTML page and the short Markdown.
    """
    name = title or _PRESETS.get(str(training["preset"]), "The model")
    facts = _facts(training)
    reasons = _story(training)
    body = [
        tiles([*facts, _size_tile(spec)]),
        _plot_section(training),
        section("What happened", bullets(reasons)),
        *attempts_section(_attempts(training)),
        section("The model", definitions({**_model_facts(spec), **(extra or {})})),
        section(
            "Settings",
            definitions(training["settings"]),
            note="All that shaped this training. Equal settings on equal data give equal bits.",
        ),
    ]
    headline = _headline(name, training)
    html = page(
        title=f"{name}: training",
        eyebrow=Html(f"{text('kubestill · training')} {_status(training)}"),
        headline=emphasised(headline),
        lead=_lead(training),
        body=body,
    )
    rows = [(fact.label, fact.value, fact.detail) for fact in [*facts, _size_tile(spec)]]
    settings = [(key, value) for key, value in flatten(training["settings"])]
    markdown = document(
        headline,
        bullet_list(reasons),
        markdown_table(("", "value", ""), rows),
        *attempts_table(_attempts(training)),
        markdown_table(("setting", "value"), settings),
    )
    return html, markdown


def validation_panels(
    trainings: Sequence[tuple[str, str, str, Training]], axis: str
) -> list[Panel]:
    """Return up to two panels of the validation metrics that all trainings share.

    Args:
        trainings: (name, colour, marker, training) of each.
        axis: The key of x in the curves: "step" or "examples".
    """
    held = [entry for entry in trainings if entry[3]["curves"]["validation"]]
    shared = [
        metric
        for metric in METRICS
        if held and all(metric in row for *_, one in held for row in one["curves"]["validation"])
    ]
    if len(shared) > 1 and len({one["preset"] for *_, one in held}) > 1:
        shared = [metric for metric in shared if metric != "loss"] or shared
    panels: list[Panel] = []
    for metric in shared[:2]:
        scale = 100 if METRICS[metric].unit == "share" else 1
        curves = [
            Curve(
                name=name,
                colour=colour,
                marker=marker,
                x=[row[axis] for row in one["curves"]["validation"]],
                y=[scale * row[metric] for row in one["curves"]["validation"]],
            )
            for name, colour, marker, one in held
        ]
        where = {_followed(one) for *_, one in held}
        title = f"{' and '.join(sorted(where))} {METRICS[metric].title}"
        panels.append(Panel(title=title, curves=curves, share=scale == 100))
    return panels


def _followed(training: Training) -> str:
    """Name the rows that the error was followed over."""
    return "whole-domain" if training["preset"] == "overfit" else "validation"


def phases_of(training: Training) -> list[Phase]:
    """Read where the three phases lie; none where they could not be told apart."""
    found: Mapping[str, Any] = training.get("phases") or {}
    bounds: Mapping[str, Any] = found.get("boundaries") or {}
    structure, detail = bounds.get("structure"), bounds.get("detail")
    if structure is None and detail is None:
        return []
    end = float(training["steps"])
    first = end if structure is None else float(structure)
    second = end if detail is None else float(detail)
    spans = [(1, 0.0, min(first, second)), (2, first, second), (3, second, end)]
    return [Phase(number=n, start=start, end=stop) for n, start, stop in spans if stop > start]


def _plot_section(training: Training) -> Html:
    marks = _marks(training)
    key = [("training", "muted", "-"), (_followed(training), "student", "o")]
    if marks.milestones:
        key.append(("milestone", "ink", "^"))
    if marks.recovery:
        key.append(("recovery checkpoint", "muted", "|"))
    if marks.resumed:
        key.append(("resumed after an interruption", "bad", "|"))
    panels = _panels(training)
    if not panels:
        return section("How it learned", note="No loss was recorded.")
    note = "The ring marks the checkpoint that was exported." if marks.chosen is not None else ""
    caption = ""
    if marks.phases:
        names = ", ".join(title for _, title, _ in PHASES)
        caption = (
            f"Shaded: the phases of the training ({names}). {_sentence(_why_phases(training))}"
        )
    drawn = training_plot(panels, marks)
    return section("How it learned", legend(key), figure(drawn, caption), note=note)


def _why_phases(training: Training) -> str:
    return str(training["phases"].get("why", ""))


def _panels(training: Training) -> list[Panel]:
    train, validation = training["curves"]["train"], training["curves"]["validation"]
    curves = [
        Curve(
            name="training",
            colour="muted",
            x=[row["step"] for row in train],
            y=[row["loss"] for row in train],
        )
    ]
    if validation and all("loss" in row for row in validation):
        curves.append(
            Curve(
                name=_followed(training),
                colour="student",
                marker="o",
                x=[row["step"] for row in validation],
                y=[row["loss"] for row in validation],
            )
        )
    followed = _followed(training)
    others = validation_panels([(followed, "student", "o", training)], "step")
    others = [panel for panel in others if panel.title != f"{followed} loss"]
    drawn = [curve for curve in curves if curve.x]
    return [*([Panel(title="loss", curves=drawn)] if drawn else []), *others[:1]]


def _marks(training: Training) -> Marks:
    steps = {"milestone": list[float](), "recovery": list[float]()}
    for checkpoint in training.get("checkpoints") or []:
        steps[checkpoint["kind"]].append(checkpoint["step"])
    chosen = training.get("chosen")
    return Marks(
        milestones=steps["milestone"],
        recovery=steps["recovery"],
        resumed=resumed_steps(_attempts(training)),
        phases=phases_of(training),
        chosen=chosen["step"] if chosen else None,
    )


def _attempts(training: Training) -> Sequence[Mapping[str, Any]]:
    return training.get("attempts") or []


def _best(training: Training) -> tuple[str, float] | None:
    """Return the headline metric at the chosen checkpoint."""
    rows = training["curves"]["validation"]
    if not rows:
        return None
    step = (training.get("chosen") or rows[-1])["step"]
    row = min(rows, key=lambda row: abs(row["step"] - step))
    quoted = headline_metric(row)
    return (quoted.name, row[quoted.name]) if quoted else None


def _headline(name: str, training: Training) -> str:
    best = _best(training)
    if best is None:
        return f"{name} trained for {training['steps']:,} steps in {_spent(training)}."
    metric, value = best
    shown = score_text(metric, value)
    reached = f"{shown} {METRICS[metric].title}"
    if METRICS[metric].unit != "share":
        reached = f"a {_followed(training)} {METRICS[metric].title} of {shown}"
    return f"{name} reaches {reached} after {_spent(training)}."


def _spent(training: Training) -> str:
    return duration(float(training["seconds"]))


def _lead(training: Training) -> str:
    return (
        f"{count(training['examples'])} examples in {training['steps']:,} steps "
        f"({training['epochs']:.3g} epochs) on {training['device']}. "
        f"{_STOPS.get(training['stop']['reason'], training['stop']['reason'])}"
    )


def _status(training: Training) -> Html:
    reason = str(training["stop"]["reason"])
    return pill(reason, "doubt" if reason == "budget" else "good")


def _facts(training: Training) -> list[Tile]:
    facts: list[Tile] = []
    best = _best(training)
    if best:
        metric, value = best
        label = f"{_followed(training)} {METRICS[metric].title}"
        facts.append(
            Tile(value=score_text(metric, value), label=label, detail="of the exported model")
        )
    seconds = float(training["seconds"])
    rate = training["examples"] / seconds if seconds else 0.0
    facts.append(
        Tile(value=duration(seconds), label="training time", detail=str(training["device"]))
    )
    detail = f"{training['step_path']} step"
    facts.append(Tile(value=f"{count(rate)}/s", label="examples a second", detail=detail))
    chosen = training.get("chosen")
    if chosen:
        total = f"of {training['steps']:,}"
        facts.append(Tile(value=f"{chosen['step']:,}", label="exported step", detail=total))
    return facts


def _size_tile(spec: Mapping[str, Any]) -> Tile:
    network = str(spec["network"]["factory"])
    return Tile(value=count(spec["parameters"]), label="parameters", detail=network)


def _story(training: Training) -> list[str]:
    stop, chosen = training["stop"], training.get("chosen")
    lines = [_STOPS.get(stop["reason"], str(stop["reason"]))]
    if stop.get("detail"):
        lines[0] += f" {_sentence(str(stop['detail']))}"
    if chosen:
        lines.append(f"Exported step {chosen['step']:,}: {chosen['why']}")
    attempts = _attempts(training)
    if resumed := len(resumed_steps(attempts)):
        exact = all(one["exact"] for one in attempts)
        bits = "with the same bits" if exact else "NOT always with the same bits"
        times = "once" if resumed == 1 else f"{resumed} times"
        lines.append(f"Resumed {times} after an interruption, {bits}: see Attempts.")
    kept = len(training.get("checkpoints") or [])
    where = training.get("checkpoint_uri")
    if kept:
        lines.append(f"{kept} checkpoints" + (f" in {where}." if where else "."))
    return lines


def _sentence(words: str) -> str:
    shown = words[:1].upper() + words[1:]
    return shown if shown.endswith((".", "!")) else shown + "."


def _model_facts(spec: Mapping[str, Any]) -> dict[str, Any]:
    outputs = [str(name) for name in spec["outputs"]]
    shown = ", ".join(outputs[:12]) + (
        f" and {len(outputs) - 12} more" if len(outputs) > 12 else ""
    )
    return {
        "task": spec["task"],
        "network": spec["network"]["factory"],
        "arguments": spec["network"]["args"],
        "parameters": f"{spec['parameters']:,}",
        "outputs": shown,
        "weights (SHA-256)": str(spec.get("digest") or "")[:16],
    }
