"""A small Kubeflow: keeps pipelines, runs and schedules in memory, over real HTTP.

It refuses every request that Kubeflow's own description does not allow, and does what the tests
need to be true: ids, pages, names that exist already, and children that die with their schedule.
Its runs tell of themselves as `kubeflow_runs.py` says. Somebody plays them: `start` takes a
function that moves the run's nodes, in a thread of its own. Beside the API it has the log of a pod
and the endpoint for artifacts that Kubeflow's UI has.
"""

from __future__ import annotations

import fnmatch
import io
import json
import re
import tarfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from kubeflow_description import find_problem, read_operations
from kubeflow_runs import ENDED, Workflow, now
from kubestill.assets.packages import Package

_ROOT = "/apis/v2beta1/"
_OPERATIONS = read_operations()
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 501: 12}
"""Of gRPC, by those of HTTP."""
ACCOUNT = {"service_account": "pipeline-runner"}
"""What runs and schedules get that name none, as recorded on a real one."""

Executor = Callable[[Workflow], None]
"""Plays a run: moves its nodes. The run succeeds when it returns and fails when it raises."""


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status

    @property
    def body(self) -> dict[str, Any]:
        """What the API says, as the recordings have it."""
        code = _CODES.get(self.status, 13)
        status = {"@type": "type.googleapis.com/google.rpc.Status", "code": code}
        details = [status | {"message": str(self)}]
        return {"code": code, "message": f"Failed: {self}", "details": details}


