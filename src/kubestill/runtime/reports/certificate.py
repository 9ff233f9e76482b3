"""The report of a certificate: a page to look at first, and to read afterwards."""

from __future__ import annotations

from typing import Any

from kubestill.runtime.certification.certificate import CODES, Certificate
from kubestill.runtime.certification.certify import Examined
from kubestill.runtime.certification.views import cases, error_map, image, lines
from kubestill.runtime.reports.markdown import bullet_list, document, markdown_table
from kubestill.runtime.reports.numbers import at_most, count, duration, percent, size
from kubestill.runtime.reports.page import (
    Cell,
    Html,
    Tile,
    definitions,
    emphasised,
    figure,
    legend,
    page,
    pair,
    pill,
    section,
    table,
    tiles,
)
from kubestill.runtime.reports.surrogate_plots import (
    bars_plot,
    cases_plot,
    image_plot,
    lines_plot,
    map_plot,
    survival_plot,
)

__all__ = ["certificate_report"]

_STATUS = {"shown": "good", "failed": "bad", "not shown": "doubt"}
_KEY = [("solution", "teacher", "-"), ("surrogate", "student", "-")]


def certificate_report(found: Examined) -> tuple[str, str]:
    """Return (HTML, Markdown)."""
    made = found.certificate
    tone = "good" if made.verdict == "certified" else "bad"
    html = page(
        title=f"certificate: {made.verdict}",
        subject="certify-surrogate",
        badge=pill(made.verdict, tone),
        headline=emphasised(_headline(found)),
        lead=_lead(made),
        body=[
            tiles(_facts(found)),
            *_pictures(found),
            *_where(found),
            *_savings(made),
            section("What was shown, and what was not", _conditions(made)),
            *_quantiles(made),
            section("Of what", definitions(_shown(made))),
        ],
    )
    return html, _markdown(found)


def _headline(found: Examined) -> str:
    made, classes = found.certificate, found.predictor.spec.task != "regression"
    if made.verdict == "refused":
        return f"No certificate: {CODES[made.failed[0].code]}."
    name = made.about["system"] or "table"
    network = f"A network of {count(made.about['parameters'])} numbers"
    if classes:
        wrong = made.errors["data"]["disagreements"]
        kept = f" and {wrong:,} exceptions" if wrong and found.exceptions is not None else ""
        if not wrong or kept:
            return f"{network}{kept} is the {name}: all {len(found.raw):,} answers agree."
        return f"{network} stands for the {name}: {wrong:,} of {len(found.raw):,} answers differ."
    return f"{network} stands for {name}: never off by more than {_error(made)}."


def _error(made: Certificate) -> str:
    unit = made.about["unit"]
    return at_most(made.worst["error"]) + (f" {unit}" if unit else "")


def _lead(made: Certificate) -> str:
    if made.failed:
        return " ".join(f"{c.said} {c.remedy}".rstrip() for c in made.failed)
    *others, last = made.conditions
    missing = [c.said for c in others if c.status == "not shown"]
    return " ".join([last.said, *missing[:1]])


def _facts(found: Examined) -> list[Tile]:
    made, classes = found.certificate, found.predictor.spec.task != "regression"
    data, off = made.errors["data"], made.errors.get("off_grid")
    if classes:
        share = 1 - data["disagreements"] / data["rows"]
        detail = f"{data['disagreements']:,} of {data['rows']:,} differ"
        tiled = [Tile(value=percent(share, 2), label="rows that agree", detail=detail)]
    else:
        detail = f"on all {data['rows']:,} rows; mean {data['mean']:.2g}"
        tiled = [Tile(value=at_most(data["max"]), label="largest error", detail=detail)]
    if off:
        detail = f"on {off['rows']:,} points; mean {off['mean']:.2g}"
        tiled.append(Tile(value=at_most(off["max"]), label="largest between rows", detail=detail))
        tiled += _bound_tile(off)
    detail = f"{size(made.size['surrogate_bytes'])} for {size(made.size['table_bytes'])}"
    label = "{} than the table"
    tiled.append(_ratio(made.size["ratio"], label, ("smaller", "larger"), detail))
    if made.speed:
        detail = f"than the solver, {made.speed['batch']:,} rows at a time"
        tiled.append(_ratio(made.speed["ratio"], "{}", ("faster", "slower"), detail))
    return tiled


