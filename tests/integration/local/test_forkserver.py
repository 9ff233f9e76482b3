"""A step that a server forks is the step that would have been started, in a session of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kubestill.components
from kubestill.forkserver import HEAVY, LIGHT, Forked, ForkServer, serve_while
from kubestill.local.processes import Processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks there only")


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with serve_while("continuous-retraining") as one:
        assert one
        yield one


def command(folder: Path, component: str = "record_outcome") -> list[str]:
    """A step that refuses its input: the pipeline's placeholder was not filled in."""
    status = {"state": "COMPLETE", "error": {}, "pipelineTaskName": "x"}
    status["pipelineJobResourceName"] = "x"
    given = {"registry": "{{registry}}", "run_id": "r", "final_status": status, "notify": ""}
    outputs = {"summary": {"artifacts": [{"name": "s", "uri": str(folder / "s"), "type": {}}]}}
    executor_input = {
        "inputs": {"parameterValues": given},
        "outputs": {
            "artifacts": outputs,
            "parameters": {"outcome": {"outputFile": str(folder / "outcome")}},
            "outputFile": str(folder / "output.json"),
        },
    }
    asked = ["--executor_input", json.dumps(executor_input), "--function_to_execute", component]
    return ["python3", "-m", "kubestill.step", "kfp.dsl.executor_main", *asked]


def test_a_forked_step_ends_as_one_that_was_started(server, tmp_path) -> None:
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    more = {"PATH": path, "PYTHONUNBUFFERED": "1", "KUBESTILL_RUN_ROOT": str(tmp_path)}
    environment = {**server.environment, **more}
    ends = []
    for steps in (Processes(server), Processes()):
        with steps, steps.start(command(tmp_path), environment) as process:
            assert os.getsid(process.pid) == process.pid
            assert process.stdout
            said = process.stdout.read()
        assert isinstance(process, Forked) == (not ends)
        assert "registry = '{{registry}}': is a placeholder that was not filled in" in said
        ends.append((process.returncode, said.splitlines()[-1]))
    assert ends[0] == ends[1]
    assert ends[0][0] == 1
    (failure,) = (tmp_path / "failures").iterdir()
    assert "placeholder" in failure.read_text()


@pytest.mark.parametrize(
    ("component", "environment"),
    [
        pytest.param("theirs", {}, id="a step of somebody's"),
        pytest.param("record_outcome", {"OMP_NUM_THREADS": "7"}, id="a variable for imports"),
    ],
)
def test_other_steps_are_started_as_ever(server, tmp_path, component, environment) -> None:
    environment = {**server.environment, **environment}
    assert server.fork(command(tmp_path, component), environment) is None
    assert server.fork(["python3", "-c", "pass"], server.environment) is None


def test_one_step_at_a_time_and_none_after_the_server(tmp_path) -> None:
    with serve_while("continuous-retraining") as server:
        assert server
        first = server.fork(command(tmp_path), server.environment)
        assert first
        assert server.fork(command(tmp_path), server.environment) is None, "it is busy"
        with first:
            os.killpg(server._process.pid, signal.SIGKILL)
        assert first.returncode is not None
        assert server.fork(command(tmp_path), server.environment) is None, "it is gone"


def test_every_component_can_be_forked() -> None:
    names = {
        path.parent.name for path in Path(kubestill.components.__path__[0]).glob("*/component.py")
    }
    assert sorted((*LIGHT, *HEAVY)) == sorted(names)


def test_a_pipeline_of_theirs_has_no_server() -> None:
    with serve_while("mine.yaml") as server:
        assert server is None


def test_two_steps_that_train_run_side_by_side(server, tmp_path) -> None:
    forked = [server.fork(command(tmp_path, "train_teacher"), server.environment) for _ in "123"]
    assert forked[2] is None, "both are busy"
    for one in forked[:2]:
        with one:
            assert "error" in one.stdout.read().lower()
        assert one.returncode == 1
