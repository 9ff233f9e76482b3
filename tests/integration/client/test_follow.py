"""What a person sees of a run on the cluster: while it goes on, at its end, and when they leave."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kubeflow import Kubeflow, make_package
from kubeflow_runs import Workflow
from kubestill.cli import main
from kubestill.runtime.retraining import open_registry, transitions
from kubestill.runtime.retraining.state import Claim, Window
from screen import open_terminal

ROOT = "mlpipeline/v2/artifacts/greet"
TRACEBACK = b"""time="2026-11-27T23:38:40Z" level=info msg="capturing logs"
I1127 23:38:41.000000       1 launcher.go:100] starting
[KFP Executor 2026-11-27 23:38:42] nothing that a person reads
Traceback (most recent call last):
  File "/usr/lib/python3.11/site-packages/kubestill/step.py", line 40, in execute
    run()
kubestill.errors.InvalidInput: 1 problem with the input:
  - target = 'x': no such column
"""


@pytest.fixture
def command(server, tmp_path, monkeypatch) -> Callable[..., str]:
    """Run `kubestill` in an empty folder that holds greet.yaml, where no kube config is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBESTILL_HOST", server.host)
    place = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(place, str(tmp_path / "none"))
    monkeypatch.setattr("kubestill.client.runs.PAUSE_S", 0.05)
    (tmp_path / "greet.yaml").write_text(make_package("hello").text)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == code, result.output
        return result.output

    return run


REMOTE = ("run", "greet.yaml", "--remote")


def store(server: Kubeflow, workflow: Workflow, files: dict[str, bytes]) -> None:
    run = workflow.record["run_id"]
    server.objects |= {f"{ROOT}/{run}/{name}": content for name, content in files.items()}


def play_all(server: Kubeflow, *, watched: bool = True) -> Callable[[Workflow], None]:
    """Play a run of which whoever watches it sees each state."""

    def look(workflow: Workflow) -> None:
        question = f"GET runs/{workflow.record['run_id']}"
        asked = server.requests.count(question)
        wait_until(lambda: not watched or server.requests.count(question) >= asked + 2)

    def play(workflow: Workflow) -> None:
        for key, *iterations in (("prepare",), ("label", 0), ("label", 1), ("label", 2)):
            workflow.start(key, *iterations)
            if key == "label":
                workflow.count("for-loop-1", 3)
            look(workflow)
            workflow.end(key, *iterations)
        workflow.start("train")
        look(workflow)
        workflow.fail_attempt("train")
        workflow.start("train", attempt=1)
        look(workflow)
        workflow.end("train", attempt=1)
        workflow.skip("condition-2")
        workflow.end("judge-2")

    return play


def told(output: str) -> list[str]:
    """Return the lines that tell of steps, without times."""
    lines = re.findall(r"^ +\d+:\d\d  (.*)$", output, re.MULTILINE)
    return [re.sub(r"  \d+ s$", "", line) for line in lines]


def test_each_step_shows_once_with_its_shards_and_attempts(server, command):
    server.executor = play_all(server)
    assert told(command(*REMOTE)) == [
        "▸ prepare",
        "✓ prepare",
        "▸ label",
        "✓ label 3/3",
        "▸ train",
        "▸ train, attempt 2",
        "✓ train, 2 attempts",
        "✓ judge",
    ]


@pytest.mark.parametrize(
    "start", [(*REMOTE, "-v"), ("runs", "follow", "-v")], ids=["remote", "follow"]
)
def test_verbose_shows_every_shard(server, command, start):
    server.executor = play_all(server)
    if start[0] == "runs":
        command(*REMOTE, "--no-wait")
        start = (*start, next(iter(server.runs)))
    lines = [re.sub(r"  [\d.]+/s  \d+ s left$", "", line) for line in told(command(*start))]
    assert [line for line in lines if "label" in line and "0/" not in line] == [
        "▸ label",
        "    label: 1/3",
        "    label: 2/3",
        "✓ label 3/3",
    ]


SETTINGS = "\n| name | value |\n| --- | --- |\n" + "| rows | 1 |\n" * 17
OUTPUTS = {
    "train/u-1/model/model.json": b"{}",
    "train/u-1/model/weights.safetensors": b"\0" * 20,
    "train/u-1/report": b"<html>of train</html>",
    "judge-2/u-2/report": b"<html>of judge</html>",
    "judge-2/u-2/summary": b"# Scores\n\n0.93 \x1b]0;evil\x07\x1b[31mred\x1b[0m\n"
    + SETTINGS.encode(),
}


