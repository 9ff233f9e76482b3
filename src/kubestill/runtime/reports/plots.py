"""Lines over a training run: loss and metric, with phases shaded and checkpoints marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kubestill.runtime.reports.canvas import PAINT, draw_row, log_axis, plain_axis
from kubestill.runtime.reports.numbers import count
from kubestill.runtime.reports.page import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = (
    ("1", "1 high-level structure", "fourth"),
    ("2", "2 detail", "student"),
    ("3", "3 overfitting", "control"),
)
"""Label, name and colour of the three phases."""

POINTS = 80
"""A curve with more points is drawn as the mean and range of this many bins."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: y over x."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    marker: str = ""
    """Drawn on each point where there are few."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot in a row of plots."""

    title: str
    curves: Sequence[Curve]
    share: bool = False
    """The values are shares, written in percent."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps from `start` to `end` spent in phase 1, 2 or 3."""

    number: int
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class CurveMarks:
    """What happened at which step."""

    milestones: Sequence[float] = ()
    recovery: Sequence[float] = ()
    resumed: Sequence[float] = ()
    phases: Sequence[Phase] = ()
    chosen: float | None = None


def training_plot(panels: Sequence[Panel], marks: CurveMarks) -> Html:
    """Draw loss (and a validation metric, where there is one) over the optimizer steps."""

    def build(axes: Axes, panel: Panel) -> None:
        _panel(axes, panel)
        _mark(axes, panel, marks)
        axes.set_xlabel("optimizer step")
        axes.set_xlim(left=0)
        plain_axis(axes, "x", count, 5)

    plots = [(f"{one.title} over the optimizer steps", partial(build, panel=one)) for one in panels]
    return draw_row("training", 3.4, plots)


def curves_plot(panels: Sequence[Panel], axis: str) -> Html:
    """Draw the validation curves of several models over the examples that each has seen."""

    def build(axes: Axes, panel: Panel) -> None:
        _panel(axes, panel)
        axes.set_xlabel(axis)
        log_axis(axes, "x", count)

    plots = [
        (f"{one.title} of every model over {axis}", partial(build, panel=one)) for one in panels
    ]
    return draw_row("curves", 3.4, plots)


def _panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    for curve in panel.curves:
        _curve(axes, curve)
    values = np.concatenate([np.asarray(curve.y, dtype=float) for curve in panel.curves])
    values = values[np.isfinite(values)]
    if panel.share:
        _zoom(axes, values)
        plain_axis(axes, "y", lambda value: f"{value:.4g}%")
    elif len(values) and values.min() > 0 and values.max() / values.min() > 12:
        log_axis(axes, "y", lambda value: f"{value:g}")
    else:
        plain_axis(axes, "y", lambda value: f"{value:g}")


def _zoom(axes: Axes, values: np.ndarray) -> None:
    """Keep the early climb from flattening the end of the curves, where they differ."""
    if len(values) < 8:
        return
    floor = float(np.quantile(values, 0.08))
    top = float(values.max())
    axes.set_ylim(
        max(0.0, floor - 0.15 * (top - floor) - 0.5), min(101.0, top + 0.08 * (top - floor) + 0.4)
    )


def _curve(axes: Axes, curve: Curve) -> None:
    x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
    paint = PAINT[curve.colour]
    if len(x) > POINTS:
        edges = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
        sizes = np.diff([*edges, len(x)])
        low, high = np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)
        x, y = np.add.reduceat(x, edges) / sizes, np.add.reduceat(y, edges) / sizes
        axes.fill_between(x, low, high, color=paint, alpha=0.16, linewidth=0)
    axes.plot(x, y, color=paint, label=curve.name, zorder=3)
    if curve.marker and len(x) <= 40:
        edge: dict[str, Any] = {"markeredgecolor": PAINT["card"], "markeredgewidth": 1.0}
        axes.plot(x, y, curve.marker, color=paint, markersize=6, zorder=4, **edge)


def _mark(axes: Axes, panel: Panel, marks: CurveMarks) -> None:
    for phase in marks.phases:
        label, _, colour = PHASES[phase.number - 1]
        axes.axvspan(phase.start, phase.end, color=PAINT[colour], alpha=0.09, linewidth=0, zorder=0)
        middle = (phase.start + phase.end) / 2
        across = axes.get_xaxis_transform()
        style: dict[str, Any] = {"ha": "center", "va": "top", "fontweight": "bold"}
        style["color"] = PAINT[colour]
        axes.text(middle, 0.985, label, transform=across, **style)
    _rug(axes, marks.recovery, "|", "muted", 7)
    _rug(axes, marks.milestones, "^", "ink", 4)
    for step in marks.resumed:
        axes.axvline(step, color=PAINT["bad"], linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    if marks.chosen is not None:
        _mark_chosen(axes, panel, marks.chosen)


def _rug(axes: Axes, steps: Sequence[float], marker: str, colour: str, size: float) -> None:
    """Mark steps along the lower edge."""
    if not steps:
        return
    axes.plot(
        steps,
        [0.015] * len(steps),
        marker,
        color=PAINT[colour],
        markersize=size,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        zorder=5,
    )


def _mark_chosen(axes: Axes, panel: Panel, step: float) -> None:
    axes.axvline(step, color=PAINT["student"], linewidth=1.2, zorder=2)
    curve = panel.curves[-1]
    nearest = int(np.abs(np.asarray(curve.x, dtype=float) - step).argmin())
    ring: dict[str, Any] = {
        "markerfacecolor": PAINT["card"],
        "markeredgecolor": PAINT["student"],
        "markeredgewidth": 2.2,
    }
    axes.plot([curve.x[nearest]], [curve.y[nearest]], "o", markersize=9, zorder=6, **ring)
