"""Training runs whose number of processes changes end with the bits of an undisturbed one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chaos import digest
from elastic import (
    CASES,
    LARGE,
    NODES,
    PIECES,
    SHARDED,
    TUNED,
    Attempt,
    Case,
    run,
    select_within,
)
from test_restarts import PARAMETERS, child_of, command, wait_for

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.steps.train_teacher import train_teacher
from kubestill.runtime.training.processes import RankFailed
from kubestill.supervision import may_pass

CHAOS = pytest.mark.skipif(
    "KUBESTILL_CHAOS_KILLS" not in os.environ,
    reason="minutes: set KUBESTILL_CHAOS_KILLS (make bench-chaos)",
)
EVERY_STEP = Case(name="every step", network={"network": "mlp", "network_args": {"hidden": [8]}})


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs a case once, in one process and undisturbed."""
    done: dict[str, dict[str, Any]] = {}

    def once(case: Case) -> dict[str, Any]:
        if case.name not in done:
            root = tmp_path_factory.mktemp("alone") / "run"
            done[case.name] = run(case, data, root, [Attempt(world=1)])
        return done[case.name]

    return once


@pytest.mark.parametrize(
    "case", [CASES[0], *(pytest.param(case, marks=CHAOS) for case in CASES[1:])], ids=str
)
def test_the_number_of_processes_changes_no_bit(
    case: Case, data: Path, tmp_path: Path, alone: Any
) -> None:
    attempts = [
        Attempt(world=2, kill=(1,), at=8),
        Attempt(world=3, kill=(0, 1, 2), at=7),
        Attempt(world=4),
    ]
    assert run(case, data, tmp_path / "run", attempts) == alone(case)


@CHAOS
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("lost", ["one", "all"])
@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_whoever_is_lost_and_however_many_go_on(
    case: Case, world: int, lost: str, data: Path, tmp_path: Path, alone: Any
) -> None:
    attempts = [
        Attempt(world=one, kill=tuple(range(one)) if lost == "all" else (one - 1,), at=at)
        for one, at in ((world, 4), (world % 4 + 1, 7), ((world + 1) % 4 + 1, 6))
    ]
    last = Attempt(world=(world + 2) % 4 + 1)
    assert run(case, data, tmp_path / "run", [*attempts, last]) == alone(case)


@CHAOS
@pytest.mark.parametrize("at", range(30))
def test_processes_change_after_every_step(at: int, data: Path, tmp_path: Path, alone: Any) -> None:
    attempts = [Attempt(world=2 + at % 2, kill=(at % 2,), at=at), Attempt(world=1 + at % 4)]
    assert run(EVERY_STEP, data, tmp_path / "run", attempts) == alone(EVERY_STEP)


