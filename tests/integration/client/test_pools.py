"""Whether nodes can take what a run asks for: by its parameters, by a Kubernetes API's answer."""

import json
import shlex
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from kubestill.cli import main
from kubestill.client.controller import CONFIG_MAP, Advice, judge_retries
from kubestill.client.kube import NotChecked
from kubestill.client.pools import find_pool, read_request
from kubestill.errors import ClusterError, InvalidInput

GPU = {
    "accelerator": "nvidia.com/gpu",
    "accelerators": "1",
    "cpu": "6",
    "memory": "24Gi",
    "node_selector": {"pool": "l4"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "device": "auto",
}


def node(
    pool: str = "l4",
    gpus: int = 1,
    memory: str = "30Gi",
    taint: dict[str, str] | None = None,
) -> dict[str, Any]:
    allocatable = {"cpu": "7910m", "memory": memory, "nvidia.com/gpu": str(gpus)}
    taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    return {
        "metadata": {"labels": {"pool": pool}},
        "spec": {"taints": [*taints, *([taint] if taint else [])]},
        "status": {"allocatable": allocatable},
    }


SPOT = {"key": "spot", "value": "true", "effect": "NoSchedule"}


def look(nodes: list[dict[str, Any]], **changes: Any) -> str:
    request = read_request(GPU | changes)
    assert request
    return find_pool(request, nodes)


def test_a_pool_that_can_take_a_step():
    nodes = [node(), node(taint=SPOT), node(pool="cpus", gpus=0)]
    assert look(nodes) == "1 of 2 nodes with pool=l4 can take a step with 1 nvidia.com/gpu"
    spot = [*GPU["tolerations"], {"key": "spot", "value": "true"}]
    assert look(nodes, tolerations=spot).startswith("2 of 2")
    assert look(nodes, tolerations=[{"operator": "Exists"}]).startswith("2 of 2")
    soft = node(taint=SPOT | {"effect": "PreferNoSchedule"})
    assert look([soft]).startswith("1 of 1")


@pytest.mark.parametrize(
    ("nodes", "changes", "said"),
    [
        ([node(gpus=0)], {}, "none offers 1 nvidia.com/gpu.*device plugin"),
        ([node(gpus=2)], {"accelerators": "4"}, "none offers 4 nvidia.com/gpu: 2 at most"),
        ([node()], {"accelerator": "amd.com/gpu"}, "they have nvidia.com/gpu; choose another"),
        ([node(taint=SPOT)], {}, "add tolerations for spot=true:NoSchedule"),
        ([node()], {"memory": "64Gi"}, "the largest 7910m and 30Gi"),
    ],
    ids=["no-gpu", "too-few", "another-kind", "taint", "too-small"],
)
def test_a_pool_that_cannot_says_why(nodes, changes, said):
    with pytest.raises(ClusterError, match=said):
        look(nodes, **changes)


def test_a_pool_scaled_to_zero_is_not_judged():
    with pytest.raises(NotChecked, match="no node has pool=l5 now.*pool is cpus, l4"):
        look([node(), node(pool="cpus")], node_selector={"pool": "l5"})


def test_everything_that_no_cluster_can_do_is_reported_at_once():
    with pytest.raises(InvalidInput) as error:
        read_request(
            GPU
            | {
                "accelerator": "nvidia-l4",
                "accelerators": "one",
                "memory": "lots",
                "device": "cuda",
                "node_selector": {"spot": True},
                "tolerations": [{"key": "a", "operator": "Exists", "value": "b"}, {"kei": "a"}],
            }
        )
    fields = [problem.field for problem in error.value.problems]
    wanted = ["accelerators", "accelerator", "device", "memory", "node_selector.spot"]
    assert fields == [*wanted, "tolerations", "tolerations"]


def test_pipelines_without_such_parameters_are_left_alone():
    assert read_request({"memory": "of an elephant"}) is None


class _Kubernetes(BaseHTTPRequestHandler):
    nodes: list[dict[str, Any]] | None
    controller: dict[str, str] | None = None
    """Data of the workflow controller's configmap."""

    def do_GET(self) -> None:  # noqa: N802
        if self.path == "/api/v1/nodes":
            status = 200 if self.nodes is not None else 403
            answer = {"kind": "NodeList", "items": self.nodes}
        else:
            assert self.path.endswith("/namespaces/kubeflow/configmaps/" + CONFIG_MAP)
            status = 200 if self.controller is not None else 404
            answer = {"kind": "ConfigMap", "data": self.controller}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def kubernetes(serve_kubernetes) -> type[_Kubernetes]:
    """A Kubernetes API with two nodes that the kube config points at."""
    handler = type("Handler", (_Kubernetes,), {"nodes": [node(), node(gpus=0, pool="cpus")]})
    serve_kubernetes(handler)
    return handler


def doctor(server: Any, tmp_path: Path, monkeypatch, **parameters: Any) -> tuple[int, str]:
    monkeypatch.setenv("KUBESTILL_HOST", server.host)
    monkeypatch.setenv("KUBESTILL_CONFIG", str(tmp_path / "none"))
    (tmp_path / "none").write_text("")
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(GPU | parameters))
    arguments = ["doctor", "surrogate", "--params", str(tmp_path / "given.yaml")]
    result = CliRunner().invoke(main, [*arguments, "-p", f"checkpoint_uri={tmp_path}/store"])
    return result.exit_code, result.output


