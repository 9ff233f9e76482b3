"""The report of a certificate: a page to look at first, and to read afterwards."""

from __future__ import annotations

from typing import Any

from kubestill.errors import counted
from kubestill.runtime.base.rounding import at_least, at_most, exact_percent
from kubestill.runtime.certification.certificate import (
    CODES,
    IF_DECLARED,
    Certificate,
    SampledErrors,
)
from kubestill.runtime.certification.certify import Examined
from kubestill.runtime.certification.views import cases, error_map, image, lines
from kubestill.runtime.generation.systems.left_out import shown_number
from kubestill.runtime.reports.markdown import bullet_list, document, markdown_table
from kubestill.runtime.reports.numbers import count, duration, percent, size
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

_STATUS = {"shown": "good", "failed": "bad", "not shown": "doubt"}
_KEY = [("solution", "teacher", "-"), ("surrogate", "student", "-")]


def certificate_report(found: Examined) -> tuple[str, str]:
    """Return (HTML, Markdown)."""
    made = found.certificate
    tone = "doubt" if made.verdict.startswith("measured") else "good"
    html = page(
        title=f"certificate: {made.verdict}",
        subject="certify-surrogate",
        badge=pill(made.verdict, "bad" if made.failed else tone),
        headline=emphasised(headline(found)),
        lead=_lead(made),
        body=[
            tiles(_facts(found)),
            *_pictures(found),
            *_where(found),
            *_savings(made),
            section("What was shown, and what was not", _conditions(made)),
            *_proof(made),
            *_quantiles(made),
            *_bands(found),
            section("Of what", definitions(_shown(made))),
        ],
    )
    return html, _markdown(found)


def headline(found: Examined) -> str:
    """Return the verdict in the words that its assurance allows: "never" only of every point."""
    made, data = found.certificate, found.certificate.errors.data
    if made.failed:
        return f"No certificate: {CODES[made.failed[0].code]}."
    name = made.about.system or "table"
    network = f"A network of {count(made.about.parameters)} numbers"
    first = f"{made.verdict[0].upper()}{made.verdict[1:]}."
    if made.excluded is not None:
        left_out = made.excluded.left_out
        asked = counted(left_out.of, "input")
        first = f"{first[:-1]}; it fails on {left_out.rows:,} of {asked}."
    if data.disagreements is not None:
        return f"{first} {network}{_classes(found, name)}"
    unit = f" {made.about.unit}" if made.about.unit else ""
    if made.assurance == "enumerated":
        rest = " that it answers" if made.excluded else ""
        where = f"at all {counted(data.rows, 'point')}{rest} never off by more than"
        return f"{first} {network} stands for {name}: {where} {at_most(data.max)}{unit}."
    proven = made.errors.proven
    if made.assurance == "proven" and proven and proven.upper is not None:
        where = f"never off by more than {at_most(proven.upper)}{unit} anywhere"
        return f"{first} {network} stands for {name}: {where}."
    worst = f"the worst point found is off by {at_most(made.worst.error)}{unit}"
    return f"{first} {network} stands for {name}: {_within_tolerance(made)}{worst}."


def _within_tolerance(made: Certificate) -> str:
    off = made.errors.off_grid
    if off is None or off.above_tolerance is None:
        return ""
    share = at_least(1 - off.above_tolerance.bound)
    return (
        f"at least {share} of {_domain(made)} is within {made.about.settings.tolerance:g}, with "
        f"{exact_percent(off.confidence)} confidence; "
    )


def _classes(found: Examined, name: str) -> str:
    made, data = found.certificate, found.certificate.errors.data
    assert data.disagreements is not None
    off = made.errors.off_grid
    if made.assurance == "enumerated":
        if not data.disagreements or found.exceptions is not None:
            kept = f" and {counted(data.disagreements, 'exception')}" if data.disagreements else ""
            return f"{kept} is the {name}: all {data.rows:,} answers agree."
        return f" stands for the {name}: {data.disagreements:,} of {data.rows:,} answers differ."
    if off is None or off.above_tolerance is None:
        return (
            f" stands for the {name}: {data.disagreements:,} of {counted(data.rows, 'row')} differ."
        )
    share = at_least(1 - off.above_tolerance.bound)
    return (
        f" stands for the {name}: at least {share} of {_domain(made)} agrees, with "
        f"{exact_percent(off.confidence)} confidence."
    )


def _domain(made: Certificate) -> str:
    """Name the domain that shares are of."""
    return "that part of the domain" if made.excluded else "the domain"


