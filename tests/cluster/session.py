"""The Kubeflow under test: its CLI as a user has it, its REST API, and its store.

Everything a test asserts comes from the API or the store; the command line is only what starts
things, and what a person reads.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests

from kubestill.client.settings import Connection, read_connection
from kubestill.runtime.stores import Store, open_store

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
PATIENCE_S = float(os.environ.get("KUBESTILL_TEST_PATIENCE", "900"))
"""For a whole run: a pod takes 10 s to start, a step two pods, and other runs share the node."""
_PAUSE_S = 0.5
_Found = TypeVar("_Found")

RESOURCES = "cpu: 50m\nmemory: 1Gi\nshared_memory: 256Mi\n"
"""Small enough for several runs at a time on a node of two cores."""


@dataclass(kw_only=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    """What it printed, errors among it."""

    @property
    def run_id(self) -> str:
        """The run that it started."""
        found = find_run(self.out)
        assert found, self.out
        return found


class Command:
    """A command that goes on, such as one that follows a run."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], folder: Path):
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=folder,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return "".join(self._lines)

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self._process.poll() is None

    def wait(self, seconds: float = PATIENCE_S) -> Done:
        """Wait for its end."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"no end after {seconds:.0f} s:\n{self.out}") from None
        self._reader.join()
        return Done(code=self._process.returncode, out=self.out)

    def interrupt(self) -> Done:
        """Press Ctrl-C."""
        self._process.send_signal(2)
        return self.wait(60)

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stream:
            for line in stream:
                self._lines.append(line)


@dataclass(kw_only=True)
class Cluster:
    """One Kubeflow, as one test session sees it."""

    connection: Connection
    image: str
    """What every step runs in, by its digest."""
    root: str
    """URI below which everything of this session lies."""
    mark: str
    """Names this session's experiment, schedules and pipelines."""
    folder: Path
    """For files on this machine."""
    kube_config: str = ""
    speed: float = 1.0
    """How much sooner than they say schedules fire: no cluster's do, the double's do."""
    _session: requests.Session = field(default_factory=requests.Session)

    @property
    def artifacts(self) -> str:
        """Pipeline root of every run."""
        return f"{self.root}/artifacts"

    @property
    def checkpoints(self) -> str:
        """Root of all checkpoints."""
        return f"{self.root}/checkpoints"

    # The command, as a user types it.

    def start(self, *arguments: str) -> Command:
        """Start `kubestill`."""
        environment = os.environ | ({"KUBECONFIG": self.kube_config} if self.kube_config else {})
        return Command([sys.executable, "-m", "kubestill", *arguments], environment, self.folder)

    def kubestill(self, *arguments: str) -> Done:
        """Run `kubestill` to its end."""
        return self.start(*arguments).wait()

    def follow(self, pipeline: str, **parameters: Any) -> Command:
        """Start `kubestill run --remote`."""
        return self.start(*self.run_arguments(pipeline, **parameters))

    def run(self, pipeline: str, **parameters: Any) -> Done:
        """Run a pipeline, follow it, and return what was printed."""
        return self.follow(pipeline, **parameters).wait()

    def begin(self, pipeline: str, **parameters: Any) -> str:
        """Start a run without following it; returns its id."""
        done = self.kubestill(*self.run_arguments(pipeline, **parameters), "--no-wait")
        assert done.code == 0, done.out
        return done.run_id

    def run_arguments(self, pipeline: str, **parameters: Any) -> list[str]:
        """Build the command line of a run."""
        place = ["--experiment", self.mark, "--pipeline-root", self.artifacts]
        return ["run", pipeline, "--remote", *place, *self.settings(pipeline, **parameters)]

    def settings(self, pipeline: str, resources: str = "", **parameters: Any) -> list[str]:
        """Build the options that running, uploading and scheduling a pipeline share.

        A name is one of our own pipelines, which gets the image and asks for little.
        """
        given = parameters
        options: list[str] = []
        if not pipeline.endswith(".yaml"):
            options = ["--image", self.image, "--resources", str(self.resources(resources))]
            given = {"cpu": "100m", "memory": "1Gi", **parameters}
        for name, value in given.items():
            text = value if isinstance(value, str) else json.dumps(value)
            options += ["-p", f"{name}={text}"]
        return options

    def resources(self, more: str = "") -> Path:
        """Write the file for `--resources`."""
        path = self.folder / f"resources-{abs(hash(more))}.yaml"
        path.write_text(RESOURCES + more)
        return path

    # The API, without any code of ours in between.

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> requests.Response:
        """Send one request."""
        return self._session.request(
            method,
            f"{self.connection.host}/apis/{path}",
            params=query,
            json=body,
            headers=self.connection.headers(),
            verify=self.connection.ca_file or True,
            timeout=60,
        )

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Read one thing of the API."""
        answer = self.ask("GET", f"v2beta1/{path}", **query)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        return answer.json()

    def every(self, path: str, field: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Read a whole list of the API."""
        token = ""
        while True:
            page = self.get(path, page_size=100, page_token=token, **query)
            yield from page.get(field) or []
            token = page.get("next_page_token", "")
            if not token:
                return

    def state(self, run_id: str) -> str:
        """How a run stands, as the server says it."""
        return self.get(f"runs/{run_id}").get("state", "")

    def history(self, run_id: str) -> list[str]:
        """Every state that a run went through; "" where the server noted a time and no state."""
        noted = self.get(f"runs/{run_id}").get("state_history", [])
        return [one.get("state", "") for one in noted]

    def tasks(self, run_id: str) -> dict[str, Counter[str]]:
        """How often which state, by the name of the task: none of Argo's nodes between."""
        found: dict[str, Counter[str]] = {}
        nodes = self.nodes(run_id)
        # A node's id is the workflow's name and a number.
        ids = [child["pod_name"] for node in nodes for child in node.get("child_tasks") or []]
        workflows = {one.rpartition("-")[0] for one in ids}
        for node in nodes:
            name = node.get("display_name", "")
            between = re.search(r"driver$|^executor$|^root$|^iteration|[^a-z0-9-]", name)
            if name and not between and name not in workflows:
                found.setdefault(name, Counter())[node.get("state", "")] += 1
        return found

    def nodes(self, run_id: str) -> list[dict[str, Any]]:
        """List what the server knows of a run's nodes, tasks or not."""
        return (self.get(f"runs/{run_id}").get("run_details") or {}).get("task_details") or []

    def log(self, run_id: str, pod: str) -> str:
        """Return what a pod has printed; empty where it is gone."""
        answer = self.ask("GET", f"v1alpha1/runs/{run_id}/nodes/{pod}/log", follow="false")
        return answer.text if answer.status_code == 200 else ""

    def wait_for_end(self, run_id: str, seconds: float = PATIENCE_S) -> str:
        """Wait until the server says that a run is over; returns its state."""
        return wait_for(
            lambda: state if (state := self.state(run_id)) in ENDED else None,
            f"run {run_id} to end",
            seconds,
        )

    def wait_for_success(self, run_id: str, seconds: float = 300) -> bool:
        """Wait for a run that has failed and was retried; Retry takes a moment to begin."""
        return wait_for(
            lambda: self.state(run_id) == "SUCCEEDED" or None, f"run {run_id} to succeed", seconds
        )

    def runs(self, **wanted: str) -> list[dict[str, Any]]:
        """List this session's runs, newest first."""
        experiments = [
            one["experiment_id"]
            for one in self.every("experiments", "experiments", **self.space)
            if one["display_name"] == self.mark
        ]
        found = [
            run
            for experiment in experiments
            for run in self.every("runs", "runs", experiment_id=experiment)
        ]
        found.sort(key=lambda run: run.get("created_at", ""), reverse=True)
        return [run for run in found if all(run.get(k) == v for k, v in wanted.items())]

    @property
    def space(self) -> dict[str, str]:
        """The query that names the namespace, where there are several users."""
        return {"namespace": self.connection.namespace} if self.connection.namespace else {}

    # The store, where this machine may see it.

    def store(self, folder: str = "") -> Store:
        """Open the session's part of the store, or a folder of it."""
        return open_store(f"{self.root}/{folder}" if folder else self.root)

    def outputs(self, pipeline: str, run_id: str, task: str) -> dict[str, str]:
        """Return keys of the artifacts that a task of a run left, by their ends.

        Below the task's folder a cluster has one that is named at random, a local run has none.
        """
        prefix = f"artifacts/{pipeline}/{run_id}/{task}/"
        keys = [entry.key for entry in self.store().list(prefix)]
        return {re.sub(r"^[0-9a-f-]{36}/", "", key.removeprefix(prefix)): key for key in keys}


def wait_for(ask: Callable[[], _Found | None], what: str, seconds: float = PATIENCE_S) -> _Found:
    """Ask again and again until there is an answer."""
    end = time.monotonic() + seconds
    while (found := ask()) is None or found is False:
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(_PAUSE_S)
    return found


def find_run(text: str) -> str | None:
    """Find the id of the run that a command says it started."""
    found = re.search(r": run (\S+)$", text, re.MULTILINE)
    return found[1] if found else None


def connect(folder: Path) -> Cluster:
    """Read where the cluster is from the environment; see `docs/install.md`."""
    mark = os.environ["KUBESTILL_TEST_MARK"]
    return Cluster(
        connection=read_connection({}),
        image=os.environ["KUBESTILL_TEST_IMAGE"],
        root=f"{os.environ['KUBESTILL_TEST_ROOT'].rstrip('/')}/{mark}",
        mark=mark,
        folder=folder,
        kube_config=os.environ.get("KUBESTILL_TEST_KUBECONFIG", ""),
        speed=float(os.environ.get("KUBESTILL_TEST_SPEED", "1")),
    )
