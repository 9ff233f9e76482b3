"""A schedule is set, fires, pauses, is replaced and goes; what it has started goes on."""

from __future__ import annotations

import time
from typing import Any

import pytest
from probes import Probes
from session import Cluster, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

EVERY_S = 60


@pytest.fixture(scope="module")
def name(cluster: Cluster) -> str:
    return f"{cluster.mark}-schedule"


def put(cluster: Cluster, name: str, word: str, *more: str) -> str:
    """Set the schedule to greet `word`; returns what was printed."""
    pipeline = Probes(cluster).greeting(word)
    place = ["--name", name, "--experiment", cluster.mark, "--pipeline-root", cluster.artifacts]
    done = cluster.kubestill(
        "schedule", "set", pipeline, "--every", f"{EVERY_S}s", "-p", f"who={word}", *place, *more
    )
    assert done.code == 0, done.out
    return done.out


def on_server(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    everything = cluster.every("recurringruns", "recurringRuns", **cluster.space)
    return [one for one in everything if one["display_name"] == name]


def fired(cluster: Cluster, schedule: dict[str, Any]) -> list[dict[str, Any]]:
    return cluster.runs(recurring_run_id=schedule["recurring_run_id"])


def test_it_is_set_once_however_often_one_sets_it(cluster: Cluster, name: str) -> None:
    assert ": set" in put(cluster, name, "world")
    assert "as it was" in put(cluster, name, "world")
    (schedule,) = on_server(cluster, name)
    assert schedule["status"] == "ENABLED"
    assert schedule["trigger"]["periodic_schedule"]["interval_second"] == str(EVERY_S)
    assert schedule["no_catchup"] is True
    assert str(schedule["max_concurrency"]) == "1"
    assert schedule["runtime_config"]["parameters"] == {"who": "world"}
    listed = cluster.kubestill("schedule", "ls").out
    (line,) = (line for line in listed.splitlines() if name in line)
    assert "enabled" in line


def test_it_fires_and_its_run_succeeds(cluster: Cluster, name: str) -> None:
    (schedule,) = on_server(cluster, name)
    run = wait_for(lambda: next(iter(fired(cluster, schedule)), None), "the schedule to fire", 240)
    assert run["recurring_run_id"] == schedule["recurring_run_id"]
    assert cluster.wait_for_end(run["run_id"]) == "SUCCEEDED"
    assert run["runtime_config"]["parameters"] == {"who": "world"}


def test_paused_it_fires_no_more(cluster: Cluster, name: str) -> None:
    done = cluster.kubestill("schedule", "pause", name)
    assert done.code == 0, done.out
    (schedule,) = on_server(cluster, name)
    assert schedule["status"] == "DISABLED"
    for run in fired(cluster, schedule):
        cluster.wait_for_end(run["run_id"])
    before = len(fired(cluster, schedule))
    time.sleep(1.25 * EVERY_S / cluster.speed)
    assert len(fired(cluster, schedule)) == before
    assert "as it was" in put(cluster, name, "world", "--paused")


def test_another_setting_replaces_it(cluster: Cluster, name: str) -> None:
    (before,) = on_server(cluster, name)
    assert ": set" in put(cluster, name, "moon", "--wait")
    (after,) = on_server(cluster, name)
    assert after["recurring_run_id"] != before["recurring_run_id"]
    assert after["status"] == "ENABLED"
    assert after["runtime_config"]["parameters"] == {"who": "moon"}
    run = wait_for(lambda: next(iter(fired(cluster, after)), None), "the new one to fire", 240)
    assert cluster.wait_for_end(run["run_id"]) == "SUCCEEDED"
    version = run["pipeline_version_reference"]["pipeline_version_id"]
    assert version == after["pipeline_version_reference"]["pipeline_version_id"]
    assert version != before["pipeline_version_reference"]["pipeline_version_id"]


def test_removed_it_is_gone_and_kills_nothing(cluster: Cluster, name: str) -> None:
    (schedule,) = on_server(cluster, name)
    done = cluster.kubestill("schedule", "rm", name, "--wait")
    assert done.code == 0, done.out
    assert on_server(cluster, name) == []
    assert {cluster.state(run["run_id"]) for run in fired(cluster, schedule)} == {"SUCCEEDED"}
