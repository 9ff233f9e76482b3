"""From a matplotlib figure to inline SVG that belongs to the page around it.

Text stays text, in the page's font. Colours are painted with stand-ins and then replaced by the
page's CSS variables, so that a plot follows light and dark. Every id gets the plot's name as a
prefix: several plots share one document.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from kubestill.runtime.reports.page import Html, escape, panels
from kubestill.runtime.reports.style import COLOURS
from kubestill.runtime.reports.text import legible, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAINT: dict[str, str] = {
    name: f"#fe{index:02x}{255 - index:02x}" for index, name in enumerate(COLOURS)
}
"""Colour name → the stand-in to paint it with."""
HALF, WHOLE = 4.4, 9.6
"""Inches of a plot that shares a row with another, and of one that has the row to itself."""
_THIRD = 3.6
_SMALLEST_TEXT, _LEAST_PIXELS = 9.0, 10.0
"""Points of the smallest text in a plot, and how large a screen has to show it."""
LONGEST_LABEL = 60
"""Characters of one text in a plot; a longer one leaves no room for what is drawn."""


def draw(
    name: str,
    width: float,
    height: float,
    build: Callable[[Figure], object],
    *,
    description: str,
) -> Html:
    """Draw a figure and return it as an `<svg>` element that fills its container's width.

    Where the container is too narrow for its text to be read, it keeps its width, and scrolls.

    Args:
        name: Unique among the plots of one report; letters, digits and dashes.
        width: Inches; sets the size of the text relative to the plot: `HALF` or `WHOLE`.
        height: Inches.
        build: Draws on the empty figure.
        description: What it shows, for readers who cannot see it.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = str(files("kubestill.runtime.reports").joinpath("kubestill.mplstyle"))
    with (
        matplotlib.rc_context(fname=style, rc={"svg.hashsalt": name, **_painted()}),
        warnings.catch_warnings(),
    ):
        # The reader's browser has fonts for what DejaVu lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        build(figure)
        _make_legible(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    least = math.ceil(72 * width * _LEAST_PIXELS / _SMALLEST_TEXT)
    return _inline(text.getvalue(), name, description, least)


def draw_row(
    name: str,
    height: float,
    plots: Sequence[tuple[str, Callable[[Axes], object]]],
) -> Html:
    """Draw plots that stand side by side where there is room, else one below the other.

    Args:
        name: Unique among the plots of one report.
        height: Inches, where two share a row.
        plots: What each shows, and what draws it.
    """
    if len(plots) == 1:
        ((description, build),) = plots
        return draw(name, WHOLE, height, lambda f: build(f.subplots()), description=description)
    width = HALF if len(plots) == 2 else _THIRD
    drawn = [
        draw(
            f"{name}-{place}",
            width,
            height * width / HALF,
            lambda figure, build=build: build(figure.subplots()),
            description=description,
        )
        for place, (description, build) in enumerate(plots)
    ]
    return panels(drawn, narrow=len(plots) > 2)


def log_axis(axes: Axes, which: str, form: Callable[[float], str]) -> None:
    """Make the `which` ("x" or "y") axis logarithmic with few ticks written by `form`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    narrow = low > 0 and high / low < 200
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_formatter(NullFormatter())


def plain_axis(axes: Axes, which: str, form: Callable[[float], str], ticks: int = 5) -> None:
    """Give the `which` axis at most `ticks` round ticks written by `form`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def _make_legible(figure: Figure) -> None:
    """Let every text of the figure show all its characters, and none be longer than its plot."""
    from matplotlib.text import Text
    from matplotlib.ticker import Formatter

    class Legible(Formatter):
        def __init__(self, given: Formatter) -> None:
            self.given = given

        def __call__(self, x: float, pos: int | None = None) -> str:
            return label(self.given(x, pos))

        def format_ticks(self, values: Any) -> list[str]:
            return [label(text) for text in self.given.format_ticks(values)]

    def label(text: str) -> str:
        return shortened(legible(text), LONGEST_LABEL)

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(Legible(axis.get_major_formatter()))
    for text in figure.findobj(Text):
        text.set_text(label(text.get_text()))


def _painted() -> dict[Any, Any]:
    ink, muted, line = PAINT["ink"], PAINT["muted"], PAINT["line"]
    return {
        "text.color": ink,
        "axes.titlecolor": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": line,
        "grid.color": line,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
    }


def _inline(svg: str, name: str, description: str, least: int) -> Html:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', body)
    assert view is not None
    shown = f'style="min-width:{least}px" role="img" aria-label="{escape(description)}"'
    opening = f"<svg {view.group()} {shown}>"
    body = opening + body[body.index(">") + 1 :]
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font,sans-serif)", body)
    for colour, paint in PAINT.items():
        body = body.replace(paint, f"var(--{colour})")
    return Html(re.sub(r"\n\s*", "\n", body).strip())
