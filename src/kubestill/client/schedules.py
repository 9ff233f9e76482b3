"""Recurring runs: one schedule a name, changed without killing the run that it has started.

Kubeflow cannot update a recurring run (kubeflow/pipelines#3789), and deleting one kills its running
children (#7421). So a change disables the old one, creates the new one, and deletes the old one
only once none of its runs is going. What is left disabled meanwhile goes with the next change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kubestill.client.api import Api
from kubestill.client.progress import ENDED
from kubestill.client.runs import ensure_experiment, newest_runs, runtime_config
from kubestill.client.triggers import Trigger
from kubestill.errors import ClusterError, InvalidInput, Problem, Problems, nearest

_COMPARED = ("pipeline_version_reference", "runtime_config", "trigger")
_DEFAULT_ACCOUNTS = ("", "pipeline-runner", "default-editor")
"""What a server makes of no service account; stock ones differ with and without several users."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a user sets of a schedule; everything else follows."""

    name: str
    pipeline_id: str
    version_id: str
    """Empty for whichever version is the latest when it fires."""
    arguments: dict[str, Any]
    trigger: Trigger
    experiment: str
    service_account: str = ""
    pipeline_root: str = ""
    paused: bool = False

    def body(self, experiment_id: str, namespace: str) -> dict[str, Any]:
        """Build the API's recurring run: one run at a time, and no backfill of missed ones."""
        reference = {"pipeline_id": self.pipeline_id}
        if self.version_id:
            reference["pipeline_version_id"] = self.version_id
        optional = {
            "service_account": self.service_account,
            "namespace": namespace,
            "description": self.trigger.given,
        }
        return {
            "display_name": self.name,
            "experiment_id": experiment_id,
            "pipeline_version_reference": reference,
            "runtime_config": runtime_config(self.arguments, self.pipeline_root),
            "trigger": self.trigger.body,
            "max_concurrency": "1",
            "no_catchup": True,
            "mode": "DISABLE" if self.paused else "ENABLE",
        } | {name: value for name, value in optional.items() if value}


@dataclass(frozen=True, kw_only=True)
class Change:
    """The result of changing a schedule."""

    recurring_run_id: str
    changed: bool
    replaced: int = 0
    """Number of other schedules of that name that it replaced."""
    kept: tuple[str, ...] = ()
    """Run ids that still go on, under a schedule that is disabled and no longer used."""


def put_schedule(
    api: Api,
    schedule: Schedule,
    *,
    wait: bool = False,
    pause_s: float = 10.0,
    say: Callable[[str], None] = lambda line: None,
) -> Change:
    """Have exactly this schedule, whatever is there under its name.

    Args:
        api: The server.
        schedule: What shall be.
        wait: Wait for the runs of the schedule that it replaces, then delete that one.
        pause_s: Seconds between two looks at those runs.
        say: Gets a line of progress.
    """
    experiment_id = ensure_experiment(api, schedule.experiment)
    wanted = schedule.body(experiment_id, api.connection.namespace)
    there = find_schedules(api, schedule.name)
    same = next((one for one in there if _says(one, wanted)), None)
    old = [one for one in there if one is not same]
    on = [one for one in old if _enabled(one)]
    for one in on:
        _act(api, one, "disable")
    if same is None:
        try:
            current = api.post("recurringruns", wanted)
        except ClusterError:
            for one in on:
                _act(api, one, "enable")
            raise
    else:
        current = same
        if _enabled(same) == schedule.paused:
            _act(api, same, "disable" if schedule.paused else "enable")
    kept = _dispose(api, old, wait=wait, pause_s=pause_s, say=say)
    changed = same is None or bool(on) or _enabled(same) == schedule.paused
    return Change(
        recurring_run_id=current["recurring_run_id"],
        changed=changed,
        replaced=len(old),
        kept=kept,
    )


def set_paused(api: Api, name: str, paused: bool) -> int:
    """Pause or resume a schedule; a run that it has started goes on.

    Of several that share the name, all are paused, and the newest alone is resumed.

    Returns:
        How many share the name.

    Raises:
        InvalidInput: There is no such schedule.
    """
    newest, *older = _existing(api, name)
    for one in older if not paused else [newest, *older]:
        if _enabled(one):
            _act(api, one, "disable")
    if not paused and not _enabled(newest):
        _act(api, newest, "enable")
    return 1 + len(older)


