"""A pipeline whose training runs ask for several pods, on clusters with and without a Trainer."""

# kfp injects outputs and turns functions into components.
# pyright: reportCallIssue=false, reportArgumentType=false

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kfp import compiler, dsl

from kubestill.assets.packages import Package, load_package
from kubestill.cli import main
from kubestill.client.trainer import find_runtimes
from kubestill.components import import_dataset, train_teacher

NODES: dict[str, Any] = {"nodes": 4, "virtual_workers": 8}
PATH = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes"


class _Kubernetes(BaseHTTPRequestHandler):
    runtimes: dict[str, str] | None
    """Kinds of policy of the cluster's runtimes, by their names."""

    def do_GET(self) -> None:  # noqa: N802
        there = self.path == PATH and self.runtimes is not None
        items = [
            {"metadata": {"name": name}, "spec": {"mlPolicy": {"numNodes": 1, kind: {}}}}
            for name, kind in (self.runtimes or {}).items()
        ]
        content = json.dumps({"items": items} if there else {"message": "not found"}).encode()
        self.send_response(200 if there else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def cluster(serve_kubernetes: Any) -> type[_Kubernetes]:
    handler = type("Kubernetes", (_Kubernetes,), {"runtimes": {"torch-distributed": "torch"}})
    serve_kubernetes(handler)
    return handler


def own_pipeline(path: Path, **settings: Any) -> str:
    @dsl.pipeline(name="own")
    def own():
        rows = import_dataset(source="digits")
        train_teacher(dataset=rows.outputs["dataset"], settings=settings)

    compiler.Compiler().compile(own, str(path))
    return str(path)


def runtimes(package: Package, **arguments: Any) -> set[str]:
    return find_runtimes(package.documents, arguments)


def test_what_a_run_asks_for(tmp_path: Path) -> None:
    own = load_package(own_pipeline(tmp_path / "own.yaml", **NODES))
    assert runtimes(own) == {"torch-distributed"}
    ours = load_package("distillation")
    assert runtimes(ours) == set()
    assert runtimes(ours, teacher_settings={"nodes": 1}) == set()
    mine = {"nodes": 2.0, "trainjob": {"runtime": "mine"}}
    assert runtimes(ours, teacher_settings=NODES, student_settings=mine) == {
        "torch-distributed",
        "mine",
    }
    mine["trainjob"]["runtime_kind"] = "TrainingRuntime"
    assert runtimes(ours, student_settings=mine) == {""}


def test_the_upload_and_the_run_are_refused(cluster: Any, server: Any, tmp_path: Path) -> None:
    cluster.runtimes = None
    own = own_pipeline(tmp_path / "own.yaml", **NODES)
    commands = [
        ["upload", own],
        ["run", "distillation", "--remote", "-p", f"teacher_settings={json.dumps(NODES)}"],
    ]
    for command in commands:
        done = CliRunner().invoke(main, [*command, "--host", server.host])
        assert done.exit_code, done.output
        assert "has no Kubeflow Trainer of version 2" in done.output
    assert not server.pipelines
    cluster.runtimes = {"torch-distributed": "torch"}
    done = CliRunner().invoke(main, ["upload", own, "--host", server.host])
    assert not done.exit_code, done.output


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (
            {"torch-distributed": "torch"},
            "✓ trainer: Kubeflow Trainer is there, with torch-distributed",
        ),
        (
            {"mpi": "mpi"},
            "✗ trainer: trainjob.runtime: ClusterTrainingRuntime torch-distributed is not in this",
        ),
        (
            {"torch-distributed": "mpi"},
            "✗ trainer: trainjob.runtime: ClusterTrainingRuntime torch-distributed is not one for",
        ),
        (None, "✗ trainer: a step has nodes above 1, and this cluster has no Kubeflow Trainer"),
    ],
    ids=["there", "another", "not for torch", "none"],
)
def test_the_doctor(
    cluster: Any, server: Any, there: dict[str, str] | None, said: str, tmp_path: Path
) -> None:
    cluster.runtimes = there
    given = f"teacher_settings={json.dumps(NODES)}"
    command = ["doctor", "distillation", "-p", given, "-p", f"checkpoint_uri={tmp_path}"]
    done = CliRunner().invoke(main, [*command, "--host", server.host])
    assert said in done.output
