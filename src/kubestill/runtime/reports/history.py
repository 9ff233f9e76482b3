"""Plot a registry's history: every judged window, every challenger, every promotion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kubestill.errors import counted
from kubestill.runtime.metrics.catalog import Metric
from kubestill.runtime.metrics.intervals import Interval
from kubestill.runtime.reports.canvas import PAINT, WHOLE, draw, plain_axis
from kubestill.runtime.reports.page import Html, figure, legend, section
from kubestill.runtime.retraining.decision import Score
from kubestill.runtime.retraining.history import RunHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 60
"""Windows in the plot, the latest ones."""
_TONES = {
    "healthy": "good",
    "degraded": "bad",
    "unfit": "bad",
    "insufficient": "doubt",
}


@dataclass(frozen=True, kw_only=True)
class _Window:
    """What one run found on its rows."""

    label: str
    champion: Interval | None = None
    verdict: str = ""
    challenger: Interval | None = None
    promoted: bool = False
    vetoed: bool = False
    """The challenger was rejected for what it forgets."""
    unfit: bool = False


def history_section(history: Sequence[RunHistory], metric: Metric) -> list[Html]:
    """Return the section on what happened so far; empty before there are two windows.

    Args:
        history: Every run of the registry, in the order in which they began.
        metric: The score that is drawn.
    """
    windows = _windows(history, metric.name)[-SHOWN:]
    if len(windows) < 2:
        return []
    key = legend(
        [
            ("champion, healthy", "good", "o"),
            ("champion, degraded or rows unfit", "bad", "o"),
            ("not enough evidence", "doubt", "o"),
            ("challenger", "student", "D"),
            ("promotion", "student", "|"),
        ]
    )

    def build(figure: Figure) -> None:
        _draw(figure.subplots(), windows, metric)

    drawn = draw(
        "history", WHOLE, 3.6, build, description=f"{metric.title} of every window since the start"
    )
    told = ", ".join(
        [
            counted(len(windows), "window"),
            counted(sum(window.promoted for window in windows), "promotion"),
            f"{counted(sum(w.vetoed for w in windows), 'challenger')} vetoed by golden rows",
            f"{sum(window.unfit for window in windows)} quarantined",
        ]
    )
    note = (
        f"{metric.title} on each window's rows, before anything was learned from them; bars are "
        f"intervals. {told}; a cross marks rows that were not fit to judge."
    )
    return [section("What happened so far", key, figure(drawn), note=note)]


def _windows(history: Sequence[RunHistory], metric: str) -> list[_Window]:
    """Return what each run that scored a model found, in the order of the windows' ends.

    The rows of a run that came to nothing are those of a later one: they are drawn once.
    """
    found: list[tuple[str, _Window]] = []
    for run in history:
        scored = [one for one in run.judgements if one.scores]
        given_back = run.outcome and run.outcome.outcome in ("failed", "abandoned")
        if not scored or given_back or run.taken_over:
            continue
        judge, challenge = run.judged("judge"), run.judged("challenge")
        end = scored[0].end or scored[0].at
        champion = _interval(judge.scores if judge else {}, metric)
        window = _Window(
            label=end[:10],
            champion=champion or _interval(challenge.baseline_scores if challenge else {}, metric),
            verdict=judge.verdict if judge else "insufficient",
            challenger=_interval(challenge.scores if challenge else {}, metric),
            promoted=run.promotion is not None,
            vetoed=challenge is not None and challenge.cause == "golden",
            unfit=any(one.unfit for one in scored),
        )
        found.append((end, window))
    return [window for _, window in sorted(found, key=lambda pair: pair[0])]


def _interval(scores: Mapping[str, Score], metric: str) -> Interval | None:
    score = scores.get(metric)
    if score is None or score.value is None:
        return None
    low, high = (math.nan if end is None else end for end in (score.low, score.high))
    return Interval(score.value, low, high)


def _draw(axes: Axes, windows: Sequence[_Window], metric: Metric) -> None:
    axes.set_title(f"{metric.title} ({'less' if metric.sign < 0 else 'more'} is better)")
    line = [(x, w.champion.value) for x, w in enumerate(windows) if w.champion]
    axes.plot([x for x, _ in line], [y for _, y in line], color=PAINT["muted"], zorder=2)
    for x, window in enumerate(windows):
        if window.promoted:
            axes.axvline(x, color=PAINT["student"], linewidth=1.4, zorder=1)
        if window.champion:
            tone = _TONES.get(window.verdict, "doubt")
            _point(axes, x, window.champion, "X" if window.unfit else "o", tone)
        if window.challenger:
            _point(axes, x + 0.12, window.challenger, "D", "student")
    step = max(1, len(windows) // 12)
    axes.set_xticks(range(0, len(windows), step), [w.label for w in windows[::step]])
    axes.margins(x=0.04)
    plain_axis(axes, "y", lambda value: f"{value:g}")


def _point(axes: Axes, x: float, score: Interval, marker: str, tone: str) -> None:
    paint = PAINT[tone]
    if score.known:
        axes.plot([x, x], [score.low, score.high], color=paint, linewidth=1.6, alpha=0.7, zorder=3)
    style: dict[str, Any] = {"markeredgecolor": PAINT["card"], "markeredgewidth": 1.0}
    size = 6 if marker == "D" else 8
    axes.plot([x], [score.value], marker, color=paint, markersize=size, zorder=4, **style)
