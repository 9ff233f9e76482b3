"""A training run outlives its process, its pod and its run, and shows no trace of it."""

from __future__ import annotations

import hashlib
import re

import pytest
from kube import Pods
from probes import Probes
from session import Cluster, wait_for

from kubestill.errors import KubestillError
from kubestill.runtime.checkpoints.inspection import describe, show

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

TASK = "train-student"


class Training:
    """One run of the probe `training`."""

    def __init__(self, cluster: Cluster, experiment: str):
        self._cluster = cluster
        self._uri = f"{cluster.checkpoints}/{experiment}"
        self._name = f"{cluster.mark}-training"
        given = {"experiment": experiment, "checkpoint_uri": cluster.checkpoints}
        self.run_id = cluster.begin(Probes(cluster).training(), **given)

    def step(self) -> int:
        """How far the newest checkpoint is; 0 where there is none."""
        try:
            return max(row.step for row in describe(self._uri))
        except (KubestillError, ValueError):
            return 0

    def wait_for_checkpoint(self) -> int:
        """Wait until something would be lost without checkpoints; returns the step."""
        return wait_for(lambda: self.step() or None, "a first checkpoint", 300)

    def attempts(self) -> int:
        """How many attempts the ledger knows of."""
        (row,) = show(self._uri)
        return row.attempt

    def finish(self) -> str:
        """Wait for success; returns the digest of the student's weights."""
        assert self._cluster.wait_for_end(self.run_id) == "SUCCEEDED"
        kept = self._cluster.outputs(self._name, self.run_id, TASK)
        content = self._cluster.store().get(kept["model/model.safetensors"])
        return hashlib.sha256(content).hexdigest()

    def resumed_from(self, pods: Pods) -> list[int]:
        """At which steps attempts took over, as their pods' logs say it."""
        names = [pod["metadata"]["name"] for pod in pods.executors(self.run_id, TASK)]
        said = "\n".join(self._cluster.log(self.run_id, name) for name in names)
        return [
            int(step.replace(",", "")) for step in re.findall(r"resuming from step ([\d,]+)", said)
        ]


@pytest.fixture(scope="module")
def calm(stored: Cluster) -> str:
    """The student of a run that nobody disturbed."""
    return Training(stored, "calm").finish()


def check(training: Training, pods: Pods, step: int, calm: str) -> None:
    """Hold a disturbed run against the calm one."""
    assert training.finish() == calm
    resumed = training.resumed_from(pods)
    assert resumed, "no attempt resumed"
    assert max(resumed) >= step
    assert training.attempts() > 1


def test_a_killed_process_goes_on_in_its_pod(stored: Cluster, pods: Pods, calm: str) -> None:
    training = Training(stored, "killed")
    pod = pods.wait_for(training.run_id, TASK)
    step = training.wait_for_checkpoint()
    pods.kill_inside(pod)
    check(training, pods, step, calm)
    names = [one["metadata"]["name"] for one in pods.executors(training.run_id, TASK)]
    assert names == [pod["metadata"]["name"]], "another pod did it"


def test_a_pod_that_is_lost_is_replaced(stored: Cluster, pods: Pods, calm: str) -> None:
    training = Training(stored, "lost")
    pod = pods.wait_for(training.run_id, TASK)
    step = training.wait_for_checkpoint()
    pods.delete(pod, grace_s=0)
    check(training, pods, step, calm)


def test_a_pod_that_is_drained_saves_first(stored: Cluster, pods: Pods, calm: str) -> None:
    training = Training(stored, "drained")
    pod = pods.wait_for(training.run_id, TASK)
    step = training.wait_for_checkpoint()
    pods.delete(pod, grace_s=30)
    check(training, pods, step, calm)


def test_another_run_goes_on_where_a_stopped_one_was(stored: Cluster, calm: str) -> None:
    first = Training(stored, "again")
    step = first.wait_for_checkpoint()
    done = stored.kubestill("runs", "stop", first.run_id)
    assert done.code == 0, done.out
    assert stored.wait_for_end(first.run_id, 180) == "FAILED"
    before = {row.uri for row in describe(f"{stored.checkpoints}/again")}
    second = Training(stored, "again")
    assert second.finish() == calm
    assert second.attempts() > 1, "it began anew"
    rows = describe(f"{stored.checkpoints}/again")
    assert len({row.training for row in rows}) == 1, "it began at another place"
    later = [row for row in rows if row.uri not in before]
    assert min(row.step for row in later) > step, "it began from the start"
