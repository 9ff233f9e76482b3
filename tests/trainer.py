"""A small Kubernetes with Kubeflow Trainer: keeps TrainJobs and pods in memory, over real HTTP.

It refuses what the API server, the TrainJob's own schema (fields by version) and the Trainer's
webhooks refuse. Somebody plays the controller: `start` takes a function that moves a TrainJob and
its pods, in a thread of its own, from the moment it is created until it is removed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

Json = dict[str, Any]
NAMESPACE = "team"
GROUP = "trainer.kubeflow.org/v1alpha1"
PLACED = {"2.3": "runtimePatches", "2.1": "podTemplateOverrides", "2.0": "podSpecOverrides"}
"""The field that places pods, by the Trainer's version."""

_POD = {"serviceAccountName", "nodeSelector", "affinity", "tolerations", "imagePullSecrets"}
_POD |= {"volumes", "initContainers", "containers", "schedulingGates"}
_METADATA = {"labels", "annotations"}
_TEMPLATE = {"metadata": _METADATA, "spec": _POD}
_PATCH: Json = {"manager": None, "time": None}
_JOBS = {"name": None, "template": {"metadata": _METADATA, "spec": {"template": _TEMPLATE}}}
_PATCH["trainingRuntimeSpec"] = {"template": {"spec": {"replicatedJobs": [_JOBS]}}}
_TRAINER = {"image", "command", "args", "env", "numNodes", "resourcesPerNode", "numProcPerNode"}


def _fields(version: str) -> Json:
    """Return the fields of a TrainJob: a set where values are anything, a list of one for lists."""
    own: Json = {
        "runtimePatches": {"runtimePatches": [_PATCH], "activeDeadlineSeconds": None},
        "podTemplateOverrides": {
            "podTemplateOverrides": [{"targetJobs": [{"name"}], **_TEMPLATE}],
        },
        "podSpecOverrides": {"podSpecOverrides": [{"targetJobs": [{"name"}]}]},
    }[PLACED[version]]
    spec = {"runtimeRef": {"name", "kind", "apiGroup"}, "trainer": _TRAINER, "suspend": None}
    spec |= {"managedBy": None, **own}
    metadata = {"name", "labels", "annotations"}
    return {"apiVersion": None, "kind": None, "metadata": metadata, "spec": spec}


