"""From scores and their noise to one word, with the reasons in sentences.

Against a baseline, `promote` takes evidence of an improvement, in this window or added up over
several (see `pooling`), `reject` evidence that there is
none worth having (or that a limit is broken, a slice or the golden set got worse); otherwise the
rows are `insufficient`. Alone, a model is `degraded` on evidence of a broken limit, of decay since
its promotion, that a constant answer does better, or, where asked for, of other rows than then or
of worse to come where labels are late; and where many rows wait to be learned from;
`healthy` while its score keeps every limit, and the rows are `insufficient` in between, or where
too few of them carry the score. Evidence is an interval that lies wholly on one
side; with several limits each interval is widened (Bonferroni), so that one more limit does not
mean one more false alarm.

Two decisions need no scores. `unfit` is about the rows (see `fitness`), whoever is judged: nothing
is learned from them and nothing is promoted on them. `broken` is about a candidate for promotion
that gives NaN or infinity. A champion that does is `degraded`: it has to be replaced, and any
candidate that keeps the limits may replace it. `bootstrap` says that there is no champion yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kubestill.errors import counted
from kubestill.runtime.evaluation.decay import Decay
from kubestill.runtime.evaluation.fitness import Shift
from kubestill.runtime.evaluation.pooling import Pool
from kubestill.runtime.evaluation.record import GoldenMark
from kubestill.runtime.evaluation.thresholds import Threshold
from kubestill.runtime.metrics.catalog import METRICS, Metric
from kubestill.runtime.metrics.intervals import Interval, Measured, measure

Verdict = Literal[
    "promote", "reject", "healthy", "degraded", "bootstrap", "insufficient", "unfit", "broken"
]


Cause = Literal["skill", "limits", "golden", "slices", "gain"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do, and why."""

    verdict: Verdict
    reasons: tuple[str, ...]
    cause: Cause | Literal["rows"] | None = None
    """Why a candidate was rejected, in a word: what a registry counts that gets stuck. `rows` where
    a champion shows no decay, and rows are waiting to be learned from."""

    @property
    def reason(self) -> str:
        """All reasons as one text."""
        return " ".join(self.reasons)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a decision is held to."""

    thresholds: Sequence[Threshold] = ()
    min_rows: int
    """Below this many labelled rows nothing is decided."""
    confidence: float = 0.95
    """Of the intervals that decide: above the one that is shown where a year has many windows."""
    min_improvement: float = 0.01
    """The smallest improvement worth having, as a share of the baseline's score."""
    max_shift: float = 0.0
    """Stability index of a column from which a champion has decayed by itself; 0 is off."""
    max_forgetting: float = 0.0
    """How much worse the golden set may get, as a share of the best score ever reached on it."""
    golden_weight: float | None = None
    """What a loss on the golden set counts beside a gain on the fresh rows, by its age; None where
    it must not be lost at all."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How the thresholds came out."""

    broken: tuple[str, ...]
    """With evidence: the whole interval is beyond the limit."""
    doubtful: tuple[str, ...]
    """The score is beyond the limit, but within its noise."""
    kept: tuple[str, ...]


def judge_alone(
    scores: Measured,
    model: str,
    rules: Rules,
    *,
    shifts: Sequence[Shift] = (),
    decay: Sequence[Decay] = (),
    constant: str = "",
    missing: str = "",
    unlearned: str = "",
    expected: str = "",
) -> Decision:
    """Decide whether a model in use is as good as it has to be, and as it was.

    Args:
        scores: On rows that it has not seen.
        model: Its name in `scores`.
        rules: What it is held to.
        shifts: How the rows differ from those it was promoted on.
        decay: Its scores against the record of its promotion.
        constant: That a constant answer does better, in a sentence; empty without evidence of it.
        missing: Why the rows cannot tell how good it is, in a sentence; empty where they can.
        unlearned: How many rows wait to be learned from, in a sentence; empty where few do.
        expected: That worse is expected of rows whose labels are late; empty where that does not
            decide.
    """
    rows = scores.outcomes[model].rows
    if unfit := _unfit(shifts):
        return Decision(verdict="unfit", reasons=unfit)
    if rows < rules.min_rows:
        return _too_few(rows, rules.min_rows)
    if lost := _unusable(scores, model):
        return Decision(verdict="degraded", reasons=(lost,))
    limits = check_limits(scores, model, rules)
    worse = tuple(one.sentence for one in decay if one.evident)
    worse += tuple(one for one in (constant, expected) if one)
    drift = tuple(shift.statement for shift in shifts)
    if rules.max_shift and any(shift.size >= rules.max_shift for shift in shifts):
        limit = f"stability index of {rules.max_shift:g} or more"
        worse += (f"The rows are unlike those it was promoted on ({limit}); see below.",)
    if limits.broken or worse:
        reasons = (*limits.broken, *worse, *limits.doubtful, *drift)
        return Decision(verdict="degraded", reasons=reasons)
    if unlearned:
        return Decision(verdict="degraded", reasons=(unlearned, *limits.doubtful), cause="rows")
    if limits.doubtful or missing:
        reasons = (*limits.doubtful, *((missing,) if missing else ()), *drift)
        return Decision(verdict="insufficient", reasons=reasons)
    kept = tuple(one.sentence for one in decay if one.part == "all rows")
    reasons = (*limits.kept, *kept) or ("No thresholds were given, so there was nothing to break.",)
    return Decision(verdict="healthy", reasons=(*reasons, *drift))


