"""Task of the component `record-outcome`: the last step of every run, however it went."""

from __future__ import annotations

from typing import Protocol

from kubestill.errors import Problems
from kubestill.runtime.artifacts import Artifact, write_summary
from kubestill.runtime.fresh.request import check_placeholders
from kubestill.runtime.registry import Registry, open_registry
from kubestill.runtime.registry.outcomes import Outcome, conclude

__all__ = ["record_outcome"]


class FinalStatus(Protocol):
    """What Kubeflow says about the tasks before: its `PipelineTaskFinalStatus`."""

    state: str
    """`SUCCEEDED`, `FAILED`, `CANCELLED`."""
    error_message: str | None


def record_outcome(
    *, registry: str, run_id: str, final_status: FinalStatus, summary: Artifact
) -> tuple[str]:
    """Close the run's window or give it back, and write the outcome to the history.

    Args:
        registry: Where.
        run_id: Which run.
        final_status: See `FinalStatus`.
        summary: Output: Markdown.

    Returns:
        outcome: One word.

    Raises:
        InvalidInput: Placeholders that nobody filled in.
        StoreError: The registry did not answer.
    """
    problems = Problems()
    check_placeholders({"registry": registry, "run_id": run_id}, problems)
    problems.raise_if_any()
    store = open_registry(registry)
    failure = final_status.error_message or ""
    done = conclude(store, run_id, succeeded=final_status.state == "SUCCEEDED", failure=failure)
    write_summary(_text(store, run_id, done), summary)
    print(f"{done.outcome}: {done.reason}", flush=True)
    return (done.outcome,)


def _text(registry: Registry, run_id: str, done: Outcome) -> str:
    state = registry.read()
    lines = [f"**{done.outcome}**: {done.reason}", ""]
    if state.champion is None:
        lines.append("There is no champion yet.")
    else:
        champion = state.champion
        lines.append(f"Champion {champion.version}, promoted {champion.promoted_at[:16]}.")
    if state.windows:
        quarantined = sum(window.train == "quarantined" for window in state.windows)
        lines.append(
            f"Judged are the rows before {state.judged_through[:16]}, in {len(state.windows)} "
            f"windows, {quarantined} of them quarantined."
        )
    if done.outcome == "unfit":
        mine = " ".join(window.id for window in state.windows if window.run_id == run_id)
        remedy = f"`kubestill registry release {registry.uri} {mine}`"
        lines += ["", f"Nobody learns from its rows. Are they sound after all? {remedy}"]
    return "\n".join(lines) + "\n"
