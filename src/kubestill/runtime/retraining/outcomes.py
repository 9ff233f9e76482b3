"""How runs end: what their steps recorded decides what becomes of the window they hold."""

from __future__ import annotations

from collections.abc import Mapping

from kubestill.errors import Fenced, counted
from kubestill.runtime.retraining import transitions
from kubestill.runtime.retraining.history import (
    Collection,
    Judgement,
    RunHistory,
    RunOutcome,
    TakeOver,
)
from kubestill.runtime.retraining.registry import Registry
from kubestill.runtime.retraining.state import Claim, State, Verdict

_VERDICTS: Mapping[str, Verdict] = {
    "healthy": "healthy",
    "insufficient": "inconclusive",
    "reject": "rejected",
    # The challenger is at fault, not the rows: the next one may learn from them.
    "broken": "rejected",
    "unfit": "unfit",
}

STUCK = 3
"""Windows in a row that end alike before a person is asked for."""
REMEDIES: Mapping[str, str] = {
    "golden": (
        "raise `max_forgetting` in `evaluation_settings`, or name rows in `golden_source` that "
        "stand for what must not be forgotten"
    ),
    "limits": (
        "change `thresholds`, or train a larger network in a new registry, as fine-tuning does "
        "not reach them"
    ),
    "slices": "raise `slice_tolerance` in `evaluation_settings`, or set `gate_slices` to false",
    "gain": (
        "raise `finetune_epochs` or `finetune_learning_rate`, set `shrink` below 1, or lower "
        "`rebuild_after`, which has a challenger trained from scratch"
    ),
    "skill": (
        "look at the columns that it learns from; or lower `rebuild_after`, which has a challenger "
        "trained from scratch"
    ),
    "broken": "lower `finetune_learning_rate`",
    "unfit": (
        "mend the source; or, if the rows are sound, release the windows (`kubestill registry "
        "release`) and list columns that move by themselves in `ignore` of `evaluation_settings`"
    ),
}
"""What to change, by the cause of a rejection, or by the verdict."""


def conclude(registry: Registry, run_id: str, *, succeeded: bool, failure: str = "") -> RunOutcome:
    """End a run: close its window or give it back, and write its outcome to the history.

    May be repeated, and says the same each time.

    Args:
        registry: Where.
        run_id: Which.
        succeeded: Nobody says that a step failed.
        failure: Which step failed and what it said, in a sentence.
    """
    standing = registry.run(run_id).outcome
    if standing is None:
        standing = registry.append(_settle(registry, run_id, succeeded=succeeded, failure=failure))
    # Only now: who dies in between leaves a claim behind, which the next run gives back.
    registry.change(lambda now: transitions.abandon(now, run_id))
    return standing


def abandon(registry: Registry, run_id: str, reason: str) -> RunOutcome | None:
    """End a run from outside: give back the window it holds, and write its outcome.

    May be repeated. A run that comes back later, or is still at work, is refused from here on; one
    that has ended in the meantime keeps its own outcome.

    Args:
        registry: Where.
        run_id: Which.
        reason: How it came to its end, in a sentence.

    Returns:
        How it ended; None where it never did anything here.
    """
    held = _holds(registry.read(), run_id)
    # First: from then on it cannot close its window, so that the outcome is what the state says.
    state = registry.change(lambda now: transitions.abandon(now, run_id))
    run = registry.run(run_id)
    if not held and not run.entries:
        return None
    if run.outcome is not None:
        return run.outcome
    lines = _left(run.collection, run.judgement, held)
    given_up = RunOutcome(run_id=run_id, outcome="abandoned", reason=" ".join([reason, *lines]))
    return registry.append(_closed(run, state) or given_up)


def record_missing(registry: Registry, state: State) -> None:
    """Write the outcome of the run that closed the last window, should it have died just then."""
    if state.windows:
        run = registry.run(state.windows[-1].run_id)
        closed = _closed(run, state)
        if run.outcome is None and closed is not None:
            registry.append(closed)


def record_taken_over(registry: Registry, claim: Claim) -> None:
    """Write down which windows this claim took from which runs, for those may never end."""
    for run_id, window in claim.took_over:
        reason = (
            "It died holding its window, or was believed to, for its lease ran out: run "
            f"{claim.run_id} took the rows over. None was lost."
        )
        registry.append(TakeOver.of(run_id, window, reason))


