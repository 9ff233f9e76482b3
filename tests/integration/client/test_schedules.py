"""A schedule changes without killing what it has started, whatever fails on the way."""

import threading
from dataclasses import replace

import pytest

from kubestill.client import (
    Schedule,
    check_arguments,
    list_schedules,
    put_schedule,
    read_trigger,
    remove_schedule,
    set_paused,
)
from kubestill.errors import ClusterError, InvalidInput

DAILY = Schedule(
    name="daily",
    pipeline_id="p",
    version_id="v1",
    arguments={"who": "you", "hidden": [64, 64]},
    trigger=read_trigger("0 6 * * *", ""),
    experiment="daily",
)
WEEKLY = replace(DAILY, trigger=read_trigger("0 6 * * 1", ""))


def enabled(server) -> list[str]:
    table = server.recurring_runs.items()
    return [name for name, one in table if one["status"] == "ENABLED"]


def test_what_is_sent(server, api):
    put_schedule(api, DAILY)
    (sent,) = server.recurring_runs.values()
    assert sent["trigger"] == {"cron_schedule": {"cron": "0 0 6 * * *"}}
    assert sent["no_catchup"] is True
    assert sent["max_concurrency"] == "1"
    reference = {"pipeline_id": "p", "pipeline_version_id": "v1"}
    assert sent["pipeline_version_reference"] == reference
    assert sent["runtime_config"] == {"parameters": DAILY.arguments}


def test_always_latest_leaves_the_version_out(server, api):
    put_schedule(api, replace(DAILY, version_id=""))
    (sent,) = server.recurring_runs.values()
    assert sent["pipeline_version_reference"] == {"pipeline_id": "p"}


def test_setting_the_same_again_changes_nothing(server, api):
    first = put_schedule(api, DAILY)
    again = put_schedule(api, DAILY)
    assert (first.changed, again.changed) == (True, False)
    assert list(server.recurring_runs) == [first.recurring_run_id]


@pytest.mark.parametrize(
    "change",
    [
        {"trigger": read_trigger("", "6h")},
        {"version_id": "v2"},
        {"arguments": {"who": "me"}},
        {"service_account": "trainer"},
        {"experiment": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_replaces_it(server, api, change):
    first = put_schedule(api, DAILY)
    changed = put_schedule(api, replace(DAILY, **change))
    assert changed.changed
    assert list(server.recurring_runs) == [changed.recurring_run_id] != [first.recurring_run_id]


def test_a_service_account_that_is_dropped_is_a_change(server, api):
    put_schedule(api, replace(DAILY, service_account="trainer"))
    assert put_schedule(api, DAILY).changed
    (left,) = server.recurring_runs.values()
    assert left["service_account"] == "pipeline-runner"
    assert not put_schedule(api, DAILY).changed


def test_a_running_child_survives_the_change(server, api):
    first = put_schedule(api, DAILY)
    child = server.start_child(first.recurring_run_id)
    changed = put_schedule(api, WEEKLY)
    assert changed.kept == (child,)
    assert server.killed == []
    assert enabled(server) == [changed.recurring_run_id]
    # Once the child is over, the next change takes the old one away.
    server.runs[child]["state"] = "SUCCEEDED"
    assert put_schedule(api, WEEKLY).kept == ()
    assert list(server.recurring_runs) == [changed.recurring_run_id]
    assert server.killed == []


def test_a_change_may_wait_for_the_running_child(server, api):
    first = put_schedule(api, DAILY)
    child = server.start_child(first.recurring_run_id)
    timer = threading.Timer(0.3, lambda: server.runs[child].update(state="SUCCEEDED"))
    timer.start()
    lines: list[str] = []
    changed = put_schedule(api, WEEKLY, wait=True, pause_s=0.05, say=lines.append)
    timer.join()
    assert changed.kept == ()
    assert lines[0] == f"waiting for {child}"
    assert list(server.recurring_runs) == [changed.recurring_run_id]


def test_a_change_that_fails_leaves_the_old_one_on(server, api):
    first = put_schedule(api, DAILY)
    body = b'{"error": "no"}'
    server.answers.append(
        lambda request: (500, "application/json", body) if request == "POST recurringruns" else None
    )
    with pytest.raises(ClusterError):
        put_schedule(api, WEEKLY)
    assert enabled(server) == [first.recurring_run_id]


@pytest.mark.parametrize("stop_at", range(1, 12))
def test_a_change_cut_off_anywhere_is_mended_by_repeating_it(server, api, stop_at):
    first = put_schedule(api, DAILY)
    child = server.start_child(first.recurring_run_id)
    requests = 0

    def cut(request: str):
        nonlocal requests
        requests += 1
        return (401, "application/json", b"{}") if requests >= stop_at else None

    server.answers.append(cut)
    try:
        put_schedule(api, WEEKLY)
    except ClusterError:
        # At no moment do two fire.
        assert len(enabled(server)) <= 1
    server.answers.clear()
    changed = put_schedule(api, WEEKLY)
    assert enabled(server) == [changed.recurring_run_id]
    assert server.recurring_runs[changed.recurring_run_id]["trigger"] == WEEKLY.trigger.body
    assert server.killed == []
    assert server.runs[child]["state"] == "RUNNING"


def test_pause_resume_and_set_again(server, api):
    put_schedule(api, DAILY)
    set_paused(api, "daily", True)
    assert enabled(server) == []
    set_paused(api, "daily", False)
    assert len(enabled(server)) == 1
    put_schedule(api, replace(DAILY, paused=True))
    assert enabled(server) == []
    # To set is to say all of it: on, unless told otherwise.
    assert put_schedule(api, DAILY).changed
    assert len(enabled(server)) == 1


def test_resume_takes_the_newest_of_several(server, api):
    first = put_schedule(api, DAILY)
    server.start_child(first.recurring_run_id)
    second = put_schedule(api, WEEKLY)
    set_paused(api, "daily", True)
    set_paused(api, "daily", False)
    assert enabled(server) == [second.recurring_run_id]


def test_rm_stops_at_once_but_kills_nothing(server, api):
    first = put_schedule(api, DAILY)
    child = server.start_child(first.recurring_run_id)
    assert remove_schedule(api, "daily") == (child,)
    assert enabled(server) == []
    assert server.killed == []
    server.runs[child]["state"] = "FAILED"
    assert remove_schedule(api, "daily") == ()
    assert server.recurring_runs == {}


@pytest.mark.parametrize("act", [remove_schedule, lambda api, name: set_paused(api, name, True)])
def test_an_unknown_name_is_reported(api, act):
    with pytest.raises(InvalidInput, match="there is none"):
        act(api, "dayly")
    put_schedule(api, DAILY)
    with pytest.raises(InvalidInput, match="did you mean 'daily'"):
        act(api, "dayly")


def test_all_are_listed_over_several_pages(api):
    for number in range(5):
        put_schedule(api, replace(DAILY, name=f"s{number}"))
    assert [one["display_name"] for one in list_schedules(api)] == ["s4", "s3", "s2", "s1", "s0"]


def test_placeholders_are_refused():
    with pytest.raises(InvalidInput, match="placeholders") as error:
        check_arguments({"a": "[[ScheduledTime]]", "b": ["{{$.x}}"], "c": "plain"})
    assert [problem.field for problem in error.value.problems] == ["a", "b"]
