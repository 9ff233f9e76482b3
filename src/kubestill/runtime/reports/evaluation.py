"""The report of an evaluation: what a model is worth beside the others, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kubestill.errors import counted
from kubestill.runtime.evaluation.comparison import agreement_matrix, calibration_curve
from kubestill.runtime.evaluation.findings import Findings, Subject
from kubestill.runtime.metrics.catalog import Metric, metrics_of
from kubestill.runtime.metrics.intervals import Measured
from kubestill.runtime.reports.comparison_plots import (
    Priced,
    agreement_plot,
    calibration_plot,
    cost_plot,
    picture,
    slice_plot,
    values_plot,
)
from kubestill.runtime.reports.expected import expected_section
from kubestill.runtime.reports.headline import headline, lead, tile_row
from kubestill.runtime.reports.history import history_section
from kubestill.runtime.reports.numbers import (
    count,
    duration,
    gain_range,
    gain_text,
    known_count,
    range_text,
    score_text,
    size,
)
from kubestill.runtime.reports.page import (
    Cell,
    Html,
    bullets,
    definitions,
    emphasised,
    figure,
    flatten,
    footer,
    gallery,
    legend,
    page,
    pair,
    pill,
    section,
    subheading,
    swatch,
    table,
    tiles,
)
from kubestill.runtime.reports.plots import curves_plot
from kubestill.runtime.reports.scores import markdown_scores, subjects
from kubestill.runtime.reports.training import validation_panels
from kubestill.runtime.reports.upkeep import record_section, rows_section
from kubestill.runtime.retraining.history import RunHistory

_TONES = {
    "promote": "good",
    "healthy": "good",
    "reject": "bad",
    "degraded": "bad",
    "unfit": "bad",
    "broken": "bad",
    "insufficient": "doubt",
}
PICTURES = 14
"""Rows shown as pictures."""


def evaluation_report(findings: Findings, history: Sequence[RunHistory] = ()) -> tuple[str, str]:
    """Write the report of an evaluation.

    Args:
        findings: What came out.
        history: Every run of the registry, this one among them.

    Returns:
        The HTML page and the short Markdown.
    """
    decision = findings.decision
    body = [
        tiles(tile_row(findings)),
        _scores(findings),
        *_golden(findings),
        *rows_section(findings),
        *record_section(findings),
        *expected_section(findings.expected),
        *history_section(history, findings.metric),
        *_cost_section(findings),
        *_learning(findings),
        _behaviour(findings),
        *_gallery(findings),
        *_slices(findings),
        _costs(findings),
        *_settings(findings),
        _footer(findings),
    ]
    html = page(
        title=f"kubestill: {decision.verdict}",
        subject="kubestill · evaluation",
        badge=pill(decision.verdict, _TONES[decision.verdict]),
        headline=emphasised(headline(findings)),
        lead=lead(findings),
        body=body,
    )
    return html, markdown_scores(findings)


def _key(findings: Findings) -> Html:
    return legend([(look.name, look.colour, look.marker) for _, look in subjects(findings)])


def _scores(findings: Findings) -> Html:
    metrics = list(metrics_of(findings.task).values())
    rows: list[tuple[str | Html, list[Cell]]] = []
    for subject, look in subjects(findings):
        cells = [_score_cell(findings, findings.scores, subject, metric) for metric in metrics]
        cells.append(Cell(text=known_count(subject.cost.parameters)))
        rows.append((swatch(look.name, look.colour, look.marker), cells))
    gain = _gain_cells(findings, findings.scores, metrics)
    if gain and findings.baseline:
        mine, theirs = findings.model.cost.parameters, findings.baseline.cost.parameters
        ratio = f"×{mine / theirs:.3g}" if mine and theirs else "–"
        rows.append((gain[0], [*gain[1], Cell(text=ratio)]))
    columns = [*_columns(metrics), "parameters"]
    note = (
        f"On {counted(findings.dataset.labelled, 'row')}; small figures are "
        f"{findings.scores.confidence:.0%} intervals. Bold is best."
    )
    # What is different about the rows has a section of its own.
    elsewhere = {shift.statement for shift in findings.shifts}
    reasons = [reason for reason in findings.decision.reasons if reason not in elsewhere]
    return section("Scores", table(columns, rows), bullets(reasons), note=note)


def _golden(findings: Findings) -> list[Html]:
    """Return the scores on the golden rows; empty where there are none."""
    scores = findings.golden
    if scores is None:
        return []
    metrics = list(metrics_of(findings.task).values())
    rows: list[tuple[str | Html, list[Cell]]] = [
        (
            swatch(look.name, look.colour, look.marker),
            [_score_cell(findings, scores, subject, metric) for metric in metrics],
        )
        for subject, look in subjects(findings)
    ]
    if gain := _gain_cells(findings, scores, metrics):
        rows.append(gain)
    on = counted(scores.outcomes[findings.model.name].rows, "row")
    note = (
        f"On {on} that are the same for every run: what must not be forgotten. A champion that has "
        "learned them in its refit is scored as the model that was judged in its place."
    )
    return [section("On the golden rows", table(_columns(metrics), rows), note=note)]


def _columns(metrics: Sequence[Metric]) -> list[str]:
    return ["", *(f"{metric.title} {'↑' if metric.sign > 0 else '↓'}" for metric in metrics)]


def _score_cell(findings: Findings, scores: Measured, subject: Subject, metric: Metric) -> Cell:
    found = scores.interval(subject.name, metric.name)
    rivals = [metric.sign * scores.points[s.name][metric.name] for s, _ in subjects(findings)]
    best = len(rivals) > 1 and metric.sign * found.value >= max(rivals)
    detail = range_text(metric.name, found.low, found.high)
    return Cell(text=score_text(metric.name, found.value), detail=detail, best=best)


def _gain_cells(
    findings: Findings, scores: Measured, metrics: Sequence[Metric]
) -> tuple[str | Html, list[Cell]] | None:
    """Return the row of improvements over the baseline, paired on the same rows."""
    if findings.baseline is None:
        return None
    cells: list[Cell] = []
    for metric in metrics:
        gain = scores.improvement(findings.model.name, findings.baseline.name, metric)
        cells.append(
            Cell(
                text=gain_text(metric.name, gain.value),
                detail=gain_range(metric.name, gain.low, gain.high),
            )
        )
    return f"{findings.model.name} against {findings.baseline.name}", cells


def shown_metric(findings: Findings) -> Metric:
    """Return the metric that people read off first: accuracy, or RMSE."""
    return next(iter(metrics_of(findings.task).values()))


def _cost_section(findings: Findings) -> list[Html]:
    """Draw score against cost, where the models differ in size."""
    sizes = {subject.cost.parameters for subject, _ in subjects(findings)}
    if not min(sizes) or max(sizes) < 1.1 * min(sizes):
        return []
    metric = shown_metric(findings)
    scores = findings.scores.points
    models = [
        Priced(
            look=look,
            score=findings.scores.interval(subject.name, metric.name),
            parameters=subject.cost.parameters,
            latency=subject.cost.latency[1],
        )
        for subject, look in subjects(findings)
        if np.isfinite(scores[subject.name][metric.name])
    ]
    if not models:
        return []
    drawn = cost_plot(
        models,
        metric.title,
        lambda value: f"{100 * value:g}%" if metric.unit == "share" else f"{value:g}",
        metric.direction == "min",
    )
    note = "Up is better, left is cheaper. The bars are the intervals of the table."
    return [section("What size buys", figure(drawn), note=note)]


def _learning(findings: Findings) -> list[Html]:
    """Draw how models learned beside each other; one alone has a report of that."""
    if len(findings.subjects) < 2:
        return []
    trainings = [
        (look.name, look.colour, look.marker, subject.training)
        for subject, look in subjects(findings)
        if subject.training
    ]
    panels = validation_panels(trainings, "examples")
    if not panels:
        return []
    drawn = curves_plot(panels, "examples seen")
    note = "On each model's own validation rows, while it trained."
    return [section("How they learned", _key(findings), figure(drawn), note=note)]


def _behaviour(findings: Findings) -> Html:
    if findings.task == "regression":
        return _values(findings)
    curves = [
        (look, calibration_curve(subject.evaluation.outcome))
        for subject, look in subjects(findings)
        if subject.evaluation.outcome.finite.any()
    ]
    if not curves:
        return Html("")
    binary = findings.task == "binary"
    stated = f"stated probability of {findings.classes[1]!r}" if binary else "stated confidence"
    believed = section(
        "Can its probabilities be believed?",
        _key(findings),
        figure(calibration_plot(curves, stated)),
        note="On the dashed line, what is called 80% comes true 80% of the time.",
    )
    other = findings.teacher or findings.baseline
    if other is None:
        return believed
    mine, theirs = findings.model.evaluation.outcome, other.evaluation.outcome
    matrix = agreement_matrix(theirs, mine)
    differing = int(matrix.sum() - np.trace(matrix))
    agreed = section(
        f"Where {findings.model.name} and {other.name} agree",
        figure(agreement_plot(matrix, findings.classes, other.name, findings.model.name)),
        note=(
            f"They name the same class on {np.trace(matrix) / matrix.sum():.1%} of the rows; "
            f"orange counts the {differing:,} where they differ."
        ),
    )
    return pair(agreed, believed)


def _values(findings: Findings) -> Html:
    truth = np.asarray(findings.model.evaluation.targets, dtype=float)
    series = [
        (look, subject.evaluation.outcome.predictions[:, 0]) for subject, look in subjects(findings)
    ]
    unit = findings.classes[0]
    drawn = values_plot(series, truth[:, 0], unit)
    note = "Every dot is one row; on the dashed line the prediction is exact."
    return section("Predicted and true", figure(drawn), note=note)


def _gallery(findings: Findings) -> list[Html]:
    """Show the rows on which the model does worst, where a row is a picture."""
    if findings.images is None or findings.task == "regression":
        return []
    evaluation = findings.model.evaluation
    worst = np.argsort(-evaluation.per_row, kind="stable")[:PICTURES].tolist()
    names = findings.classes
    shown: list[tuple[Html, str, list[tuple[str, str]]]] = []
    for row in worst:
        truth = names[int(evaluation.targets[row])]
        answers = [
            (subject.name, names[int(subject.evaluation.outcome.labels[row])])
            for subject, _ in subjects(findings)
        ]
        shown.append((picture(findings.images[row], f"a {truth}"), truth, answers))
    title = f"The rows that cost the {findings.model.name} most"
    note = "Largest loss first, and what each model says of them."
    return [section(title, gallery(shown), note=note)]


def _slices(findings: Findings) -> list[Html]:
    if not findings.slices:
        return []
    metric = shown_metric(findings)
    names = [f"{part.column} = {part.value}  ({part.rows:,})" for part in findings.slices]
    series = [
        (look, [part.scores[subject.name][metric.name] for part in findings.slices])
        for subject, look in subjects(findings)
    ]
    # A slice on which no model has a score would be an empty line.
    scored = [index for index in range(len(names)) if any(np.isfinite(v[index]) for _, v in series)]
    if not scored:
        return []
    names = [names[index] for index in scored]
    series = [(look, [values[index] for index in scored]) for look, values in series]
    drawn = slice_plot(names, series, metric.title, lambda value: score_text(metric.name, value))
    return [section("On parts of the rows", _key(findings), figure(drawn))]


def _costs(findings: Findings) -> Html:
    rows: list[tuple[str | Html, list[Cell]]] = []
    for subject, look in subjects(findings):
        cost, training = subject.cost, subject.training
        batch = max(cost.latency)
        rate = Cell(text=f"{count(batch / cost.latency[batch])}/s")
        cells = [
            Cell(text=known_count(cost.parameters)),
            Cell(text=size(cost.bytes)),
            Cell(text=known_count(cost.flops)),
            Cell(text=duration(cost.latency[1])),
            Cell(text=duration(cost.latency[batch])),
            rate,
            Cell(text=duration(training.seconds) if training else "–"),
            Cell(text=count(training.examples) if training else "–"),
        ]
        rows.append((swatch(look.name, look.colour, look.marker), cells))
    batch = max(findings.model.cost.latency)
    columns = [
        "",
        "parameters",
        "weights",
        "FLOPs a row",
        "1 row",
        f"{batch:,} rows",
        "rows a second",
    ]
    columns += ["trained in", "examples seen"]
    note = (
        "Latency from raw rows to outputs, preprocessing included, on one CPU thread: the median "
        "of runs in turns, on the machine that wrote this report."
    )
    return section("What each costs", table(columns, rows), note=note)


def _settings(findings: Findings) -> list[Html]:
    trained = [(subject.training, look) for subject, look in subjects(findings) if subject.training]
    own = section("Settings of this evaluation", definitions(findings.settings))
    if not trained:
        return [own]
    columns = [dict(flatten(record.settings)) for record, _ in trained]
    names = list(dict.fromkeys(name for column in columns for name in column))
    differing = [name for name in names if len({column.get(name) for column in columns}) > 1]
    rows = [(name, [Cell(text=column.get(name, "–")) for column in columns]) for name in differing]
    heads = ["", *(look.name for _, look in trained)]
    common = {name: columns[0].get(name, "") for name in names if name not in differing}
    parts = [table(heads, rows)] if rows else []
    if len(trained) > 1:
        parts.append(subheading("The same for all"))
    parts.append(definitions(common))
    return [section("How they were trained", *parts), own]


def _footer(findings: Findings) -> Html:
    pairs = ", ".join(f"{name} {digest[:12]}" for name, digest in findings.references.items())
    return footer(
        "Intervals come from the influence of each row on a score, paired row by row between "
        "models (Wilson's and Agresti & Min's for accuracy). They speak of these models on rows "
        "like these, not of what another training seed would give. Where too few rows or events "
        "carry a score, it has none.",
        f"Judged: {pairs}.",
    )