def test_doctor_looks_at_what_a_run_would_need(server, kubernetes, tmp_path, monkeypatch):
    code, output = doctor(server, tmp_path, monkeypatch)
    assert "✓ nodes: 1 of 1 node with pool=l4" in output
    assert "✓ store: " in output
    # The image that nobody has pushed.
    assert "✗ image kubestill:" in output
    assert code == 1
    code, output = doctor(server, tmp_path, monkeypatch, node_selector={"pool": "cpus"})
    assert "✗ nodes: of 1 node with pool=cpus none offers 1 nvidia.com/gpu" in output


def test_doctor_says_plainly_what_it_cannot_look_at(server, kubernetes, tmp_path, monkeypatch):
    kubernetes.nodes = None
    output = doctor(server, tmp_path, monkeypatch)[1]
    assert "? nodes: not checked: Kubernetes answers 403" in output
    nowhere = str(tmp_path / "nowhere")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", nowhere)
    output = doctor(server, tmp_path, monkeypatch)[1]
    assert "? nodes: not checked: there is no kube config here" in output


def test_a_server_that_is_too_old_is_reported(server, tmp_path, monkeypatch):
    server.version = "2.0.5"
    output = doctor(server, tmp_path, monkeypatch, accelerators="", node_selector={})[1]
    assert "✗ host: " in output
    assert ": Kubeflow Pipelines 2.0.5 is older than 2.15" in output
    assert "may not reach the pods" in output


STOCK = """spec:
  ttlStrategy:
    secondsAfterCompletion: 3600
  templateDefaults:
    retryStrategy:
      limit: '2'
      retryPolicy: OnError
"""
"""As Kubeflow Pipelines 2.17 ships it."""
IN_PLACE = "sed 's/retryPolicy: OnError/retryPolicy: Always/' | kubectl replace -f -"


def test_doctor_reads_what_the_workflow_controller_retries(
    server, kubernetes, tmp_path, monkeypatch
):
    kubernetes.controller = {"workflowDefaults": STOCK}
    output = doctor(server, tmp_path, monkeypatch)[1]
    assert "! retries: the workflow controller's retryPolicy is OnError" in output
    assert f"kubectl get -n kubeflow configmap {CONFIG_MAP} -o yaml | {IN_PLACE}" in output
    kubernetes.controller = {"workflowDefaults": STOCK.replace("OnError", "Always")}
    assert "✓ retries: Always" in doctor(server, tmp_path, monkeypatch)[1]
    kubernetes.controller = None
    output = doctor(server, tmp_path, monkeypatch)[1]
    assert "? retries: not checked: Kubernetes answers 404" in output


def test_advice_is_no_failure(server, kubernetes, tmp_path, monkeypatch):
    kubernetes.controller = {"workflowDefaults": STOCK}
    monkeypatch.setenv("KUBESTILL_HOST", server.host)
    monkeypatch.setenv("KUBESTILL_CONFIG", str(tmp_path / "none"))
    (tmp_path / "none").write_text("")
    result = CliRunner().invoke(main, ["doctor"])
    assert "! retries" in result.output
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("settings", "policy", "lost", "remedy"),
    [
        ({"workflowDefaults": STOCK}, "OnError", "fails", IN_PLACE),
        ({}, "OnFailure", "loses its pod or node", '--type merge -p \'{"data"'),
        ({"artifactRepository": "archiveLogs: true"}, "OnFailure", "loses", "--type merge"),
        (
            {"workflowDefaults": "spec: {retryStrategy: {limit: 1, retryPolicy: OnError}}"},
            "OnError",
            "fails",
            "sed",
        ),
        ({"workflowDefaults": STOCK.replace("OnError", "'OnError'")}, "OnError", "fails", "edit"),
        ({"workflowDefaults": "spec: {parallelism: 4}"}, "OnFailure", "loses", "kubectl edit"),
        (
            {"config": "workflowDefaults: {spec: {retryStrategy: {retryPolicy: OnError}}}"},
            "OnError",
            "fails",
            "kubectl edit",
        ),
        (
            {"workflowDefaults": STOCK.replace("OnError", "OnTransientError")},
            "OnTransientError",
            "too often or loses its pod or node",
            "sed",
        ),
    ],
    ids=["stock", "before 2.17", "no defaults", "flow", "quoted", "others", "one key", "transient"],
)
def test_each_policy_says_what_is_not_started_again(settings, policy, lost, remedy):
    with pytest.raises(Advice) as error:
        judge_retries(settings)
    said = str(error.value)
    assert f"retryPolicy is {policy}" in said
    assert lost in said
    assert remedy in said.splitlines()[-1]


def test_the_patch_asks_for_always_with_a_limit():
    with pytest.raises(Advice) as error:
        judge_retries({})
    patch = json.loads(shlex.split(str(error.value).splitlines()[-1])[-1])
    assert judge_retries(patch["data"]).startswith("Always")
    strategy = yaml.safe_load(patch["data"]["workflowDefaults"])["spec"]["templateDefaults"]
    assert strategy["retryStrategy"]["limit"] == "2"


def test_nothing_else_of_the_controllers_settings_is_shown():
    secret = STOCK.replace("ttlStrategy", "podSpecPatch: {password: hunter2}\n  ttlStrategy")
    with pytest.raises(Advice) as error:
        judge_retries({"workflowDefaults": secret, "persistence": "password: hunter3"})
    assert "hunter" not in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "just words", "spec: {templateDefaults: [1]}"])
def test_settings_that_cannot_be_parsed_are_not_judged(text):
    with pytest.raises(NotChecked, match="cannot be parsed"):
        judge_retries({"workflowDefaults": text})
