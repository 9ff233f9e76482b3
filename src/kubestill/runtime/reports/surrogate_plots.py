"""The plots of a certificate: solution beside surrogate, where it errs, and what it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kubestill.runtime.certification.views import Cases, Drawn, Image, Line, Map
from kubestill.runtime.generation.systems.inputs import Continuous
from kubestill.runtime.reports.canvas import (
    HALF,
    PAINT,
    WHOLE,
    draw,
    draw_row,
    log_axis,
    plain_axis,
)
from kubestill.runtime.reports.numbers import duration, percent, size
from kubestill.runtime.reports.page import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

_HUES = {"solution": "viridis", "error": "inferno"}


def image_plot(picture: Image, *, classes: Sequence[str]) -> Html:
    """Draw solution, surrogate and error on the plane through the worst point."""
    both = np.concatenate([picture.solution.ravel(), picture.surrogate.ravel()])
    # Where the solver fails there is no solution.
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    hue: Any = _HUES["solution"]
    if classes:
        from matplotlib import colormaps

        low, high, hue = -0.5, len(classes) - 0.5, colormaps[hue].resampled(len(classes))
    apart = picture.solution - picture.surrogate
    error = np.abs(np.sign(apart) if classes else apart)
    largest = float(np.nan_to_num(error).max()) or 1.0

    def build(axes: Axes, title: str, values: Floats) -> None:
        if values is error:
            mesh = _mesh(axes, picture, error, 0.0, largest, _HUES["error"])
        else:
            mesh = _mesh(axes, picture, values, low, high, hue)
        axes.set_title(title)
        axes.set_ylabel(_label(picture.up))
        if not (classes and values is error):
            _key(mesh, axes, classes)

    shown = {
        "solution": picture.solution,
        "surrogate": picture.surrogate,
        "disagreement" if classes else "|error|": error,
    }
    plots = [
        (f"{title} on a plane through the worst point", partial(build, title=title, values=values))
        for title, values in shown.items()
    ]
    return draw_row("plane", 3.8, plots)


def cases_plot(shown: Cases, axes_of: Sequence[Any]) -> Html:
    """Draw whole outputs: lines over one axis, pictures over two."""
    if len(axes_of) > 1:
        what = "Solution, surrogate and error of the worst case and of usual ones"
        return draw("cases", WHOLE, 7.6, lambda f: _pictures(f, shown), description=what)
    x = np.asarray(axes_of[0].values)

    def build(axes: Axes, name: str, exact: Floats, told: Floats) -> None:
        axes.plot(x, exact, color=PAINT["teacher"], linewidth=4.5, alpha=0.4, label="solution")
        axes.plot(x, told, color=PAINT["student"], linewidth=1.6, label="surrogate")
        axes.set_title(name)
        axes.set_xlabel(_unit(axes_of[0].name, axes_of[0].unit))
        plain_axis(axes, "x", lambda value: f"{value:g}", 4)
        plain_axis(axes, "y", lambda value: f"{value:g}", 5)

    plots = [
        (f"solution and surrogate, {name}", partial(build, name=name, exact=exact, told=told))
        for name, exact, told in zip(shown.names, shown.solution, shown.surrogate, strict=True)
    ]
    return draw_row("cases", 3.2, plots)


def _pictures(figure: Figure, shown: Cases) -> None:
    grid = figure.subplots(3, len(shown.names), squeeze=False)
    for column, (name, exact, told) in enumerate(
        zip(shown.names, shown.solution, shown.surrogate, strict=True)
    ):
        exact, told = (values.reshape(values.shape[0], -1) for values in (exact, told))
        low, high = float(exact.min()), float(exact.max())
        for row, (title, values, hue) in enumerate(
            (
                ("solution", exact, "viridis"),
                ("surrogate", told, "viridis"),
                ("|error|", np.abs(exact - told), "inferno"),
            )
        ):
            limits = {"vmin": low, "vmax": high} if row < 2 else {"vmin": 0.0}
            drawn = grid[row][column].imshow(values, aspect="auto", cmap=hue, **limits)
            grid[row][column].set_axis_off()
            grid[row][column].set_title(f"{name}: {title}" if column == 0 or not row else title)
            if row == 2:
                _key(drawn, grid[row][column])


def lines_plot(shown: Sequence[Line], *, classes: Sequence[str]) -> Html:
    """Draw solution and surrogate along each input through the worst point."""
    values = np.concatenate([part for line in shown for part in (line.solution, line.surrogate)])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 1.0

    def build(axes: Axes, line: Line) -> None:
        style: dict[str, Any] = {"drawstyle": "steps-mid"} if classes else {}
        axes.plot(line.x, line.solution, color=PAINT["teacher"], linewidth=4.5, alpha=0.4, **style)
        axes.plot(line.x, line.surrogate, color=PAINT["student"], linewidth=1.6, **style)
        axes.axvline(line.at, color=PAINT["bad"], linewidth=1, linestyle=(0, (2, 2)))
        axes.set_xlabel(_label(line.along))
        _axis(axes, "x", line.along)
        # The same heights for all, so that they can be compared.
        axes.set_ylim(low - margin, high + margin)
        if classes:
            axes.set_yticks(range(len(classes)), classes)
            axes.set_ylim(-0.5, len(classes) - 0.5)

    what = "solution and surrogate through the worst point, along"
    plots = [(f"{what} {_label(line.along)}", partial(build, line=line)) for line in shown]
    return draw_row("lines", 3.0, plots)


def map_plot(shown: Map, form: Any, *, wide: bool = False) -> Html:
    """Draw the error of each cell, and where the worst is; `wide` for a card of its own."""

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        if shown.up is None:
            middle = (shown.x[1:] + shown.x[:-1]) / 2
            axes.plot(middle, shown.errors[0], color=PAINT["student"])
            plain_axis(axes, "y", form)
        else:
            axes.grid(False)
            mesh = axes.pcolormesh(
                shown.x, shown.y, shown.errors, cmap=_HUES["error"], vmin=0.0, rasterized=True
            )
            _key(mesh, axes)
            axes.set_ylabel(_label(shown.up))
            _axis(axes, "y", shown.up)
            # The worst point often lies on the edge: the ring stands over it, and moves no limit.
            axes.set(xlim=(shown.x[0], shown.x[-1]), ylim=(shown.y[0], shown.y[-1]))
            for colour, width in ((PAINT["ink"], 4.0), ("#ffffff", 2.0)):
                style: dict[str, Any] = {"markeredgecolor": colour, "markeredgewidth": width}
                style |= {"markerfacecolor": "none", "clip_on": False, "zorder": 5}
                axes.plot(*shown.worst, "o", markersize=12, **style)
        axes.set_xlabel(_label(shown.across))
        _axis(axes, "x", shown.across)

    width = WHOLE if wide else HALF
    return draw("map", width, 3.6, build, description="The error by two of the inputs")


def survival_plot(
    samples: Mapping[str, tuple[Floats, str]],
    bounds: Sequence[tuple[float, float]],
    tolerance: float,
    *,
    wide: bool = False,
) -> Html:
    """Draw which share of points errs more than so much.

    Args:
        samples: Name → (errors [N], colour).
        bounds: (quantile, upper bound) pairs.
        tolerance: 0 where there is none.
        wide: For a card of its own.
    """

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (errors, colour) in samples.items():
            ordered = np.sort(errors)[::-1]
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            keep = np.unique(np.geomspace(1, len(ordered), 300).astype(int) - 1)
            ordered = np.maximum(ordered, 1e-300)
            axes.plot(ordered[keep], share[keep], color=PAINT[colour], label=name)
        if bounds:
            x, y = [bound for _, bound in bounds], [1 - quantile for quantile, _ in bounds]
            axes.plot(x, y, "v", color=PAINT["control"], markersize=7, zorder=5)
        if tolerance:
            axes.axvline(tolerance, color=PAINT["good"], linewidth=1.6, linestyle=(0, (4, 2)))
        largest = max(float(errors.max()) for errors, _ in samples.values())
        axes.set_xlim(left=max(largest, tolerance, 1e-300) / 3000)
        log_axis(axes, "x", lambda value: f"{value:.0e}".replace("e-0", "e-"))
        log_axis(axes, "y", percent)
        axes.set_xlabel("|error|")
        axes.set_ylabel("share of points that err more")

    what = "Share of points with an error above each size"
    return draw("survival", WHOLE if wide else HALF, 3.6, build, description=what)


def bars_plot(sizes: Mapping[str, float], times: Mapping[str, float], batch: int) -> Html:
    """Draw bytes and seconds of table or solver against the surrogate's, on log axes."""
    of = "on a log axis"
    plots = [(f"size, {of}", partial(_bars, values=sizes, form=size, title="size"))]
    if times:
        title = f"time of {batch:,} rows"
        plots.append((f"{title}, {of}", partial(_bars, values=times, form=duration, title=title)))
    return draw_row("bars", 1.7, plots)


