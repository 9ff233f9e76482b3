"""Reports of a teacher that is not trained here: brought in, or not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kubestill.errors import counted
from kubestill.runtime.models.foreign.spec import ForeignSpec
from kubestill.runtime.models.model import ModelSpec
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.reports.markdown import bullet_list, document, markdown_table
from kubestill.runtime.reports.numbers import count, score_text, size
from kubestill.runtime.reports.page import (
    Cell,
    Tile,
    bullets,
    definitions,
    emphasised,
    page,
    pill,
    section,
    table,
    tiles,
)

_INPUTS = ("input", "kind", "read as")


def brought_report(
    predictor: Predictor,
    source: str,
    notes: Sequence[str],
    tried: int,
    scores: Mapping[str, float],
    rows: int,
) -> tuple[str, str]:
    """Write the report.

    Args:
        predictor: The model.
        source: Where it came from.
        notes: What a reader should know about it.
        tried: Rows that it answered before it was taken.
        scores: Its own on rows held out, by metric; empty where there were none.
        rows: How many those are.

    Returns:
        The HTML page and the short Markdown.
    """
    spec = predictor.spec
    facts: dict[str, object] = {
        "from": source,
        "kind": spec.network["factory"],
        "task": spec.task,
        "outputs": ", ".join(spec.outputs[:12]),
        "digest": predictor.digest[:16],
    }
    if isinstance(spec, ForeignSpec):
        facts |= {"gives": spec.answers, "size": size(spec.bytes)}
        if len(spec.order) > 1 and spec.answers != "value":
            places = zip(spec.outputs, spec.order, strict=True)
            facts["its order of classes"] = ", ".join(
                name for name, _ in sorted(places, key=lambda pair: pair[1])
            )
    if spec.parameters:
        facts["parameters"] = count(spec.parameters)
    scored = f"Scored on {counted(rows, 'row')} held out." if scores else "Not scored."
    headline = f"{spec.network['factory']}: {counted(len(spec.schema.features), 'input')}. {scored}"
    body = [section("The model", definitions(facts))]
    if scores:
        shown = [Tile(value=score_text(name, value), label=name) for name, value in scores.items()]
        body.insert(0, tiles(shown))
    if notes:
        body.append(section("To know", bullets(notes)))
    lines = [(name, [Cell(text=kind), Cell(text=told)]) for name, kind, told in _inputs(spec)]
    body.append(section("Inputs", table(_INPUTS, lines, prose=True)))
    html = page(
        title="kubestill: model",
        subject="kubestill · model brought in",
        badge=pill(spec.task, "teacher"),
        headline=emphasised(headline),
        lead=f"Inputs and classes were matched by name; it answered {counted(tried, 'row')} "
        "before it was taken.",
        body=body,
    )
    text = document(
        "The model",
        headline,
        bullet_list(notes),
        markdown_table(
            ("metric", "score"), [(name, score_text(name, value)) for name, value in scores.items()]
        )
        if scores
        else "",
    )
    return html, text


def no_model_report(name: str, why: str) -> tuple[str, str]:
    """Write the report of a training step that trained no model."""
    html = page(
        title="kubestill: no model",
        subject=f"kubestill · {name}",
        badge=pill("skipped", "teacher"),
        headline=why,
        lead="Later steps do without.",
        body=[],
    )
    return html, document("No model", why)


def _inputs(spec: ModelSpec) -> list[tuple[str, str, str]]:
    """Return name, kind and how the model reads it, for every input."""
    found: list[tuple[str, str, str]] = []
    codes = {one.name: one.codes for one in spec.inputs} if isinstance(spec, ForeignSpec) else {}
    for column in spec.schema.features:
        told = "as it is"
        if codes.get(column.name) is not None:
            told = "labels as their numbers"
        elif column.kind == "categorical":
            told = f"{len(column.categories or ()):,} labels"
        elif column.kind == "tensor":
            told = "tensor " + " x ".join(map(str, column.shape))
        found.append((column.name, column.kind, told))
    return found
