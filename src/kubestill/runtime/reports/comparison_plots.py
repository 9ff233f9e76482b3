"""Plots of an evaluation: score against cost, agreement, calibration, values and slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kubestill.runtime.evaluation.comparison import CalibrationCurve
from kubestill.runtime.metrics.intervals import Interval
from kubestill.runtime.reports.canvas import (
    HALF,
    PAINT,
    WHOLE,
    draw,
    draw_row,
    log_axis,
    plain_axis,
)
from kubestill.runtime.reports.numbers import count, duration
from kubestill.runtime.reports.page import Html, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST_MATRIX = 16
"""Most classes whose names can still be read."""


@dataclass(frozen=True)
class Look:
    """The name, colour and marker of one model in every plot."""

    name: str
    colour: str
    marker: str


@dataclass(frozen=True, kw_only=True)
class Priced:
    """One model's score beside what it costs."""

    look: Look
    score: Interval
    parameters: int
    latency: float
    """Seconds for one row."""


def cost_plot(models: Sequence[Priced], title: str, form: Any, lower_is_better: bool) -> Html:
    """Draw score against parameters and against the latency of one row, both on log axes."""

    def build(axes: Axes, key: str) -> None:
        costs = [float(getattr(model, key)) for model in models]
        # Equal costs stand a little apart, so that neither marker hides the other.
        xs = [
            x * 1.09 ** (2 * costs[:index].count(x) - costs.count(x) + 1)
            for index, x in enumerate(costs)
        ]
        axes.set_xlim(min(xs) / 3, max(xs) * 3)
        sign = -1 if lower_is_better else 1
        shifts = _shifts(xs, [sign * model.score.value for model in models])
        for model, x, shift in zip(models, xs, shifts, strict=True):
            _priced(axes, model, x, shift)
        log_axis(axes, "x", count if key == "parameters" else duration)
        axes.set_title(f"{title} against {'size' if key == 'parameters' else 'time'}")
        axes.set_xlabel("parameters" if key == "parameters" else "latency of one row")
        plain_axis(axes, "y", form, 6)
        axes.margins(y=0.18)
        if lower_is_better:
            axes.invert_yaxis()

    what = f"{title} of each model against its"
    plots = [
        (f"{what} number of parameters", partial(build, key="parameters")),
        (f"{what} latency", partial(build, key="latency")),
    ]
    return draw_row("cost", 3.4, plots)


