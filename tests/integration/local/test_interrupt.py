"""However a run ends, its steps end with it: no process goes on for somebody who has left."""

# Kubeflow turns calls into tasks.
# pyright: reportArgumentType=false

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl

from kubestill.local import processes

IMAGE = "kubestill:test"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def linger(folder: str, number: int, stubborn: bool):
    """Note the process ids of a step and of what it starts, and wait."""
    import os
    import signal
    import subprocess
    import sys
    import time

    def leave(*_: object) -> None:
        with open(f"{folder}/asked-{number}", "w"):
            pass
        if not stubborn:
            sys.exit(1)

    signal.signal(signal.SIGTERM, leave)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    with open(f"{folder}/pids-{number}.part", "w") as file:
        file.write(f"{os.getpid()} {helper.pid}")
    os.rename(f"{folder}/pids-{number}.part", f"{folder}/pids-{number}")
    print("waiting", flush=True)
    time.sleep(300)


@dsl.pipeline(name="lingering")
def lingering(folder: str, stubborn: bool):
    with dsl.ParallelFor([0, 1, 2]) as number:
        linger(folder=folder, number=number, stubborn=stubborn)


def eventually(what: Callable[[], Any]) -> Any:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.05)
    pytest.fail("that never came")


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("number", "stubborn"),
    [
        pytest.param(signal.SIGINT, False, id="ctrl-c"),
        pytest.param(signal.SIGTERM, False, id="terminated"),
        pytest.param(signal.SIGKILL, False, id="killed"),
        pytest.param(signal.SIGKILL, True, id="killed-with-steps-that-do-not-listen"),
    ],
)
def test_steps_end_with_the_run(tmp_path: Path, number: int, stubborn: bool) -> None:
    compiler.Compiler().compile(lingering, str(tmp_path / "lingering.yaml"))
    process = subprocess.Popen(
        [sys.executable, "-m", "kubestill", "run", str(tmp_path / "lingering.yaml")]
        + [
            "-p",
            f"folder={tmp_path}",
            "-p",
            f"stubborn={str(stubborn).lower()}",
            "--output",
            str(tmp_path / "runs"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # Two iterations run at a time.
    files = eventually(lambda: len(found := list(tmp_path.glob("pids-?"))) == 2 and found)
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    assert all(runs(pid) for pid in pids)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    eventually(lambda: not any(runs(pid) for pid in pids))
    assert len(list(tmp_path.glob("asked-?"))) == 2, "they were asked first"
    assert len(list(tmp_path.glob("pids-?"))) == 2, "nothing was started afterwards"


def test_a_step_that_does_not_listen_is_ended_and_no_other_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(99)"
    )
    command = [sys.executable, "-c", deaf]
    with processes.Processes() as steps:
        with steps.start(command, os.environ) as process:
            assert process.stdout
            process.stdout.readline()
            steps.interrupt()
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(KeyboardInterrupt), steps.start(command, os.environ):
            pass
