"""Kubeflow's API as far as collect-fresh asks it, over real HTTP, with recorded answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RECORDED = json.loads((Path(__file__).parent / "recorded_runs.json").read_text())
"""Runs of a real Kubeflow as its API gave them, less what nobody asks for here."""
EXPERIMENT = RECORDED["terminated"]["experiment_id"]


class RunsApi:
    """Knows some runs and their experiment, and keeps what it was asked."""

    def __init__(self) -> None:
        self.address = ""
        self.runs: dict[str, Mapping[str, Any]] = {}
        self.experiments = {EXPERIMENT}
        self.token = ""
        """Asked for, where it is not empty."""
        self.answer: tuple[int, Mapping[str, str], bytes] | None = None
        """Given to whoever asks for a run, instead."""
        self.seconds = 0.0
        """Between two bytes of each answer."""
        self.asked: list[tuple[str, str]] = []
        """Path and token."""

    def set(self, run_id: str, recorded: str, **changed: Any) -> None:
        """Make a run of this id what was recorded of one; `missing` deletes it."""
        if recorded == "missing":
            self.runs.pop(run_id, None)
        else:
            own = {"run_id": run_id, "experiment_id": EXPERIMENT}
            self.runs[run_id] = RECORDED[recorded] | own | changed

    def respond(self, path: str, token: str) -> tuple[int, Mapping[str, str], bytes]:
        self.asked.append((path, token))
        if self.answer and "/runs/" in path:
            return self.answer
        if self.token and token != self.token:
            body = {"code": 16, "message": "Failed to authenticate token review"}
            return 401, {}, json.dumps(body).encode()
        kind, _, id = path.removeprefix("/apis/v2beta1/").partition("/")
        if kind == "runs" and id in self.runs:
            return 200, {}, json.dumps(self.runs[id]).encode()
        if kind == "experiments" and id in self.experiments:
            return 200, {}, json.dumps({"experiment_id": id}).encode()
        told = json.dumps(RECORDED["missing"]["body"])
        return 404, {}, told.replace("00000000-0000-0000-0000-000000000000", id).encode()


@contextmanager
def serve_runs() -> Generator[RunsApi]:
    api = RunsApi()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            token = self.headers.get("Authorization", "")
            status, headers, content = api.respond(self.path, token)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                if not api.seconds:
                    self.wfile.write(content)
                for byte in content if api.seconds else b"":
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(api.seconds)
            except OSError:
                pass  # whoever asked had enough

        do_CONNECT = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    api.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
