"""Task of the component `record-outcome`: the last step of every run, however it ended."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

from kubestill.errors import KubestillError, Problems
from kubestill.runtime.base.artifacts import Artifact, write_summary
from kubestill.runtime.reports.page import complete
from kubestill.runtime.reports.registry import registry_page
from kubestill.runtime.retraining import Registry, open_registry
from kubestill.runtime.retraining.collecting import check_placeholders
from kubestill.runtime.retraining.notices import notify as tell
from kubestill.runtime.retraining.outcomes import RunOutcome, conclude
from kubestill.runtime.steps.failures import Failure, find_run_root, read_failures
from kubestill.runtime.steps.tracking import mirror_champion

_FAILED = ("FAILED", "CANCELED")
"""The only states that say something: a run that skips its conditions and goes well is `RUNNING`,
and so is one whose pod was killed before it could tell."""


class FinalStatus(Protocol):
    """What Kubeflow says about the tasks before: its `PipelineTaskFinalStatus`."""

    state: str
    """`COMPLETE`, `RUNNING`, `FAILED` or `CANCELED`; under plain `kfp.local`, `SUCCEEDED`."""
    error_message: str | None
    """Empty on a Kubeflow: the steps say more."""


def record_outcome(
    *,
    registry: str,
    run_id: str,
    final_status: FinalStatus,
    summary: Artifact,
    notify: str = "",
) -> tuple[str]:
    """Close the run's window or give it back, and write the outcome to the history.

    The component documents the parameters. How the run ended follows from what its own steps
    recorded, in the registry and where they failed; Kubeflow's final status only adds that one did.

    Returns:
        outcome: One word.

    Raises:
        InvalidInput: Placeholders were not filled in.
        StoreError: The registry did not answer.
    """
    problems = Problems()
    check_placeholders({"registry": registry, "run_id": run_id}, problems)
    problems.raise_if_any()
    store = open_registry(registry)
    succeeded = final_status.state not in _FAILED
    failure = _why(final_status, _failures(summary.uri))
    done = conclude(store, run_id, succeeded=succeeded, failure=failure)
    write_summary(_text(store, run_id, done), summary)
    print(f"{done.outcome}: {done.reason}", flush=True)
    for told in (
        write_front_page(store),
        tell(store, run_id, done, notify),
        mirror_champion(store),
    ):
        if told:
            print(told, flush=True)
    return (done.outcome,)


def write_front_page(registry: Registry) -> str:
    """Write the page that shows the registry's history; returns what went wrong, if anything."""
    try:
        history = list(registry.runs())
        html = registry_page(registry.uri, registry.read(), history)
        html = complete(html, date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", run="", data="")
        registry.store.put("index.html", html.encode())
    except KubestillError as error:  # the outcome stands
        return f"the registry's index.html is not up to date: {error}"
    return ""


def _failures(output_uri: str) -> list[Failure]:
    """Read what the run's steps left, but for what an earlier attempt of this one did."""
    try:
        root = find_run_root(output_uri)
        found = read_failures(root) if root else []
    except KubestillError as error:
        print(f"why steps failed cannot be read: {error}", flush=True)
        return []
    return [failure for failure in found if failure.component != "record_outcome"]


def _why(final_status: FinalStatus, failures: list[Failure]) -> str:
    """Return in one line which step ended the run and why; empty if unknown."""
    if failures:
        said = " ".join(failures[-1].describe().split())
        return said if said.endswith((".", "!", "?")) else f"{said}."
    if final_status.error_message:
        return f"Kubeflow says: {final_status.error_message}"
    return "It was canceled." if final_status.state == "CANCELED" else ""


def _text(registry: Registry, run_id: str, done: RunOutcome) -> str:
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
            f"All rows before {state.judged_through[:16]} have been judged. "
            f"Windows: {len(state.windows)}, of which quarantined: {quarantined}."
        )
    if done.outcome == "unfit":
        mine = " ".join(window.id for window in state.windows if window.run_id == run_id)
        remedy = f"`kubestill registry release {registry.uri} {mine}`"
        lines += [
            "",
            f"No run learns from these rows. If they are sound after all, release them: {remedy}",
        ]
    return "\n".join(lines) + "\n"