@pytest.fixture(scope="module")
def large(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run whose state no process of it may hold, and what came of it."""
    root = tmp_path_factory.mktemp("large") / "shared"
    attempts = [Attempt(world=2, kill=(1,), at=4, limit=LIMIT), Attempt(world=3, limit=LIMIT)]
    return root, run(LARGE, data, root, attempts)


LIMIT = 210_000_000


def test_state_larger_than_a_process_may_have_is_shared_out(
    data: Path, tmp_path: Path, alone: Any, large: tuple[Path, dict[str, Any]]
) -> None:
    says = "annot allocate memory"
    run(LARGE, data, tmp_path / "one", [Attempt(world=1, limit=LIMIT, says=says)])
    assert large[1] == alone(LARGE)


def test_a_state_that_no_process_holds_is_selected_and_fine_tuned(
    data: Path, tmp_path: Path, large: tuple[Path, dict[str, Any]]
) -> None:
    root, _ = large
    assert select_within(50_000_000, str(root / "ledger"), tmp_path) == 0
    weights = "model.safetensors"
    selected, trained = (path / "model" / weights for path in (tmp_path, root))
    assert selected.read_bytes() == trained.read_bytes()
    case = replace(TUNED, tunes=str(tmp_path / "checkpoint"))
    shared = run(case, data, tmp_path / "shared", [Attempt(world=2, limit=LIMIT)])
    assert shared == run(case, data, tmp_path / "one", [Attempt(world=1)])


@pytest.mark.parametrize(
    ("rank", "put"),
    [(1, 2), *(pytest.param(rank, put, marks=CHAOS) for rank in (0, 1) for put in range(1, 10))],
)
def test_a_process_killed_while_it_writes_its_shard_costs_that_state_alone(
    rank: int, put: int, data: Path, tmp_path: Path, alone: Any
) -> None:
    attempts = [Attempt(world=2, kill=(rank,), put=put), Attempt(world=3)]
    assert run(SHARDED, data, tmp_path / "run", attempts) == alone(SHARDED)


LOST = [
    Attempt(world=2, kill=(0,), at=8, lost=(0,)),
    # All of the state is on the disk that is left; it goes on in three.
    Attempt(world=3, begins=8, kill=(0, 1, 2), at=6, lost=(1,)),
    Attempt(world=4, begins=14, kill=(3,), at=4, lost=(0, 1)),
]
"""Nodes die, some with their disks; in the end both that keep a state, which leaves the bucket."""


def test_nodes_that_take_their_disks_along_cost_no_step_while_one_that_kept_it_is_left(
    data: Path, tmp_path: Path, alone: Any
) -> None:
    attempts = [*LOST, Attempt(world=2, begins=15)]
    assert run(NODES, data, tmp_path / "run", attempts) == alone(NODES)
    assert not list(tmp_path.glob("run/node-*/disk/*/*")), "the end of the run clears all disks"


def test_nodes_that_share_a_state_out_lose_none_with_one_of_their_disks(
    data: Path, tmp_path: Path, alone: Any
) -> None:
    attempts = [*LOST, Attempt(world=4, begins=15)]
    assert run(PIECES, data, tmp_path / "run", attempts) == alone(PIECES)
    assert not list(tmp_path.glob("run/node-*/disk/*/*")), "the end of the run clears all disks"


@CHAOS
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("put", range(1, 25))
def test_a_process_killed_while_it_writes_its_piece_near_costs_that_state_alone(
    rank: int, put: int, data: Path, tmp_path: Path, alone: Any
) -> None:
    lost = (rank,) if put % 2 else ()
    attempts = [Attempt(world=2, kill=(rank,), put=put, lost=lost), Attempt(world=1 + put % 3)]
    assert run(PIECES, data, tmp_path / "run", attempts) == alone(PIECES)


AGAIN = "starting the step again"
SHARED: dict[str, Any] = {
    "virtual_workers": 2,
    "milestone_every": 0.4,
    "checkpoints": {"recovery_seconds": 0.05},
}


class Shared:
    """A training step as a pod starts it, shared by processes of its own."""

    def __init__(self, data: Path, root: Path, **settings: Any):
        self.task = root / "run" / "task"
        self.task.mkdir(parents=True)
        self.log = self.task / "console"
        given = {**SHARED, "processes": 2, **settings}
        parts = command(data, self.task, epochs=6.0, settings=given)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(parts, stdout=log, stderr=subprocess.STDOUT)

    def wait_until_it_trains(self) -> None:
        wait_for(lambda: len(re.findall(r"step +[1-9]\d*/", self.said.split(AGAIN)[-1])) > 3)

    def other(self) -> int:
        """Return the process of rank 1, once it trains."""
        self.wait_until_it_trains()
        found = []
        children = Path(f"/proc/{child_of(self.process.pid)}/task")
        for listed in children.glob("*/children"):
            found += [int(pid) for pid in listed.read_text().split()]
        (only,) = found
        return only

    @property
    def said(self) -> str:
        return self.log.read_text()

    def finish(self) -> str:
        assert self.process.wait(timeout=240) == 0, self.said
        return self.said


def teach(data: Path, root: Path, **parameters: Any) -> None:
    outputs: dict[str, Any] = {
        name: LocalArtifact(str(root / name))
        for name in ("model", "ledger", "metrics", "report", "summary")
    }
    train_teacher(
        dataset=LocalArtifact(str(data / "dataset"), metadata={"kind": "dataset"}),
        validation=LocalArtifact(str(data / "validation"), metadata={"kind": "dataset"}),
        **outputs,
        **parameters,
    )


def test_a_step_starts_its_processes_and_outlives_one(data: Path, tmp_path: Path) -> None:
    shared = Shared(data, tmp_path)
    os.kill(shared.other(), signal.SIGKILL)
    said = shared.finish()
    assert "2 processes share 2 micro-batches a step" in said
    assert f"RankLost: rank 1 was killed by SIGKILL (out of memory, or by hand): {AGAIN}" in said
    assert "resuming from step" in said
    assert "NOT with the same bits" not in said
    assert said.count("stopped: budget") == 1, "two ranks speak"
    teach(data, tmp_path, **{**PARAMETERS, "epochs": 6.0}, settings=SHARED)
    assert digest(shared.task) == digest(tmp_path)
    record = json.loads((shared.task / "model" / "training.json").read_text())
    assert [one["ended"].split(":")[0] for one in record["attempts"]] == ["RankLost", ""]


@CHAOS
def test_processes_of_a_pod_share_a_state_out_on_its_disk(data: Path, tmp_path: Path) -> None:
    """The bucket has few milestones alone; what came since is on the disk, in two pieces."""
    near = {"near": str(tmp_path / "near"), "near_seconds": 0.01, "recovery_seconds": 3600}
    in_pieces: dict[str, Any] = {"shard": "auto", "milestone_every": 3.0, "checkpoints": near}
    shared = Shared(data, tmp_path, **in_pieces)
    os.kill(shared.other(), signal.SIGKILL)
    said = shared.finish()
    (begun,) = map(int, re.findall(r"resuming from step (\d+), with the same bits", said))
    ledger = json.loads((shared.task / "ledger").read_text())
    assert begun not in [entry["step"] for entry in ledger["entries"]], "a state of the bucket"
    assert not list(tmp_path.glob("near/*/*")), "the end of the run clears the disk"
    teach(data, tmp_path, **{**PARAMETERS, "epochs": 6.0}, settings={**SHARED, **in_pieces})
    assert digest(shared.task) == digest(tmp_path)


@CHAOS
def test_a_process_that_hangs_ends_the_attempt(data: Path, tmp_path: Path) -> None:
    shared = Shared(data, tmp_path, rank_timeout=3.0)
    hanging = shared.other()
    os.kill(hanging, signal.SIGSTOP)
    said = shared.finish()
    hung = r"RankLost: rank 1 \(last step \d+\) did not take part for 3 s, the setting rank_timeout"
    assert re.search(f"{hung}: {AGAIN}", said)
    assert not Path(f"/proc/{hanging}").exists()


@CHAOS
@pytest.mark.parametrize("processes", [1, 2])
def test_a_first_process_that_hangs_ends_the_attempt(
    data: Path, tmp_path: Path, processes: int
) -> None:
    shared = Shared(data, tmp_path, rank_timeout=3.0, processes=processes)
    shared.wait_until_it_trains()
    hanging = child_of(shared.process.pid)
    os.kill(hanging, signal.SIGSTOP)
    said = shared.finish()
    hung = r"rank 0 hangs: no step for \d+ s, the last was step \d+ \(the setting rank_"
    assert re.search(f"{hung}timeout bounds a step\\): {AGAIN}", said)
    assert "NOT with the same bits" not in said
    assert not Path(f"/proc/{hanging}").exists()
    teach(data, tmp_path, **{**PARAMETERS, "epochs": 6.0}, settings=SHARED)
    assert digest(shared.task) == digest(tmp_path)


@CHAOS
def test_what_fails_in_one_process_is_what_the_step_says(data: Path, tmp_path: Path) -> None:
    settings = {"virtual_workers": 2, "processes": 2}
    said = "rank 1 failed: ValueError: only here; see .*rank-1.log"
    with pytest.raises(RankFailed, match=said) as caught:
        teach(data, tmp_path, network="elastic:Fails", settings=settings)
    assert not may_pass(caught.value), "another attempt would fail the same way"
    # The next group of this process has nothing of this one.
    teach(data, tmp_path, steps=3, settings=settings)
    assert (tmp_path / "model").exists()
