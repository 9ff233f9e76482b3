"""Real processes that die in every way a step can, under the supervisor that a step starts with."""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path

import pytest

from kubestill import supervision

VICTIM = str(Path(__file__).with_name("victim.py"))
MEMORY = "because the pod is out of memory, of which it has 2 GiB; raise its"


def command(folder: Path, restarts: int, *words: str) -> list[str]:
    return [sys.executable, VICTIM, str(folder), str(restarts), *words]


def ended(folder: Path, *words: str, restarts: int = 3) -> subprocess.CompletedProcess[str]:
    run = command(folder, restarts, *words)
    return subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)


def tries(folder: Path) -> list[str]:
    """How the try before each one ended."""
    return [line.partition(" ")[2] for line in (folder / "tries").read_text().splitlines()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(met: object, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not met():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_step_that_goes_well_is_tried_once(tmp_path: Path) -> None:
    run = ended(tmp_path, "fine")
    assert run.returncode == 0
    assert run.stdout.splitlines() == [
        "try: fine",
        "left in order",
        "ended: , may pass: False, tries: 1",
    ]
    assert not (tmp_path / "forgotten").exists()


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("killed", "killed by SIGKILL (out of memory, or by hand)"),
        ("killed for memory", f"killed by SIGKILL {MEMORY}"),
        ("killed for memory, version 1", f"killed by SIGKILL {MEMORY}"),
        ("segfault", "killed by SIGSEGV"),
        ("no store", "InvalidInput: 1 problem with the input:"),
    ],
)
def test_what_may_pass_is_tried_again_in_a_new_process(
    tmp_path: Path, word: str, reason: str
) -> None:
    run = ended(tmp_path, word, "fine")
    assert run.returncode == 0, run.stderr
    first, second = tries(tmp_path)
    assert not first
    assert second.startswith(reason)
    assert f"{second}: starting the step again in 1 s (restart 1 of 3 in this pod)" in run.stdout
    assert (tmp_path / "forgotten").read_text() == "once\n"


def test_what_hangs_is_killed_and_tried_again_and_what_takes_its_time_is_not(
    tmp_path: Path,
) -> None:
    run = ended(tmp_path, "hangs", "takes its time")
    assert run.returncode == 0, run.stderr
    _, second = tries(tmp_path)
    said = r"rank 0 hangs: no step for \d s, the last was step 41 \(the setting rank_"
    assert re.match(said, second)
    assert f"{second}: starting the step again in 1 s (restart 1 of 3 in this pod)" in run.stdout


@pytest.mark.parametrize(
    ("word", "error", "code"),
    [
        ("bad input", "InvalidInput", 1),
        ("exit", "SystemExit", 7),
        ("crash on the way out", "ValueError", 1),
    ],
)
def test_what_cannot_pass_is_not_tried_again(
    tmp_path: Path, word: str, error: str, code: int
) -> None:
    run = ended(tmp_path, word, "fine")
    assert run.returncode == code
    assert f"ended: {error}, may pass: False, tries: 1" in run.stdout
    assert "again" not in run.stdout


def test_a_traceback_shows_the_steps_own_frames(tmp_path: Path) -> None:
    run = ended(tmp_path, "bad input")
    assert run.stderr.count("Traceback") == 1
    assert "supervision.py" not in run.stderr
    assert run.stderr.rstrip().endswith("epochs = -1: use 1 or more")


def test_restarts_are_bounded_and_the_last_end_is_told_as_before(tmp_path: Path) -> None:
    run = ended(tmp_path, "segfault", "killed", restarts=1)
    assert run.returncode == 128 + signal.SIGKILL
    assert "the last of 2 tries in this pod" in run.stdout
    assert "ended: SIGKILL, may pass: True, tries: 2" in run.stdout


def test_none_is_none(tmp_path: Path) -> None:
    run = ended(tmp_path, "killed", restarts=0)
    assert run.returncode == 128 + signal.SIGKILL
    assert len(tries(tmp_path)) == 1


