"""Where a step is to run stands in its pod; where no node is for it, one hears that and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kube import Pods
from session import Cluster, Command, find_run, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SELECTOR = {"kubestill.example/pool": "nowhere"}
TOLERATIONS = [{"key": "kubestill.example/spot", "operator": "Exists", "effect": "NoSchedule"}]
# Steps without a device run, and need the secret: this one every Kubeflow has.
RESOURCES = """env: {GREETING: hello}
secrets: {SECRET_WORD: mlpipeline-minio-artifact/accesskey}
"""
TASKS = ("check-distillation", "train-control")
"""The first steps with a device; which of them comes first is the cluster's choice."""


@pytest.fixture(scope="module")
def watched(cluster: Cluster) -> Iterator[Command]:
    """A run that asks for a node that is not there, followed from a terminal."""
    command = cluster.follow(
        "distillation",
        resources=RESOURCES,
        node_selector=SELECTOR,
        tolerations=TOLERATIONS,
        accelerators="1",
        accelerator="kubestill.example/gpu",
        checkpoint_uri=cluster.checkpoints,
    )
    yield command
    if command.running:
        command.interrupt()


@pytest.fixture(scope="module")
def run_id(cluster: Cluster, watched: Command) -> str:
    return wait_for(lambda: find_run(watched.out), "the command to say which run it started", 120)


@pytest.fixture(scope="module")
def spec(pods: Pods, run_id: str) -> dict[str, Any]:
    """The spec of a pod that waits."""
    return pods.wait_for(run_id, *TASKS, phase="Pending")["spec"]


@pytest.fixture
def container(spec: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in spec["containers"] if one["name"] == "main")


def test_nodes_and_taints(spec: dict[str, Any]) -> None:
    assert spec["nodeSelector"] == SELECTOR
    # Kubernetes adds some of its own.
    assert [one for one in spec["tolerations"] if one in TOLERATIONS] == TOLERATIONS


def test_sizes_and_accelerators(container: dict[str, Any]) -> None:
    assert container["resources"]["requests"]["cpu"] == "100m"
    assert container["resources"]["limits"]["memory"] == "1Gi"
    assert container["resources"]["limits"]["kubestill.example/gpu"] == "1"


def test_variables_and_secrets(container: dict[str, Any]) -> None:
    env = {one["name"]: one for one in container["env"]}
    assert env["GREETING"]["value"] == "hello"
    source = env["SECRET_WORD"]["valueFrom"]["secretKeyRef"]
    assert (source["name"], source["key"]) == ("mlpipeline-minio-artifact", "accesskey")


def test_shared_memory(spec: dict[str, Any], container: dict[str, Any]) -> None:
    mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    (volume,) = (one for one in spec["volumes"] if one["name"] == mounted["/dev/shm"])
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "256Mi"}


def test_image(cluster: Cluster, container: dict[str, Any]) -> None:
    assert container["image"] == cluster.image


def test_the_command_says_why_it_waits(watched: Command, pods: Pods, run_id: str) -> None:
    wait_for(
        lambda: "node affinity" in watched.out or "Insufficient" in watched.out or None,
        "the command to say why nothing happens",
        180,
    )
    assert watched.running


def test_interrupted_it_says_that_the_run_goes_on_and_how_to_stop_it(
    cluster: Cluster, watched: Command, run_id: str
) -> None:
    wait_for(lambda: cluster.state(run_id) == "RUNNING" or None, "the run to begin", 180)
    done = watched.interrupt()
    assert done.code != 0
    assert f"kubestill runs stop {run_id}" in done.out.splitlines()[-1] or (
        f"kubestill runs stop {run_id}" in done.out
    )
    assert cluster.state(run_id) == "RUNNING"
    stopped = cluster.kubestill("runs", "stop", run_id)
    assert stopped.code == 0, stopped.out
    assert cluster.wait_for_end(run_id, 180) == "FAILED"
    assert cluster.history(run_id)[-2:] == ["CANCELING", "FAILED"]
