"""Runs on the cluster: started, followed to their end through outages, stopped, listed."""

import threading

import pytest

from kubestill.client import (
    Api,
    Connection,
    ensure_version,
    follow_run,
    get_run,
    list_runs,
    start_run,
    stop_run,
)
from kubestill.errors import ClusterError


@pytest.fixture
def run_id(api, package) -> str:
    version = ensure_version(api, package)
    return start_run(api, version, {"who": "you"}, name="a run", experiment="tests")


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


def test_a_run_is_shown_until_it_ends(server, api, run_id):
    server.start(run_id, lambda workflow: workflow.end("prepare"))
    shown: list[dict] = []
    run = follow_run(api, run_id, shown.append, pause_s=0.02)
    assert run["state"] == "SUCCEEDED"
    assert shown[-1] == run


def test_a_server_that_is_away_for_a_while_is_waited_for(server, api, run_id):
    server.runs[run_id]["state"] = "SUCCEEDED"
    server.answers.append(
        lambda request: (503, "text/plain", b"") if len(server.requests) < 15 else None
    )
    away: list[float] = []
    run = follow_run(api, run_id, lambda run: None, pause_s=0.01, away=away.append)
    assert run["state"] == "SUCCEEDED"
    assert away == sorted(away)
    assert away


@pytest.mark.parametrize(("status", "outage"), [(503, 0.1), (403, 60.0)], ids=["gone", "refused"])
def test_following_ends_where_waiting_is_no_use(server, api, run_id, status, outage):
    server.answers.append(lambda request: (status, "text/plain", b""))
    with pytest.raises(ClusterError) as error:
        follow_run(api, run_id, lambda run: None, pause_s=0.02, outage_s=outage)
    assert error.value.status == status


def test_a_token_that_is_renewed_in_its_file_is_read_again(server, run_id, tmp_path):
    file = tmp_path / "token"
    file.write_text("first\n")
    connection = Connection(host=server.host, token="first", sources={"token": str(file)})
    server.token = "first"
    api = Api(connection, pause_s=0)
    assert get_run(api, run_id)["run_id"] == run_id
    server.token = "second"
    with pytest.raises(ClusterError, match="(?s)bearer token of .*sign in") as error:
        get_run(api, run_id)
    assert error.value.status == 401
    file.write_text("second\n")
    assert get_run(api, run_id)["run_id"] == run_id
    assert api.connection.headers() == {"Authorization": "Bearer second"}


def test_a_run_that_is_gone_is_reported(server, api, run_id):
    api.delete(f"runs/{run_id}")
    for ask in (get_run, stop_run):
        with pytest.raises(ClusterError, match=f"{run_id} is not at .* deleted.*runs ls") as error:
            ask(api, run_id)
        assert error.value.status == 404


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a?b", "../x"])
def test_what_can_be_no_id_is_never_sent(server, api, name):
    with pytest.raises(ClusterError, match="is no id of a run"):
        get_run(api, name)
    assert server.requests == []


def test_a_run_that_is_stopped_is_over_afterwards(server, api, run_id):
    workflow = server.start(run_id, lambda workflow: workflow.stopped.wait(20))
    run, stopped = stop_run(api, run_id, pause_s=0.01)
    assert stopped
    assert run["state"] == "FAILED"
    words = [one["state"] for one in run["state_history"]]
    assert words == ["PENDING", "RUNNING", "CANCELING", "FAILED"]
    assert stop_run(api, run_id) == (get_run(api, run_id), False)
    assert workflow.record["state"] == "FAILED"


def test_a_run_that_does_not_stop_is_reported(server, api, run_id):
    done = threading.Event()
    server.start(run_id, lambda workflow: done.wait(20))
    with pytest.raises(ClusterError, match="is CANCELING after"):
        stop_run(api, run_id, pause_s=0.01, patience_s=0.05)
    done.set()
    server.wait(run_id)


def test_a_run_that_ends_before_it_is_stopped_keeps_its_end(server, api, run_id):
    server.runs[run_id]["state"] = "RUNNING"

    def finish_first(request: str):
        if request == f"POST runs/{run_id}:terminate":
            server.runs[run_id]["state"] = "SUCCEEDED"

    server.answers.append(finish_first)
    run, stopped = stop_run(api, run_id)
    assert (run["state"], stopped) == ("SUCCEEDED", False)


def test_the_newest_runs_are_listed_first(api, package, run_id):
    version = ensure_version(api, package)
    more = [start_run(api, version, {}, name=f"r{n}", experiment="tests") for n in range(4)]
    assert [run["run_id"] for run in list_runs(api, 3)] == more[:0:-1]
    assert len(list_runs(api, 100)) == 5
