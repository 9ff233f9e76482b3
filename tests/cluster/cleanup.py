"""Remove what a test session has made: schedules, runs, versions, pipelines and objects."""

from __future__ import annotations

from contextlib import suppress

from session import ENDED, Cluster, wait_for

from kubestill.errors import KubestillError


def existing_versions(cluster: Cluster) -> frozenset[str]:
    """List the versions of pipelines that somebody else has put there."""
    pipelines = [
        one["pipeline_id"] for one in cluster.every("pipelines", "pipelines", **cluster.space)
    ]
    return frozenset(
        version["pipeline_version_id"]
        for pipeline in pipelines
        for version in cluster.every(f"pipelines/{pipeline}/versions", "pipeline_versions")
    ) | frozenset(pipelines)


def clean(cluster: Cluster, before: frozenset[str]) -> list[str]:
    """Remove everything of this session; returns what could not be removed.

    Args:
        cluster: Where.
        before: Ids of pipelines and versions that were there before it.
    """
    schedules = [
        one
        for one in cluster.every("recurringruns", "recurringRuns", **cluster.space)
        if one["display_name"].startswith(cluster.mark)
    ]
    runs = cluster.runs()
    used = {
        (reference["pipeline_id"], reference.get("pipeline_version_id", ""))
        for one in [*runs, *schedules]
        if (reference := one.get("pipeline_version_reference"))
    }
    paths = [f"recurringruns/{one['recurring_run_id']}" for one in schedules]
    for run in runs:
        if run.get("state") not in ENDED:
            cluster.ask("POST", f"v2beta1/runs/{run['run_id']}:terminate")
    for run in runs:
        with suppress(AssertionError):  # it is among what is left, then
            wait_for(lambda run=run: cluster.state(run["run_id"]) in ENDED, "a run to stop", 120)
    paths += [f"runs/{run['run_id']}" for run in runs]
    paths += _experiments(cluster)
    paths += _uploads(cluster, {pipeline for pipeline, _ in used}, before)
    left = [path for path in paths if cluster.ask("DELETE", f"v2beta1/{path}").status_code != 200]
    return left + _objects(cluster)


def _experiments(cluster: Cluster) -> list[str]:
    return [
        f"experiments/{one['experiment_id']}"
        for one in cluster.every("experiments", "experiments", **cluster.space)
        if one["display_name"].startswith(cluster.mark)
    ]


def _uploads(cluster: Cluster, used: set[str], before: frozenset[str]) -> list[str]:
    """List versions that came during the session, in pipelines that it used or made."""
    paths: list[str] = []
    for pipeline in cluster.every("pipelines", "pipelines", **cluster.space):
        own = pipeline["display_name"].startswith(cluster.mark)
        if not own and pipeline["pipeline_id"] not in used:
            continue
        where = f"pipelines/{pipeline['pipeline_id']}"
        versions = [
            version["pipeline_version_id"]
            for version in cluster.every(f"{where}/versions", "pipeline_versions")
        ]
        paths += [f"{where}/versions/{one}" for one in versions if one not in before]
        if pipeline["pipeline_id"] not in before and not before.intersection(versions):
            paths.append(where)
    return paths


def _objects(cluster: Cluster) -> list[str]:
    """Empty the session's part of the store, as far as this machine may."""
    try:
        store = cluster.store()
        for entry in list(store.list()):
            store.delete(entry.key)
    except KubestillError as error:
        return [f"{cluster.root}: {error}"]
    return []