def _settle(registry: Registry, run_id: str, *, succeeded: bool, failure: str) -> RunOutcome:
    # In this order: who takes a window over changes the state, and then tells the history.
    state = registry.read()
    run = registry.run(run_id)
    if closed := _closed(run, state):
        # The champion was swapped: what failed after that does not undo it.
        after = "" if succeeded else failure
        return closed.model_copy(update={"reason": f"{closed.reason} {after}".strip()})
    held, collected, judged = _holds(state, run_id), run.collection, run.judgement
    if succeeded and not held and collected and collected.status in ("waiting", "busy"):
        # What is expected of rows whose labels are late, where somebody asked.
        told = [one.reason for one in run.judgements if one.expected]
        reason = " ".join([collected.reason, *told])
        return RunOutcome(run_id=run_id, outcome=collected.status, reason=reason)
    if not held and run.taken_over:
        return RunOutcome(run_id=run_id, outcome="abandoned", reason=run.taken_over[-1].reason)
    verdict = _VERDICTS.get(judged.verdict) if judged else None
    if succeeded and judged and verdict and state.claim is not None and held:
        if not state.claim.champion:
            # Nothing was judged but the first candidate: the rows are needed for the next one.
            reason = f"{judged.reason} There is no champion yet, so its rows were given back."
            return RunOutcome(run_id=run_id, outcome=verdict, reason=reason)
        try:
            registry.change(lambda now: transitions.close(now, run_id, verdict))
            return _repeated(registry, state, run_id, verdict, judged)
        except Fenced as fenced:
            return RunOutcome(run_id=run_id, outcome="failed", reason=str(fenced))
    lines = [failure or _silence(run, succeeded), *_left(collected, judged, held)]
    return RunOutcome(run_id=run_id, outcome="failed", reason=" ".join(lines))


def _repeated(
    registry: Registry, state: State, run_id: str, verdict: Verdict, judged: Judgement
) -> RunOutcome:
    """Return the outcome of a run: `stuck` where it ends as the runs before it did, and why."""
    cause = _cause(registry.run(run_id), judged)
    same = 1
    for window in reversed(state.windows):
        if window.verdict == "inconclusive":
            continue
        run = registry.run(window.run_id)
        if window.verdict != verdict or not run.judgement or _cause(run, run.judgement) != cause:
            break
        same += 1
    if cause not in REMEDIES or same < STUCK:
        return RunOutcome(run_id=run_id, outcome=verdict, reason=judged.reason)
    told = f"So end {counted(same, 'window')} in a row. What helps: {REMEDIES[cause]}."
    return RunOutcome(run_id=run_id, outcome="stuck", reason=f"{judged.reason} {told}")


def _cause(run: RunHistory, judged: Judgement) -> str:
    """Return in a word why a run ended as it did; `rows` where no challenger was needed."""
    champion = run.judged("judge")
    if judged.cause in ("gain", "skill") and champion is not None and champion.cause == "rows":
        return champion.cause
    return judged.cause or judged.verdict


def _closed(run: RunHistory, state: State) -> RunOutcome | None:
    """Return the outcome of a run whose window is closed."""
    closed = next((window for window in state.windows if window.run_id == run.run_id), None)
    if closed is None:
        return None
    reason = run.judgement.reason if run.judgement else ""
    refit = run.promotion.refit if run.promotion else ""
    return RunOutcome(run_id=run.run_id, outcome=closed.verdict, reason=f"{reason} {refit}".strip())


def _holds(state: State, run_id: str) -> bool:
    return state.claim is not None and state.claim.run_id == run_id


def _silence(run: RunHistory, succeeded: bool) -> str:
    """Return how far a run got whose failed step left no message."""
    last = (
        f"after its step {run.entries[-1].step!r}"
        if run.entries
        else "before it collected anything"
    )
    if succeeded:
        return f"It ended {last}, and no verdict closes its window."
    return (
        f"It failed {last} and left no message: a pod that is killed, or never starts, leaves none."
    )


def _left(collected: Collection | None, judged: Judgement | None, held: bool) -> list[str]:
    """Return how far a run got, and what became of its rows."""
    lines: list[str] = []
    if judged:
        lines.append(f"The last verdict was {judged.decision!r}: {judged.reason}")
    if held or (collected and collected.window):
        lines.append("Its rows were given back: the next run takes them.")
    elif collected:
        lines.append(f"It held no rows: {collected.reason}")
    return lines
