"""A double of a cluster: Kubeflow's API as `tests/kubeflow.py` has it, and runs that really run.

A run is a process of its own, `execute.py`, which runs the compiled pipeline by `kubestill.local`.
It tells what happens to each task, and a `Player` moves the nodes of the run by it, so that the API
says it in the form of the recordings of a real Kubeflow. `double_pods.py` serves the pods. With a
*mutation*, one of all this is wrong: see `test_mutations.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from double_pods import serve_pods

from kubeflow import Kubeflow, _Handler  # pyright: ignore[reportPrivateUsage]
from kubeflow_runs import ENDED, Workflow

IMAGE = "registry.example/kubestill@sha256:" + "d" * 64
_HERE = Path(__file__).parent
_FASTER = 15.0
"""Schedules fire this much sooner than they say."""
_ETCD_BYTES = 1_000_000
"""Of node status; beyond it Argo compresses the nodes, and the API's list of tasks stands still."""
_POD_BYTES = 4_000
"""Of node status, for each task, besides four copies of its command."""
_POD_TOKEN = "the-token-of-a-pod"


@dataclass(kw_only=True)
class Task:
    """One task of a run, as far as it has come."""

    key: str
    iterations: tuple[int, ...]
    folder: str
    pod: dict[str, Any]
    """Spec of its pod."""
    since: float
    state: str = "PENDING"
    reason: str = ""
    """Why no node takes its pod."""
    deleted: int = 0
    """How many of its pods were deleted: each is an attempt."""

    @property
    def step(self) -> tuple[Any, ...]:
        """What names it in the run's nodes."""
        return (self.key, *self.iterations)


class Player:
    """Plays one run: starts its process, and moves the run's nodes by what that tells."""

    def __init__(
        self, folder: Path, workflow: Workflow, job: dict[str, Any], inside: dict[str, str]
    ):
        self.workflow = workflow
        self.tasks: dict[str, Task] = {}
        """By the folders of their outputs."""
        run_id = workflow.record["run_id"]
        # Another double on this machine has runs of the same ids.
        self._mark = f"KUBESTILL_TEST_RUN={folder.name}/{run_id}"
        self._environment = os.environ | inside | dict([self._mark.split("=")])
        self._environment.pop("KUBESTILL_TEST_MARK", None)
        self._environment["OMP_NUM_THREADS"] = "1"  # several runs share the cores
        self._job, self._events = folder / f"{run_id}.json", folder / f"{run_id}.events"
        self._events.touch()
        places = {"events": str(self._events), "folders": str(folder / f"{run_id}.folders")}
        self._job.write_text(json.dumps(job | places))
        self._read = self._size = 0

    def play(self) -> None:
        """Run it to its end, or to that of its process; raises where it did not succeed."""
        with open(self._job.with_suffix(".log"), "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, str(_HERE / "execute.py"), str(self._job)],
                stdin=subprocess.PIPE,  # when it closes, the double is gone, and its runs with it
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._job.parent,
                start_new_session=True,
            )
            with process:
                while process.poll() is None and not self.workflow.stopped.wait(0.1):
                    self._follow()
                process.kill()
        send(find_processes(self._mark), signal.SIGKILL)
        self._follow()
        assert process.returncode == 0

    def delete(self, task: Task, grace_s: float, told: Path) -> None:
        """End a pod's processes as the kubelet does; the next attempt gets another pod."""
        # The next attempt may begin as soon as this one has ended, and is not to be hit.
        processes = find_processes(f"KUBESTILL_TEST_POD={task.folder}")
        told.touch()
        if grace_s:
            send(processes, signal.SIGTERM)
            time.sleep(grace_s)
        self.workflow.fail_attempt(*task.step, attempt=task.deleted)
        self.workflow.logs[self.pod(task)] = self.log(task)
        task.deleted += 1
        self.workflow.start(*task.step, attempt=task.deleted)
        send(processes, signal.SIGKILL)

    def pod(self, task: Task) -> str:
        """Return the name of a task's newest pod."""
        return self.workflow.pod(*task.step, attempt=task.deleted)

    def log(self, task: Task) -> bytes:
        """Return what a task has printed so far."""
        with suppress(FileNotFoundError):
            return Path(task.folder, "executor-logs-0").read_bytes()
        return b""

    def _follow(self) -> None:
        with open(self._events, encoding="utf-8") as file:
            file.seek(self._read)
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith("\n")]
        self._read += sum(len(line.encode()) for line in lines)
        for line in lines:
            self._move(json.loads(line))

    def _move(self, event: dict[str, Any]) -> None:
        if event["event"] in ("pending", "started"):
            task = Task(
                key=event["task"],
                iterations=tuple(event["iterations"]),
                folder=event["folder"],
                pod=event["pod"],
                since=event["at"],
                state="PENDING" if event["event"] == "pending" else "RUNNING",
                reason=event.get("reason", ""),
            )
            self.tasks[task.folder] = task
            self.workflow.start(*task.step, state=task.state)
            self._size += event["size"] + _POD_BYTES
            if self._size > _ETCD_BYTES:
                self.workflow.stand_still()
            return
        task = self.tasks[event["folder"]]
        task.state = event["event"].upper()
        self.workflow.end(*task.step, state=task.state, attempt=task.deleted, log=self.log(task))