def test_sigterm_reaches_the_step_which_gets_its_time_and_is_not_tried_again(
    tmp_path: Path,
) -> None:
    step = subprocess.Popen(command(tmp_path, 3, "saves when stopped"), stdout=subprocess.PIPE)
    wait_until((tmp_path / "ready").exists)
    step.send_signal(signal.SIGTERM)
    step.communicate(timeout=60)
    assert step.returncode == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert len(tries(tmp_path)) == 1


def test_a_signal_to_the_whole_group_reaches_the_step_once(tmp_path: Path) -> None:
    """As Ctrl-C in a terminal and Argo's end of a pod do: a second one would end the save."""
    run = command(tmp_path, 3, "saves when stopped")
    step = subprocess.Popen(run, stdout=subprocess.PIPE, start_new_session=True)
    wait_until((tmp_path / "ready").exists)
    os.killpg(step.pid, signal.SIGTERM)
    step.communicate(timeout=60)
    assert (tmp_path / "saved").read_text() == "once\n"


def test_a_step_that_was_stopped_is_not_tried_again_however_it_ends(tmp_path: Path) -> None:
    run = command(tmp_path, 3, "is killed when stopped", "fine")
    step = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
    wait_until((tmp_path / "ready").exists)
    step.send_signal(signal.SIGTERM)
    output, _ = step.communicate(timeout=60)
    assert step.returncode == 128 + signal.SIGKILL
    assert "again" not in output


def test_sigterm_while_it_waits_to_try_again_ends_it(tmp_path: Path) -> None:
    run = command(tmp_path, 3, "killed", "fine")
    step = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
    assert step.stdout is not None
    while "again" not in step.stdout.readline():
        pass
    step.send_signal(signal.SIGTERM)
    step.communicate(timeout=60)
    assert step.returncode == 128 + signal.SIGKILL
    assert len(tries(tmp_path)) == 1


def test_a_step_dies_with_its_parent(tmp_path: Path) -> None:
    step = subprocess.Popen(command(tmp_path, 3, "saves when stopped"), stdout=subprocess.PIPE)
    wait_until((tmp_path / "ready").exists)
    child = int((tmp_path / "tries").read_text().split()[0])
    step.kill()
    step.communicate(timeout=60)
    wait_until(lambda: not alive(child))
    assert not (tmp_path / "saved").exists()


def test_what_a_dead_step_leaves_behind_dies_too(tmp_path: Path) -> None:
    run = ended(tmp_path, "leaves a process behind", "fine")
    assert run.returncode == 0
    left = int((tmp_path / "left").read_text())
    wait_until(lambda: not alive(left))


def test_a_signal_before_the_child_is_there_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(supervision, "_kills_for_memory", tell)
    ended = supervision.supervise(lambda: time.sleep(60), restarts=3)
    assert ended.stopped
    assert ended.code == 128 + signal.SIGTERM


def test_what_a_child_says_or_dies_of_is_no_riddle() -> None:
    def shout() -> None:
        raise ValueError("\N{GRINNING FACE}" * 40_000)

    assert supervision.supervise(shout, restarts=0).error == "ValueError"
    ended = supervision.supervise(lambda: os.kill(os.getpid(), 40), restarts=0)
    assert (ended.code, ended.error) == (168, "SIG40")
    assert supervision.supervise(lambda: sys.exit("no rows"), restarts=0).message == "no rows"


def test_a_child_cleans_up_after_itself_and_not_after_its_parent(tmp_path: Path) -> None:
    def work() -> None:
        weakref.finalize(Path, (tmp_path / "child's").touch)
        atexit.register((tmp_path / "child's too").touch)

    of_parent = (tmp_path / "parent's").touch
    atexit.register(of_parent)
    with tempfile.TemporaryDirectory() as folder:
        assert supervision.supervise(work, restarts=0).code == 0
        assert Path(folder).exists()
    atexit.unregister(of_parent)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["child's", "child's too"]


@pytest.mark.parametrize(
    "message",
    [
        "Distributed package doesn't have NCCL built in",
        "fp8 is not supported by this hardware",
        "NCCL backend needs CUDA tensors",
    ],
)
def test_what_no_other_try_cures_is_no_fault_of_the_machine(message: str) -> None:
    assert not supervision.may_pass(RuntimeError(message))
