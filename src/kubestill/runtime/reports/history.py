"""Plot a registry's history: every judged window, challenger, promotion and expectation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kubestill.errors import counted
from kubestill.runtime.metrics.catalog import METRICS, Metric
from kubestill.runtime.metrics.intervals import Interval
from kubestill.runtime.reports.canvas import PAINT, WHOLE, draw, plain_axis
from kubestill.runtime.reports.page import Html, figure, legend, section
from kubestill.runtime.retraining.decision import Score
from kubestill.runtime.retraining.history import Judgement, RunHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 60
"""Runs in the plot, the latest ones."""
_TONES = {
    "healthy": "good",
    "degraded": "bad",
    "unfit": "bad",
    "insufficient": "doubt",
}
_EXPECTED = "fifth"


@dataclass(frozen=True, kw_only=True)
class _Window:
    """What one run found on its rows, or expected where labels were late."""

    label: str
    champion: Mapping[str, Score]
    """Scores by metric; none where no row had a label."""
    verdict: str
    challenger: Mapping[str, Score]
    expected: Mapping[str, Score]
    """Of the champion, on rows whose labels were late at the time of the run."""
    promoted: bool = False
    vetoed: bool = False
    """The challenger was rejected for what it forgets."""
    unfit: bool = False


def history_section(history: Sequence[RunHistory], metric: Metric) -> list[Html]:
    """Return the section on what happened so far; empty before there are two runs to draw.

    Where scores were expected of rows whose labels are late, each of them has a plot, too.

    Args:
        history: Every run of the registry, in the order in which they began.
        metric: The score that is drawn.
    """
    windows = _windows(history)[-SHOWN:]
    if len(windows) < 2:
        return []
    late = {name: METRICS[name] for window in windows for name in window.expected}
    entries = [
        ("champion, healthy", "good", "o"),
        ("champion, degraded or rows unfit", "bad", "o"),
        ("not enough evidence", "doubt", "o"),
        ("challenger", "student", "D"),
        ("promotion", "student", "|"),
    ]
    if late:
        entries.append(("expected while labels are late", _EXPECTED, "s"))
    drawn = [
        draw(
            "history" if one is metric else f"history-{one.name}",
            WHOLE,
            3.6,
            lambda figure, one=one: _draw(figure.subplots(), windows, one),
            description=f"{one.title} of every window since the start",
        )
        for one in {metric.name: metric, **late}.values()
    ]
    judged = [window for window in windows if window.champion or window.challenger]
    told = ", ".join(
        [
            counted(len(judged), "window"),
            counted(sum(window.promoted for window in windows), "promotion"),
            f"{counted(sum(w.vetoed for w in windows), 'challenger')} vetoed by golden rows",
            f"{sum(window.unfit for window in windows)} quarantined",
        ]
    )
    note = (
        f"{metric.title} on each window's rows, before anything was learned from them; bars are "
        f"intervals. {told}; a cross marks rows that were not fit to judge."
    )
    if late:
        note += (
            " Squares are what the champion's own probabilities let expect of the rows whose "
            "labels were late at that run, with the band in which their scores are to lie: later "
            "windows show what became of them."
        )
    return [section("What happened so far", legend(entries), *map(figure, drawn), note=note)]


def _windows(history: Sequence[RunHistory]) -> list[_Window]:
    """Return what each run that scored a model found, in the order of the windows' ends.

    The rows of a run that came to nothing are those of a later one: they are drawn once.
    """
    found: list[tuple[str, _Window]] = []
    for run in history:
        scored = [one for one in run.judgements if one.scores]
        judge, challenge = run.judged("judge"), run.judged("challenge")
        late = run.judged("expect") or judge
        expected = late.expected if late else {}
        given_back = run.outcome and run.outcome.outcome in ("failed", "abandoned")
        if not (scored or expected) or given_back or run.taken_over:
            continue
        end = _end(run, scored or run.judgements)
        champion = judge.scores if judge else {}
        window = _Window(
            label=end[:10],
            champion=champion or (challenge.baseline_scores if challenge else {}),
            verdict=judge.verdict if judge else "insufficient",
            challenger=challenge.scores if challenge else {},
            expected=expected,
            promoted=run.promotion is not None,
            vetoed=challenge is not None and challenge.cause == "golden",
            unfit=any(one.unfit for one in scored),
        )
        found.append((end, window))
    return [window for _, window in sorted(found, key=lambda pair: pair[0])]


def _end(run: RunHistory, judged: Sequence[Judgement]) -> str:
    """Return until when the rows of a run reach; a run that holds no window knows when it looked.

    The clock tells where nothing else does: a replay of history is years away from it.
    """
    looked = run.collection.end if run.collection else ""
    return judged[0].end or looked or judged[0].at


def _interval(scores: Mapping[str, Score], metric: str) -> Interval | None:
    score = scores.get(metric)
    if score is None or score.value is None:
        return None
    low, high = (math.nan if end is None else end for end in (score.low, score.high))
    return Interval(score.value, low, high)


def _draw(axes: Axes, windows: Sequence[_Window], metric: Metric) -> None:
    axes.set_title(f"{metric.title} ({'less' if metric.sign < 0 else 'more'} is better)")
    champions = [_interval(window.champion, metric.name) for window in windows]
    line = [(x, one.value) for x, one in enumerate(champions) if one]
    axes.plot([x for x, _ in line], [y for _, y in line], color=PAINT["muted"], zorder=2)
    for x, (window, champion) in enumerate(zip(windows, champions, strict=True)):
        if window.promoted:
            axes.axvline(x, color=PAINT["student"], linewidth=1.4, zorder=1)
        if champion:
            tone = _TONES.get(window.verdict, "doubt")
            _point(axes, x, champion, "X" if window.unfit else "o", tone)
        if challenger := _interval(window.challenger, metric.name):
            _point(axes, x + 0.12, challenger, "D", "student")
        if expected := _interval(window.expected, metric.name):
            # Later rows than those of the window: to the right of it.
            _point(axes, x + 0.24 if champion else x, expected, "s", _EXPECTED)
    step = max(1, len(windows) // 12)
    axes.set_xticks(range(0, len(windows), step), [w.label for w in windows[::step]])
    axes.margins(x=0.04)
    plain_axis(axes, "y", lambda value: f"{value:g}")


def _point(axes: Axes, x: float, score: Interval, marker: str, tone: str) -> None:
    paint = PAINT[tone]
    if score.known:
        axes.plot([x, x], [score.low, score.high], color=paint, linewidth=1.6, alpha=0.7, zorder=3)
    style: dict[str, Any] = {"markeredgecolor": PAINT["card"], "markeredgewidth": 1.0}
    size = 8 if marker in "oX" else 6
    axes.plot([x], [score.value], marker, color=paint, markersize=size, zorder=4, **style)
