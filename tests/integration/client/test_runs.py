"""Runs on the cluster: followed to their end, through outages, with an exit code."""

import threading
import time

import pytest

from kubestill.client import ensure_version, failures, follow_run, start_run
from kubestill.errors import ClusterError


def task(name: str, state: str, message: str = "") -> dict:
    error = {"error": {"code": 13, "message": message}} if message else {}
    return {"task_id": name, "display_name": name, "state": state} | error


@pytest.fixture
def run_id(api, package) -> str:
    version = ensure_version(api, package)
    return start_run(api, version, {"who": "you"}, name="a run", experiment="tests")


def set_run(server, run_id: str, state: str, *tasks: dict) -> None:
    server.runs[run_id] |= {"state": state, "run_details": {"task_details": list(tasks)}}


def test_what_is_sent(server, run_id):
    sent = server.runs[run_id]
    (version,) = server.versions.values()
    assert sent["runtime_config"] == {"parameters": {"who": "you"}}
    assert sent["pipeline_version_reference"] == {
        "pipeline_id": version["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    assert server.experiments[sent["experiment_id"]]["display_name"] == "tests"


def test_an_experiment_is_made_once(server, api, package, run_id):
    version = ensure_version(api, package)
    start_run(api, version, {}, name="another", experiment="tests")
    start_run(api, version, {}, name="elsewhere", experiment="others")
    names = sorted(one["display_name"] for one in server.experiments.values())
    assert names == ["others", "tests"]


def test_each_change_of_a_task_shows_once_and_drivers_never(server, api, run_id):
    steps = [
        ("RUNNING", [task("root", "RUNNING"), task("train-driver", "SUCCEEDED")]),
        ("RUNNING", [task("train", "RUNNING")]),
        ("SUCCEEDED", [task("train", "SUCCEEDED"), task("report", "SKIPPED")]),
    ]

    def play() -> None:
        for state, tasks in steps:
            set_run(server, run_id, state, *tasks)
            time.sleep(0.15)

    thread = threading.Thread(target=play)
    thread.start()
    shown: list[tuple[str, str]] = []
    run = follow_run(api, run_id, lambda *change: shown.append(change), pause_s=0.02)
    thread.join()
    assert run["state"] == "SUCCEEDED"
    assert shown == [("train", "RUNNING"), ("train", "SUCCEEDED"), ("report", "SKIPPED")]


def test_a_server_that_is_away_for_a_while_is_waited_for(server, api, run_id):
    set_run(server, run_id, "SUCCEEDED")
    server.answers.append(
        lambda request: (503, "text/plain", b"") if len(server.requests) < 15 else None
    )
    assert follow_run(api, run_id, lambda *_: None, pause_s=0.01)["state"] == "SUCCEEDED"


@pytest.mark.parametrize(("status", "outage"), [(503, 0.1), (403, 60.0)], ids=["gone", "refused"])
def test_following_ends_where_waiting_is_no_use(server, api, run_id, status, outage):
    server.answers.append(lambda request: (status, "text/plain", b""))
    with pytest.raises(ClusterError) as error:
        follow_run(api, run_id, lambda *_: None, pause_s=0.02, outage_s=outage)
    assert error.value.status == status


def test_a_failure_names_its_task(server, api, run_id):
    set_run(server, run_id, "FAILED", task("train", "FAILED", "OOMKilled"), task("x", "SUCCEEDED"))
    run = follow_run(api, run_id, lambda *_: None, pause_s=0.01)
    assert failures(run) == ["train failed: OOMKilled"]
    set_run(server, run_id, "CANCELED")
    assert failures(server.runs[run_id]) == ["the run ended as CANCELED"]
