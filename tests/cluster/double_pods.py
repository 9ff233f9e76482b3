"""What Kubernetes' API has for pods: lists, deletion, events, and a command in one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import yaml
from execute import DELETED
from podspec import LABELS

if TYPE_CHECKING:
    from double import Double, Player, Task

_GRACE_S = 0.5
"""What is left to a process between the first signal and the last: see docs/node-dies.md."""
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class _Handler(BaseHTTPRequestHandler):
    double: Double
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        """Answer a question, or run a command."""
        url = urlsplit(self.path)
        query = {name: values for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        match parts:
            case ["api", "v1", "nodes"]:
                self._reply(200, {"kind": "NodeList", "items": [_node()]})
            case ["api", "v1", "namespaces", _, "pods"]:
                wanted = query.get("labelSelector", [""])[0].removeprefix("pipeline/runid=")
                self._reply(200, {"kind": "PodList", "items": self._pods(wanted)})
            case ["api", "v1", "namespaces", _, "events"] | ["api", "v1", "events"]:
                self._reply(200, {"kind": "EventList", "items": self._events()})
            case ["api", "v1", "namespaces", _, "pods", name]:
                found = [pod for pod in self._pods("") if pod["metadata"]["name"] == name]
                self._reply(200, found[0]) if found else self._missing()
            case ["api", "v1", "namespaces", _, "pods", name, "exec"]:
                self._exec(name, query["command"])
            case _:
                self._missing()

    def do_DELETE(self) -> None:  # noqa: N802
        """Delete a pod."""
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        url = urlsplit(self.path)
        asked = parse_qs(url.query).get("gracePeriodSeconds", [body.get("gracePeriodSeconds", 30)])
        for player, task in self._tasks("RUNNING"):
            if url.path.endswith(f"/pods/{player.pod(task)}"):
                told = Path(task.folder, f"{DELETED}-{task.deleted + 1}")
                grace = _GRACE_S if int(asked[0]) else 0.0
                threading.Thread(
                    target=player.delete, args=(task, grace, told), daemon=True
                ).start()
                return self._reply(200, {"kind": "Status", "status": "Success"})
        return self._missing()

    def _tasks(self, *states: str) -> list[tuple[Player, Task]]:
        return [
            (player, task)
            for player in list(self.double.running.values())
            for task in list(player.tasks.values())
            if not states or task.state in states
        ]

    def _pods(self, run_id: str) -> list[dict[str, Any]]:
        return [
            pod
            for player, task in self._tasks()
            if run_id in ("", player.workflow.record["run_id"])
            for pod in (_pod(player, task, "driver"), _pod(player, task, "executor"))
        ]

    def _events(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "Warning",
                "reason": "FailedScheduling",
                "message": task.reason,
                "lastTimestamp": _time(task.since),
                "count": 1,
                "involvedObject": {
                    "kind": "Pod",
                    "name": player.pod(task),
                    "namespace": "kubeflow",
                },
                "metadata": {"name": "event", "namespace": "kubeflow"},
            }
            for player, task in self._tasks("PENDING")
        ]

    def _exec(self, name: str, command: list[str]) -> None:
        """Run a command beside the step's processes, and send what it prints over a websocket."""
        folders = [
            task.folder for player, task in self._tasks("RUNNING") if player.pod(task) == name
        ]
        if not folders:
            return self._missing()
        digest = hashlib.sha1(f"{self.headers['Sec-WebSocket-Key']}{_MAGIC}".encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
        self.end_headers()
        inside = os.environ | {"KUBESTILL_TEST_POD": folders[0]}
        done = subprocess.run(
            [sys.executable, *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=inside,
        )
        self._frame(2, b"\x01" + done.stdout)
        self._frame(2, b"\x03" + json.dumps({"metadata": {}, "status": "Success"}).encode())
        self._frame(8, struct.pack(">H", 1000))
        self.close_connection = True

    def _frame(self, kind: int, content: bytes) -> None:
        size = len(content)
        head = bytes([0x80 | kind, size]) if size < 126 else bytes([0x80 | kind, 126])
        self.wfile.write(head + (struct.pack(">H", size) if size >= 126 else b"") + content)

    def _missing(self) -> None:
        self._reply(404, {"kind": "Status", "status": "Failure", "code": 404})

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


def _pod(player: Player, task: Task, role: str) -> dict[str, Any]:
    workflow = player.workflow.name
    node = f"{workflow}(0).root(0).{task.key}(0).executor({task.deleted})"
    name, phase, spec = player.pod(task), task.state.capitalize(), task.pod
    if role == "driver":
        node, phase = f"{workflow}(0).root(0).{task.key}-driver(0)", "Succeeded"
        name, spec = name.replace("container-impl", "container-driver"), {"containers": []}
    status: dict[str, Any] = {"phase": phase}
    if phase == "Pending":
        status["conditions"] = [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": task.reason,
            }
        ]
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "kubeflow",
            "creationTimestamp": _time(task.since),
            "labels": {
                "pipeline/runid": player.workflow.record["run_id"],
                "workflows.argoproj.io/workflow": workflow,
            },
            "annotations": {"workflows.argoproj.io/node-name": node},
        },
        "spec": spec,
        "status": status,
    }


def _node() -> dict[str, Any]:
    return {
        "metadata": {"name": "node", "labels": LABELS},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "8Gi"}},
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def serve_pods(double: Double) -> Generator[str]:
    """Serve the pods of a double; yields the path of a kube config."""
    handler = type("Handler", (_Handler,), {"double": double})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    path = double.folder / "kube-config"
    where = {"server": f"http://127.0.0.1:{server.server_port}"}
    context = {"cluster": "double", "user": "tester", "namespace": "kubeflow"}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "double", "cluster": where}],
                "users": [{"name": "tester", "user": {}}],
                "contexts": [{"name": "double", "context": context}],
                "current-context": "double",
            }
        )
    )
    try:
        yield str(path)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