class Kubeflow:
    """Its state, and what each operation does with it."""

    def __init__(self) -> None:
        self.host = ""
        self.version = "2.17.0"
        self.page_size = 2
        """Small, so that every list has pages."""
        self.token = ""
        """What `Authorization: Bearer` must hold; empty lets everybody in."""
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.recurring_runs: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.workflows: dict[str, Workflow] = {}
        """Of the runs that were started, by their ids."""
        self.objects: dict[str, bytes] = {}
        """What is in the store behind the UI, as `bucket/key`."""
        self.has_ui = True
        self.executor: Executor | None = None
        """Plays each run from the moment it is asked for; without one they stay PENDING."""
        self.killed: list[str] = []
        """Runs that died because their schedule was deleted."""
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Callable[[str], tuple[Any, ...] | None]] = []
        """Asked first; may answer instead: status, content type, body, and further headers."""
        self._ids = 0
        self._executors: dict[str, Executor] = {}
        self._players: dict[str, threading.Thread] = {}

    def start(self, run_id: str, executor: Executor) -> Workflow:
        """Let a run begin, and be played; a run that is retried is played by the same again."""
        record = self.runs[run_id]
        workflow = self.workflows[run_id] = Workflow(record, self._spec_of(record))
        self._executors[run_id] = executor
        self._play(workflow)
        return workflow

    def wait(self, run_id: str) -> None:
        """Wait until nobody plays a run any more."""
        self._players[run_id].join()

    def show(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a run as the API tells of it."""
        workflow = self.workflows.get(record["run_id"])
        return record | ({"run_details": {"task_details": workflow.details()}} if workflow else {})

    def terminate(self, record: dict[str, Any]) -> dict[str, Any]:
        """Stop a run: it is CANCELING, and FAILED once its pods are gone."""
        if record["state"] in ENDED:
            raise Refused(400, f"run {record['run_id']} cannot be terminated: it is over")
        workflow = self.workflows.get(record["run_id"])
        if workflow is None:
            record["state"] = "FAILED"
            record["state_history"] = [{"state": "CANCELING"}, {"state": "FAILED"}]
            return {}
        workflow.move("CANCELING")
        workflow.stopped.set()
        return {}

    def retry(self, record: dict[str, Any]) -> dict[str, Any]:
        """Run what failed again, as the same run."""
        if record["state"] != "FAILED":
            raise Refused(400, f"run {record['run_id']} cannot be retried: {record['state']}")
        self._play(self.workflows[record["run_id"]])
        return {}

    def serve(self, path: str, query: dict[str, str]) -> tuple[int, str, bytes]:
        """Answer what is beside the API: the log of a pod, or an artifact."""
        if found := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path):
            return 200, "text/plain; charset=utf-8", self.read_log(*found.groups())
        if path == "/artifacts/get" and self.has_ui:
            return self.read_artifact(query)
        return 404, "text/plain", b"404 page not found"

    def read_log(self, run_id: str, pod: str) -> bytes:
        """Return a pod's log, or why there is none: in the body, for 200 was sent before."""
        workflow = self.workflows.get(run_id)
        log = workflow.logs.get(pod) if workflow else None
        if log is not None:
            return log
        said = f"Failed to read logs for run {run_id}: pods {json.dumps(pod)} not found"
        return (
            json.dumps({"error_message": said, "error_details": said}).replace(": ", ":").encode()
        )

    def read_artifact(self, query: dict[str, str]) -> tuple[int, str, bytes]:
        """Return an object, or a folder as tar.gz; of Google's, all that match, as text."""
        key = f"{query['bucket']}/{query['key']}"
        if query["source"] == "gcs":
            named = [self.objects[one] for one in sorted(fnmatch.filter(self.objects, key))]
            return 200, "text/html", b"".join(one.strip() + b"\n" for one in named)
        if key in self.objects:
            return 200, "", self.objects[key]
        inside = sorted(one for one in self.objects if one.startswith(f"{key}/"))
        if not inside:
            return 404, "text/html; charset=utf-8", f"No objects found at {key}".encode()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for one in inside:
                member = tarfile.TarInfo(one.removeprefix(f"{key}/"))
                member.size = len(self.objects[one])
                archive.addfile(member, io.BytesIO(self.objects[one]))
        return 200, "application/gzip", packed.getvalue()

    def _begin(self, body: dict[str, Any]) -> dict[str, Any]:
        record = self._add(self.runs, "run_id", ACCOUNT | body | {"state": "PENDING"})
        record |= {"storage_state": "AVAILABLE", "created_at": now(), "scheduled_at": now()}
        if self.executor:
            self.start(record["run_id"], self.executor)
        return record

    def _spec_of(self, record: dict[str, Any]) -> dict[str, Any]:
        reference = record["pipeline_version_reference"]
        spec = self._get(self.versions, reference["pipeline_version_id"])["pipeline_spec"]
        return spec.get("pipeline_spec") or spec

    def _play(self, workflow: Workflow) -> None:
        run_id = workflow.record["run_id"]
        workflow.begin()

        def play() -> None:
            state = "SUCCEEDED"
            try:
                self._executors[run_id](workflow)
            except Exception:
                state = "FAILED"
            workflow.finish("FAILED" if workflow.stopped.is_set() else state)

        self._players[run_id] = threading.Thread(target=play, daemon=True)
        self._players[run_id].start()

    def start_child(self, schedule_id: str) -> str:
        """Let a schedule fire; returns the id of its run."""
        schedule = self.recurring_runs[schedule_id]
        assert schedule["status"] == "ENABLED"
        return self._add(
            self.runs,
            "run_id",
            {
                "recurring_run_id": schedule_id,
                "experiment_id": schedule["experiment_id"],
                "state": "RUNNING",
            },
        )["run_id"]

    def answer(
        self, verb: str, path: str, query: dict[str, str], body: Any, file: bytes
    ) -> dict[str, Any]:
        """Do one request."""
        parts = [unquote(part) for part in re.split(r"[/:]", path)]
        match [verb, *parts]:
            case ["GET", "healthz"]:
                return {
                    "multi_user": False,
                    "pipeline_store": "database",
                    "tag_name": self.version,
                }
            case ["GET", "pipelines"]:
                return self._page("pipelines", self.pipelines, query)
            case ["GET", "pipelines", "names", name]:
                return self._named(self.pipelines, name)
            case ["POST", "pipelines"]:
                if any(one["name"] == body["name"] for one in self.pipelines.values()):
                    raise Refused(409, "pipeline exists")
                return self._add(self.pipelines, "pipeline_id", body)
            case ["GET", "pipelines", pipeline]:
                return self._get(self.pipelines, pipeline)
            case ["POST", "pipelines", "upload_version"]:
                return self._upload(query, file)
            case ["GET", "pipelines", _, "versions"]:
                mine = {
                    key: {name: part for name, part in one.items() if name != "pipeline_spec"}
                    for key, one in self.versions.items()
                    if one["pipeline_id"] == parts[1]
                }
                return self._page("pipeline_versions", mine, query)
            case ["GET", "pipelines", _, "versions", version]:
                return self._get(self.versions, version)
            case ["GET", "experiments"]:
                return self._page("experiments", self.experiments, query)
            case ["POST", "experiments"]:
                return self._add(self.experiments, "experiment_id", body)
            case ["GET", "runs"]:
                newest = query.get("sort_by") == "created_at desc"
                order = list(self.runs)[::-1] if newest else list(self.runs)
                return self._page("runs", {one: self.runs[one] for one in order}, query)
            case ["POST", "runs"]:
                return self._begin(body)
            case ["GET", "runs", run]:
                return self.show(self._get(self.runs, run))
            case ["POST", "runs", run, "terminate"]:
                return self.terminate(self._get(self.runs, run))
            case ["POST", "runs", run, "retry"]:
                return self.retry(self._get(self.runs, run))
            case ["DELETE", "runs", run]:
                self._get(self.runs, run)
                del self.runs[run]
                return {}
            case ["GET", "recurringruns"]:
                return self._page("recurringRuns", self.recurring_runs, query)
            case ["POST", "recurringruns"]:
                status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body["mode"]]
                schedule = ACCOUNT | body | {"status": status}
                return self._add(self.recurring_runs, "recurring_run_id", schedule)
            case ["POST", "recurringruns", schedule, "enable" | "disable" as action]:
                self._get(self.recurring_runs, schedule)["status"] = action.upper() + "D"
                return {}
            case ["DELETE", "recurringruns", schedule]:
                return self._delete_schedule(schedule)
            case _:
                raise Refused(501, f"this small Kubeflow has no {verb} {path}")

    def _upload(self, query: dict[str, str], file: bytes) -> dict[str, Any]:
        self._get(self.pipelines, query["pipelineid"])
        for one in self.versions.values():
            if (one["pipeline_id"], one["name"]) == (query["pipelineid"], query["name"]):
                raise Refused(409, "version exists")
        documents = list(yaml.safe_load_all(file))
        spec = documents[0]
        if len(documents) > 1:
            spec = {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        version = {name: query[name] for name in ("name", "display_name", "description")}
        version |= {"pipeline_id": query["pipelineid"], "pipeline_spec": spec}
        return self._add(self.versions, "pipeline_version_id", version)

    def _delete_schedule(self, schedule: str) -> dict[str, Any]:
        self._get(self.recurring_runs, schedule)
        del self.recurring_runs[schedule]
        for run in self.runs.values():
            if run.get("recurring_run_id") == schedule and run["state"] == "RUNNING":
                run["state"] = "FAILED"
                self.killed.append(run["run_id"])
        return {}

    def _add(self, table: dict[str, Any], key: str, body: dict[str, Any]) -> dict[str, Any]:
        self._ids += 1
        name = f"id-{self._ids}"
        created = f"2026-01-01T00:{self._ids // 60:02}:{self._ids % 60:02}Z"
        table[name] = body | {key: name, "created_at": created}
        return table[name]

    def _get(self, table: dict[str, Any], key: str) -> dict[str, Any]:
        if key not in table:
            raise Refused(404, f"{key} not found")
        return table[key]

    def _named(self, table: dict[str, Any], name: str) -> dict[str, Any]:
        found = [one for one in table.values() if one["name"] == name]
        if not found:
            raise Refused(404, f"{name} not found")
        return found[0]

    def _page(self, field: str, table: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
        everything = list(table.values())
        if query.get("experiment_id"):
            wanted = query["experiment_id"]
            everything = [one for one in everything if one.get("experiment_id") == wanted]
        start = int(query.get("page_token") or 0)
        end = start + self.page_size
        page: dict[str, Any] = {field: everything[start:end]}
        return page | ({"next_page_token": str(end)} if end < len(everything) else {})


class _Handler(BaseHTTPRequestHandler):
    kubeflow: Kubeflow
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        self._serve()

    do_POST = do_DELETE = do_GET

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.kubeflow.requests.append(f"{self.command} {url.path.removeprefix(_ROOT)}")
        self.kubeflow.headers.append(dict(self.headers.items()))
        for answer in self.kubeflow.answers:
            if given := answer(f"{self.command} {url.path.removeprefix(_ROOT)}"):
                return self._reply(*given)
        queries = parse_qs(url.query)
        try:
            self._let_in()
            if self.command == "GET" and not url.path.startswith(_ROOT):
                query = {name: values[0] for name, values in queries.items()}
                return self._reply(*self.kubeflow.serve(url.path, query))
            done = self._do(url.path, queries, content)
        except Refused as refused:
            content = json.dumps(refused.body).encode()
            return self._reply(refused.status, "application/json", content)
        return self._reply(200, "application/json", json.dumps(done).encode())

    def _let_in(self) -> None:
        wanted = self.kubeflow.token
        if wanted and self.headers.get("Authorization") != f"Bearer {wanted}":
            raise Refused(401, "Unauthorized")

    def _do(self, path: str, queries: dict[str, list[str]], content: bytes) -> dict[str, Any]:
        kind = self.headers.get("Content-Type", "")
        files = _files(kind, content) if kind.startswith("multipart/") else {}
        body = json.loads(content) if content and not files else None
        problem = find_problem(_OPERATIONS, self.command, path, set(queries), body, set(files))
        if problem:
            raise Refused(400, problem)
        query = {name: values[0] for name, values in queries.items()}
        return self.kubeflow.answer(
            self.command, path.removeprefix(_ROOT), query, body, files.get("uploadfile", b"")
        )

    def _reply(
        self, status: int, kind: str, content: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


def _files(kind: str, content: bytes) -> dict[str, bytes]:
    message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + content)
    return {
        str(part.get_param("name", header="Content-Disposition")): cast(
            bytes, part.get_payload(decode=True)
        )
        for part in message.walk()
        if part.get_filename()
    }


@contextmanager
def kubeflow() -> Generator[Kubeflow]:
    """Serve a new, empty Kubeflow on a free port of the loopback interface."""
    state = Kubeflow()
    handler = type("Handler", (_Handler,), {"kubeflow": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.host = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_package(greeting: str) -> Package:
    """A small compiled pipeline; another greeting makes another content.

    Of five steps: `prepare`, then `label` in a loop, `train` and, in a branch, `promote`; at the
    end `judge`, which Kubeflow calls `judge-2`.
    """
    return Package(f"# PIPELINE DEFINITION\n{_PACKAGE.replace('GREETING', greeting)}")


_PACKAGE = """\
pipelineInfo: {name: greet}
schemaVersion: 2.1.0
root:
  dag:
    tasks:
      condition-2:
        componentRef: {name: comp-condition-2}
        dependentTasks: [train]
        taskInfo: {name: condition-2}
        triggerPolicy: {condition: "1 == 1"}
      for-loop-1:
        componentRef: {name: comp-for-loop-1}
        dependentTasks: [prepare]
        parameterIterator: {itemInput: item, items: {raw: "[0, 1, 2]"}}
        taskInfo: {name: for-loop-1}
      judge-2:
        componentRef: {name: comp-judge-2}
        dependentTasks: [condition-2, train]
        taskInfo: {name: judge}
      prepare:
        componentRef: {name: comp-prepare}
        taskInfo: {name: prepare}
      train:
        componentRef: {name: comp-train}
        dependentTasks: [for-loop-1]
        retryPolicy: {maxRetryCount: 3}
        taskInfo: {name: train}
  inputDefinitions:
    parameters:
      who: {parameterType: STRING, isOptional: true, defaultValue: GREETING}
      times: {parameterType: NUMBER_INTEGER, isOptional: true, defaultValue: 1.0}
      registry: {parameterType: STRING, isOptional: true, defaultValue: ""}
components:
  comp-condition-2:
    dag:
      tasks:
        promote: {componentRef: {name: comp-promote}, taskInfo: {name: promote}}
  comp-for-loop-1:
    dag:
      tasks:
        label: {componentRef: {name: comp-label}, taskInfo: {name: label}}
    inputDefinitions: {parameters: {item: {parameterType: NUMBER_INTEGER}}}
  comp-judge-2:
    executorLabel: exec
    outputDefinitions:
      artifacts:
        report: {artifactType: {schemaTitle: system.HTML, schemaVersion: 0.0.1}}
        summary: {artifactType: {schemaTitle: system.Markdown, schemaVersion: 0.0.1}}
  comp-label: {executorLabel: exec}
  comp-prepare: {executorLabel: exec}
  comp-promote: {executorLabel: exec}
  comp-train:
    executorLabel: exec
    outputDefinitions:
      artifacts:
        model: {artifactType: {schemaTitle: system.Model, schemaVersion: 0.0.1}}
        report: {artifactType: {schemaTitle: system.HTML, schemaVersion: 0.0.1}}
deploymentSpec:
  executors:
    exec: {container: {image: "python:3.11", command: [python3], args: ["-V"]}}
---
platforms: {kubernetes: {deploymentSpec: {executors: {}}}}
"""
