"""A step with `nodes` and its TrainJob, through everything that may happen to both."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import digest
from hosts import BEHIND, Host, Switch, on_switch, why_no_hosts
from test_elastic import AGAIN, CHAOS, SHARED, teach
from test_restarts import PARAMETERS, command

from emulators import FaultProxy
from kubestill.errors import ClusterError, InvalidInput
from kubestill.runtime.base.kubernetes import Cluster
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.place import Place, resolve_place
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.training import trainjob
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.supervision import FAILED_FOR_GOOD
from trainer import Json, Trainer, seen_by_step, until

NAME = re.compile(r"kubestill-digits-[0-9a-f]{16}")
POD: Json = {
    "metadata": {"name": "step-pod", "uid": "1"},
    "spec": {
        "serviceAccountName": "pipeline-runner",
        "nodeSelector": {"pool": "gpus"},
        "tolerations": [
            {"key": "gpu", "operator": "Exists"},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
        ],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            {"name": "data", "hostPath": {"path": "/"}},
            {"name": "var-run-argo", "emptyDir": {}},
            {"name": "kube-api-access-x7", "projected": {"sources": []}},
        ],
        "containers": [
            {"name": "wait", "image": "argoexec"},
            {
                "name": "main",
                "image": "kubestill:1",
                "resources": {
                    "requests": {"cpu": "2", "memory": "1Gi"},
                    "limits": {"memory": "1Gi"},
                },
                "env": [
                    {"name": "KFP_POD_NAME", "value": "step-pod"},
                    {"name": "ARGO_TEMPLATE", "value": "{}"},
                    {"name": "HUB", "value": "https://hub"},
                    {
                        "name": "KEY",
                        "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}},
                    },
                ],
                "volumeMounts": [
                    {"name": "shm", "mountPath": "/dev/shm"},
                    {"name": "data", "mountPath": "/tmp"},
                    {"name": "var-run-argo", "mountPath": "/var/run/argo"},
                    {"name": "kube-api-access-x7", "mountPath": "/var/run/secrets"},
                ],
            },
        ],
    },
}


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    arguments = ["-m", "kubestill.step", "--executor_input", '{"$(HUB)": 1}']
    with seen_by_step(POD, tmp_path, monkeypatch, arguments) as made:
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return resolve_place(str(tmp_path / "store"), "digits", "f" * 32, "", owner="the step")


class Run:
    """A step's part of one training run."""

    def __init__(self, place: Place):
        self.place = place
        self.said: list[str] = []

    def __call__(self, **settings: Any) -> str:
        given = TrainingSettings.model_validate({"nodes": 2, "virtual_workers": 8, **settings})
        trainjob.train_on_pods(given, self.place, "auto", self.said.append)
        return "\n".join(self.said)

    @property
    def last(self) -> str:
        """What the step said last."""
        return self.said[-1] if self.said else ""

    def finish(self) -> None:
        """Record a result, as the pods' rank 0 does."""
        with Checkpointer.open(self.place, CheckpointSettings(), numerics={}) as checkpointer:
            checkpointer.finish({"learned": 1})


@pytest.fixture
def run(place: Place) -> Run:
    return Run(place)


def complete(trainer: Trainer, name: str, run: Run) -> None:
    run.finish()
    for index in (0, 1):
        trainer.pod(name, index, "Succeeded")
    trainer.condition(name, "Complete")


def test_a_job_that_goes_well(trainer: Trainer, run: Run, capsys: Any) -> None:
    def controller(trainer: Trainer, name: str) -> None:
        trainer.pod(name, 0)
        trainer.says(name, 0, "step 1", "step 2")
        waits = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: no gpu"}
        trainer.pod(name, 1, "Pending", conditions=[waits])
        # The log of rank 0 comes while the other pod still waits.
        until(lambda: "step 2" in printed() or trainer.gone(name))
        trainer.says(name, 0, "step 3")
        trainer.pod(name, 1)
        until(lambda: "2 of 2 pods run" in run.last or trainer.gone(name))
        trainer.says(name, 0, "step 4")
        complete(trainer, name, run)

    seen: list[str] = []

    def printed() -> str:
        seen.append(capsys.readouterr().out)
        return "".join(seen)

    trainer.controller = controller
    said = run()
    assert re.findall(r"step \d", printed()) == ["step 1", "step 2", "step 3", "step 4"]
    assert "1 of 2 pods run; 0/3 nodes: no gpu" in said
    assert said.endswith("complete")
    assert trainer.deleted == [trainer.created[0]["metadata"]["name"]]


