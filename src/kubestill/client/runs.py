"""Start a run and follow it to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from kubestill.client.api import Api
from kubestill.client.versions import Version
from kubestill.errors import ClusterError

ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
GOOD = {"SUCCEEDED", "SKIPPED"}
_QUIET = {"", "RUNTIME_STATE_UNSPECIFIED", "PENDING"}
PAUSE_S = 10.0
"""Between two questions about a run that goes on."""
_OUTAGE_S = 600.0
"""How long a server may be away while a run is followed: an upgrade takes minutes."""


def ensure_experiment(api: Api, name: str) -> str:
    """Find the experiment of that name, or make it; returns its id."""
    namespace = api.connection.namespace
    for found in api.pages("experiments", "experiments", namespace=namespace):
        if found["display_name"] == name and found.get("storage_state") != "ARCHIVED":
            return found["experiment_id"]
    body = {"display_name": name} | ({"namespace": namespace} if namespace else {})
    return api.post("experiments", body)["experiment_id"]


def start_run(
    api: Api,
    version: Version,
    arguments: dict[str, Any],
    *,
    name: str,
    experiment: str,
    service_account: str = "",
    pipeline_root: str = "",
) -> str:
    """Start one run of a version; returns its id."""
    body = {
        "display_name": name,
        "experiment_id": ensure_experiment(api, experiment),
        "pipeline_version_reference": {
            "pipeline_id": version.pipeline_id,
            "pipeline_version_id": version.version_id,
        },
        "runtime_config": runtime_config(arguments, pipeline_root),
    }
    if service_account:
        body["service_account"] = service_account
    return api.post("runs", body)["run_id"]


def runtime_config(arguments: dict[str, Any], pipeline_root: str) -> dict[str, Any]:
    """Put arguments into the form of the API."""
    return {"parameters": arguments} | ({"pipeline_root": pipeline_root} if pipeline_root else {})


def follow_run(
    api: Api,
    run_id: str,
    show: Callable[[str, str], None],
    *,
    pause_s: float | None = None,
    outage_s: float = _OUTAGE_S,
) -> dict[str, Any]:
    """Wait for a run's end and return it.

    Args:
        api: The server; it may be away for a while.
        run_id: Which run.
        show: Gets the name and the new state of each task, and of nothing else.
        pause_s: Seconds between two questions; default: `PAUSE_S`.
        outage_s: Seconds that the server may be away.

    Raises:
        ClusterError: The server refused, or was away for longer.
    """
    shown: dict[str, str] = {}
    heard = time.monotonic()
    while True:
        try:
            run = api.get(f"runs/{run_id}")
        except ClusterError as error:
            passing = error.status == 0 or error.status == 429 or error.status >= 500
            if not passing or time.monotonic() - heard > outage_s:
                raise
        else:
            heard = time.monotonic()
            for task_id, name, state in _tasks(run):
                if state not in _QUIET and shown.get(task_id) != state:
                    shown[task_id] = state
                    show(name, state)
            if run.get("state") in ENDED:
                return run
        time.sleep(PAUSE_S if pause_s is None else pause_s)


def failures(run: dict[str, Any]) -> list[str]:
    """Say what failed in a run, one line a task, and the run's own error where no task has one."""
    lines: list[str] = []
    for task in _details(run):
        if task.get("state") in ("FAILED", "CANCELED"):
            said = (task.get("error") or {}).get("message", "")
            lines.append(
                f"{task['display_name']} {task['state'].lower()}" + f": {said}" * bool(said)
            )
    said = (run.get("error") or {}).get("message", "")
    return lines or [said or f"the run ended as {run.get('state')}"]


def _tasks(run: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for task in _details(run):
        yield task["task_id"], task["display_name"], task.get("state", "")


def _details(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every task a person would know: not the drivers, which Kubeflow lists as tasks of the run."""
    for task in (run.get("run_details") or {}).get("task_details") or []:
        name = task.get("display_name", "")
        if name and name != "root" and not name.endswith(("-driver", "driver")):
            yield task
