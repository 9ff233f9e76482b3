"""The commands as a person types them, against a server that checks every request."""

import threading
import time

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
def test_bad_input_is_told_before_anything_is_sent(server, command, arguments, said):
    assert said in command(*arguments, code=1)
    assert server.requests == []


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_a_remote_run_ends_with_its_own_exit_code(server, command, monkeypatch, state, code):
    def finish() -> None:
        while not server.runs:
            time.sleep(0.01)
        tasks = [{"task_id": "t", "display_name": "greet", "state": state}]
        next(iter(server.runs.values())).update(state=state, run_details={"task_details": tasks})

    thread = threading.Thread(target=finish)
    thread.start()
    monkeypatch.setattr("kubestill.client.runs.PAUSE_S", 0.05)
    output = command("run", "greet.yaml", "--remote", "-p", "times=3", code=code)
    thread.join()
    (run,) = server.runs.values()
    assert run["runtime_config"]["parameters"] == {"times": 3}
    assert "greet" in output
    assert ("run id-" in output) is True


def test_a_schedule_from_set_to_rm(server, command):
    set_it = ("schedule", "set", "greet.yaml", "--cron", "0 6 * * *", "--name", "g")
    output = command(*set_it, "--time-zone", "Europe/Berlin", "--latest")
    assert "g: set" in output
    assert "next run: " in output
    assert "clocks change by" in output
    assert "g: as it was" in command(*set_it, "--time-zone", "Europe/Berlin", "--latest")
    listed = command("schedule", "ls")
    assert " latest " in listed
    assert "enabled" in listed
    command("schedule", "pause", "g")
    assert "disabled" in command("schedule", "ls")
    command("schedule", "resume", "g")
    child = server.start_child(next(iter(server.recurring_runs)))
    assert child in command("schedule", "rm", "g")
    server.runs[child]["state"] = "SUCCEEDED"
    assert "g: removed" in command("schedule", "rm", "g")
    assert server.recurring_runs == {}


def test_without_a_host_the_remedy_is_told(command, monkeypatch):
    monkeypatch.delenv("KUBESTILL_HOST")
    assert "KUBESTILL_HOST" in command("upload", "greet.yaml", code=1)
