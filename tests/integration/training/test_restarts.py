"""Training steps as pods start them, whose process is killed: they go on in the same pod."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos import digest
from kfp import dsl

from kubestill.components import import_dataset, train_teacher
from kubestill.local.runner import run_pipeline

PARAMETERS: dict[str, Any] = {
    "network_args": {"hidden": [48, 48], "dropout": 0.3},
    "epochs": 16.0,
    "batch_size": 32,
    "experiment": "restarts",
}
SETTINGS: dict[str, Any] = {
    "threads": 1,
    "milestone_every": 0.4,
    "checkpoints": {"recovery_seconds": 0.05, "heartbeat_seconds": 10.0},
}
TYPES = {"model": "Model", "ledger": "Artifact", "metrics": "Metrics"}
TYPES |= {"report": "HTML", "summary": "Markdown", "executor-logs": "Artifact"}


def command(data: Path, task: Path, **parameters: Any) -> list[str]:
    """The command that Kubeflow's launcher starts, with what it hands over."""

    def artifact(name: str, type_: str, uri: Path, **metadata: str) -> dict[str, Any]:
        schema = {"schemaTitle": f"system.{type_}", "schemaVersion": "0.0.1"}
        one = {"name": name, "type": schema, "uri": str(uri), "metadata": metadata}
        return {"artifacts": [one]}

    given = {
        "inputs": {
            "artifacts": {
                name: artifact(name, "Dataset", data / name, kind="dataset")
                for name in ("dataset", "validation")
            },
            "parameterValues": {**PARAMETERS, "settings": SETTINGS, **parameters},
        },
        "outputs": {
            "parameters": {"model_uri": {"outputFile": str(task / "model_uri")}},
            "artifacts": {name: artifact(name, kind, task / name) for name, kind in TYPES.items()},
            "outputFile": str(task / "output_metadata.json"),
        },
    }
    module = [sys.executable, "-m", "kubestill.step", "kfp.dsl.executor_main"]
    return [
        *module,
        "--executor_input",
        json.dumps(given),
        "--function_to_execute",
        "train_teacher",
    ]


class Step:
    """A training step that runs."""

    def __init__(self, data: Path, root: Path, **parameters: Any):
        self.task = root / "run" / "task"
        self.task.mkdir(parents=True)
        self.log = root / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(data, self.task, **parameters),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    def die(self, number: int, *, after: int) -> None:
        """Send a signal to the process that trains, once it has saved, at its `after`th try."""

        def trains() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.tries() == after

        wait_for(trains)
        seen = swaps(self.task)
        wait_for(lambda: swaps(self.task) > seen + 2)
        os.kill(child_of(self.process.pid), number)

    def tries(self) -> int:
        """How many processes have begun to train."""
        return self.log.read_text().count("training 5,962 parameters")

    def finish(self) -> str:
        """Wait for the end and return the output; fail unless it went well."""
        self.process.wait(timeout=240)
        output = self.log.read_text()
        assert self.process.returncode == 0, output
        return output

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.task / "model" / "training.json").read_text())


def wait_for(met: Callable[[], object], seconds: float = 240.0) -> None:
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until
        time.sleep(0.01)


def processes_of(*words: str) -> list[int]:
    """All whose command line has these words: a step, and the child it was forked into."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_text()
            found += [int(process.name)] * all(word in line for word in words)
    return found


def swaps(task: Path) -> int:
    """How often the ledger beside a task's artifact was swapped."""
    found = task.glob("ledger.d/*/*/ledger.json.*")
    return max((int(file.name.rpartition(".")[2]) for file in found), default=0)


def child_of(pid: int) -> int:
    """The only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Step:
    step = Step(data, tmp_path_factory.mktemp("calm"))
    step.finish()
    return step


def test_a_training_that_is_killed_twice_goes_on_in_its_pod_with_the_same_bits(
    data: Path, tmp_path: Path, undisturbed: Step
) -> None:
    step = Step(data, tmp_path)
    step.die(signal.SIGKILL, after=1)
    # What it wrote of its outputs by then, a fresh pod would not have.
    (step.task / "model").mkdir()
    (step.task / "model" / "half").write_text("written")
    step.die(signal.SIGSEGV, after=2)
    output = step.finish()

    assert digest(step.task) == digest(undisturbed.task), output
    assert sorted(p.name for p in (step.task / "model").iterdir()) == sorted(
        p.name for p in (undisturbed.task / "model").iterdir()
    )
    assert "killed by SIGKILL (out of memory, or by hand): starting the step again" in output
    assert (
        "killed by SIGSEGV: starting the step again in 4 s (restart 2 of 3 in this pod)" in output
    )
    assert "attempt 2 takes over from attempt 1: killed by SIGKILL" in output
    assert "waiting" not in output, "the same task takes over at once"
    first, second, third = step.record["attempts"]
    assert first["resumed_from"] is None
    assert 0 < second["resumed_from"] < third["resumed_from"] < step.record["steps"]
    assert [one["ended"].split(" (")[0] for one in (first, second, third)] == [
        "killed by SIGKILL",
        "killed by SIGSEGV",
        "",
    ]
    assert all(one["exact"] for one in (first, second, third))
    for page in ("report", "summary"):
        told = (step.task / page).read_text()
        assert "Attempts" in told
        assert "killed by SIGKILL" in told
    metrics = json.loads((step.task / "output_metadata.json").read_text())
    assert "attempts" not in json.dumps(metrics)
    assert len(undisturbed.record["attempts"]) == 1


def test_sigterm_to_the_step_saves_and_is_the_end(data: Path, tmp_path: Path) -> None:
    step = Step(data, tmp_path, epochs=500.0)
    wait_for(step.tries)
    step.process.send_signal(signal.SIGTERM)
    assert step.process.wait(timeout=240) == 128 + signal.SIGTERM
    output = step.log.read_text()
    assert "SIGTERM: making step" in output
    assert "again" not in output


def test_bad_input_is_not_tried_again(data: Path, tmp_path: Path) -> None:
    step = Step(data, tmp_path, epochs=-1.0)
    assert step.process.wait(timeout=240) == 1
    output = step.log.read_text()
    assert "epochs = -1.0" in output
    assert output.count("Traceback") == 1


def test_a_run_on_this_machine_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @dsl.pipeline(name="teach")
    def teach():
        rows = import_dataset(source="digits")  # pyright: ignore[reportCallIssue]
        settings = {**SETTINGS, "milestone_every": 2.0}
        teacher = train_teacher(
            dataset=rows.outputs["dataset"],
            validation=rows.outputs["validation"],
            **PARAMETERS,
            settings=settings,
        )
        teacher.set_display_name("teacher")

    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: len(list(tmp_path.rglob("ledger.json.*"))) > 3)
        killed.append(max(processes_of("train_teacher", str(tmp_path))))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run_pipeline(teach.pipeline_spec, {}, root=str(tmp_path))
    killer.join()
    assert killed
    assert not result.failed, result
    shown = capsys.readouterr().out
    assert (
        "teacher: killed by SIGKILL (out of memory, or by hand): starting the step again" in shown
    )
    assert "teacher: resuming from step" in shown