def _ratio(ratio: float, label: str, words: tuple[str, str], detail: str) -> Tile:
    """Say by how many times, in the word for the side it is on."""
    better = ratio >= 1
    times = ratio if better else 1 / ratio
    return Tile(value=f"{count(times)}×", label=label.format(words[not better]), detail=detail)


def _bound_tile(off: dict[str, Any]) -> list[Tile]:
    known = [q for q in off["quantiles"] if q["bound"] is not None]
    if not known:
        return []
    last = known[-1]
    detail = f"of the domain err less, with {off['confidence']:.0%} confidence"
    label = f"{percent(last['quantile'], 0)} bound"
    return [Tile(value=at_most(last["bound"]), label=label, detail=detail)]


def _pictures(found: Examined) -> list[Html]:
    classes = found.truth.system.output.classes if found.truth else ()
    made: list[Html] = []
    tensors = cases(found)
    if tensors is not None:
        assert found.truth is not None
        axes = found.truth.system.output.axes
        note = "Whole solutions, from the worst that was found to a usual one."
        key = [legend(_KEY)] if len(axes) == 1 else []
        made.append(
            section("Solution and surrogate", *key, figure(cases_plot(tensors, axes)), note=note)
        )
    plane = image(found)
    if plane is not None:
        note = f"Two inputs vary; all others are as they are at {_point(found)}."
        drawn = figure(image_plot(plane, classes=classes))
        made.append(section("Solution and surrogate", drawn, note=note))
    through = lines(found)
    if through:
        note = f"One input at a time, through {_point(found)} (dashed)."
        drawn = figure(lines_plot(through, classes=classes))
        made.append(section("Along every input", legend(_KEY), drawn, note=note))
    return made


def _point(found: Examined) -> str:
    """Name the point that the pictures go through."""
    if found.predictor.spec.task == "regression":
        return "the worst point"
    wrong = found.certificate.errors["data"]["disagreements"]
    return "one of the disagreements" if wrong else "some row"


def _where(found: Examined) -> list[Html]:
    made, sections = found.certificate, []
    shown = error_map(found)
    classes = found.predictor.spec.task != "regression"
    if shown is not None:
        what = "Share of disagreements in" if classes else "Largest error of"
        note = f"{what} each cell, over everything compared; the ring is {_point(found)}."
        # Nothing stands beside it where there are classes.
        plot = map_plot(shown, lambda value: f"{value:.2g}", wide=classes)
        drawn = figure(plot, _worst(found))
        sections.append(section("Where it errs", drawn, note=note))
    if not classes:
        samples = {"rows of the dataset": (found.on_data.errors, "student")}
        entries = [("rows of the dataset", "student", "-")]
        bounds: list[tuple[float, float]] = []
        if found.off_grid is not None:
            samples["between them"] = (found.off_grid.errors, "control")
            entries += [("between them", "control", "-"), ("upper bound", "control", "v")]
            bounds = [
                (q["quantile"], q["bound"])
                for q in made.errors["off_grid"]["quantiles"]
                if q["bound"] is not None
            ]
        tolerance = float(made.about["settings"]["tolerance"])
        if tolerance:
            entries.append(("tolerance", "good", "|"))
        note = "Share of the points that err by more than so much."
        drawn = figure(survival_plot(samples, bounds, tolerance, wide=not sections))
        sections.append(section("How often it errs", legend(entries), drawn, note=note))
    return [pair(*sections)] if sections else []