def _lead(made: Certificate) -> str:
    if made.failed:
        return " ".join(f"{c.said} {c.remedy}".rstrip() for c in made.failed)
    *others, last = made.conditions
    missing = [c.said for c in others if c.status == "not shown"]
    return " ".join([last.said, *missing[:1]])


def _facts(found: Examined) -> list[Tile]:
    made, data, off = found.certificate, found.certificate.errors.data, found.off_grid
    of = "points" if made.assurance == "enumerated" else "rows"
    if data.disagreements is not None:
        share = 1 - data.disagreements / data.rows
        detail = f"{data.disagreements:,} of {data.rows:,} differ"
        tiled = [Tile(value=at_least(share), label=f"{of} that agree", detail=detail)]
    else:
        detail = f"on all {data.rows:,} {of}; mean {data.mean:.2g}"
        tiled = [Tile(value=at_most(data.max), label=f"largest error on {of}", detail=detail)]
    sampled, proven = made.errors.off_grid, made.errors.proven
    if off is not None and sampled is not None:
        detail = f"on {counted(sampled.rows, 'random point')}; mean {sampled.mean:.2g}"
        if data.disagreements is None:
            shown = at_most(max(sampled.max, made.errors.hunted.max if made.errors.hunted else 0))
            tiled.append(Tile(value=shown, label="worst found between rows", detail=detail))
            tiled += _bound_tile(sampled)
        else:
            shown = at_least(1 - sampled.mean)
            tiled.append(Tile(value=shown, label="random points that agree", detail=detail))
    if proven is not None and proven.upper is not None:
        detail = f"{proven.boxes:,} boxes in {duration(proven.seconds)}"
        label = f"proven bound{f', {IF_DECLARED}' if proven.conditional else ''}"
        tiled.append(Tile(value=at_most(proven.upper), label=label, detail=detail))
    if made.size.ratio is not None and made.size.table_bytes is not None:
        detail = f"{size(made.size.surrogate_bytes)} for {size(made.size.table_bytes)}"
        label = "{} than the table packed"
        tiled.append(_ratio(made.size.ratio, label, ("smaller", "larger"), detail))
    else:
        detail = "the domain is continuous: it replaces no table"
        shown = size(made.size.surrogate_bytes)
        tiled.append(Tile(value=shown, label="size of the network", detail=detail))
    if made.speed:
        detail = (
            f"than the solver, {counted(made.speed.batch, 'row')} at a time, 1 thread; {_off(made)}"
        )
        tiled.append(_ratio(made.speed.ratio, "{}", ("faster", "slower"), detail))
    return tiled


def _off(made: Certificate) -> str:
    """Say at which error the speed is had."""
    if made.errors.data.disagreements is None:
        found = "" if made.assurance == "enumerated" else " at the worst point found"
        return f"off by up to {at_most(made.worst.error)}{found}"
    wrong = made.errors.off_grid.mean if made.errors.off_grid else made.errors.data.mean
    return f"{at_most(100 * wrong)}% of the network's own answers differ"


def _ratio(ratio: float, label: str, words: tuple[str, str], detail: str) -> Tile:
    """Say by how many times, in the word for the side it is on."""
    better = ratio >= 1
    times = ratio if better else 1 / ratio
    return Tile(value=f"{count(times)}×", label=label.format(words[not better]), detail=detail)


def _bound_tile(off: SampledErrors) -> list[Tile]:
    known = [(q.quantile, q.bound) for q in off.quantiles if q.bound is not None]
    if not known:
        return []
    quantile, bound = known[-1]
    detail = f"of the domain err less, with {exact_percent(off.confidence)} confidence"
    return [Tile(value=at_most(bound), label=f"{percent(quantile, 0)} bound", detail=detail)]


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
    wrong = found.certificate.errors.data.disagreements
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
        rows = "all points" if made.assurance == "enumerated" else "rows of the dataset"
        samples = {rows: (found.on_rows.errors, "student")}
        entries = [(rows, "student", "-")]
        bounds: list[tuple[float, float]] = []
        if found.off_grid is not None:
            samples["between them"] = (found.off_grid.errors, "control")
            entries += [("between them", "control", "-"), ("upper bound", "control", "v")]
            assert made.errors.off_grid
            quantiles = made.errors.off_grid.quantiles
            bounds = [(q.quantile, q.bound) for q in quantiles if q.bound is not None]
        tolerance = made.about.settings.tolerance
        if tolerance:
            entries.append(("tolerance", "good", "|"))
        note = "Share of the points that err by more than so much."
        drawn = figure(survival_plot(samples, bounds, tolerance, wide=not sections))
        sections.append(section("How often it errs", legend(entries), drawn, note=note))
    return [pair(*sections)] if sections else []