@pytest.mark.parametrize("version", ["2.3", "2.1"])
def test_the_pods_are_like_the_step(trainer: Trainer, run: Run, version: str) -> None:
    trainer.version = version
    trainer.controller = lambda trainer, name: complete(trainer, name, run)
    run(
        processes=4,
        trainjob={
            "memory": "64Gi",
            "accelerators": 4,
            "node_selector": {"zone": "a"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "queue": "team-queue",
            "priority": "high",
            "labels": {"cost": "research"},
            "env": {"HUB": "https://mirror"},
            "secrets": {"TOKEN": "other/key"},
        },
    )
    job = trainer.created[0]
    assert NAME.fullmatch(job["metadata"]["name"])
    assert job["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "team-queue",
        "kueue.x-k8s.io/priority-class": "high",
        "cost": "research",
    }
    given = job["spec"]["trainer"]
    assert given["numNodes"], given["numProcPerNode"] == (2, 2)
    assert given["image"] == "kubestill:1"
    assert given["command"][-1] == '{"$$(HUB)": 1}', "Kubernetes would fill in $(HUB)"
    assert given["resourcesPerNode"] == {
        "requests": {"cpu": "2", "memory": "64Gi", "nvidia.com/gpu": "4"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "4"},
    }
    environment = {one["name"]: one.get("value", one.get("valueFrom")) for one in given["env"]}
    assert environment == {
        "HUB": "https://mirror",
        "KEY": {"secretKeyRef": {"name": "hub", "key": "token"}},
        "TOKEN": {"secretKeyRef": {"name": "other", "key": "key"}},
        "KUBESTILL_TRAINJOB": job["metadata"]["name"],
        "KUBESTILL_OWNER": "the step",
        "PYTHONUNBUFFERED": "1",
    }
    if version == "2.3":
        (patch,) = job["spec"]["runtimePatches"]
        (jobs,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        pod = jobs["template"]["spec"]["template"]
    else:
        (pod,) = job["spec"]["podTemplateOverrides"]
    assert pod["metadata"]["labels"] == {"sidecar.istio.io/inject": "false"}
    assert pod["spec"] == {
        "serviceAccountName": "pipeline-runner",
        "nodeSelector": {"pool": "gpus", "zone": "a"},
        "tolerations": [
            {"key": "gpu", "operator": "Exists"},
            {"key": "spot", "operator": "Exists"},
        ],
        "volumes": POD["spec"]["volumes"][:2],
        "containers": [
            {"name": "node", "volumeMounts": POD["spec"]["containers"][1]["volumeMounts"][:2]}
        ],
    }


def test_a_queue_admits_preempts_and_admits_again(trainer: Trainer, run: Run) -> None:
    def controller(trainer: Trainer, name: str) -> None:
        uid = trainer.jobs[name]["metadata"]["uid"]
        quota = {"type": "QuotaReserved", "status": "False", "message": "waits for 8 more gpus"}
        labels = {"kueue.x-k8s.io/job-uid": uid}
        trainer.workloads = [{"metadata": {"labels": labels}, "status": {"conditions": [quota]}}]
        trainer.condition(name, "Suspended")
        until(lambda: "waits for 8" in run.last)
        trainer.condition(name, "Suspended", holds=False)
        trainer.pod(name, 0)
        trainer.pod(name, 1)
        until(lambda: sum("2 of 2" in one for one in run.said) == 1)
        why = "Preempted to accommodate a workload"
        evicted = {"type": "Evicted", "status": "True", "reason": "Preempted", "message": why}
        trainer.workloads[0]["status"]["conditions"].append(evicted)
        trainer.condition(name, "Suspended")
        trainer.pods.pop(f"{name}-node-0-0")
        trainer.pods.pop(f"{name}-node-0-1")
        until(lambda: "suspended: Preempted to accommodate a workload; waits for 8" in run.last)
        evicted["status"] = "False"
        trainer.condition(name, "Suspended", holds=False)
        trainer.pod(name, 0)
        trainer.pod(name, 1)
        until(lambda: sum("2 of 2" in one for one in run.said) == 2)
        complete(trainer, name, run)

    trainer.controller = controller
    said = run(trainjob={"queue": "team-queue"})
    states = re.findall(r"suspended: \w+|2 of 2 pods run|complete", said)
    assert states == [
        *("suspended: waits", "2 of 2 pods run", "suspended: Preempted", "2 of 2 pods run"),
        "complete",
    ]


def test_what_no_quota_ever_admits_ends_at_once(trainer: Trainer, run: Run) -> None:
    why = "insufficient quota for nvidia.com/gpu in flavor a100, request > maximum capacity (8)"

    def controller(trainer: Trainer, name: str) -> None:
        labels = {"kueue.x-k8s.io/job-uid": trainer.jobs[name]["metadata"]["uid"]}
        quota = {"type": "QuotaReserved", "status": "False", "message": why}
        trainer.workloads = [{"metadata": {"labels": labels}, "status": {"conditions": [quota]}}]
        trainer.condition(name, "Suspended")

    trainer.controller = controller
    with pytest.raises(ClusterError, match=rf"never be admitted: .*{re.escape(why)}"):
        run(trainjob={"queue": "team-queue"})


def test_who_waits_too_long_is_ended(trainer: Trainer, run: Run) -> None:
    trainer.controller = lambda trainer, name: trainer.condition(name, "Suspended")
    with pytest.raises(ClusterError, match=r"has waited for 0.2 s, the setting trainjob.wait_sec"):
        run(trainjob={"wait_seconds": 0.2})


def test_pods_start_again(trainer: Trainer, run: Run, capsys: Any) -> None:
    def controller(trainer: Trainer, name: str) -> None:
        trainer.pod(name, 0)
        trainer.pod(name, 1)
        trainer.says(name, 0, "step 1")
        until(lambda: run.last.endswith("2 of 2 pods run"))
        # In place: its log so far is the previous container's.
        trainer.says(name, 0, "step 2, out of memory", container="/previous")
        trainer.logs.pop(f"{name}-node-0-0")
        trainer.pod(name, 0, **trainer.ended(137, restarts=1, reason="OOMKilled"))
        trainer.says(name, 0, "step 2 again")
        until(lambda: "pod 0" in run.last)
        # Elsewhere, since its node was taken away.
        trainer.pods.pop(f"{name}-node-0-1")
        trainer.pod(name, 1)
        until(lambda: "pod 1" in run.last)
        complete(trainer, name, run)

    trainer.controller = controller
    said = run()
    assert "pod 0 is started again, as it ended with status 137 (OOMKilled)" in said
    assert "pod 1 is started again" in said
    told = capsys.readouterr().out
    assert "step 2, out of memory" in told
    assert "step 2 again" in told


TRACE = ["Traceback (most recent call last):", '  File "x"', "ValueError: only here", "  see y"]


@pytest.mark.parametrize("how", ["condition", "status"])
def test_a_job_that_fails_says_why(trainer: Trainer, run: Run, how: str, capsys: Any) -> None:
    def controller(trainer: Trainer, name: str) -> None:
        trainer.pod(name, 0)
        trainer.says(name, 1, "warming up", *TRACE)
        if how == "status":  # the pod says that another start would not help
            trainer.pod(name, 1, **trainer.ended(FAILED_FOR_GOOD))
        else:
            trainer.pod(name, 1, "Failed", **trainer.ended(1))
            trainer.condition(name, "Failed", reason="JobSetFailed", message="a job failed")

    trainer.controller = controller
    what = "cannot succeed" if how == "status" else "failed: JobSetFailed: a job failed"
    with pytest.raises(ClusterError, match=f"{what}; pod 1 ended with .*: ValueError: only here"):
        run()
    assert "  warming up" in capsys.readouterr().out


def test_a_failure_that_pods_recorded_is_left_to_who_adopts(trainer: Trainer, run: Run) -> None:
    def controller(trainer: Trainer, name: str) -> None:
        with Checkpointer.open(run.place, CheckpointSettings(), numerics={}) as checkpointer:
            checkpointer.fail("the loss is NaN")
        trainer.pod(name, 0, "Failed", **trainer.ended(FAILED_FOR_GOOD))

    trainer.controller = controller
    run()
    assert len(trainer.created) == 1
    run()
    assert len(trainer.created) == 1, "what failed for good needs no pods to say so again"


def test_what_is_finished_needs_no_job(trainer: Trainer, run: Run) -> None:
    run.finish()
    run()
    assert not trainer.created


def test_the_controller_does_not_come(
    trainer: Trainer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob, "_UNNOTICED_SECONDS", 0.2)
    with pytest.raises(ClusterError, match="does the controller of Kubeflow Trainer run"):
        run()


def test_the_controller_goes_before_the_pods_end(
    trainer: Trainer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob, "_UNNOTICED_SECONDS", 2.0)

    def controller(trainer: Trainer, name: str) -> None:
        run.finish()
        trainer.pod(name, 0, "Succeeded")
        trainer.pod(name, 1, "Succeeded")

    trainer.controller = controller
    run()


def test_a_job_that_is_complete_without_a_result(trainer: Trainer, run: Run) -> None:
    trainer.controller = lambda trainer, name: trainer.condition(name, "Complete")
    with pytest.raises(ClusterError, match="is complete, but .* holds no result"):
        run()


@pytest.mark.parametrize("finished", [True, False])
def test_somebody_removes_the_job(trainer: Trainer, run: Run, finished: bool) -> None:
    def controller(trainer: Trainer, name: str) -> None:
        if finished:  # another driver, which has adopted the result
            run.finish()
        until(lambda: run.said)
        trainer.remove(name)

    trainer.controller = controller
    if finished:
        run()
    else:
        with pytest.raises(ClusterError, match="was removed: by hand, or by another run"):
            run()


def leave_behind(trainer: Trainer, run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have a step that is killed leave its TrainJob."""
    monkeypatch.setattr(trainjob, "_OUTAGE_SECONDS", 0.0)

    def controller(trainer: Trainer, name: str) -> None:
        until(lambda: run.said)
        trainer.down = True

    trainer.controller = controller
    with pytest.raises(ClusterError) as caught:
        run()
    assert caught.value.status == 503, "the next try may succeed"
    trainer.down = False
    (name,) = trainer.jobs
    return name


def test_the_next_try_goes_on_with_the_job_of_the_last(
    trainer: Trainer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = leave_behind(trainer, run, monkeypatch)
    trainer.pod(name, 0)

    def controller() -> None:
        until(lambda: run.last.endswith("1 of 2 pods run"))
        complete(trainer, name, run)

    thread = threading.Thread(target=controller)
    thread.start()
    assert "attached to what was created at" in run()
    thread.join()
    assert len(trainer.created) == 1


@pytest.mark.parametrize("kind", ["Complete", "Failed"])
def test_a_job_of_an_earlier_try_that_has_ended_is_replaced(
    trainer: Trainer, run: Run, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = leave_behind(trainer, run, monkeypatch)
    trainer.condition(name, kind)
    trainer.controller = lambda trainer, name: complete(trainer, name, run)
    run()
    assert [one["metadata"]["name"] for one in trainer.created] == [name, name]
    assert trainer.deleted == [name, name]


def test_a_name_that_is_another_jobs(
    trainer: Trainer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = leave_behind(trainer, run, monkeypatch)
    trainer.jobs[name]["metadata"]["annotations"] = {}
    with pytest.raises(ClusterError, match=rf"TrainJob {name} in team is another's: remove it"):
        run()
    assert trainer.jobs.pop(name), "it is not ours to remove"


def test_kubernetes_is_away_for_a_while(
    trainer: Trainer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob, "_SILENT_SECONDS", 0.0)

    def controller(trainer: Trainer, name: str) -> None:
        until(lambda: run.said)
        trainer.down = True
        complete(trainer, name, run)
        until(lambda: "asking for up to 600 s: Kubernetes answers 503" in run.last)
        trainer.down = False

    trainer.controller = controller
    assert run().endswith("complete")


def test_the_pods_of_a_removed_job_go_first(trainer: Trainer, run: Run) -> None:
    """Those of the new one would meet them under the same names."""
    given: Any = (Cluster.here(), None, run.place, print, print)
    name = trainjob._TrainJob(*given)._name
    old = trainer.pod(name, 0)["metadata"]["name"]

    def go() -> None:
        until(lambda: "waits for the pods of an earlier one to go" in run.last)
        del trainer.pods[old]

    threading.Thread(target=go).start()
    trainer.controller = lambda trainer, name: complete(trainer, name, run)
    assert run().endswith("complete")


@pytest.mark.parametrize("kind", ["Complete", "Failed"])
def test_the_end_of_a_removed_job_is_not_the_new_ones(
    trainer: Trainer, run: Run, kind: str
) -> None:
    """Kubeflow Trainer copies it from the JobSet of that name, while that is still there."""

    def controller(trainer: Trainer, name: str) -> None:
        if len(trainer.created) > 1:
            return complete(trainer, name, run)
        trainer.condition(name, kind, lastTransitionTime="2026-01-01T00:00:00Z")

    trainer.controller = controller
    assert run().endswith("complete")
    assert len(trainer.created) == 2


def test_why_there_are_no_pods(trainer: Trainer, run: Run) -> None:
    def controller(trainer: Trainer, name: str) -> None:
        trainer.jobs[name]["status"] = {"jobsStatus": [{"name": "node", "active": 0}]}
        event = {"type": "Warning", "reason": "FailedCreate", "message": "exceeded quota: gpus"}
        event["eventTime"] = "2026-01-01T00:00:00.000000Z"
        trainer.events = [event | {"involvedObject": {"kind": "Job", "name": f"{name}-node-0"}}]
        until(lambda: "without pods: exceeded quota" in run.last)
        complete(trainer, name, run)

    trainer.controller = controller
    run()


def test_a_failed_job_whose_pods_are_gone(trainer: Trainer, run: Run) -> None:
    """A Job that gives up removes those that it would have started again."""

    def controller(trainer: Trainer, name: str) -> None:
        trainer.pod(name, 0)
        trainer.pod(name, 1)
        until(lambda: run.last.endswith("2 of 2 pods run"))
        trainer.says(name, 1, *TRACE, container="/previous")
        trainer.pod(name, 1, **trainer.ended(1, restarts=1))
        until(lambda: "pod 1 is started again" in run.last)
        for index in (0, 1):
            del trainer.pods[f"{name}-node-0-{index}"]
        why = "jobset failed due to one or more job failures"
        trainer.condition(name, "Failed", reason="FailedJobs", message=why)

    trainer.controller = controller
    told = "failed: FailedJobs: .*; pod 1 ended with status 1: ValueError: only here"
    with pytest.raises(ClusterError, match=told):
        run()


class Cancelled(BaseException):
    """What stops the process here; in a pod it dies."""


@pytest.mark.parametrize("when", ["runs", "waits"])
def test_a_step_that_is_stopped_takes_its_job_along(trainer: Trainer, run: Run, when: str) -> None:
    def controller(trainer: Trainer, name: str) -> None:
        if when == "runs":
            trainer.pod(name, 0)
        until(lambda: run.said)
        os.kill(os.getpid(), signal.SIGTERM)

    def die(*_: object) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGTERM, die)
    trainer.controller = controller
    try:
        with pytest.raises(Cancelled):
            run()
    finally:
        signal.signal(signal.SIGTERM, before)


def missing_and_no_right(trainer: Trainer) -> None:
    """Kubernetes asks for the right first, and says that it is missing for what is not there."""
    trainer.version = ""
    trainer.forbidden |= {"get trainjobs", "create trainjobs"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: setattr(one, "version", ""), "has no Kubeflow Trainer of version 2"),
        (lambda one: setattr(one, "version", "2.0"), "too old: .* install version 2.1 or later"),
        (lambda one: one.forbidden.add("create trainjobs"), "403 .*Let the step's service account"),
        (lambda one: one.forbidden.add("list pods"), "403 .*Let the step's service account"),
        (lambda one: one.pods.clear(), "knows no pod step-pod in team"),
        (missing_and_no_right, "has no Kubeflow Trainer of version 2"),
    ],
    ids=["missing", "old", "no right to create", "no right to look", "no pod", "neither"],
)
def test_a_cluster_that_cannot(
    trainer: Trainer, run: Run, change: Callable[[Trainer], None], said: str
) -> None:
    change(trainer)
    with pytest.raises(ClusterError, match=said):
        run()


def test_a_runtime_that_is_missing(trainer: Trainer, run: Run) -> None:
    with pytest.raises(ClusterError, match='"torch-disturbed" not found: specified') as caught:
        run(trainjob={"runtime": "torch-disturbed"})
    assert "service account" not in str(caught.value), "a webhook's 403 is about no right"


def test_a_place_that_only_the_step_can_see(trainer: Trainer, run: Run) -> None:
    run.place = resolve_place("/var/tmp/kubestill-test", "digits", "f" * 32, "")
    with pytest.raises(InvalidInput, match="checkpoint_uri = .* only this pod can see it"):
        run()


def test_there_is_no_cluster_here(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"settings.nodes = 2: several pods need a cluster with"):
        teach(data, tmp_path, settings={"nodes": 2, "virtual_workers": 2})


def test_the_devices_of_the_pods_are_not_looked_for_here(
    data: Path, tmp_path: Path, trainer: Trainer
) -> None:
    trainer.forbidden.add("create trainjobs")
    settings = {"nodes": 2, "virtual_workers": 2, "precision": "fp16"}
    with pytest.raises(ClusterError, match='cannot create resource "trainjobs"'):
        teach(data, tmp_path, device="cuda", settings=settings)


class Pods:
    """A controller that runs a TrainJob's pods as processes, and what happens to them meanwhile."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.hosts: list[Host] = []
        """What each pod runs on; none for this machine."""

    def __call__(self, trainer: Trainer, name: str) -> None:
        self.trainer, self.name = trainer, name
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.running = [self.start(index) for index in (0, 1)]
        happens, told = self.happens(), [0, 0]
        while not trainer.gone(name):
            for index, process in enumerate(self.running):
                lines = self.said(index).splitlines()
                trainer.says(name, index, *lines[told[index] :])
                told[index] = len(lines)
                phase = {None: "Running", 0: "Succeeded"}.get(process.poll(), "Failed")
                trainer.pod(name, index, phase)
            next(happens, None)
            codes = [process.poll() for process in self.running]
            if None not in codes:
                trainer.condition(name, "Complete" if codes == [0, 0] else "Failed")
                return
            time.sleep(0.05)

    def happens(self) -> Iterator[None]:
        """Let something happen to the pods, a little at each look at them; nothing."""
        yield from ()

    def start(self, index: int) -> subprocess.Popen[bytes]:
        host: dict[str, Any] = {}
        if self.hosts:
            host = {"first": self.hosts[0].name, "enter": self.hosts[index].enter}
        return self.trainer.runs(self.name, index, self.port, self.folder, **host)

    def replace(self, index: int) -> None:
        """Start a pod again, as soon as the one before it is gone."""
        os.killpg(self.running[index].pid, signal.SIGKILL)
        self.running[index].wait()
        self.running[index] = self.start(index)

    def signal(self, number: int) -> None:
        for process in self.running:
            os.killpg(process.pid, number)

    def said(self, index: int) -> str:
        return (self.folder / f"pod-{index}").read_text()

    def trains(self) -> bool:
        """Whether the pods have made some steps."""
        return len(re.findall(r"step +[1-9]\d*/", self.said(0))) > 4


class Killed(Pods):
    """One pod is killed, and starts again."""

    def happens(self) -> Iterator[None]:
        while not self.trains():
            yield
        self.replace(1)


class CutOff(Pods):
    """One pod's host is cut off; then it comes back, or the pod starts on another."""

    def __init__(self, folder: Path, switch: Switch, lost: int, back: bool):
        super().__init__(folder)
        self.switch, self.lost, self.back = switch, lost, back
        self.hosts = [switch.add(name) for name in HOSTS]

    def happens(self) -> Iterator[None]:
        while not (self.trains() and all(host.has("near.json") for host in self.hosts)):
            yield
        # On a machine in use they would be done before.
        self.signal(signal.SIGSTOP)
        self.hosts[self.lost].cut_off()
        self.signal(signal.SIGCONT)
        while AGAIN not in self.said(1 - self.lost):
            yield
        if self.back:
            self.hosts[self.lost].reconnect()
        else:
            self.hosts[self.lost] = self.switch.add(self.hosts[self.lost].name)
            self.replace(self.lost)


HOSTS = {"job-node-0-0": "10.77.0.1", "job-node-0-1": "10.77.0.2"}
HERE = pytest.mark.skipif(
    "KUBESTILL_CHAOS_KILLS" not in os.environ and not why_no_hosts(),
    reason="test_a_pod_whose_host_is_cut_off shows it, too",
)


@pytest.mark.parametrize(
    "kind", [pytest.param(Pods, marks=HERE), pytest.param(Killed, marks=CHAOS)]
)
def test_two_pods_give_the_bits_of_one_process(
    data: Path, tmp_path: Path, trainer: Trainer, kind: type[Pods]
) -> None:
    trainer.controller = kind(tmp_path)
    said = train_on_two_pods(data, tmp_path)
    assert (AGAIN in said) == (kind is Killed)


@pytest.mark.skipif(bool(why_no_hosts()), reason=f"no network namespaces: {why_no_hosts()}")
@pytest.mark.parametrize(
    ("lost", "back"),
    [
        (0, False),
        pytest.param(0, True, marks=CHAOS),
        pytest.param(1, False, marks=CHAOS),
        pytest.param(1, True, marks=CHAOS),
    ],
    ids=["first, replaced", "first, back", "second, replaced", "second, back"],
)
def test_a_pod_whose_host_is_cut_off(
    data: Path, tmp_path: Path, trainer: Trainer, gcs: Any, lost: int, back: bool
) -> None:
    disk = tmp_path / "near"
    with on_switch(HOSTS, disk, tmp_path) as switch:
        bucket = FaultProxy(gcs.emulator.host, address=BEHIND, within=switch.within)
        trainer.controller = pods = CutOff(tmp_path, switch, lost, back)
        near = {"near": str(disk), "near_seconds": 0.05, "recovery_seconds": 600.0}
        said = train_on_two_pods(
            data,
            tmp_path,
            gcs.uri,
            epochs=10.0,
            trainjob={"env": {"STORAGE_EMULATOR_HOST": bucket.host}},
            checkpoints=near,
            rank_timeout=2.0,
        )
        bucket.stop()
    missed = "RankLost: a process of another pod did not take part for 2 s, the setting rank_timeo"
    for index in {1 - lost, int(back) * lost}:
        assert f"{missed}ut: {AGAIN}" in pods.said(index)
    step = re.search(r"resuming from step (\d+), with the same bits", said)
    assert step, "the bucket has nothing"
    received = f"ranks {lost} get the state of step {step[1]} from the disks of ranks {1 - lost}"
    assert (received in said) == (not back)


def train_on_two_pods(
    data: Path, root: Path, uri: str = "", epochs: float = 8.0, **settings: Any
) -> str:
    """Run a step to its end and return what it said; its bits are those of one process."""
    task = root / "run" / "task"
    task.mkdir(parents=True)
    shared = {**SHARED, "milestone_every": 8.0}
    given = {**shared, "nodes": 2, "log_seconds": 0.02, **settings}
    step = command(data, task, epochs=epochs, checkpoint_uri=uri, settings=given)
    done = subprocess.run(step, capture_output=True, text=True, timeout=200)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said + (root / "pod-1").read_text()
    assert "2 processes of 2 pods share 2 micro-batches a step" in said
    assert "stopped: budget" in said, "the log of rank 0 is the step's own"
    assert "its result is adopted" in said
    teach(data, root, **{**PARAMETERS, "epochs": epochs}, settings=shared)
    assert digest(task) == digest(root)
    return said
