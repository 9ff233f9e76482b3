"""How runs end: what their steps told decides what becomes of the window they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kubestill.errors import Fenced
from kubestill.runtime.retraining import transitions
from kubestill.runtime.retraining.registry import Registry
from kubestill.runtime.retraining.state import Claim, State, Verdict

__all__ = ["TAKEN_OVER", "Outcome", "abandon", "conclude", "record_missing", "record_taken_over"]

TAKEN_OVER = "taken-over"
"""How the steps are called that tell of a window taken from a run."""
_VERDICTS: Mapping[str, Verdict] = {
    "healthy": "healthy",
    "insufficient": "inconclusive",
    "reject": "rejected",
    # The challenger is at fault, not the rows: the next one may learn from them.
    "broken": "rejected",
    "unfit": "unfit",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one run ended."""

    outcome: str
    """`promoted`, `healthy`, `inconclusive`, `rejected`, `unfit`, `waiting`, `busy`, `failed`,
    `abandoned`."""
    reason: str


def conclude(registry: Registry, run_id: str, *, succeeded: bool, failure: str = "") -> Outcome:
    """End a run: close its window or give it back, and write its outcome to the history.

    May be repeated, and says the same each time.

    Args:
        registry: Where.
        run_id: Which.
        succeeded: Nobody says that a step failed.
        failure: Which step failed and what it said, in a sentence.
    """
    standing = registry.entry(run_id, "outcome")
    if standing is None:
        outcome = _settle(registry, run_id, succeeded=succeeded, failure=failure)
        standing = _record(registry, run_id, outcome)
    # Only now: who dies in between leaves a claim behind, which the next run gives back.
    registry.change(lambda now: transitions.abandon(now, run_id))
    return Outcome(outcome=standing["outcome"], reason=standing["reason"])


def abandon(registry: Registry, run_id: str, reason: str) -> Outcome | None:
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
    if not held and not registry.entries(run_id, ""):
        return None
    standing = registry.entry(run_id, "outcome")
    if standing is None:
        lines = _left(registry.entry(run_id, "collect"), _told(registry, run_id), held)
        given_up = Outcome(outcome="abandoned", reason=" ".join([reason, *lines]))
        standing = _record(registry, run_id, _closed(registry, run_id, state) or given_up)
    return Outcome(outcome=standing["outcome"], reason=standing["reason"])


def record_missing(registry: Registry, state: State) -> None:
    """Write the outcome of the run that closed the last window, should it have died just then."""
    if state.windows:
        window = state.windows[-1]
        if registry.entry(window.run_id, "outcome") is None:
            _record(registry, window.run_id, _of_window(registry, window.run_id, window.verdict))


def record_taken_over(registry: Registry, claim: Claim) -> None:
    """Write down which windows this claim took from which runs, for those may never end."""
    for run_id, window in claim.took_over:
        reason = (
            "It died holding its window, or was believed to, for its lease ran out: run "
            f"{claim.run_id} took the rows over. None was lost."
        )
        registry.append(run_id, f"{TAKEN_OVER}-{window}", {"window": window, "reason": reason})


def _settle(registry: Registry, run_id: str, *, succeeded: bool, failure: str) -> Outcome:
    state = registry.read()
    if closed := _closed(registry, run_id, state):
        # The champion was swapped: what failed after that does not undo it.
        after = "" if succeeded else failure
        return replace(closed, reason=f"{closed.reason} {after}".strip())
    held = _holds(state, run_id)
    collected = registry.entry(run_id, "collect")
    if succeeded and not held and collected and collected["status"] in ("waiting", "busy"):
        return Outcome(outcome=collected["status"], reason=collected["reason"])
    if not held and (lost := registry.entries(run_id, TAKEN_OVER)):
        return Outcome(outcome="abandoned", reason=lost[-1]["reason"])
    told = _told(registry, run_id)
    verdict = _verdict(told)
    if succeeded and verdict and state.claim is not None and held:
        if not state.claim.champion:
            # Nothing was judged but the first candidate: the rows are needed for the next one.
            reason = f"{told['reason']} There is no champion yet, so its rows were given back."
            return Outcome(outcome=verdict, reason=reason)
        try:
            registry.change(lambda now: transitions.close(now, run_id, verdict))
            return Outcome(outcome=verdict, reason=told["reason"])
        except Fenced as fenced:
            return Outcome(outcome="failed", reason=str(fenced))
    lines = _failure(registry, run_id, succeeded, failure)
    return Outcome(outcome="failed", reason=" ".join([*lines, *_left(collected, told, held)]))


def _closed(registry: Registry, run_id: str, state: State) -> Outcome | None:
    """Return the outcome of a run whose window is closed."""
    closed = next((window for window in state.windows if window.run_id == run_id), None)
    return _of_window(registry, run_id, closed.verdict) if closed else None


def _holds(state: State, run_id: str) -> bool:
    return state.claim is not None and state.claim.run_id == run_id


def _told(registry: Registry, run_id: str) -> dict[str, Any]:
    """Return the last verdict: on the challenger where there was one, else on the champion.

    A retry that judged another model has an entry beside that of the attempt before.
    """
    for step in ("challenge", "judge"):
        if judged := registry.entries(run_id, step):
            return max(judged, key=lambda entry: entry["at"])
    return {}


def _verdict(told: Mapping[str, Any]) -> Verdict | None:
    """Return what becomes of the window; None where no decision closes it."""
    if told.get("decision") == "reject" and told.get("unfit"):
        # Before `unfit` was a decision of its own, history entries told it so.
        return "unfit"
    return _VERDICTS.get(told.get("decision", ""))


def _of_window(registry: Registry, run_id: str, verdict: str) -> Outcome:
    return Outcome(outcome=verdict, reason=str(_told(registry, run_id).get("reason", "")))


def _failure(registry: Registry, run_id: str, succeeded: bool, failure: str) -> list[str]:
    """Say why a run failed: in the words of its step where that left any."""
    if failure:
        return [failure]
    steps = sorted(registry.entries(run_id, ""), key=lambda entry: entry["at"])
    last = f"after its step {steps[-1]['step']!r}" if steps else "before it collected anything"
    if succeeded:
        return [f"It ended {last}, and no verdict closes its window."]
    return [f"It failed {last}, without a word: a pod that is killed, or never starts, says none."]


def _left(collected: Mapping[str, Any] | None, told: Mapping[str, Any], held: bool) -> list[str]:
    """Say how far a run got, and what became of its rows."""
    lines: list[str] = []
    if told:
        lines.append(f"The last verdict was {told['decision']!r}: {told['reason']}")
    if held or (collected and "window" in collected):
        lines.append("Its rows were given back: the next run takes them.")
    elif collected:
        lines.append(f"It held no rows: {collected['reason']}")
    return lines


def _record(registry: Registry, run_id: str, outcome: Outcome) -> dict[str, Any]:
    return registry.append(run_id, "outcome", vars(outcome))
