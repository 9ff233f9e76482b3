"""Pods that do not start, and why: from Kubernetes, as far as the kube config lets us ask."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner

from kubeflow import make_package
from kubeflow_runs import Workflow
from kubestill.cli import main
from kubestill.client.events import find_pipeline_root, find_waiting

NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


class _Kubernetes(BaseHTTPRequestHandler):
    pods: list[dict[str, Any]]
    events: list[dict[str, Any]]
    asked: list[str]
    status = 200

    def do_GET(self) -> None:  # noqa: N802
        url = urlsplit(self.path)
        self.asked.append(url.path)
        query = parse_qs(url.query)
        answer: dict[str, Any] = {"items": []}
        if url.path.endswith("/pods"):
            assert query["labelSelector"][0].startswith("pipeline/runid=")
            answer["items"] = self.pods
        elif url.path.endswith("/events"):
            name = query["fieldSelector"][0].removeprefix("involvedObject.name=").split(",")[0]
            answer["items"] = [one for one in self.events if one["involvedObject"]["name"] == name]
        else:
            answer = {"data": {"defaultPipelineRoot": "s3://own/root"}}
        content = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def kubernetes(serve_kubernetes) -> type[_Kubernetes]:
    """A Kubernetes API that the kube config points at."""
    handler = type("Handler", (_Kubernetes,), {"pods": [], "events": [], "asked": []})
    serve_kubernetes(handler)
    return handler


def pod(node: str, phase: str = "Pending", **status: Any) -> dict[str, Any]:
    annotations = {"workflows.argoproj.io/node-name": node}
    return {
        "metadata": {"name": f"pod-of-{node.rpartition('.')[2]}", "annotations": annotations},
        "status": {"phase": phase} | status,
    }


def unschedulable(node: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return pod(node, conditions=[condition | {"message": NO_NODE}])


TRAIN = "greet-x(0).root(0).train(0).executor(0)"


def test_the_reason_of_each_pod_that_waits(kubernetes):
    image = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling x"}}
    new = {"waiting": {"reason": "ContainerCreating"}}
    loop = "greet-x(0).root(0).for-loop-1(0).iteration-iterations(0:0)(0).iteration-item(0)"
    kubernetes.pods = [
        unschedulable(TRAIN),
        pod(f"{loop}.label(0).executor(0)", containerStatuses=[{"state": image}]),
        pod("greet-x(0).root(0).judge-2-driver(0)", containerStatuses=[{"state": new}]),
        pod("greet-x(0).root(0).prepare(0).executor(0)", phase="Running"),
    ]
    old = {"involvedObject": {"name": "pod-of-judge-2-driver(0)"}, "lastTimestamp": "2026-01-01"}
    kubernetes.events = [
        old | {"message": "FailedMount: no such secret", "lastTimestamp": "2026-01-02"},
        old | {"message": "older"},
    ]
    found = find_waiting("run", "team")
    assert found is not None
    assert [(one.key, one.reason) for one in found] == [
        ("train", NO_NODE),
        ("label", "ImagePullBackOff: Back-off pulling x"),
        ("judge-2", "FailedMount: no such secret"),
    ]
    assert kubernetes.asked[0] == "/api/v1/namespaces/team/pods"


def test_what_may_not_be_asked_is_not_known(kubernetes, monkeypatch, tmp_path):
    assert find_waiting("run", "") == []
    assert find_pipeline_root("") == "s3://own/root"
    kubernetes.status = 403
    assert find_waiting("run", "") is None
    assert find_pipeline_root("") == ""
    place = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(place, str(tmp_path / "none"))
    kubernetes.status = 200
    assert find_waiting("run", "") is None


@pytest.fixture
def follow(server, tmp_path, monkeypatch):
    """Follow a run whose step waits for a node, as `kubestill run --remote` does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kubestill.client.runs.PAUSE_S", 0.05)
    monkeypatch.setattr("kubestill.cli.watch.PENDING_S", 0.2)
    (tmp_path / "greet.yaml").write_text(make_package("hello").text)

    def play(workflow: Workflow) -> None:
        workflow.start("train", state="PENDING")
        workflow.stopped.wait(1.0)
        workflow.end("train")

    def run() -> str:
        server.executor = play
        arguments = ["run", "greet.yaml", "--remote", "--host", server.host]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_a_step_that_waits_says_why_once(kubernetes, follow):
    kubernetes.pods = [unschedulable(TRAIN)]
    output = follow()
    assert output.count(f"◌ train is pending: {NO_NODE}\n") == 1
    assert output.index("pending") < output.index("✓ train")
    assert "▸ train" not in output


def test_a_step_that_waits_where_kubernetes_cannot_be_asked(kubernetes, follow):
    kubernetes.status = 403
    assert "◌ train is pending: Kubernetes knows why, and no kube config here" in follow()


def test_a_list_that_stands_still_while_the_run_goes_on(
    kubernetes, server, tmp_path, monkeypatch, follow
):
    monkeypatch.setattr("kubestill.cli.watch._SILENT_S", 0.2)

    def play(workflow: Workflow) -> None:
        workflow.end("prepare")
        workflow.plan("train")
        workflow.stand_still()
        workflow.stopped.wait(1.5)
        workflow.end("train")

    def run() -> str:
        server.executor = play
        arguments = ["run", "greet.yaml", "--remote", "--host", server.host]
        return CliRunner().invoke(main, arguments).output

    assert (
        run().count("stands still, as it does once the state of a run's nodes is over 1 MB;") == 1
    )
    # A driver that waits is none of it.
    kubernetes.pods = [unschedulable("greet-x(0).root(0).train-driver(0)")]
    output = run()
    assert f"◌ train is pending: {NO_NODE}" in output
    assert "over 1 MB; the run goes on" not in output