@pytest.mark.parametrize("way", ["ui", "store"])
def test_the_end_has_scores_reports_and_the_model(server, command, tmp_path, way):
    def play(workflow: Workflow) -> None:
        run = workflow.record["run_id"]
        if way == "ui":
            store(server, workflow, OUTPUTS)
        else:
            for name, content in OUTPUTS.items():
                path = tmp_path / "store" / "greet" / run / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        workflow.end("train")
        workflow.end("judge-2")

    server.executor = play
    root = ("--pipeline-root", str(tmp_path / "store")) if way == "store" else ()
    output = command(*REMOTE, *root)
    folder = f"runs/greet/{next(iter(server.runs))}"
    assert "# Scores\n\n0.93 red\n" in output
    assert f"all reports: {folder}/reports\nreport: {folder}/reports/judge.html\n" in output
    assert f"\n(17 rows of name, value: {folder}/summary.md)\n" in output
    assert f"model of train: {folder}/model (" in output
    assert Path(folder, "reports", "train.html").read_bytes() == OUTPUTS["train/u-1/report"]
    assert Path(folder, "model", "weights.safetensors").stat().st_size == 20
    assert output.splitlines()[-1].startswith(f"run {next(iter(server.runs))} succeeded")


def test_the_ui_reads_from_google_by_wildcards(server, command, monkeypatch):
    def play(workflow: Workflow) -> None:
        run = workflow.record["run_id"]
        server.objects |= {f"b/greet/{run}/{name}": content for name, content in OUTPUTS.items()}
        workflow.end("train")
        workflow.end("judge-2")

    server.executor = play
    # Nobody answers there: without it, Google's own servers would be asked.
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr("kubestill.client.files._DEADLINE_S", 0.5)
    output = command(*REMOTE, "--pipeline-root", "gs://b")
    assert "0.93 red" in output
    assert "report: runs/greet/" in output


def test_the_place_of_results_that_cannot_be_read_is_reported(server, command):
    server.has_ui = False
    server.executor = lambda workflow: workflow.end("train")
    output = command(*REMOTE)
    run = next(iter(server.runs))
    assert f"everything of this run: minio://{ROOT}/{run}/" in output
    assert f"its model: minio://{ROOT}/{run}/train/…/model" in output
    assert "0 s\n\nIts outputs cannot be read from here: " in output


def fail_with(**how: Any) -> Callable[[Workflow], None]:
    def play(workflow: Workflow) -> None:
        workflow.end("prepare")
        workflow.end("train", state="FAILED", **how)
        workflow.omit("judge-2")
        raise RuntimeError("train failed")

    return play


def test_a_failure_has_the_step_its_last_message_and_its_log(server, command):
    server.executor = fail_with(log=TRACEBACK)
    output = command(*REMOTE, code=1)
    log = f"runs/greet/{next(iter(server.runs))}/logs/train.log"
    assert output.endswith(
        "Error: train failed: InvalidInput: 1 problem with the input:\n"
        f"  - target = 'x': no such column\n\nIts whole output: {log}\n"
    )
    assert Path(log).read_bytes() == TRACEBACK


def test_a_log_without_a_traceback_gives_its_last_lines(server, command):
    server.executor = fail_with(log=b"I1127 23:38:41.0 1 x.go] y\none\ntwo\x1b[2J\nthree\nfour\n\n")
    assert "train failed: two\nthree\nfour\n\n" in command(*REMOTE, code=1)


def test_the_steps_own_record_comes_before_its_log(server, command):
    record = {"task": "train", "error": "Diverged", "message": "loss is nan", "at": "2026"}

    def play(workflow: Workflow) -> None:
        store(server, workflow, {"failures/train-1.json": json.dumps(record).encode()})
        fail_with(log=TRACEBACK)(workflow)

    server.executor = play
    assert "train failed: Diverged: loss is nan\n\nIts whole output: runs/" in command(
        *REMOTE, code=1
    )


def test_a_record_shows_a_step_that_the_list_lacks(server, command):
    """The list stood still before it failed."""
    record = {"task": "judge-2", "error": "Refused", "message": "too bad"}

    def play(workflow: Workflow) -> None:
        store(server, workflow, {"failures/judge.json": json.dumps(record).encode()})
        workflow.end("prepare")
        workflow.stand_still()
        workflow.end("judge-2", state="FAILED")
        raise RuntimeError

    server.executor = play
    output = command(*REMOTE, code=1)
    assert "list of tasks stands still" in output
    assert "it shows 1 of 5 steps as over" in output
    assert "judge failed: Refused: too bad" in output


