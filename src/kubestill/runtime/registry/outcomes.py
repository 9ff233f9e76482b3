"""How runs end: what their steps told decides what becomes of the window they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubestill.errors import Fenced
from kubestill.runtime.registry import transitions
from kubestill.runtime.registry.registry import Registry
from kubestill.runtime.registry.state import Claim, State, Verdict

__all__ = ["TAKEN_OVER", "Outcome", "conclude", "record_missing", "record_taken_over"]

TAKEN_OVER = "taken-over"
"""How the steps are called that tell of a window taken from a run."""
_VERDICTS: Mapping[str, Verdict] = {
    "healthy": "healthy",
    "insufficient": "inconclusive",
    "reject": "rejected",
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
        succeeded: Every step that was to run did.
        failure: What Kubeflow says about the step that did not.
    """
    standing = registry.entry(run_id, "outcome")
    if standing is None:
        outcome = _settle(registry, run_id, succeeded=succeeded, failure=failure)
        standing = _record(registry, run_id, outcome)
    # Only now: who dies in between leaves a claim behind, which the next run takes over.
    registry.change(lambda now: transitions.abandon(now, run_id))
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
            f"It died holding its window, or was believed to: run {claim.run_id} took the rows "
            "over. None was lost."
        )
        registry.append(run_id, f"{TAKEN_OVER}-{window}", {"window": window, "reason": reason})


def _settle(registry: Registry, run_id: str, *, succeeded: bool, failure: str) -> Outcome:
    state = registry.read()
    closed = next((window for window in state.windows if window.run_id == run_id), None)
    if closed is not None:
        return _of_window(registry, run_id, closed.verdict)
    held = state.claim is not None and state.claim.run_id == run_id
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
    return Outcome(outcome="failed", reason=_failure(registry, run_id, told, succeeded, failure))


def _told(registry: Registry, run_id: str) -> dict[str, Any]:
    """Return the last verdict: on the challenger where there was one, else on the champion."""
    judged = registry.entry(run_id, "judge")
    challenged = registry.entry(run_id, "challenge")
    return challenged or judged or {}


def _verdict(told: Mapping[str, Any]) -> Verdict | None:
    """Tell a challenger that lost, whose rows taught nothing wrong, from rows that are unfit."""
    if told.get("decision") == "reject" and told.get("unfit"):
        return "unfit"
    return _VERDICTS.get(told.get("decision", ""))


def _of_window(registry: Registry, run_id: str, verdict: str) -> Outcome:
    return Outcome(outcome=verdict, reason=str(_told(registry, run_id).get("reason", "")))


def _failure(
    registry: Registry, run_id: str, told: Mapping[str, Any], succeeded: bool, failure: str
) -> str:
    told_of = sorted(registry.entries(run_id, ""), key=lambda entry: entry["at"])
    done = [entry["step"] for entry in told_of]
    if succeeded:
        lines = ["Every step ended well, but no verdict closes its window."]
    elif done:
        lines = [f"It failed after its step {done[-1]!r}."]
    else:
        lines = ["It failed before it had collected anything."]
    if failure:
        lines.append(f"Kubeflow says: {failure}")
    if told:
        lines.append(f"The last verdict was {told['decision']!r}: {told['reason']}")
    lines.append("Its rows were given back: the next run takes them.")
    return " ".join(lines)


def _record(registry: Registry, run_id: str, outcome: Outcome) -> dict[str, Any]:
    return registry.append(run_id, "outcome", vars(outcome))
