"""The pods of a run, through a kube config: looked at, killed inside, and deleted."""

from __future__ import annotations

import json
import re
from typing import Any

from kubernetes import client, config, stream
from session import wait_for

KILL = """
import os, signal, sys
only = os.environ.get("KUBESTILL_TEST_POD", "").encode()
parents, commands = {}, {}
for one in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{one}/environ", "rb") as file:
            mine = only in file.read() and int(one) != os.getpid()
        with open(f"/proc/{one}/cmdline", "rb") as file:
            words = file.read().split(bytes(1))
        with open(f"/proc/{one}/stat") as file:
            parent = int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        continue
    if mine and b"python" in words[0].rpartition(b"/")[2]:
        if not any(b"resource_tracker" in word for word in words):
            parents[int(one)], commands[int(one)] = parent, words
steps = [one for one, words in commands.items() if b"kfp.dsl.executor_main" in words]
leaf = min(one for one in steps if parents[one] not in steps)
while children := [one for one, parent in parents.items() if parent == leaf]:
    leaf = min(children)
os.kill(leaf, signal.SIGKILL)
print("killed", leaf)
"""
"""Kills the process that does a step's work: the innermost Python below the step's command."""


class Pods:
    """Pods of one namespace."""

    def __init__(self, kube_config: str, namespace: str = ""):
        self._namespace = namespace or "kubeflow"
        self._core = client.CoreV1Api(config.new_client_from_config(kube_config))

    def of(self, run_id: str) -> list[dict[str, Any]]:
        """List the pods of a run, newest last."""
        answer = self._core.list_namespaced_pod(
            self._namespace,
            label_selector=f"pipeline/runid={run_id}",
            _preload_content=False,
            _request_timeout=30,
        )
        return sorted(
            json.loads(answer.data)["items"], key=lambda pod: pod["metadata"]["creationTimestamp"]
        )

    def executors(self, run_id: str, task: str) -> list[dict[str, Any]]:
        """List the pods that do or did a task's work, oldest first: not its drivers."""
        return [pod for pod in self.of(run_id) if _executes(pod, task)]

    def wait_for(self, run_id: str, *tasks: str, phase: str = "Running") -> dict[str, Any]:
        """Wait until a pod does the work of one of the tasks, or waits for a node to do so."""

        def look() -> dict[str, Any] | None:
            found = [
                pod
                for task in tasks
                for pod in self.executors(run_id, task)
                if pod["status"].get("phase") == phase
                and "deletionTimestamp" not in pod["metadata"]
            ]
            return found[-1] if found else None

        return wait_for(look, f"a pod of {' or '.join(tasks)} to be {phase}", 300)

    def kill_inside(self, pod: dict[str, Any]) -> str:
        """Kill the step's own process in its pod, as a node without memory does."""
        shell = stream.stream(
            self._core.connect_get_namespaced_pod_exec,
            pod["metadata"]["name"],
            self._namespace,
            container="main",
            command=["python3", "-c", KILL],
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
        try:
            shell.run_forever(timeout=60)
            said = shell.read_all()
        finally:
            shell.close()
            shell.sock.shutdown()  # which `close` leaves to the server, if that closed first
        assert "killed" in said, said
        return said

    def delete(self, pod: dict[str, Any], *, grace_s: int) -> None:
        """Delete a pod: as a node that drains does, or with 0 seconds as one that is lost."""
        self._core.delete_namespaced_pod(
            pod["metadata"]["name"],
            self._namespace,
            grace_period_seconds=grace_s,
            _request_timeout=30,
        )


def _executes(pod: dict[str, Any], task: str) -> bool:
    annotations = pod["metadata"].get("annotations", {})
    node = annotations.get("workflows.argoproj.io/node-name", "")
    names = re.sub(r"\([^)]*\)", "", node).split(".")
    return task in names and not names[-1].endswith("driver")
