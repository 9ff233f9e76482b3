"""A pipeline whose teacher is killed, and one killed as a whole: the student must not show it."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import arguments
from steps import find_worker

pytestmark = pytest.mark.skipif(
    "KUBESTILL_CHAOS_KILLS" not in os.environ,
    reason="three whole pipelines, minutes long: set KUBESTILL_CHAOS_KILLS (make bench-chaos)",
)


MILESTONE = "log_loss"
"""In the progress line of a milestone, which is saved; the first line of all is printed earlier."""

PATIENCE = 900
"""Seconds for a whole pipeline, on a machine that has other things to do."""


def start(output: Path) -> subprocess.Popen[str]:
    often = arguments(
        output,
        teacher_steps="5000",  # seconds of training, so that there is time to kill it
        teacher_settings="{checkpoints: {recovery_seconds: 0.05}}",
    )
    return subprocess.Popen(
        [sys.executable, "-m", "kubestill", *often, "-v"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Return the rest of the output; a run that hangs is ended with all its steps."""
    try:
        rest, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return rest


def wait_for(text: str, process: subprocess.Popen[str], seen: list[str]) -> None:
    """Read the output up to the teacher's next line with `text`."""
    assert process.stdout
    for line in process.stdout:
        seen.append(line)
        if "train-teacher: " in line and text in line:
            return
    process.wait()
    pytest.fail("the pipeline ended before its teacher was killed:\n" + "".join(seen))


def kill_teacher(process: subprocess.Popen[str]) -> None:
    worker = find_worker(process.pid, "train_teacher")
    assert worker, "no train-teacher process"
    os.kill(worker, signal.SIGKILL)


def student_bits(output: Path) -> str:
    (weights,) = output.glob("distillation-*/train-student/*/model/model.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("calm")
    process = start(output)
    stdout = finish(process)
    assert process.returncode == 0, stdout
    return student_bits(output)


def test_a_teacher_killed_twice_ends_in_the_same_student(tmp_path: Path, undisturbed: str) -> None:
    process, seen = start(tmp_path), []
    wait_for(MILESTONE, process, seen)
    kill_teacher(process)
    wait_for("resuming from step", process, seen)
    wait_for(MILESTONE, process, seen)
    kill_teacher(process)
    stdout = "".join(seen) + finish(process)
    assert process.returncode == 0, stdout
    assert stdout.count("resuming from step") >= 2
    assert student_bits(tmp_path) == undisturbed


def test_running_a_killed_run_again_resumes_it(tmp_path: Path, undisturbed: str) -> None:
    process, seen = start(tmp_path), []
    wait_for(MILESTONE, process, seen)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = start(tmp_path)
    stdout = finish(again)
    assert again.returncode == 0, stdout
    assert "train-teacher: resuming from step" in stdout
    assert student_bits(tmp_path) == undisturbed