def remove_schedule(
    api: Api,
    name: str,
    *,
    wait: bool = False,
    pause_s: float = 10.0,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[str, ...]:
    """Stop a schedule at once, and delete it once none of its runs is going.

    Returns:
        Ids of runs that still go on; where there are any, it is left disabled.

    Raises:
        InvalidInput: There is no such schedule.
    """
    found = _existing(api, name)
    for one in found:
        if _enabled(one):
            _act(api, one, "disable")
    return _dispose(api, found, wait=wait, pause_s=pause_s, say=say)


def list_schedules(api: Api) -> list[dict[str, Any]]:
    """List every recurring run of the namespace, newest first."""
    found = api.pages("recurringruns", "recurringRuns", namespace=api.connection.namespace)
    return sorted(found, key=lambda one: one.get("created_at", ""), reverse=True)


def name_versions(api: Api, schedules: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the names of the versions that schedules run, by their ids.

    A schedule that runs the latest version has the id of its pipeline instead.
    """
    names: dict[str, str] = {}
    for one in schedules:
        reference = one.get("pipeline_version_reference") or {}
        pipeline = reference.get("pipeline_id") or ""
        version = reference.get("pipeline_version_id") or ""
        key = version or pipeline
        if not key or key in names:
            continue
        path = f"pipelines/{pipeline}" + (f"/versions/{version}" if version else "")
        try:
            found = api.get(path)
        except ClusterError as error:
            if error.status != 404:
                raise
            names[key] = f"{key} (gone)"
        else:
            name = str(found.get("name") or found.get("display_name") or key)
            names[key] = name if version else f"latest of {name}"
    return names


def last_runs(api: Api, most: int = 100) -> dict[str, dict[str, Any]]:
    """Return the newest run of each schedule, by the schedule's id, among the newest of all."""
    found: dict[str, dict[str, Any]] = {}
    for run in islice(newest_runs(api), most):
        found.setdefault(str(run.get("recurring_run_id") or ""), run)
    return found


def find_schedules(api: Api, name: str) -> list[dict[str, Any]]:
    """List the recurring runs of that name, newest first: Kubeflow lets several share one."""
    return [one for one in list_schedules(api) if one["display_name"] == name]


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse placeholders: some versions hand them on as they are (kubeflow/pipelines#12494).

    Raises:
        InvalidInput: With every argument that holds one.
    """
    problems = Problems()
    for name, value in arguments.items():
        if any(mark in str(value) for mark in ("[[", "{{$")):
            problems.add(
                name, value, "some Kubeflow versions do not fill in placeholders; give a value"
            )
    problems.raise_if_any()


def _existing(api: Api, name: str) -> list[dict[str, Any]]:
    everything = list_schedules(api)
    found = [one for one in everything if one["display_name"] == name]
    if not found:
        known = nearest(name, {one["display_name"] for one in everything}) if everything else ""
        raise InvalidInput([Problem("NAME", name, f"no such schedule; {known or 'there is none'}")])
    return found


def _says(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Return whether a recurring run on the server is as wanted, apart from being on or off."""
    if there.get("experiment_id", wanted["experiment_id"]) != wanted["experiment_id"]:
        return False
    account = wanted.get("service_account")
    if there.get("service_account", "") not in ([account] if account else _DEFAULT_ACCOUNTS):
        return False
    fixed = there.get("no_catchup") is True and str(there.get("max_concurrency")) == "1"
    return fixed and all(_plain(there.get(name)) == _plain(wanted.get(name)) for name in _COMPARED)


def _plain(value: Any) -> Any:
    """Leave out the empty fields and start times that servers fill in."""
    if isinstance(value, dict):
        parts = {name: _plain(part) for name, part in value.items() if name != "start_time"}
        return {name: part for name, part in parts.items() if part not in (None, "", {})}
    return value or None


def _enabled(one: dict[str, Any]) -> bool:
    return one.get("status") == "ENABLED" or (
        one.get("status") is None and one.get("mode") == "ENABLE"
    )


def _act(api: Api, one: dict[str, Any], action: str) -> None:
    api.post(f"recurringruns/{one['recurring_run_id']}:{action}")


def _dispose(
    api: Api,
    schedules: list[dict[str, Any]],
    *,
    wait: bool,
    pause_s: float,
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """Delete disabled schedules of which no run is going; returns the runs that are."""
    kept: list[str] = []
    for one in schedules:
        going = _going(api, one)
        while going and wait:
            say(f"waiting for {', '.join(going)}")
            time.sleep(pause_s)
            going = _going(api, one)
        if going:
            kept += going
        else:
            api.delete(f"recurringruns/{one['recurring_run_id']}")
    return tuple(kept)


def _going(api: Api, one: dict[str, Any]) -> list[str]:
    query = {"experiment_id": one["experiment_id"]} if one.get("experiment_id") else {}
    if not query:
        query = {"namespace": api.connection.namespace}
    return [
        run["run_id"]
        for run in api.pages("runs", "runs", sort_by="created_at desc", **query)
        if run.get("recurring_run_id") == one["recurring_run_id"] and run.get("state") not in ENDED
    ]