def _shifts(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Return how far up, in points, each label moves to stay clear of its neighbours."""
    spread = (max(ys) - min(ys)) or 1.0
    shifts: list[float] = []
    for x, y in zip(xs, ys, strict=True):
        near = [
            other
            for at, other in zip(xs, ys, strict=True)
            if (at, other) != (x, y) and 0.4 < at / x < 2.5 and abs(other - y) < 0.2 * spread
        ]
        higher = bool(near) and y >= max(near)
        shifts.append(9.0 if higher else -9.0 if near else 0.0)
    return shifts


def _priced(axes: Axes, model: Priced, x: float, shift: float) -> None:
    paint, score = PAINT[model.look.colour], model.score
    if score.known:
        axes.plot([x, x], [score.low, score.high], color=paint, linewidth=2.4, alpha=0.45)
    axes.plot(
        [x],
        [score.value],
        model.look.marker,
        color=paint,
        markersize=10,
        markeredgecolor=PAINT["card"],
        markeredgewidth=1.4,
        zorder=4,
    )
    axes.annotate(
        model.look.name,
        (x, score.value),
        xytext=(9, shift),
        textcoords="offset points",
        va="center",
        color=paint,
        fontweight="bold",
    )


def agreement_plot(
    matrix: npt.NDArray[np.int64], classes: Sequence[str], down: str, across: str
) -> Html:
    """Draw [K, K] row counts: agreement in blue on the diagonal, disagreement in orange off it.

    Of more classes than fit, those with the most disagreements are shown.
    """
    off = matrix - np.diag(np.diag(matrix))
    busiest = np.argsort(-(off.sum(axis=0) + off.sum(axis=1)), kind="stable")
    shown: list[int] = sorted(busiest[:LARGEST_MATRIX].tolist())
    cells = matrix[np.ix_(shown, shown)]
    names = [classes[index] for index in shown]
    side = len(shown)

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        for row in range(side):
            for column in range(side):
                _cell(axes, cells, row, column)
        axes.set_xlim(-0.5, side - 0.5)
        axes.set_ylim(side - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xticks(range(side), names, rotation=0 if max(map(len, names)) <= 3 else 90)
        axes.set_yticks(range(side), names)
        axes.set_xlabel(across)
        axes.set_ylabel(down)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    text = f"classes given by the {down} (down) and by the {across} (across)"
    return draw("agreement", max(HALF, 0.9 + 0.4 * side), 4.2, build, description=text)


def _cell(axes: Axes, cells: npt.NDArray[np.int64], row: int, column: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    value, same = int(cells[row, column]), row == column
    most = max(1, int(np.diag(cells).max() if same else (cells - np.diag(np.diag(cells))).max()))
    strength = (
        # No darker, for the number on it has to be read.
        0.05 if not value else 0.15 + 0.35 * value / most
    )
    colour = PAINT["student" if same else "control"] if value else PAINT["muted"]
    box = FancyBboxPatch(
        (column - 0.44, row - 0.44),
        0.88,
        0.88,
        boxstyle="round,pad=0,rounding_size=0.14",
        facecolor=colour,
        alpha=strength,
        linewidth=0,
    )
    axes.add_patch(box)
    if value:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
        weight = "normal" if same else "bold"
        axes.text(column, row, count(value), color=PAINT["ink"], fontweight=weight, **style)


def calibration_plot(curves: Sequence[tuple[Look, CalibrationCurve]], stated: str) -> Html:
    """Draw how often each stated probability came true, and below how often it was stated."""

    def build(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        top.plot([0, 1], [0, 1], color=PAINT["muted"], linewidth=1, linestyle=(0, (3, 3)))
        for look, curve in curves:
            paint = PAINT[look.colour]
            sizes = 16 + 120 * np.sqrt(curve.rows / curve.rows.sum())
            top.plot(curve.stated, curve.observed, color=paint, linewidth=1.4, alpha=0.75)
            top.scatter(
                curve.stated,
                curve.observed,
                s=sizes,
                marker=look.marker,
                color=paint,
                edgecolor=PAINT["card"],
                linewidth=1,
                zorder=4,
            )
            share = 100 * curve.rows / curve.rows.sum()
            bottom.plot(curve.stated, share, look.marker, color=paint, markersize=4, alpha=0.9)
            bottom.vlines(curve.stated, 0, share, color=paint, linewidth=1.4, alpha=0.5)
        top.set_ylabel("came true")
        bottom.set_ylabel("rows")
        bottom.set_xlabel(stated)
        plain_axis(top, "y", lambda value: f"{100 * value:g}%", 6)
        plain_axis(bottom, "y", lambda value: f"{value:g}%", 2)
        plain_axis(bottom, "x", lambda value: f"{100 * value:g}%", 6)
        left = min(float(curve.stated.min()) for _, curve in curves)
        top.set_xlim(max(-0.02, left - 0.06), 1.03)
        top.set_ylim(-0.04, 1.06)
        bottom.set_ylim(bottom=0)

    text = "share of predictions that came true against the probability stated for them"
    return draw("calibration", HALF, 4.2, build, description=text)


def values_plot(
    series: Sequence[tuple[Look, npt.NDArray[np.float64]]],
    truth: npt.NDArray[np.float64],
    unit: str,
) -> Html:
    """Draw predicted against true values of a regression, one panel for each model.

    Args:
        series: Each model's [N] predictions.
        truth: [N] true values; at most 700 rows are drawn, evenly picked among them.
        unit: What the values are.
    """
    order = np.argsort(truth, kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, 700).astype(int))]
    ends = [float(truth[picked].min()), float(truth[picked].max())]

    def build(axes: Axes, look: Look, values: npt.NDArray[np.float64]) -> None:
        axes.plot(ends, ends, color=PAINT["muted"], linewidth=1, linestyle=(0, (3, 3)))
        axes.plot(
            truth[picked],
            values[picked],
            "o",
            color=PAINT[look.colour],
            markersize=3.6,
            alpha=0.5,
            markeredgewidth=0,
        )
        axes.set_title(look.name, color=PAINT[look.colour])
        axes.set_xlabel(f"true {unit}")
        axes.set_ylabel(f"predicted {unit}")
        axes.set_ylim(low - margin, high + margin)
        for which in ("x", "y"):
            plain_axis(axes, which, lambda value: f"{value:g}")

    # The same heights for all, so that they can be compared.
    shown = np.concatenate([truth[picked], *(values[picked] for _, values in series)])
    shown = shown[np.isfinite(shown)]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    margin = 0.04 * (high - low) or 1.0
    plots = [
        (f"predicted against true {unit}, {look.name}", partial(build, look=look, values=values))
        for look, values in series
    ]
    return draw_row("values", 3.4, plots)


def slice_plot(
    names: Sequence[str], series: Sequence[tuple[Look, Sequence[float]]], title: str, form: Any
) -> Html:
    """Draw one line for each slice, with a dot for the score of each model."""

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        heights = np.arange(len(names))
        table = np.asarray([values for _, values in series], dtype=float)
        axes.hlines(
            heights, np.nanmin(table, 0), np.nanmax(table, 0), color=PAINT["line"], linewidth=3
        )
        for index, (look, values) in enumerate(series):
            axes.plot(
                values,
                heights + 0.16 * (index - (len(series) - 1) / 2),
                look.marker,
                color=PAINT[look.colour],
                markersize=7,
                markeredgecolor=PAINT["card"],
                markeredgewidth=1,
            )
        axes.set_yticks(heights, names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(title)
        plain_axis(axes, "x", form, 7)

    height = 0.9 + 0.3 * len(names)
    return draw("slices", WHOLE, height, build, description=f"{title} on each slice")


def picture(pixels: npt.NDArray[Any], description: str) -> Html:
    """Draw an [H, W] picture as SVG, one path for each shade; the largest value is the darkest."""
    height, width = pixels.shape
    low, high = float(pixels.min()), float(pixels.max())
    shades = 12
    levels = np.rint((pixels - low) / ((high - low) or 1.0) * shades).astype(int)
    paths: list[str] = []
    for shade in range(1, shades + 1):
        # One rectangle for every horizontal run of pixels of this shade.
        runs = ""
        for y, row in enumerate(levels == shade):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
            pairs = edges.reshape(-1, 2).tolist()
            runs += "".join(f"M{start} {y}h{end - start}v1h{start - end}z" for start, end in pairs)
        if runs:
            paths.append(f'<path d="{runs}" fill-opacity="{shade / shades:.2f}"/>')
    return Html(
        f'<svg viewBox="-.5 -.5 {width + 1} {height + 1}" role="img" '
        f'aria-label="{escape(description)}" '
        f'shape-rendering="crispEdges" style="fill:var(--ink)">{"".join(paths)}</svg>'
    )