def test_a_pod_that_is_gone_leaves_its_log_in_the_store(server, command):
    def play(workflow: Workflow) -> None:
        store(server, workflow, {"train/u/executor-logs-0": TRACEBACK})
        fail_with()(workflow)

    server.executor = play
    assert "train failed: InvalidInput: 1 problem" in command(*REMOTE, code=1)


def test_a_log_that_is_gone_everywhere_is_reported(server, command):
    server.executor = fail_with()
    output = command(*REMOTE, code=1)
    assert "train failed; it left no message" in output
    assert "gone with its pod, unless Kubeflow kept minio://" in output


def test_the_list_stands_still_and_the_run_succeeds(server, command):
    def play(workflow: Workflow) -> None:
        workflow.end("prepare")
        workflow.stand_still()
        store(server, workflow, OUTPUTS)
        workflow.end("train")
        workflow.end("judge-2")

    server.executor = play
    output = command(*REMOTE)
    assert "it shows 1 of 5 steps as over, although the run has ended" in output
    assert "0.93 red" in output


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("SKIPPED", "was skipped: none of its steps ran"),
        ("CANCELED", "was stopped by hand"),
        ("FAILED", "ended as FAILED; none of its steps left a message"),
    ],
)
def test_only_a_run_that_succeeded_is_called_so(server, command, state, said):
    server.executor = lambda workflow: workflow.move(state)
    output = command(*REMOTE, code=1)
    assert said in output
    assert "succeeded" not in output


def test_a_stopped_run_is_reported(server, command):
    def play(workflow: Workflow) -> None:
        workflow.start("train")
        server.terminate(workflow.record)

    server.executor = play
    output = command(*REMOTE, code=1)
    assert f"run {next(iter(server.runs))} was stopped by hand" in output


def test_a_login_that_expires_says_that_the_run_goes_on(server, command, tmp_path):
    (tmp_path / "token").write_text("old")
    server.token = "old"

    def play(workflow: Workflow) -> None:
        server.token = "new"
        workflow.stopped.wait(10)

    server.executor = play
    output = command(*REMOTE, "--token", "old", code=1)
    run = next(iter(server.runs))
    assert "signed in with bearer token: Failed: Unauthorized\nsign in: " in output
    assert f"run {run} goes on\n  follow it:  kubestill runs follow {run}\n" in output
    assert f"  stop it:    kubestill runs stop {run}\n" in output
    assert "old" not in output
    server.workflows[run].stopped.set()


def test_a_token_file_is_read_again_when_it_expires(server, command, tmp_path):
    file = tmp_path / "token"
    file.write_text("old")
    server.token = "old"

    def play(workflow: Workflow) -> None:
        file.write_text("new\n")
        server.token = "new"
        time.sleep(0.2)
        workflow.end("prepare")

    server.executor = play
    assert "✓ prepare" in command(*REMOTE, "--token", f"@{file}")


def test_a_run_that_is_deleted_while_it_is_followed_is_reported(server, command):
    server.executor = lambda workflow: server.runs.pop(workflow.record["run_id"])
    output = command(*REMOTE, code=1)
    assert "it was deleted" in output
    assert "goes on" not in output


def test_a_name_from_a_server_does_nothing_to_the_terminal(server, command):
    evil = "\x1b[2J\x1b]52;c;aGk=\x07\u202etrain\x9b1m\r"
    entry = {"task_id": "t", "display_name": evil, "state": "FAILED", "state_history": []}
    server.runs["r-1"] = {
        "run_id": "r-1",
        "display_name": evil,
        "state": "FAILED",
        "created_at": "2026-01-01T00:00:00Z",
        "error": {"message": evil},
        "run_details": {"task_details": [entry]},
    }
    output = command("runs", "ls") + command("runs", "show", "r-1")
    output += command("runs", "follow", "r-1", code=1)
    assert "train" in output
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output)


def test_follow_shows_what_was_before(server, command):
    server.executor = lambda workflow: workflow.end("prepare")
    command(*REMOTE, "--no-wait")
    run = next(iter(server.runs))
    server.wait(run)
    assert told(command("runs", "follow", run)) == ["✓ prepare"]


