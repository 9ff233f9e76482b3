"""The commands as a person types them, against a server that checks every request."""

import re

import pytest
from click.testing import CliRunner

from kubeflow import make_package
from kubestill.cli import main


@pytest.fixture
def command(server, tmp_path, monkeypatch):
    """Run `kubestill` in an empty folder that holds greet.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBESTILL_HOST", server.host)
    monkeypatch.setenv("KUBESTILL_CONFIG", str(tmp_path / "none"))
    (tmp_path / "none").write_text("")
    (tmp_path / "greet.yaml").write_text(make_package("hello").text)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == code, result.output
        return result.output

    return run


def test_upload_twice(server, command):
    assert "uploaded" in command("upload", "greet.yaml")
    assert "was there already" in command("upload", "greet.yaml")
    assert len(server.versions) == 1


def test_a_pipeline_of_ours_by_name_with_images(server, command):
    pinned = "registry.example/kubestill@sha256:" + "a" * 64
    command("upload", "distillation", "--image", pinned)
    (version,) = server.versions.values()
    root = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    assert root["image"]["defaultValue"] == root["gpu_image"]["defaultValue"] == pinned
    assert "kubernetes" in version["pipeline_spec"]["platform_spec"]["platforms"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "greet.yaml", "--remote", "-p", "whom=x"), "did you mean 'who'"),
        (("run", "greet.yaml", "--remote", "-p", "times=often"), "give a whole number"),
        (("schedule", "set", "greet.yaml", "--cron", "0 6 * *", "-p", "whom=x"), "2 problems"),
        (("schedule", "set", "greet.yaml", "--every", "1d", "-p", "who=[[x]]"), "placeholders"),
        (("run", "surrogate", "--remote", "-p", "device=cuda"), "no pod gets a GPU"),
        (("schedule", "set", "surrogate", "--every", "1d", "-p", "memory=x"), "4Gi"),
        (("upload", "greting"), "no such pipeline or file"),
        (("upload", "nothing.yaml"), "cannot be read"),
        (("upload", "none"), "no such pipeline"),
        (("upload", "greet.yaml", "--image", "x"), "compile it with that"),
    ],
)
def test_bad_input_is_reported_before_anything_is_sent(server, command, arguments, said):
    assert said in command(*arguments, code=1)
    assert server.requests == []


def test_a_token_over_plain_http_is_sent_with_a_warning(command, monkeypatch):
    # Nobody is there: the warning comes before anything is sent.
    monkeypatch.setenv("KUBESTILL_HOST", "http://nowhere.invalid")
    monkeypatch.setattr("kubestill.client.api.PAUSE_S", 0.0)
    output = command("runs", "ls", "--token", "hunter2-secret", code=1)
    assert output.startswith("WARNING: http://nowhere.invalid is plain http: anybody")
    assert "hunter2" not in output


def test_a_schedule_from_set_to_rm(server, command):
    set_it = ("schedule", "set", "greet.yaml", "--cron", "0 6 * * *", "--name", "g")
    output = command(*set_it, "--time-zone", "Europe/Berlin", "--latest")
    assert "g: set" in output
    assert "next run: " in output
    assert "clocks change by" in output
    assert "g: as it was" in command(*set_it, "--time-zone", "Europe/Berlin", "--latest")
    listed = command("schedule", "ls")
    assert re.search(
        r"^g +every day at 06:00 Europe/Berlin +latest of greet +enabled ", listed, re.M
    )
    command("schedule", "pause", "g")
    assert "disabled" in command("schedule", "ls")
    command("schedule", "resume", "g")
    child = server.start_child(next(iter(server.recurring_runs)))
    assert re.search(r" enabled +running \d{4}-", command("schedule", "ls"))
    assert child in command("schedule", "rm", "g")
    server.runs[child]["state"] = "SUCCEEDED"
    assert "g: removed" in command("schedule", "rm", "g")
    assert server.recurring_runs == {}


def test_two_schedules_of_one_name(server, command):
    set_it = ("schedule", "set", "greet.yaml", "--name", "g")
    command(*set_it, "--every", "2m")
    (first,) = server.recurring_runs.values()
    twin = first | {"recurring_run_id": "twin", "created_at": "2027-01-01T00:00:00Z"}
    server.recurring_runs["twin"] = twin
    assert "2 schedules are called g: " in command("schedule", "ls")
    assert "g: paused, all 2 of that name" in command("schedule", "pause", "g")
    assert "DISABLED" == first["status"] == twin["status"]
    assert "g: resumed, the newest of 2" in command("schedule", "resume", "g")
    assert (first["status"], twin["status"]) == ("DISABLED", "ENABLED")
    server.recurring_runs["third"] = twin | {"recurring_run_id": "third"}
    assert "in place of 3 schedules" in command(*set_it, "--every", "3h")
    (left,) = server.recurring_runs.values()
    assert "every 3 hours" in command("schedule", "ls")
    assert left["status"] == "ENABLED"


def test_a_schedule_of_a_version_that_is_gone(server, command):
    command("schedule", "set", "greet.yaml", "--every", "1d")
    gone = next(iter(server.versions))
    server.versions.clear()
    assert f"every day  {gone} (gone)" in command("schedule", "ls")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, "text/html", b"<html>"), "is no Kubeflow Pipelines of version 2"),
        ((200, "application/json", b'{"hello": "you"}'), "not as Kubeflow Pipelines does"),
        ((200, "application/json", b"[1]"), "does not answer as Kubeflow does"),
        ((200, "text/plain", b"hello"), "does not answer as Kubeflow does"),
        ((200, "text/html", b"<html>"), "or is no Kubeflow"),
    ],
)
@pytest.mark.parametrize("start", [("run", "--remote"), ("schedule", "set", "--every", "1d")])
def test_a_host_that_is_no_kubeflow_gets_nothing(server, command, start, answer, said):
    server.answers.append(lambda request: answer)
    assert said in command(*start, "greet.yaml", code=1)
    assert server.requests == ["GET healthz"]


def test_an_old_kubeflow_says_what_will_not_work(server, command):
    server.version = "2.14.3"
    output = command("run", "greet.yaml", "--remote", "--no-wait")
    assert "Kubeflow Pipelines 2.14.3 is older than 2.15: " in output
    assert "node_selector and tolerations may not reach the pods" in output
    assert len(server.runs) == 1


def test_a_missing_host_is_reported_with_its_remedy(command, monkeypatch):
    monkeypatch.delenv("KUBESTILL_HOST")
    assert "KUBESTILL_HOST" in command("upload", "greet.yaml", code=1)
