"""Start a run, follow it to its end, stop it, list runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from kubestill.client.api import Api
from kubestill.client.progress import ENDED
from kubestill.client.versions import Version
from kubestill.errors import ClusterError

PAUSE_S = 10.0
"""Between two questions about a run that goes on."""
_OUTAGE_S = 600.0
"""Seconds that a server may be unreachable while a run is followed: an upgrade takes minutes."""
STOPPING_S = 300.0
"""Seconds that a run may take to stop: the pods of its steps get 30 s each."""


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


def get_run(api: Api, run_id: str) -> dict[str, Any]:
    """Return one run.

    Raises:
        ClusterError: There is none of that id, or the server refused or failed.
    """
    path = f"runs/{_plain(run_id)}"
    try:
        return api.get(path)
    except ClusterError as error:
        if error.status != 404:
            raise
        connection = api.connection
        where = f", namespace {connection.namespace}" if connection.namespace else ""
        raise ClusterError(
            f"run {run_id} is not at {connection.host}{where}: it was deleted, or is of another "
            "server or --namespace; `kubestill runs ls` lists those that are there",
            404,
        ) from error


def list_runs(api: Api, most: int) -> list[dict[str, Any]]:
    """List the newest runs of the namespace, newest first."""
    return list(islice(newest_runs(api), most))


def newest_runs(api: Api) -> Iterator[dict[str, Any]]:
    """Yield the runs of the namespace, newest first."""
    namespace = api.connection.namespace
    return api.pages("runs", "runs", sort_by="created_at desc", namespace=namespace)


def follow_run(
    api: Api,
    run_id: str,
    show: Callable[[dict[str, Any]], None],
    *,
    pause_s: float | None = None,
    outage_s: float = _OUTAGE_S,
    away: Callable[[float], None] = lambda seconds: None,
) -> dict[str, Any]:
    """Wait for a run's end and return it.

    Args:
        api: The server; it may be away for a while.
        run_id: Which run.
        show: Gets each answer, the last one as well.
        pause_s: Seconds between two questions; default: `PAUSE_S`.
        outage_s: Seconds that the server may be away.
        away: Gets the seconds since its last answer, where the server does not answer.

    Raises:
        ClusterError: The run is gone, the server refused, or it was away for longer.
    """
    heard = time.monotonic()
    while True:
        try:
            run = get_run(api, run_id)
        except ClusterError as error:
            passing = error.status == 0 or error.status == 429 or error.status >= 500
            silent = time.monotonic() - heard
            if not passing or silent > outage_s:
                raise
            away(silent)
        else:
            heard = time.monotonic()
            show(run)
            if run.get("state") in ENDED:
                return run
        time.sleep(PAUSE_S if pause_s is None else pause_s)


def stop_run(
    api: Api, run_id: str, *, pause_s: float | None = None, patience_s: float = STOPPING_S
) -> tuple[dict[str, Any], bool]:
    """Terminate a run and wait until it is over; its exit handler may be skipped.

    Returns:
        The run, and whether it was still going.

    Raises:
        ClusterError: There is none of that id, or it does not stop.
    """
    run = get_run(api, run_id)
    if run.get("state") in ENDED:
        return run, False
    try:
        api.post(f"runs/{_plain(run_id)}:terminate")
    except ClusterError:
        run = get_run(api, run_id)
        if run.get("state") in ENDED:  # by itself, meanwhile
            return run, False
        raise
    end = time.monotonic() + patience_s
    while run.get("state") not in ENDED:
        if time.monotonic() > end:
            raise ClusterError(
                f"run {run_id} was asked to stop, and is {run.get('state')} after "
                f"{patience_s:.0f} s; look at its pods, then stop it again"
            )
        time.sleep(min(2.0, PAUSE_S) if pause_s is None else pause_s)
        run = get_run(api, run_id)
    return run, True


def _plain(run_id: str) -> str:
    """Return an id that is a single part of a path."""
    if not run_id or not all(one.isalnum() or one in "-_." for one in run_id):
        raise ClusterError(f"{run_id!r} is no id of a run; `kubestill runs ls` lists them", 404)
    return run_id
