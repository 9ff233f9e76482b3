"""What MLflow shows of a run: asked on a real server, and on servers that are of no use."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
from click.testing import CliRunner
from test_upkeep import House, frame_of  # pyright: ignore[reportMissingImports]

from kubestill.cli import main
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.base.patience import Patience
from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.retraining import open_registry
from kubestill.runtime.steps import tracking
from kubestill.runtime.steps.record_outcome import record_outcome
from kubestill.runtime.steps.tracking import (
    Point,
    Results,
    mirror_champion,
    mirror_results,
)
from kubestill.runtime.steps.train_teacher import train_teacher

API = "/api/2.0/mlflow"
RUN = "/runs/prices-2026-11-28/train-teacher/0b0b3b9e-4c3c-4f6e-9d5f-6f1a2b3c4d5e"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start without what this machine says of MLflow."""
    for name in ("RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME", "WORKSPACE"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    for name in ("TOKEN", "USERNAME", "PASSWORD", "AUTH", "URI"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("KUBESTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The real one; what a test puts there is in an experiment and a model of its own."""
    monkeypatch.setenv(tracking.URI, mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setenv(tracking.NAME, tmp_path.name)
    return mlflow_server


def get(server: str, path: str, **query: str) -> Any:
    answer = requests.get(f"{server}{API}/{path}", params=query, timeout=20)
    assert answer.ok, answer.text
    return answer.json()


def post(server: str, path: str, **body: Any) -> Any:
    answer = requests.post(f"{server}{API}/{path}", json=body, timeout=20)
    assert answer.ok, answer.text
    return answer.json()


def runs_of(server: str, name: str) -> list[dict[str, Any]]:
    found = get(server, "experiments/get-by-name", experiment_name=name)["experiment"]
    return post(server, "runs/search", experiment_ids=[found["experiment_id"]]).get("runs", [])


def history(server: str, run: str, key: str) -> list[tuple[int, float]]:
    found = get(server, "metrics/get-history", run_id=run, metric_key=key)
    return [(point["step"], point["value"]) for point in found["metrics"]]


def pairs(listed: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: one["value"] for one in listed}


def test_a_training_run_shows_settings_curves_and_scores(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.linspace(-1, 1, 256, dtype=np.float32)
    schema = Schema(
        columns=(
            Column(name="x", kind="numeric"),
            Column(name="y", kind="numeric", role="target"),
        ),
        task="regression",
    )
    with DatasetWriter(str(tmp_path / "rows"), schema) as writer:
        writer.write(pd.DataFrame({"x": x, "y": 3 * x}))
    rows = LocalArtifact(str(tmp_path / "rows"), metadata={"kind": "dataset"})
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: dict[str, Any] = {name: LocalArtifact(str(tmp_path / "out" / name)) for name in names}
    given: dict[str, Any] = {"steps": 60, "batch_size": 64, "checkpoint_uri": str(tmp_path / "c")}
    # The second time is a pod that was started again after the end.
    for _ in range(2):
        train_teacher(dataset=rows, validation=rows, **given, **ports)
    (run,) = runs_of(server, tmp_path.name)
    id, data = run["info"]["run_id"], run["data"]
    said = capsys.readouterr().out
    assert f"MLflow at {server}: run {id} has the results of train teacher\n" in said
    assert f"run {id} has the results of train teacher already" in said
    assert run["info"]["status"] == "FINISHED"
    record = json.loads((tmp_path / "out" / "model" / "training.json").read_text())
    curve = {point["step"]: point["loss"] for point in record["curves"]["train"]}
    assert len(curve) > 3
    assert dict(history(server, id, "train/loss")) == pytest.approx(curve)
    followed = {point["step"]: point["rmse"] for point in record["curves"]["validation"]}
    assert dict(history(server, id, "validation/rmse")) == pytest.approx(followed)
    scores = pairs(data["metrics"])
    logged = {name: v for name, v in ports["metrics"].metadata.items() if name != "kind"}
    assert {name: scores[name] for name in logged} == pytest.approx(logged)
    assert pairs(data["params"])["settings.batch_size"] == "64"
    tags = pairs(data["tags"])
    assert tags["kubestill.digest"] == ports["model"].metadata["digest"]
    assert tags["kubestill.fingerprint"] == record["fingerprint"]


def test_long_curves_and_odd_names_arrive_whole(server: str, tmp_path: Path) -> None:
    curves = [Point(name="validation/é: r²", step=step, value=step / 7) for step in range(250)]
    parameters = {f"p{n}": {"a b": [1, 2], "c:d%": "x" * 9000} for n in range(60)}
    found = Results(
        step="train student",
        output_uri=f"{RUN}/model",
        metrics={"accuracy": 0.9},
        curves=curves,
        parameters=parameters,
        seconds=3.0,
    )
    assert "has the results" in mirror_results(found)
    (run,) = runs_of(server, tmp_path.name)
    assert len(history(server, run["info"]["run_id"], "validation/é_ r²")) == 250
    params = pairs(run["data"]["params"])
    assert len(params) == 120
    assert params["settings.p0.c_d_"] == "x" * 500
    assert run["info"]["run_name"] == "train student prices-2026-11-28"
    assert pairs(run["data"]["tags"])["kubestill.run"] == "prices-2026-11-28"


def test_the_run_that_kubeflow_made_for_the_step_is_taken(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = post(server, "experiments/create", name=tmp_path.name)["experiment_id"]
    run = post(server, "runs/create", experiment_id=made, start_time=1)["run"]["info"]["run_id"]
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    for _ in range(2):
        mirror_results(Results(step="s", output_uri=f"{RUN}/m", metrics={"accuracy": 0.5}))
    (found,) = runs_of(server, tmp_path.name)
    assert found["info"]["run_id"] == run
    assert found["info"]["status"] == "RUNNING"  # Kubeflow ends it
    assert history(server, run, "accuracy") == [(0, 0.5)]


def version_of(server: str, name: str, alias: str) -> dict[str, Any]:
    found = get(server, "registered-models/alias", name=name, alias=alias)["model_version"]
    return {**pairs(found["tags"]), "source": found["source"], "version": found["version"]}


def test_aliases_follow_the_registry(server: str, tmp_path: Path, capsys: Any) -> None:
    house, name = House(tmp_path), tmp_path.name
    first = house.model(frame_of(800, seed=1))
    holdout = house.rows(frame_of(800, seed=2))
    verdict, _, out = house.eval(holdout, model=first, run_id="r0")
    assert verdict == "promote"
    house.promote(first, read_record(out["record"])["decision"])
    assert "champion of" in mirror_champion(house.registry)
    champion = house.registry.read().champion
    assert champion is not None
    shown = version_of(server, name, "champion")
    assert shown["kubestill.digest"] == champion.model_digest
    assert shown["kubestill.uri"] == house.registry.model_uri(champion)
    assert shown["kubestill.champion"] == "1"
    # A challenger is named when it is judged, and stays so where it loses.
    second = house.model(frame_of(800, seed=3), steps=5)
    verdict, _, out = house.eval(house.rows(frame_of(800, seed=4)), model=second, run_id="r1")
    assert verdict != "promote"
    challenger = version_of(server, name, "challenger")
    assert challenger["kubestill.decision"] == verdict
    assert challenger["kubestill.digest"] == read_record(out["record"])["decision"]["model"]
    assert version_of(server, name, "champion") == shown
    # Its evaluation is a run.
    steps = {pairs(run["data"]["tags"])["kubestill.step"] for run in runs_of(server, name)}
    assert steps == {"evaluate challenge"}
    # Now it is promoted all the same: the last step of a run moves the alias.
    house.promote(second, read_record(out["record"])["decision"])
    state = house.registry.read()
    assert state.champion is not None
    made = state.champion.model_copy(update={"version": 2})
    house.registry.change(
        lambda now: now.model_copy(update={"champion": made, "previous": (champion,)})
    )

    class Status:
        state = "COMPLETE"
        error_message: str | None = None

    summary = LocalArtifact(str(tmp_path / "summary"))
    record_outcome(registry=house.registry.uri, run_id="r1", final_status=Status(), summary=summary)
    assert f"champion of {name!r} is version" in capsys.readouterr().out
    now = version_of(server, name, "champion")
    assert (now["kubestill.champion"], now["kubestill.digest"]) == ("2", made.model_digest)
    gone = requests.get(
        f"{server}{API}/registered-models/alias",
        params={"name": name, "alias": "challenger"},
        timeout=20,
    )
    assert gone.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    # A person goes back: so does the alias, to the version that is there already.
    done = CliRunner().invoke(main, ["registry", "rollback", house.registry.uri, "--yes"])
    assert done.exit_code == 0, done.output
    assert f"champion of {name!r} is version {shown['version']}" in done.output
    assert version_of(server, name, "champion") == shown


def test_two_registries_do_not_share_a_model(server: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        registry = open_registry(str(tmp_path / name))
        told = tracking._tell(  # pyright: ignore[reportPrivateUsage]
            lambda server, registry=registry: server.name_version(
                registry.uri, "champion", digest="d", uri="gs://x/y", tags={}, reason=""
            )
        )
        assert ("belongs to" in told) is (name == "b")
    assert f"set {tracking.NAME} to another name" in told


class Useless(BaseHTTPRequestHandler):
    """A server that is no MLflow of use."""

    kind = ""

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        asked.append((self.path, dict(self.headers)))
        if self.kind == "silent":
            time.sleep(0.6)
            return
        if self.kind == "drip":
            for byte in b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 400:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)
            return
        status, body = {
            "401": (401, b"Unauthorized"),
            "500": (500, b"{}"),
            "html": (404, b"<html>no such page</html>"),
            "login": (302, b""),
            "list": (200, b"[]"),
            "old": (404, b'{"error_code": "ENDPOINT_NOT_FOUND", "message": "no such endpoint"}'),
            "nothing": (200, b"{}"),
        }[self.kind]
        self.send_response(status)
        self.send_header("Location", "/login")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


asked: list[tuple[str, dict[str, str]]] = []


@pytest.fixture
def useless(monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    quick = Patience(attempts=2, pause_seconds=0.01, answer_seconds=0.2, all_seconds=1.0)
    monkeypatch.setattr(tracking, "PATIENCE", quick)
    asked.clear()

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """The client went away, as it should."""

    server = Quiet(("127.0.0.1", 0), Useless)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv(tracking.URI, f"http://me:secret@127.0.0.1:{server.server_port}/")
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("401", "did not take it: 401; set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME"),
        ("500", "is not available: 500"),
        ("html", "answered 404 without JSON"),
        ("login", "answered 302 without JSON"),
        ("list", "answered 200 without JSON"),
        ("old", "answered 404: no such endpoint"),
        ("nothing", "was told nothing (KeyError)"),
        ("silent", "is not available: ReadTimeout"),
        ("drip", "did not answer within 1 s"),
    ],
)
def test_a_server_of_no_use_costs_a_sentence_and_a_bounded_time(
    kind: str, told: str, useless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Useless, "kind", kind)
    began = time.monotonic()
    said = mirror_results(Results(step="s", output_uri="/a/b", metrics={"x": 1.0}))
    assert time.monotonic() - began < 3
    assert said.startswith(f"MLflow at {useless}: ")
    assert told in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("", ""),
        ("sqlite:///mlflow.db", "must begin with http:// or https://"),
        ("databricks", "must begin with http:// or https://"),
        ("http://[", "must begin with http:// or https://"),
    ],
)
def test_what_is_no_server_is_said(uri: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.URI, uri)
    said = mirror_results(Results(step="s", output_uri="/a/b", metrics={}))
    assert told in said
    assert bool(said) is bool(told)


def test_a_server_that_is_down_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(tracking, "PATIENCE", Patience(attempts=2, pause_seconds=0.01))
    monkeypatch.setenv(tracking.URI, f"http://127.0.0.1:{port}")
    said = mirror_results(Results(step="s", output_uri="/a/b", metrics={}))
    assert said == f"MLflow at http://127.0.0.1:{port}: is not available: ConnectionError"


@pytest.mark.parametrize(
    ("given", "header", "value"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "Authorization", "Bearer t"),
        (
            {"MLFLOW_TRACKING_USERNAME": "a", "MLFLOW_TRACKING_PASSWORD": "b"},
            "Authorization",
            "Basic YTpi",
        ),
        ({"MLFLOW_TRACKING_AUTH": "kubernetes-namespaced"}, "Authorization", "Bearer of the pod"),
        ({"MLFLOW_WORKSPACE": "team"}, "X-MLFLOW-WORKSPACE", "team"),
    ],
)
def test_credentials_go_where_mlflow_looks_for_them(
    given: dict[str, str],
    header: str,
    value: str,
    useless: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text("of the pod\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv(tracking.URI, useless)
    monkeypatch.setattr(Useless, "kind", "401")
    for name, one in given.items():
        monkeypatch.setenv(name, one)
    mirror_results(Results(step="s", output_uri="/a/b", metrics={}))
    assert asked[0][1][header] == value