def _bars(axes: Axes, values: Mapping[str, float], form: Any, title: str) -> None:
    names, lengths = list(values), list(values.values())
    colours = ["student" if name == "surrogate" else "teacher" for name in names]
    low = min(lengths) / 4
    axes.grid(False)
    axes.barh(names, lengths, left=0, color=[PAINT[c] for c in colours], height=0.62)
    axes.set_xscale("log")
    axes.set_xlim(low, max(lengths) * 6)
    for place, (name, length) in enumerate(values.items()):
        del name
        axes.annotate(
            form(length),
            (length, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
        )
    axes.invert_yaxis()
    axes.set_title(title)
    axes.get_xaxis().set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _mesh(axes: Axes, picture: Image, values: Floats, low: float, high: float, hue: Any) -> Any:
    axes.grid(False)
    mesh = axes.pcolormesh(
        picture.x,
        picture.y,
        values,
        cmap=hue,
        vmin=low,
        vmax=high,
        shading="nearest",
        rasterized=True,
    )
    axes.set_xlabel(_label(picture.across))
    _axis(axes, "x", picture.across)
    _axis(axes, "y", picture.up)
    return mesh


def _key(mesh: Any, axes: Axes, classes: Sequence[str] = ()) -> None:
    from matplotlib.ticker import MaxNLocator

    ticks = range(len(classes)) if classes else MaxNLocator(4)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=28, ticks=ticks)
    bar.outline.set_visible(False)  # pyright: ignore
    bar.ax.tick_params(length=0)
    if classes:
        bar.ax.set_yticklabels(classes)
    else:
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _axis(axes: Axes, which: str, given: Drawn) -> None:
    if isinstance(given, Continuous) and given.mapping == "log":
        log_axis(axes, which, lambda value: f"{value:g}")
    else:
        plain_axis(axes, which, lambda value: f"{value:g}", 5)


def _label(given: Drawn) -> str:
    return _unit(given.name, given.unit)


def _unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name