_VALIDATOR = "validator.trainjob.trainer.kubeflow.org"


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Trainer:
    """Its state, and what a controller does with it."""

    def __init__(self) -> None:
        self.address = ""
        self.version = "2.3"
        """The Trainer's; empty for a cluster that has none."""
        self.forbidden: set[str] = set()
        """What the service account may not do, such as `create trainjobs`."""
        self.down = False
        """Whether the API server answers 503 to everything."""
        self.jobs: dict[str, Json] = {}
        self.pods: dict[str, Json] = {}
        self.workloads: list[Json] = []
        self.events: list[Json] = []
        self.logs: dict[str, list[tuple[str, str]]] = {}
        """Lines of each pod's container with their times; `<pod>/previous` of the one before."""
        self.created: list[Json] = []
        self.deleted: list[str] = []
        self.looks = 0
        """How often somebody has looked at a TrainJob."""
        self.trouble: list[BaseException] = []
        """What went wrong in a controller."""
        self.controller: Callable[[Trainer, str], None] = lambda trainer, name: None
        self.lock = threading.RLock()
        self.processes: list[subprocess.Popen[bytes]] = []

    # What the controller does.

    def condition(self, name: str, kind: str, *, holds: bool = True, **said: str) -> None:
        """Set a condition of a TrainJob."""
        with self.lock:
            conditions = self.jobs[name].setdefault("status", {}).setdefault("conditions", [])
            conditions[:] = [one for one in conditions if one["type"] != kind]
            conditions.append({"type": kind, "status": str(holds), "reason": kind} | said)

    def pod(self, name: str, index: int, phase: str = "Running", **status: Any) -> Json:
        """Make a pod of a TrainJob, or move it."""
        with self.lock:
            at = f"{name}-node-0-{index}"
            if at not in self.pods:
                labels = {
                    "jobset.sigs.k8s.io/jobset-name": name,
                    "jobset.sigs.k8s.io/replicatedjob-name": "node",
                    "batch.kubernetes.io/job-completion-index": str(index),
                }
                metadata = {"name": at, "uid": uuid.uuid4().hex, "labels": labels}
                self.pods[at] = {"metadata": metadata | {"creationTimestamp": _now()}}
            self.pods[at]["status"] = {"phase": phase, **status}
            return self.pods[at]

    def ended(self, code: int, *, restarts: int = 0, reason: str = "Error") -> Json:
        """Return the status of a pod whose container ended, and was started again or not."""
        state = {"terminated": {"exitCode": code, "reason": reason}}
        one: Json = {"name": "node", "restartCount": restarts}
        one |= {"lastState": state, "state": {"running": {}}} if restarts else {"state": state}
        return {"containerStatuses": [one]}

    def says(self, name: str, index: int, *lines: str, container: str = "") -> None:
        """Write lines of a pod's log."""
        with self.lock:
            log = self.logs.setdefault(f"{name}-node-0-{index}{container}", [])
            log += [(_now(), line) for line in lines]

    def runs(
        self,
        name: str,
        index: int,
        port: int,
        folder: Path,
        *,
        first: str = "127.0.0.1",
        enter: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start what a pod of a TrainJob runs, as the torch plugin and the kubelet do.

        Args:
            name: The TrainJob.
            index: Which of its pods.
            port: At which the first one is found.
            folder: Where what it prints goes, to `pod-<index>`.
            first: Host of the first one.
            enter: What a command begins with that runs on the pod's host.
        """
        trainer = self.jobs[name]["spec"]["trainer"]
        count, processes = trainer["numNodes"], trainer["numProcPerNode"]
        given = {one["name"]: one["value"] for one in trainer["env"] if "value" in one}
        given |= {"PET_NNODES": f"{count}", "PET_NPROC_PER_NODE": f"{processes}"}
        given |= {"PET_NODE_RANK": f"{index}", "PET_MASTER_ADDR": first}
        given |= {"PET_MASTER_PORT": f"{port}", "OMP_NUM_THREADS": "1"}
        kept = ("PATH", "HOME", "PYTHONPATH", "KUBESTILL_TRUST")
        environment = {one: os.environ[one] for one in kept if one in os.environ} | given
        command = [*enter, *(part.replace("$$", "$") for part in trainer["command"])]
        with (folder / f"pod-{index}").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def gone(self, name: str) -> bool:
        """Whether a TrainJob has been removed, so that its controller has no more to do."""
        return name not in self.jobs

    # What the API server does.

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Json) -> Json | str:
        if self.down:
            raise Refused(503, "the server is currently unable to handle the request")
        if path == f"/apis/{GROUP}":
            if self.version:
                return {"kind": "APIResourceList"}
            raise Refused(404, "404 page not found")
        root, kind, name, sub = _parts(path)
        verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if name else "list")
        if f"{verb} {kind}" in self.forbidden:
            who = f'User "system:serviceaccount:{NAMESPACE}:step" cannot {verb} resource "{kind}"'
            raise Refused(
                403, f'{kind} "{name}" is forbidden: {who} in the namespace "{NAMESPACE}"'
            )
        if kind == "workloads" and "v1beta2" in root:
            raise Refused(404, "the server could not find the requested resource")
        with self.lock:
            match kind, method:
                case "trainjobs", _ if not self.version:
                    raise Refused(404, "the server could not find the requested resource")
                case "trainjobs", "POST":
                    return self._create(query, body)
                case "trainjobs", "DELETE":
                    return self._delete(name, body)
                case "trainjobs", "GET":
                    self.looks += 1
                    return _found(self.jobs, name)
                case "pods", "GET" if sub == "log":
                    return self._log(name, query)
                case "pods", "GET" if name:
                    return _found(self.pods, name)
                case "pods", "GET":
                    return {"items": _selected(self.pods.values(), query["labelSelector"])}
                case "workloads", "GET":
                    return {"items": _selected(self.workloads, query["labelSelector"])}
                case "events", "GET":
                    about = query["fieldSelector"].removeprefix("involvedObject.name=")
                    name = about.removesuffix(",type=Warning")
                    found = [one for one in self.events if one["involvedObject"]["name"] == name]
                    return {"items": found}
                case _:
                    raise Refused(405, f"{method} {path}")

    def _create(self, query: Mapping[str, str], job: Json) -> Json:
        assert query["fieldValidation"] == "Strict"
        if unknown := sorted(_unknown(job, _fields(self.version), "")):
            told = ", ".join(f'unknown field "{field}"' for field in unknown)
            raise Refused(400, f"TrainJob cannot be handled: strict decoding error: {told}")
        _check(job)
        name = job["metadata"]["name"]
        if name in self.jobs:
            raise Refused(409, f'trainjobs "{name}" already exists')
        job["metadata"] |= {"uid": uuid.uuid4().hex, "creationTimestamp": _now()}
        self.jobs[name] = json.loads(json.dumps(job))
        self.created.append(job)
        threading.Thread(target=self._play, args=(name,), daemon=True).start()
        return job

    def _play(self, name: str) -> None:
        try:
            self.controller(self, name)
        except BaseException as error:
            self.trouble.append(error)
            self.remove(name)
            raise

    def _delete(self, name: str, body: Json) -> Json:
        job = _found(self.jobs, name)
        assert body["propagationPolicy"] == "Background"
        if body["preconditions"]["uid"] != job["metadata"]["uid"]:
            raise Refused(409, "the UID in the precondition does not match")
        self.remove(name)
        return {"status": "Success"}

    def remove(self, name: str) -> None:
        """Remove a TrainJob and, as Kubernetes' garbage collector does, its pods."""
        with self.lock:
            del self.jobs[name]
            self.deleted.append(name)
            self.pods = {at: pod for at, pod in self.pods.items() if not at.startswith(name)}
            for process in self.processes:
                with _suppressed():
                    os.killpg(process.pid, signal.SIGKILL)

    def _log(self, pod: str, query: Mapping[str, str]) -> str:
        _found(self.pods, pod)
        assert query["container"] == "node"
        previous = query.get("previous") == "true"
        lines = self.logs.get(pod + "/previous" * previous, [])
        # The API counts in whole seconds.
        since = query.get("sinceTime", "").partition(".")[0]
        lines = [(at, line) for at, line in lines if at.partition(".")[0] >= since]
        lines = lines[-int(query.get("tailLines", "1000")) :]
        stamped = "timestamps" in query
        return "".join(f"{at} {line}\n" if stamped else f"{line}\n" for at, line in lines)


def _check(job: Json) -> None:
    """Refuse what the schema's rules and the Trainer's webhooks refuse."""
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 52:
        raise Refused(422, "metadata.name must match RFC 1035 DNS label format")
    if trainer["numProcPerNode"] < 1:
        raise Refused(422, "numProcPerNode must be greater than or equal to 1")
    if any(one["name"].startswith("PET_") for one in trainer["env"]):
        raise Refused(403, "spec.trainer.env: must not have reserved envs")
    for name in (one["name"] for one in trainer["env"]):
        if [one["name"] for one in trainer["env"]].count(name) > 1:
            raise Refused(422, f"spec.trainer.env: Duplicate value: {name}")
    for patch in job["spec"].get("runtimePatches", []):
        if not re.fullmatch(r"[a-z0-9.-]+/[\w.-]+", patch["manager"]):
            raise Refused(403, "manager must be a domain-prefixed path")
    if (runtime := job["spec"]["runtimeRef"])["name"] != "torch-distributed":
        missing = f'{runtime["kind"]}.{GROUP.partition("/")[0]} "{runtime["name"]}" not found'
        must = "specified clusterTrainingRuntime must be created before the TrainJob is created"
        why = f"spec.RuntimeRef: Invalid value: {json.dumps(runtime)}: {missing}: {must}"
        raise Refused(403, f'admission webhook "{_VALIDATOR}" denied the request: {why}')


def _unknown(value: Any, known: Any, path: str) -> set[str]:
    if known is None:
        return set()
    if isinstance(known, list):
        return {found for one in value for found in _unknown(one, known[0], f"{path}[0]")}
    extra = {f"{path}.{key}".lstrip(".") for key in value.keys() - set(known)}
    if isinstance(known, set):
        return extra
    inner = (_unknown(value[key], known[key], f"{path}.{key}") for key in value.keys() & known)
    return extra.union(*inner)


def _parts(path: str) -> tuple[str, str, str, str]:
    """Cut a path into the root of its API, the kind, the name and what is asked of the object."""
    found = re.fullmatch(rf"(/apis?/.*?)/namespaces/{NAMESPACE}/(\w+)/?([^/]*)/?(\w*)", path)
    if not found:
        raise Refused(404, path)
    return found[1], found[2], found[3], found[4]


def _found(objects: Mapping[str, Json], name: str) -> Json:
    if name not in objects:
        raise Refused(404, f"{name!r} not found")
    return objects[name]


def _selected(objects: Any, selector: str) -> list[Json]:
    key, _, value = selector.partition("=")
    return [one for one in objects if one["metadata"].get("labels", {}).get(key) == value]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


@contextmanager
def _suppressed() -> Generator[None]:
    try:
        yield
    except ProcessLookupError:
        pass


@contextmanager
def serving(trainer: Trainer, account: Path, pod: Json) -> Generator[dict[str, str]]:
    """Serve it; yields the environment of a step's pod that talks to it."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            status = 200
            try:
                if self.headers.get("Authorization") != "Bearer of-the-pod":
                    raise Refused(401, "Unauthorized")
                found = trainer.answer(self.command, url.path, query, json.loads(body or b"{}"))
            except Refused as refused:
                status, found = refused.status, {"message": str(refused), "code": refused.status}
            with trainer.lock:
                content = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = handle_any

        def log_message(self, format: str, *args: Any) -> None:
            pass

    account.mkdir(exist_ok=True)
    (account / "namespace").write_text(NAMESPACE)
    (account / "token").write_text("of-the-pod\n")
    trainer.pods[pod["metadata"]["name"]] = pod
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    trainer.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield {
            "KUBESTILL_KUBERNETES_API": trainer.address,
            "KUBESTILL_SERVICE_ACCOUNT": str(account),
            "KFP_POD_NAME": pod["metadata"]["name"],
        }
    finally:
        for process in trainer.processes:
            with _suppressed():
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        server.shutdown()
        server.server_close()


def until(met: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def seen_by_step(
    pod: Json, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]
) -> Generator[Trainer]:
    """Yield a cluster of which this process is a step's pod; no TrainJob may be left at the end."""
    made = Trainer()
    monkeypatch.setattr(sys, "orig_argv", ["python3", *arguments])
    with serving(made, folder / "account", pod) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield made
        assert not made.trouble
        assert not made.jobs, "a TrainJob is left"