def _worst(found: Examined) -> str:
    worst = found.certificate.worst
    where = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {_short(value)}"
        for name, value in worst["inputs"].items()
    )
    told = f"{worst['solution']:.6g}" if isinstance(worst["solution"], float) else worst["solution"]
    said = (
        f"{worst['surrogate']:.6g}"
        if isinstance(told, str) and isinstance(worst["surrogate"], float)
        else worst["surrogate"]
    )
    named = _point(found)
    return (
        f"{named[0].upper()}{named[1:]}, {worst['found']}: at {where} the solution is {told}, the "
        f"surrogate {said}."
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(f"{number:.3g}" for number in value[:3]) + ", …]"
    return str(value)


def _savings(made: Certificate) -> list[Html]:
    sizes = {"table": made.size["table_bytes"], "surrogate": made.size["surrogate_bytes"]}
    times: dict[str, float] = {}
    if made.speed:
        last = made.speed["batches"][-1]
        times = {"solver": last["solver"], "surrogate": last["surrogate"]}
    exceptions = made.size["exceptions_bytes"]
    note = f"The table is {made.size['table']}."
    if exceptions:
        note += f" {size(exceptions)} of the surrogate are exceptions."
    if made.speed:
        note += " Both are timed in turns on one thread. One row alone takes the solver "
        alone = made.speed["batches"][0]
        note += f"{duration(alone['solver'])} and the surrogate {duration(alone['surrogate'])}."
    drawn = figure(bars_plot(sizes, times, made.speed.get("batch", 0)))
    return [section("What it saves", drawn, note=note)]


def _conditions(made: Certificate) -> Html:
    rows = [
        (
            Html("{}&nbsp; {}").format(pill(c.status, _STATUS[c.status]), c.name),
            [Cell(text=c.said, detail=c.remedy)],
        )
        for c in made.conditions
    ]
    return table(["condition", "what was seen"], rows, prose=True)


def _quantiles(made: Certificate) -> list[Html]:
    off = made.errors.get("off_grid")
    if not off:
        return []
    rows = [
        (
            percent(q["quantile"], 0),
            [
                Cell(text=f"{q['observed']:.3g}"),
                Cell(text="–" if q["bound"] is None else at_most(q["bound"], digits=3)),
                Cell(text=f"{q['samples_needed']:,}"),
            ],
        )
        for q in off["quantiles"]
    ]
    columns = ["of the domain errs less than", "observed", "upper bound", "points it needs"]
    note = (
        f"From {off['rows']:,} independent random points. The bounds hold with "
        f"{off['confidence']:.0%} confidence each, whatever the distribution of the error (order "
        f"statistics, Wilks 1941). With the same confidence {percent(off['covered_by_max'], 2)} of "
        f"the domain err no more than the largest error observed, {at_most(off['max'], digits=3)}."
    )
    return [section("Between the rows of the dataset", table(columns, rows), note=note)]


def _shown(made: Certificate) -> dict[str, Any]:
    about = {key: value for key, value in made.about.items() if key not in ("settings", "domain")}
    about |= {key: str(about[key])[:16] for key in ("model", "weights", "dataset")}
    for number, line in enumerate(made.about["domain"] or [], 1):
        about[f"input {number}"] = line
    return {**about, **{key: value for key, value in made.about["settings"].items()}}


def _markdown(found: Examined) -> str:
    made = found.certificate
    rows = [[c.name, c.status, c.said] for c in made.conditions]
    facts = [[tile.label, tile.value, tile.detail] for tile in _facts(found)]
    reasons = [f"{c.said} {c.remedy}".rstrip() for c in made.failed]
    return document(
        f"certify-surrogate: {made.verdict}",
        _headline(found),
        bullet_list(reasons),
        markdown_table(["figure", "value", "of what"], facts),
        markdown_table(["condition", "status", "seen"], rows),
    )
