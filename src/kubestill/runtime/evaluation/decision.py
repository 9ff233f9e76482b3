"""From scores and their noise to one word, with the reasons in sentences.

Against a baseline, `promote` takes evidence of an improvement, `reject` evidence that there is
none worth having (or that a limit is broken), and `insufficient` is said when the rows cannot
tell. Alone, a model is `degraded` on evidence of a broken limit, `healthy` while its score keeps
every limit, and `insufficient` in between. Evidence is an interval that lies wholly on one side;
with several limits each interval is widened (Bonferroni), so that one more limit does not mean one
more false alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kubestill.runtime.evaluation.intervals import Bootstrap, Interval
from kubestill.runtime.evaluation.metrics import Metric
from kubestill.runtime.evaluation.thresholds import Threshold

__all__ = ["Decision", "Verdict", "judge_alone", "judge_challenger"]

Verdict = Literal["promote", "reject", "healthy", "degraded", "insufficient"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do, and why."""

    verdict: Verdict
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """All reasons as one text."""
        return " ".join(self.reasons)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How the thresholds came out."""

    broken: tuple[str, ...]
    """With evidence: the whole interval is beyond the limit."""
    doubtful: tuple[str, ...]
    """The score is beyond the limit, but within its noise."""
    kept: tuple[str, ...]


def judge_alone(
    scores: Bootstrap, model: str, thresholds: Sequence[Threshold], *, min_rows: int
) -> Decision:
    """Decide whether a model in use still keeps its limits: healthy, degraded or insufficient."""
    rows = scores.outcomes[model].rows
    if rows < min_rows:
        return _too_few(rows, min_rows)
    if lost := _unusable(scores, model):
        return Decision(verdict="degraded", reasons=(lost,))
    limits = check_limits(scores, model, thresholds)
    if limits.broken:
        return Decision(verdict="degraded", reasons=limits.broken + limits.doubtful)
    if limits.doubtful:
        return Decision(verdict="insufficient", reasons=limits.doubtful)
    reasons = limits.kept or ("No thresholds were given, so there was nothing to break.",)
    return Decision(verdict="healthy", reasons=reasons)


def judge_challenger(
    scores: Bootstrap,
    model: str,
    baseline: str,
    thresholds: Sequence[Threshold],
    *,
    metric: Metric,
    min_rows: int,
    min_improvement: float,
    golden: Bootstrap | None = None,
) -> Decision:
    """Decide whether `model` should replace `baseline`: promote, reject or insufficient.

    Args:
        scores: Of both on the same rows.
        model: The challenger's name in `scores`.
        baseline: The name of what it would replace.
        thresholds: Limits that the challenger must keep as well.
        metric: What improvement is measured in.
        min_rows: Below this many rows nothing is decided.
        min_improvement: The smallest improvement worth having, as a share of the baseline's score.
        golden: Scores on a fixed set that the challenger must not be worse on.
    """
    rows = scores.outcomes[model].rows
    if lost := _unusable(scores, model):
        return Decision(verdict="reject", reasons=(lost,))
    if rows < min_rows:
        return _too_few(rows, min_rows)
    limits = check_limits(scores, model, thresholds)
    forgotten = _forgotten(golden, model, baseline, metric)
    gain = scores.improvement(model, baseline, metric)
    text = _gain_text(gain, model, baseline, metric, scores.confidence)
    if limits.broken or forgotten:
        return Decision(verdict="reject", reasons=(*limits.broken, *forgotten, text))
    worth = min_improvement * abs(scores.points[baseline][metric.name])
    if gain.low > 0:
        if limits.doubtful:
            return Decision(verdict="insufficient", reasons=(text, *limits.doubtful))
        return Decision(verdict="promote", reasons=(text, *limits.kept))
    if gain.high <= worth:
        why = f"An improvement worth having (more than {worth:.3g}) is ruled out."
        return Decision(verdict="reject", reasons=(text, why))
    why = (
        f"{rows:,} rows cannot tell: no improvement and one worth having "
        f"(more than {worth:.3g}) are both still possible."
    )
    return Decision(verdict="insufficient", reasons=(text, why))


def check_limits(scores: Bootstrap, model: str, thresholds: Sequence[Threshold]) -> Limits:
    """Hold a model's scores against its limits."""
    broken: list[str] = []
    doubtful: list[str] = []
    kept: list[str] = []
    confidence = 1 - (1 - scores.confidence) / max(1, len(thresholds))
    for threshold in thresholds:
        found = scores.interval(model, threshold.metric, confidence)
        shown = f"{threshold.metric} is {_shown(found, confidence)}, the limit is {threshold}"
        nearest_end = found.high if threshold.kind == "min" else found.low
        if threshold.met(found.value):
            kept.append(f"Kept: {shown}.")
        elif found.known and threshold.met(nearest_end):
            doubtful.append(f"Within noise of its limit: {shown}.")
        else:
            broken.append(f"Broken: {shown}.")
    return Limits(broken=tuple(broken), doubtful=tuple(doubtful), kept=tuple(kept))


def _forgotten(
    golden: Bootstrap | None, model: str, baseline: str, metric: Metric
) -> tuple[str, ...]:
    if golden is None:
        return ()
    gain = golden.improvement(model, baseline, metric)
    if not gain.high < 0:
        return ()
    worse = _shown(_turned(gain), golden.confidence)
    return (f"Forgets: on the golden set {metric.title} is worse by {worse}.",)


def _turned(gain: Interval) -> Interval:
    return Interval(-gain.value, -gain.high, -gain.low)


def _gain_text(gain: Interval, model: str, baseline: str, metric: Metric, confidence: float) -> str:
    direction, size = ("better", gain) if gain.value >= 0 else ("worse", _turned(gain))
    by = _shown(size, confidence)
    return f"The {model}'s {metric.title} is {direction} than the {baseline}'s by {by}."


def _shown(interval: Interval, confidence: float) -> str:
    if not interval.known:
        return f"{interval.value:.3g}"
    ends = f"{interval.low:.3g} to {interval.high:.3g}"
    return f"{interval.value:.3g} ({100 * confidence:.3g}% interval {ends})"


def _too_few(rows: int, min_rows: int) -> Decision:
    reason = f"Not enough evidence: {rows:,} rows, and at least {min_rows:,} are asked for."
    return Decision(verdict="insufficient", reasons=(reason,))


def _unusable(scores: Bootstrap, model: str) -> str:
    lost = int((~scores.outcomes[model].finite).sum())
    if not lost:
        return ""
    return f"The {model} gives NaN or infinity on {lost:,} of {scores.outcomes[model].rows:,} rows."
