"""A small Kubeflow: keeps pipelines, runs and schedules in memory, over real HTTP.

It refuses every request that Kubeflow's own description does not allow, and does what the tests
need to be true: ids, pages, names that exist already, and children that die with their schedule.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from kubeflow_description import find_problem, read_operations
from kubestill.assets.packages import Package

_ROOT = "/apis/v2beta1/"
_OPERATIONS = read_operations()


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


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
        self.killed: list[str] = []
        """Runs that died because their schedule was deleted."""
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Callable[[str], tuple[int, str, bytes] | None]] = []
        """Asked first; may answer instead."""
        self._ids = 0

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
                return self._page("runs", self.runs, query)
            case ["POST", "runs"]:
                return self._add(self.runs, "run_id", body | {"state": "PENDING"})
            case ["GET", "runs", run]:
                return self._get(self.runs, run)
            case ["GET", "recurringruns"]:
                return self._page("recurringRuns", self.recurring_runs, query)
            case ["POST", "recurringruns"]:
                status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body["mode"]]
                return self._add(self.recurring_runs, "recurring_run_id", body | {"status": status})
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
        try:
            done = self._do(url.path, parse_qs(url.query), content)
        except Refused as refused:
            error = {"error": str(refused), "code": 2, "message": str(refused), "details": []}
            return self._reply(refused.status, "application/json", json.dumps(error).encode())
        return self._reply(200, "application/json", json.dumps(done).encode())

    def _do(self, path: str, queries: dict[str, list[str]], content: bytes) -> dict[str, Any]:
        wanted = self.kubeflow.token
        if wanted and self.headers.get("Authorization") != f"Bearer {wanted}":
            raise Refused(401, "Unauthorized")
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

    def _reply(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
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
    """A tiny compiled pipeline; another greeting makes another content."""
    return Package(
        "# PIPELINE DEFINITION\n"
        "pipelineInfo: {name: greet}\n"
        "schemaVersion: 2.1.0\n"
        "root:\n"
        "  dag: {tasks: {}}\n"
        "  inputDefinitions:\n"
        "    parameters:\n"
        f"      who: {{parameterType: STRING, isOptional: true, defaultValue: {greeting}}}\n"
        "      times: {parameterType: NUMBER_INTEGER, isOptional: true, defaultValue: 1.0}\n"
        "---\n"
        "platforms: {kubernetes: {deploymentSpec: {executors: {}}}}\n"
    )