def test_ls_show_why_and_open(server, command, monkeypatch):
    monkeypatch.setenv("BROWSER", "true")
    server.executor = fail_with(log=TRACEBACK)
    command(*REMOTE, "--no-wait")
    server.executor = play_all(server, watched=False)
    command(*REMOTE, "--no-wait")
    for run in server.runs:
        server.wait(run)
    failed, good = server.runs
    lines = command("runs", "ls").splitlines()
    assert [line.split()[0] for line in lines] == ["run", good, failed]
    assert " failed " in lines[2]
    shown = command("runs", "show", good)
    assert re.search(r"^label +succeeded +3/3", shown, re.MULTILINE)
    assert re.search(r"^train +succeeded +2 ", shown, re.MULTILINE)
    assert re.search(r"^promote +skipped$", shown, re.MULTILINE)
    assert "no such column" in command("runs", "show", failed)
    shown = command("runs", "show", failed)
    assert command("runs", "why", failed).strip() in shown
    assert "no such column" in command("runs", "why", failed)
    assert "it did not fail" in command("runs", "why", good, code=3)
    assert command("runs", "open", good).strip() == f"{server.host}/#/runs/details/{good}"


def test_stop_says_what_becomes_of_the_registry(server, command, tmp_path):
    server.executor = lambda workflow: workflow.stopped.wait(10)
    registry = f"registry={tmp_path / 'registry'}"
    command(*REMOTE, "--no-wait", "-p", registry)
    run = next(iter(server.runs))
    output = command("runs", "stop", run)
    assert f"run {run} is stopped\n" in output
    assert "takes over once Kubeflow tells it that this one is over, else after its lease" in output
    assert server.runs[run]["state"] == "FAILED"
    assert f"run {run} was over already: stopped" in command("runs", "stop", run)


def test_stop_gives_back_the_rows_that_the_run_has_taken(server, command, tmp_path):
    registry = open_registry(str(tmp_path / "registry"))
    server.executor = lambda workflow: workflow.stopped.wait(10)
    command(*REMOTE, "--no-wait", "-p", f"registry={registry.uri}")
    run = next(iter(server.runs))
    day = "2026-01-01T00:00:00Z"
    window = Window(
        id="w",
        run_id=run,
        end=day,
        first=day,
        last=day,
        rows=1,
        judge_rows=0,
        manifest="",
        holdout="",
    )
    claim = Claim(run_id=run, at=time.time(), lease_seconds=3600, window=window)
    registry.change(lambda state: transitions.claim(state, claim))
    output = command("runs", "stop", run)
    held = f"of its registry {registry.uri} it holds nothing any more"
    assert f"{held}: abandoned. It was terminated by hand." in output
    assert registry.read().claim is None


# With processes of their own, as a person starts them.


@pytest.fixture
def start(command, monkeypatch, tmp_path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        code = (
            "import kubestill.client.runs as runs; runs.PAUSE_S = 0.1\n"
            "from kubestill.cli import main; main()"
        )
        command = [sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def wait_until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_leaving_reports_that_the_run_continues(server, start, number):
    server.executor = lambda workflow: workflow.start("train") or workflow.stopped.wait(30)
    process = start(*REMOTE)
    wait_until(lambda: sum("GET runs/" in one for one in server.requests) > 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    run = next(iter(server.runs))
    assert process.returncode == 128 + number
    assert errors.decode() == (
        f"no longer following: run {run} goes on\n"
        f"  follow it:  kubestill runs follow {run}\n"
        f"  stop it:    kubestill runs stop {run}\n"
    )
    assert server.runs[run]["state"] == "RUNNING"
    server.workflows[run].stopped.set()


def test_where_a_person_looks_there_is_a_bar(server, start, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    server.executor = play_all(server)
    with open_terminal() as (inner, screen, close):
        assert start(*REMOTE, stdout=inner).wait(timeout=60) == 0
        close()
    pictures = ["\n".join(picture) for picture in screen.pictures]
    for shown in (r"▸ label  \[█+░+\] 1/3  .*\n +\[█+░+\] \d/5 steps  running", "▸ train  "):
        assert any(re.search(shown, picture) for picture in pictures)
    assert "✓ label 3/3" in screen.text
    assert "█" not in screen.text
    assert told(screen.text).count("▸ train, attempt 2") == 1
    assert not screen.cursor_hidden


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_leaving_restores_the_terminal(server, start, monkeypatch, number):
    monkeypatch.setenv("TERM", "xterm")
    server.executor = lambda workflow: workflow.start("train") or workflow.stopped.wait(30)
    with open_terminal() as (inner, screen, close):
        process = start(*REMOTE, stdout=inner)
        wait_until(lambda: "▸ train" in screen.text)
        process.send_signal(number)
        process.communicate(timeout=60)
        close()
    assert "▸ train" not in screen.text
    assert not screen.cursor_hidden
    server.workflows[next(iter(server.runs))].stopped.set()
