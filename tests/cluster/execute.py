"""Run one run of the double: `kubestill.local`, with the ids, places and pods of a cluster.

    python execute.py JOB

JOB is the file that `double.py` writes. What happens to which task is appended to the job's events;
tasks that succeeded in an earlier attempt of the same run are not run again.
"""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false, reportPrivateUsage=false
from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from kfp.local import status
from kfp.local.orchestrator import task_executor
from kfp.pipeline_spec import pipeline_spec_pb2
from podspec import build_pod_spec, why_unschedulable

from kubestill.local import run_pipeline, runner, tasks, with_defaults
from kubestill.local.backend import StoredArtifact, read_outputs

_DONE = ".succeeded"
DELETED = ".deleted"
"""Prefix of the files by which the double tells that it deleted the pod of a folder."""


class ClusterTasks(tasks.Tasks):
    """Runs each task as the local runner does, in a place and a pod of its own."""

    def __init__(self, job: Mapping[str, Any], *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._job = job
        self.run_id = job["run_id"]
        self._spec = given[0]
        self._arguments = with_defaults(self._spec, job["arguments"])
        self._now = threading.local()
        self._folders = _Folders(Path(job["folders"]))
        self._deleted: dict[str, int] = {}
        if job["mutation"] == "metadata-dropped":
            record = self._backend.record
            self._backend.record = lambda port, one: _without_metadata(record(port, one))
        if job["mutation"] == "every-end-failed":
            told = self._backend.final_status
            self._backend.final_status = lambda *given: told(*given) | {"state": "FAILED"}
        tasks.choose_folder = lambda run, _: self._folders.choose(run, *self._now.place)
        execute = task_executor.execute_single_task

        def with_name(*, task_name: str, **rest: Any) -> Any:
            # By its component alone two tasks could not be told apart.
            self._now.task = task_name
            return execute(task_name=task_name, **rest)

        task_executor.execute_single_task = with_name

    def name_run(self, pipeline: str) -> str:
        """Name the folder of the run as a cluster does."""
        return self.run_id

    def run(
        self,
        *,
        pipeline_resource_name: str,
        component_name: str,
        component_spec: Any,
        arguments: Mapping[str, Any],
        **rest: Any,
    ) -> tuple[dict[str, Any], status.Status]:
        """Run one task, unless it has succeeded already."""
        self._now.place = (pipeline_resource_name, self._now.task)
        self._now.component = component_name.removeprefix("comp-")
        known = self._folders.known(*self._now.place)
        given = self._mutated(arguments, component_spec)
        again = functools.partial(
            super().run,
            pipeline_resource_name=pipeline_resource_name,
            component_name=component_name,
            component_spec=component_spec,
            arguments=given,
            **rest,
        )
        if known and Path(known, _DONE).exists():
            named = self._specs[component_name]
            self._now.quiet = True
            executor = rest["executor_spec"]
            task = self._prepare(pipeline_resource_name, *named, component_spec, executor, given)
            outputs = read_outputs(task.executor_input, component_spec)
            found = {name: self._backend.record(name, one) for name, one in outputs.items()}
            return found, status.Status.SUCCESS
        self._now.quiet = False
        started = len(self.result.tasks)
        outputs, ended = again()
        if len(self.result.tasks) > started:
            folder = self._folders.known(*self._now.place)
            good = ended == status.Status.SUCCESS
            if good:
                Path(folder, _DONE).touch()
            if self._job["mutation"] == "messages-lost":
                _forget_messages(Path(self._job["root"], self.run_id), Path(folder))
            self._tell("succeeded" if good else "failed", {"folder": folder})
        return outputs, ended

    def _prepare(self, *given: Any) -> Any:
        """Do the driver's work; the pod is there then, on a node or waiting for one."""
        task = super()._prepare(*given)
        task.environment["KUBESTILL_TEST_POD"] = task.folder
        # By a process that drives the run nobody can tell on a cluster whether it goes on.
        task.environment["KUBESTILL_DRIVER"] = ""
        if self._now.quiet:
            return task
        pod = build_pod_spec(
            self._job["platform"], self._spec, self._now.component, self._arguments
        )
        if self._job["mutation"] == "placement-dropped":
            pod = {"containers": [{"name": "main", "env": [], "volumeMounts": []}]}
        command = json.dumps([task.command, task.executor_input])
        about = {"task": self._now.task, "folder": task.folder, "pod": pod}
        about["iterations"] = [
            int(part.rpartition("-iteration-")[2])
            for part in self._now.place[0].split("/")
            if "-iteration-" in part
        ]
        about["size"] = 4 * len(command)
        reason = why_unschedulable(pod)
        if reason and self._job["mutation"] != "every-node-fits":
            self._tell("pending", about | {"reason": reason})
            while True:  # until somebody stops the run
                time.sleep(1)
        self._tell("started", about)
        return task

    def _attempt(self, task: Any) -> Any:
        """Start a task once; where its pod was deleted, somebody else ended it."""
        end, lines = super()._attempt(task)
        deleted = len(list(Path(task.folder).glob(f"{DELETED}-*")))
        if deleted > self._deleted.get(task.folder, 0):
            self._deleted[task.folder] = deleted
            end = replace(end, from_outside=self._job["mutation"] != "pods-not-replaced")
        return end, lines

    def _mutated(self, arguments: Mapping[str, Any], component_spec: Any) -> dict[str, Any]:
        """Lose or change what is given, where the double is told to."""
        given = dict(arguments)
        if self._job["mutation"] == "optional-dropped":
            for name, artifact in component_spec.input_definitions.artifacts.items():
                if artifact.is_optional:
                    given.pop(name, None)
        if self._job["mutation"] == "dicts-as-text":
            given = {
                name: json.dumps(value) if isinstance(value, dict) else value
                for name, value in given.items()
            }
        if self._job["mutation"] == "empty-dropped":
            given = {name: value for name, value in given.items() if value not in ({}, [], "")}
            given |= {name: None for name in arguments if name not in given}
        return given

    def _tell(self, event: str, about: dict[str, Any]) -> None:
        with open(self._job["events"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "at": time.time(), **about}) + "\n")


class _Folders:
    """Which task has which folder, also after the run is retried: artifacts keep their URIs."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def known(self, resource: str, task: str) -> str:
        """Return a task's folder; empty where it has none yet."""
        return self._known.get(f"{resource}/{task}", "")

    def choose(self, run: str, resource: str, task: str) -> str:
        """Return a task's folder."""
        with self._lock:
            unique = _choose_folder(run, task)
            folder = self._known.setdefault(f"{resource}/{task}", unique)
            self._path.write_text(json.dumps(self._known))
        return folder


_choose_folder = tasks.choose_folder


def _without_metadata(value: Any) -> Any:
    return replace(value, metadata={}) if isinstance(value, StoredArtifact) else value


def _forget_messages(run: Path, folder: Path) -> None:
    for record in [*run.glob("failures/*"), *folder.glob("executor-logs-*")]:
        record.unlink()


def _end_with_parent() -> None:
    """Wait for the double's end; steps end with this process."""
    sys.stdin.read()
    os._exit(1)


def main(path: str) -> int:
    """Run a job; returns 0 where the run succeeded."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(path).read_text())
    spec = json_format.ParseDict(job["spec"], pipeline_spec_pb2.PipelineSpec())
    runner.Tasks = functools.partial(ClusterTasks, job)
    os.makedirs(job["root"], exist_ok=True)
    done = run_pipeline(spec, job["arguments"], root=job["root"])
    print(done.error, flush=True)
    return 1 if done.failed or done.error else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