def judge_first(
    scores: Measured,
    model: str,
    rules: Rules,
    *,
    guessing: bool,
    shifts: Sequence[Shift] = (),
    vacant: str = "There is no champion yet.",
) -> Decision:
    """Decide whether a model may become the first champion.

    Args:
        scores: On rows that it has not seen.
        model: Its name in `scores`.
        rules: What it is held to.
        guessing: Its answers show no knowledge of the labels.
        shifts: How the rows differ from those that were expected.
        vacant: Why there is no champion to compare it with.

    Returns:
        `promote`, `reject`, `insufficient`, `unfit` or `broken`.
    """
    if settled := _settled(scores, model, rules, shifts):
        return settled
    if guessing:
        return Decision(verdict="reject", reasons=(_guesses(model),), cause="skill")
    limits = check_limits(scores, model, rules)
    if limits.broken:
        reasons = limits.broken + limits.doubtful
        return Decision(verdict="reject", reasons=reasons, cause="limits")
    if limits.doubtful:
        return Decision(verdict="insufficient", reasons=limits.doubtful)
    return Decision(verdict="promote", reasons=(vacant, *limits.kept))


def judge_challenger(
    scores: Measured,
    model: str,
    baseline: str,
    rules: Rules,
    *,
    metric: Metric,
    guessing: bool = False,
    golden: Measured | None = None,
    best: GoldenMark | None = None,
    worse_slices: Sequence[str] = (),
    shifts: Sequence[Shift] = (),
    pooled: Pool | None = None,
) -> Decision:
    """Decide whether `model` should replace `baseline`.

    Args:
        scores: Of both on the same rows.
        model: The challenger's name in `scores`.
        baseline: The name of what it would replace.
        rules: What the challenger is held to.
        metric: What improvement is measured in.
        guessing: Its answers show no knowledge of the labels.
        golden: Scores on a fixed set that the challenger must not be worse on.
        best: The best score a champion ever had on that set.
        worse_slices: Sentences on slices where it is worse than the baseline.
        shifts: How the rows differ from those the baseline was promoted on.
        pooled: What challengers gained since the last promotion, this one included; None where
            windows are not added up. It takes half of the chance of a wrong promotion.

    Returns:
        `promote`, `reject`, `insufficient`, `unfit` or `broken`.
    """
    if settled := _settled(scores, model, rules, shifts):
        return settled
    if golden is not None and (lost := _unusable(golden, model)):
        return Decision(verdict="broken", reasons=(f"On the golden set: {lost}",))
    if lost := _unusable(scores, baseline):
        if worse := _worse_where_finite(scores, model, baseline, metric):
            return Decision(verdict="reject", reasons=(lost, worse))
        # What is in production cannot stay there.
        return judge_first(scores, model, rules, guessing=guessing, shifts=shifts, vacant=lost)
    rows = scores.outcomes[model].rows
    limits = check_limits(scores, model, rules)
    confidence = rules.confidence if pooled is None else (1 + rules.confidence) / 2
    gain = scores.improvement(model, baseline, metric, confidence)
    text = _gain_text(gain, model, baseline, metric, confidence)
    harm, forgotten = _forgotten(golden, model, baseline, metric, best, rules.max_forgetting)
    weight = rules.golden_weight
    outweighed = bool(forgotten) and weight is not None and harm * weight < gain.value
    if outweighed:
        told = f"At {weight:.2g} for the age of those rows, this counts less than the gain."
        forgotten = (f"{forgotten[0]} {told}",)
    if guessing and gain.value > 0:
        return Decision(verdict="reject", reasons=(_guesses(model), text), cause="skill")
    vetoed = forgotten and not outweighed
    if limits.broken or vetoed or worse_slices:
        reasons = (*limits.broken, *forgotten, *worse_slices, text)
        cause: Cause = "limits" if limits.broken else "golden" if vetoed else "slices"
        return Decision(verdict="reject", reasons=reasons, cause=cause)
    worth = rules.min_improvement * abs(scores.points[baseline][metric.name])
    if gain.high <= worth and not gain.low > 0:
        why = f"An improvement worth having (more than {worth:.3g}) is ruled out."
        return Decision(verdict="reject", reasons=(text, why), cause="gain")
    added = (text,) if pooled is None or pooled.windows < 2 else (text, pooled.sentence)
    # What others gained is no reason for one that does not: it may be the odd one out.
    together = pooled is not None and gain.value > 0 and pooled.gain.low > 0
    if gain.low > 0 or together:
        told = (text,) if gain.low > 0 else added
        if limits.doubtful:
            return Decision(verdict="insufficient", reasons=(*told, *limits.doubtful))
        return Decision(verdict="promote", reasons=(*told, *limits.kept, *forgotten))
    if missing := scores.missing(model, metric, baseline):
        return Decision(verdict="insufficient", reasons=(*added, missing))
    why = (
        f"{counted(rows, 'row')} cannot tell: no improvement and one worth having "
        f"(more than {worth:.3g}) are both still possible."
    )
    return Decision(verdict="insufficient", reasons=(*added, why))


