"""What a step says of TrainJobs of a real Kubeflow Trainer, whose states are played back.

Each frame of a recording is what a step could see between two changes: the TrainJob's status,
conditions of Kueue's workload, and the pods.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from test_trainjob import POD, Run

from kubestill.errors import ClusterError
from kubestill.runtime.checkpoints.place import resolve_place
from kubestill.runtime.training import trainjob
from trainer import Json, Trainer, seen_by_step

RECORDINGS = Path(__file__).parent / "recordings"


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(trainjob, "_LONGEST_PAUSE", 0.02)
    with seen_by_step(POD, tmp_path, monkeypatch, ["--executor_input", "{}"]) as made:
        yield made


_POD_SET = "couldn't assign flavors to pod set node: insufficient"
_PREEMPTED = (
    "suspended: Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization in "
    "the ClusterQueue; preemptor path: /cq; preemptee path: /cq"
)
NEVER = (
    f"suspended: {_POD_SET} quota for cpu in flavor any, previously considered podsets requests "
    "(0) + current podset request (6) > maximum capacity (1)"
)
SAID = {
    "complete": ["0 of 2 pods run", "1 of 2 pods run", "2 of 2 pods run", "complete"],
    "never": [NEVER],
    "preempted": [
        "suspended, until its queue admits it",
        *(f"{count} of 2 pods run" for count in (0, 1, 2)),
        _PREEMPTED,
        f"{_PREEMPTED}; {_POD_SET} unused quota for cpu in flavor any, 300m more needed",
        "suspended, until its queue admits it",
        *(f"pod {index} is started again" for index in (0, 1)),
        "0 of 2 pods run; 0/1 nodes are available: 1 Insufficient cpu. no new claims to "
        "deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for "
        "incoming pod.",
        *(f"{count} of 2 pods run" for count in (1, 2)),
        "complete",
    ],
}


def frames(recording: str, name: str) -> list[Json]:
    text = (RECORDINGS / f"trainjob.{recording}.json").read_text()
    return json.loads(text.replace("NAME", name))["frames"]


@pytest.mark.parametrize("recording", SAID)
def test_what_the_step_says(trainer: Trainer, recording: str, tmp_path: Path) -> None:
    run = Run(resolve_place(str(tmp_path / "store"), "digits", "f" * 32, "", owner="the step"))

    def controller(trainer: Trainer, name: str) -> None:
        labels = {"kueue.x-k8s.io/job-uid": trainer.jobs[name]["metadata"]["uid"]}
        for frame in frames(recording, name):
            conditions = (frame["trainjob"] or {}).get("conditions", ())
            if any(one["type"] == "Complete" for one in conditions):
                run.finish()
            with trainer.lock:
                if trainer.gone(name):
                    return
                trainer.jobs[name]["status"] = frame["trainjob"]
                kueue = {"conditions": frame["workload"]}
                trainer.workloads = [{"metadata": {"labels": labels}, "status": kueue}]
                mine = {one["metadata"]["name"]: one for one in frame["pods"]}
                kept = {at: one for at, one in trainer.pods.items() if not at.startswith(name)}
                trainer.pods = kept | mine
                seen = trainer.looks
            while trainer.looks < seen + 2 and not trainer.gone(name):
                time.sleep(0.005)

    trainer.controller = controller
    queue = {"queue": "q"} if recording != "complete" else {}
    ended = ""
    try:
        run(trainjob=queue)
    except ClusterError as error:
        ended = str(error)
    name = trainer.created[0]["metadata"]["name"]
    said = [one.removeprefix(f"TrainJob {name}: ") for one in run.said[1:]]
    # Whether it looks before the first frame is a matter of chance.
    assert [one for one in said if one != "created, without pods"] == SAID[recording]
    assert ended == (f"TrainJob {name} can never be admitted: {NEVER}" if said == [NEVER] else "")