def find_processes(mark: str) -> list[int]:
    """List the processes whose environment holds `mark`."""
    found: list[int] = []
    for one in Path("/proc").iterdir():
        if one.name.isdigit() and int(one.name) != os.getpid():
            with suppress(OSError):
                if mark.encode() in (one / "environ").read_bytes().split(b"\0"):
                    found.append(int(one.name))
    return found


def send(processes: list[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for one in processes:
        with suppress(OSError):
            os.kill(one, number)


class Double(Kubeflow):
    """Kubeflow, with runs that run."""

    def __init__(self, folder: Path, mutation: str = ""):
        super().__init__()
        self.page_size = 20
        self.executor = self._play_run
        self.folder = folder
        self.mutation = mutation
        self.running: dict[str, Player] = {}
        """Who plays which run, by its id."""
        self.environment: dict[str, str] = {}
        """What the tests are told about this cluster."""
        self._fired: dict[str, float] = {}
        self._closed = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)
        self._clock.start()

    def close(self) -> None:
        """Stop everything that runs."""
        self._closed.set()
        self._clock.join()
        for run_id, record in list(self.runs.items()):
            self._stop(run_id, record)

    def answer(
        self, verb: str, path: str, query: dict[str, str], body: Any, file: bytes
    ) -> dict[str, Any]:
        """Do one request; here is what removes things, and what a mutation breaks."""
        match [verb, *path.replace(":", "/").split("/")]:
            case ["DELETE", "runs", run]:
                self._stop(run, self._get(self.runs, run))
            case ["DELETE", "experiments", one]:
                return self._remove(self.experiments, one)
            case ["DELETE", "pipelines", one]:
                return self._remove(self.pipelines, one)
            case ["DELETE", "pipelines", _, "versions", one]:
                return self._remove(self.versions, one)
            case ["DELETE", "recurringruns", schedule]:
                if self.mutation == "schedule-stays":
                    return {}
                for run_id, run in list(self.runs.items()):
                    if run.get("recurring_run_id") == schedule:
                        self._stop(run_id, run)
            case ["POST", "recurringruns", _, "disable"] if self.mutation == "never-paused":
                return {}
            case ["POST", "runs", run, "retry"] if self.mutation == "retry-forgotten":
                return {}
            case ["POST", "runs", _, "retry"] if self.mutation == "retry-runs-all":
                for done in self.folder.rglob(".succeeded"):
                    done.unlink()
            case ["POST", "runs", _, "terminate"] if self.mutation == "never-stopped":
                return {}
            case ["POST", "pipelines", "upload_version"] if self.mutation == "names-ignored":
                query = query | {"name": f"{query['name']}-{len(self.versions)}"}
            case _:
                pass
        return super().answer(verb, path, query, body, file)

    def show(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a run as the API tells of it."""
        if self.mutation == "list-stands-still" and record["run_id"] in self.workflows:
            self.workflows[record["run_id"]].stand_still()
        shown = super().show(record)
        state = record["state"]
        asks = self.headers[-1].get("Authorization", "")
        lies = {"states-swapped": {"SUCCEEDED": "FAILED", "FAILED": "SUCCEEDED"}}
        if _POD_TOKEN in asks:
            lies["over-called-alive"] = {"FAILED": "RUNNING"}
            lies["alive-called-over"] = {"RUNNING": "FAILED"}
        shown["state"] = lies.get(self.mutation, {}).get(state, state)
        return shown

    def read_log(self, run_id: str, pod: str) -> bytes:
        """Return a pod's log, also while it runs."""
        player = self.running.get(run_id)
        for task in player.tasks.values() if player else ():
            if player and player.pod(task) == pod and self.mutation != "messages-lost":
                return player.log(task)
        return super().read_log(run_id, pod)

    def start_child(self, schedule_id: str) -> str:
        """Let a schedule fire; returns the id of its run."""
        schedule = self.recurring_runs[schedule_id]
        same = ("experiment_id", "pipeline_version_reference", "runtime_config")
        body = {name: schedule[name] for name in same if name in schedule}
        body["display_name"] = f"{schedule['display_name']}-{len(self.runs)}-1969319743"
        return self._begin(body | {"recurring_run_id": schedule_id})["run_id"]

    def _begin(self, body: dict[str, Any]) -> dict[str, Any]:
        reference = body["pipeline_version_reference"]
        own = [
            key
            for key, version in self.versions.items()
            if version["pipeline_id"] == reference["pipeline_id"]
        ]
        newest = {"pipeline_version_id": own[-1]} if own else {}
        return super()._begin(body | {"pipeline_version_reference": newest | reference})

    def _play_run(self, workflow: Workflow) -> None:
        """Play a run, or play it again."""
        record = workflow.record
        if self.mutation == "checkpoints-lost":
            for folder in self.folder.glob("store/*/checkpoints"):
                shutil.rmtree(folder)
        if record["run_id"] not in self.running:
            spec = self._spec_of(record)
            version = record["pipeline_version_reference"]["pipeline_version_id"]
            whole = self.versions[version]["pipeline_spec"]
            settings = record.get("runtime_config") or {}
            root = settings.get("pipeline_root") or str(self.folder / "v2" / "artifacts")
            job = {
                "run_id": record["run_id"],
                "spec": spec,
                "platform": whole.get("platform_spec") or {},
                "arguments": settings.get("parameters") or {},
                "root": f"{root}/{spec['pipelineInfo']['name']}",
                "mutation": self.mutation,
            }
            token = self.folder / "token-of-pods"
            token.write_text(_POD_TOKEN)
            inside = {
                "KUBESTILL_PIPELINES_API": self.host,
                "KF_PIPELINES_SA_TOKEN_PATH": str(token),
            }
            self.running[record["run_id"]] = Player(self.folder, workflow, job, inside)
        self.running[record["run_id"]].play()

    def _stop(self, run_id: str, record: dict[str, Any]) -> None:
        """Stop a run where it still goes on, and wait until its pods are gone."""
        if record["state"] not in ENDED:
            self.terminate(record)
            self.wait(run_id)

    def _remove(self, table: dict[str, Any], key: str) -> dict[str, Any]:
        self._get(table, key)
        del table[key]
        return {}

    def _tick(self) -> None:
        """Let schedules fire: one run at a time, and the first after a whole interval."""
        while not self._closed.wait(0.2):
            for key, schedule in list(self.recurring_runs.items()):
                trigger = (schedule.get("trigger") or {}).get("periodic_schedule")
                since = self._fired.setdefault(key, time.monotonic())
                wait = float(trigger["interval_second"]) / _FASTER if trigger else float("inf")
                going = any(
                    run.get("recurring_run_id") == key and run["state"] not in ENDED
                    for run in list(self.runs.values())
                )
                fires = schedule["status"] == "ENABLED" and self.mutation != "schedule-silent"
                if fires and not going and time.monotonic() > since + wait:
                    self._fired[key] = time.monotonic()
                    self.start_child(key)


@contextmanager
def double(mutation: str = "") -> Generator[Double]:
    """Serve a cluster: Kubeflow's API and Kubernetes', a store, and a kube config."""
    with tempfile.TemporaryDirectory(prefix="kubestill-double-") as place:
        folder = Path(place)
        state = Double(folder, mutation)
        handler = type("Handler", (_Handler,), {"kubeflow": state})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        state.host = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        with serve_pods(state) as kube_config:
            state.environment = {
                "KUBESTILL_HOST": state.host,
                "KUBESTILL_TEST_IMAGE": IMAGE,
                "KUBESTILL_TEST_ROOT": str(folder / "store"),
                "KUBESTILL_TEST_KUBECONFIG": kube_config,
                "KUBESTILL_TEST_SPEED": str(_FASTER),
            }
            try:
                yield state
            finally:
                state.close()
                server.shutdown()
                server.server_close()
                thread.join()