def _worst(found: Examined) -> str:
    worst = found.certificate.worst
    where = ", ".join(
        f"{name} {shown_number(value) if isinstance(value, float) else _short(value)}"
        for name, value in (worst.inputs or {}).items()
    )
    named = _point(found)
    return (
        f"{named[0].upper()}{named[1:]}, {worst.found}: at {where} the solution is "
        f"{_answer(worst.solution)}, the surrogate {_answer(worst.surrogate)}."
    )


def _answer(value: float | str | None) -> str:
    return shown_number(value) if isinstance(value, float) else str(value)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(f"{number:.3g}" for number in value[:3]) + ", …]"
    return str(value)


def _savings(made: Certificate) -> list[Html]:
    sizes: dict[str, float] = {"surrogate": made.size.surrogate_bytes}
    if made.size.table_bytes is not None:
        sizes = {"table": made.size.table_bytes, **sizes}
    times: dict[str, float] = {}
    note = f"In its place: {made.size.table}."
    if made.size.stated_bytes:
        note += f" Unpacked, the table is said to take {size(made.size.stated_bytes)}."
    if made.size.exceptions_bytes:
        note += f" {size(made.size.exceptions_bytes)} of the surrogate are exceptions."
    if made.speed:
        alone, last = made.speed.batches[0], made.speed.batches[-1]
        times = {"solver": last.solver, "surrogate": last.surrogate}
        note += (
            " Solver and surrogate are timed in turns on one thread, at equal batch, and the "
            f"surrogate's answers are not the solver's: {_off(made)}. One row alone takes the "
            f"solver {duration(alone.solver)} and the surrogate {duration(alone.surrogate)}."
        )
    drawn = figure(bars_plot(sizes, times, made.speed.batch if made.speed else 0))
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


def _proof(made: Certificate) -> list[Html]:
    proven = made.errors.proven
    if proven is None:
        return []
    facts = {
        "status": proven.status,
        "bound": "none" if proven.upper is None else at_most(proven.upper, digits=4),
        "largest error met": f"{proven.lower:.4g}",
        "share of the domain done": at_least(proven.done),
        "boxes": f"{proven.boxes:,}",
        "time": duration(proven.seconds),
        **{f"rests on {n}": said for n, said in enumerate(proven.assumptions, 1)},
    }
    return [section("The proof", definitions(facts))]


def _quantiles(made: Certificate) -> list[Html]:
    off = made.errors.off_grid
    if off is None or made.errors.data.disagreements is not None:
        return []
    rows = [
        (
            percent(q.quantile, 0),
            [
                Cell(text=f"{q.observed:.3g}"),
                Cell(text="–" if q.bound is None else at_most(q.bound, digits=3)),
                Cell(text=f"{q.samples_needed:,}"),
            ],
        )
        for q in off.quantiles
    ]
    columns = ["of the domain errs less than", "observed", "upper bound", "points it needs"]
    note = (
        f"From {off.rows:,} independent random points. The bounds hold with "
        f"{exact_percent(off.confidence)} confidence each, whatever the distribution of the error "
        "(order statistics, Wilks 1941). With the same confidence "
        f"{at_least(off.covered_by_max)} of the domain err no more than the largest error "
        f"observed, {at_most(off.max, digits=3)}. Of the rest nothing is known."
    )
    return [section("Between the rows of the dataset", table(columns, rows), note=note)]


def _bands(found: Examined) -> list[Html]:
    if found.bands is None:
        return []
    rows = [
        (
            exact_percent(band.coverage),
            [Cell(text=f"{band.mean:.3g}"), Cell(text=f"{band.largest:.3g}")],
        )
        for band in found.certificate.bands
    ]
    columns = ["of the answers are within their band", "half-width on average", "at most"]
    return [section("Error bands", table(columns, rows), note=found.bands.holds)]


def _shown(made: Certificate) -> dict[str, Any]:
    about = made.about.model_dump(exclude={"settings", "domain"})
    about |= {key: str(about[key])[:16] for key in ("model", "weights", "dataset")}
    for number, line in enumerate(made.about.domain or (), 1):
        about[f"input {number}"] = line
    return {**about, **made.about.settings.model_dump()}


def _markdown(found: Examined) -> str:
    made = found.certificate
    rows = [[c.name, c.status, c.said] for c in made.conditions]
    facts = [[tile.label, tile.value, tile.detail] for tile in _facts(found)]
    reasons = [f"{c.said} {c.remedy}".rstrip() for c in made.failed]
    return document(
        f"certify-surrogate: {made.verdict}",
        headline(found),
        bullet_list(reasons),
        markdown_table(["figure", "value", "of what"], facts),
        markdown_table(["condition", "status", "seen"], rows),
    )
