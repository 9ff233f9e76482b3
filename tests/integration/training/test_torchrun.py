"""Two processes that train as one: killed, resumed with the same bits, and read by a single one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos import copy_of, digest

WORKER = Path(__file__).parent / "worker.py"
GROUPS = Path(__file__).parent / "groups.py"


# It binds a port of its own: one chosen here may be another test's by the time it has started.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def launch(root: Path, ranks: int, *more: str) -> subprocess.Popen[bytes]:
    (root / "log").unlink(missing_ok=True)
    command = [*TORCHRUN, str(ranks), str(WORKER), str(root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(root / "stderr", "wb") as stderr:
        return subprocess.Popen(
            [*command, str(root / "store"), *more],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the process ids of the ranks, in the order they were started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(
        int(child)
        for child in children
        if WORKER.name in Path(f"/proc/{child}/cmdline").read_text()
    )


def interrupt(root: Path, rank: int) -> None:
    """Start two ranks and SIGKILL one of them in the middle of the training."""
    process = launch(root, 2)
    log = root / "log"
    while not (log.exists() and re.search(r"epoch +[1-9]", log.read_text())):
        assert process.poll() is None, (root / "stderr").read_text()
        time.sleep(0.01)
    os.kill(workers_of(process)[rank], signal.SIGKILL)
    assert process.wait(timeout=120) != 0


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    root = copy_of(data, tmp_path_factory.mktemp("two") / "run")
    assert launch(root, 2, "then-finetune").wait(timeout=240) == 0, (root / "log").read_text()
    told = (root / "log").read_text()
    assert "fresh rows and" in told
    assert told.count("exported step") == 2
    assert (root / "others" / "log").read_text() == "", "two ranks speak, or wrote the model"
    return digest(root)


@pytest.mark.skipif(
    "KUBESTILL_CHAOS_KILLS" not in os.environ,
    reason="half a minute: set KUBESTILL_CHAOS_KILLS (make bench-chaos)",
)
def test_lost_ranks_cost_no_bit(data: Path, tmp_path: Path, undisturbed: tuple[str, int]) -> None:
    root = copy_of(data, tmp_path / "run")
    interrupt(root, rank=0)
    interrupt(root, rank=1)
    assert launch(root, 2).wait(timeout=240) == 0, (root / "log").read_text()
    assert "resuming from step" in (root / "log").read_text()
    assert digest(root) == undisturbed


def test_one_process_goes_on_where_two_were(data: Path, tmp_path: Path) -> None:
    root = copy_of(data, tmp_path / "run")
    interrupt(root, 1)
    assert launch(root, 1).wait(timeout=240) == 0, (root / "log").read_text()
    # Where rank 0 had time to keep its state on local disk, that is the newest, and a file of one.
    said = r"NOT with the same bits: .*(ranks|world_size): '?2'? then, '?1'? now"
    assert re.search(said, (root / "log").read_text())
    assert digest(root)[1] > 0


def test_a_process_joins_the_others_as_often_as_it_likes() -> None:
    """The addresses of an earlier group, whose rank is late for the next, lead nowhere."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*TORCHRUN, "2", str(GROUPS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