def _settled(
    scores: Measured, model: str, rules: Rules, shifts: Sequence[Shift]
) -> Decision | None:
    """Return the decision on a candidate where it does not depend on the scores, else None."""
    rows = scores.outcomes[model].rows
    if unfit := _unfit(shifts):
        return Decision(verdict="unfit", reasons=unfit)
    if lost := _unusable(scores, model):
        return Decision(verdict="broken", reasons=(lost,))
    if rows < rules.min_rows:
        return _too_few(rows, rules.min_rows)
    return None


def _worse_where_finite(scores: Measured, model: str, baseline: str, metric: Metric) -> str:
    """Return a sentence where `model` is worse, with evidence, on the rows `baseline` answers."""
    answered = scores.outcomes[baseline].finite
    if not answered.any():
        return ""
    found = measure(
        {name: scores.outcomes[name].take(answered) for name in (model, baseline)},
        confidence=scores.confidence,
    )
    gain = found.improvement(model, baseline, metric)
    if not gain.high < 0:
        return ""
    text = _gain_text(gain, model, baseline, metric, scores.confidence)
    return f"On the {counted(int(answered.sum()), 'row')} that both answer: {text}"


def _guesses(model: str) -> str:
    return f"The {model} does no better than by giving every row the same answer."


def check_limits(scores: Measured, model: str, rules: Rules) -> Limits:
    """Hold a model's scores against its limits."""
    broken: list[str] = []
    doubtful: list[str] = []
    kept: list[str] = []
    confidence = 1 - (1 - rules.confidence) / max(1, len(rules.thresholds))
    for threshold in rules.thresholds:
        found = scores.interval(model, threshold.metric, confidence)
        shown = f"{threshold.metric} is {_shown(found, confidence)}, the limit is {threshold}"
        nearest_end = found.high if threshold.kind == "min" else found.low
        if threshold.met(found.value):
            kept.append(f"Kept: {shown}.")
        elif found.known and threshold.met(nearest_end):
            doubtful.append(f"Within noise of its limit: {shown}.")
        elif missing := scores.missing(model, METRICS[threshold.metric]):
            doubtful.append(f"Too little evidence for its limit: {shown}. {missing}")
        else:
            broken.append(f"Broken: {shown}.")
    return Limits(broken=tuple(broken), doubtful=tuple(doubtful), kept=tuple(kept))


def _forgotten(
    golden: Measured | None,
    model: str,
    baseline: str,
    metric: Metric,
    best: GoldenMark | None,
    allowed: float,
) -> tuple[float, tuple[str, ...]]:
    """Return by how much the golden set is worse than allowed, with evidence, and a sentence.

    The rows are the same for ever, so the best score ever reached on them is a constant that the
    paired interval is moved by.
    """
    if golden is None:
        return 0.0, ()
    gain = golden.improvement(model, baseline, metric)
    reference, than = golden.points[baseline][metric.name], f"the {baseline}'s"
    # Where the baseline's answers are not finite, only the mark is there to fall behind.
    if best is not None and not metric.sign * (reference - best.best) >= 0:
        if math.isfinite(reference):
            behind = metric.sign * (best.best - reference)
            gain = Interval(gain.value - behind, gain.low - behind, gain.high - behind)
        else:
            own = golden.interval(model, metric.name)
            low, high = sorted(metric.sign * (end - best.best) for end in (own.low, own.high))
            gain = Interval(metric.sign * (own.value - best.best), low, high)
        reference, than = best.best, "the best it has been"
    if not gain.high < -allowed * abs(reference):
        return 0.0, ()
    worse = _shown(_turned(gain), golden.confidence)
    tolerated = f", more than the {allowed:.0%} tolerated" if allowed else ""
    text = f"Forgets: on the golden set {metric.title} is worse than {than} by {worse}{tolerated}."
    return -gain.high - allowed * abs(reference), (text,)


def _unfit(shifts: Sequence[Shift]) -> tuple[str, ...]:
    broken = tuple(shift.statement for shift in shifts if shift.unfit)
    if not broken:
        return ()
    return ("These rows are not fit to judge or to learn from.", *broken)


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
    reason = (
        f"Not enough evidence: {counted(rows, 'row')}, and at least {min_rows:,} are asked for."
    )
    return Decision(verdict="insufficient", reasons=(reason,))


def _unusable(scores: Measured, model: str) -> str:
    lost = int((~scores.outcomes[model].finite).sum())
    if not lost:
        return ""
    rows = counted(scores.outcomes[model].rows, "row")
    return f"The {model} gives NaN or infinity on {lost:,} of {rows}."
