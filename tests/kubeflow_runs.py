"""A run as Kubeflow's API tells of it: one entry for each of Argo's nodes, in no order.

Made after the recordings of a real one (`tests/integration/client/recordings`): each task has a
driver, a task, the attempts of both, an executor and its attempts; so have loops, branches, the
root and the workflow. An entry tells no id of its own and no parent, but the ids of its children.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubestill.client.steps import Step, read_steps

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
NEVER = "0001-01-01T00:00:00Z"
"""The end of what has not ended."""
NOT_YET = "1970-01-01T00:00:00Z"
"""The end of a run that goes on, as a real one says it."""


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_id(workflow: str, name: str) -> str:
    """Return Argo's id of a node: the workflow's name and a hash (FNV-1a, 32 bits) of its own."""
    state = 0x811C9DC5
    for byte in name.encode():
        state = ((state ^ byte) * 0x01000193) & 0xFFFFFFFF
    return f"{workflow}-{state}"


@dataclass
class Node:
    """One of Argo's nodes."""

    name: str
    display: str
    children: list[str] = field(default_factory=list[str])
    """Their full names."""
    history: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    started: str = ""
    ended: str = NEVER

    def move(self, state: str) -> None:
        """Go into another state; the same again is none, and empty is that of what is left out."""
        if self.history and self.history[-1].get("state", "") == state:
            return
        self.started = self.started or now()
        self.ended = now() if state in (*ENDED, "") else NEVER
        self.history.append({"update_time": now()} | ({"state": state} if state else {}))

    @property
    def state(self) -> str:
        """Where it is; empty where Argo left it out."""
        return self.history[-1].get("state", "") if self.history else ""


class Workflow:
    """The nodes of one run, and its own states; moved by whoever plays the run."""

    def __init__(self, record: dict[str, Any], spec: dict[str, Any], name: str = ""):
        """Begin a run that is pending.

        Args:
            record: What the API tells of the run; its states are written here.
            spec: The compiled pipeline.
            name: Of the workflow.
        """
        self.record = record
        self.name = name or f"{spec['pipelineInfo']['name']}-{record['run_id'][:5]}"
        self.steps = {step.key: step for step in read_steps(spec)}
        self.logs: dict[str, bytes] = {}
        """Of pods that are still there, by their names."""
        self._stands_still = False
        self.stopped = threading.Event()
        """Set when somebody terminates the run."""
        self._nodes: dict[str, Node] = {}
        self._told: list[dict[str, Any]] = []
        self._exits = False
        self._lock = threading.RLock()
        self.move("PENDING")

    def move(self, state: str) -> None:
        """Let the run itself go into another state."""
        with self._lock:
            history = self.record.setdefault("state_history", [])
            if history and history[-1]["state"] == state:
                return
            self.record["state"] = state
            history.append({"update_time": now(), "state": state})
            self.record["finished_at"] = now() if state in ENDED else NOT_YET

    def begin(self) -> None:
        """Start the workflow, or start it again after a failure."""
        with self._lock:
            self.stopped.clear()
            self.move("RUNNING")
            for node in self._nodes.values():
                if node.state == "FAILED":
                    pod = not node.children and node.display.endswith(")")
                    node.move("PENDING" if pod else "RUNNING")
            self._dag(self.name, self.name, parent="")
            root = f"{self.name}(0)"
            self._driver(root, "root")
            self._dag(f"{root}.root", "root", parent=f"{root}.root-driver(0)")

    def plan(self, key: str, *iterations: int) -> None:
        """Let a step's driver begin, and with it the loops and branches that it lies in."""
        with self._lock:
            self._driver(self._inside(self.steps[key], iterations), key, state="RUNNING")

    def count(self, loop: str, total: int) -> None:
        """Let the driver of a loop say how many iterations there are."""
        with self._lock:
            step = next(step for step in self.steps.values() if loop in step.parents)
            for number in range(total):
                self._inside(step, (number,))

    def start(self, key: str, *iterations: int, state: str = "RUNNING", attempt: int = 0) -> None:
        """Let a step's pod be there, PENDING or RUNNING."""
        with self._lock:
            parent = self._inside(self.steps[key], iterations)
            self._driver(parent, key)
            name = f"{parent}.{key}"
            self._dag(name, key, parent=f"{parent}.{key}-driver(0)")
            self._retried(f"{name}(0).executor", "executor", parent=f"{name}(0)", attempt=attempt)
            pod = self._nodes[f"{name}(0).executor({attempt})"]
            if not pod.state:
                pod.move("PENDING")
            if state != "PENDING":
                pod.move(state)

    def end(
        self,
        key: str,
        *iterations: int,
        state: str = "SUCCEEDED",
        attempt: int = 0,
        log: bytes | None = None,
    ) -> None:
        """Let a step end, with what it printed; None where the pod is gone at once."""
        with self._lock:
            self.start(key, *iterations, state="PENDING", attempt=attempt)
            name = f"{self._inside(self.steps[key], iterations)}.{key}"
            if log is not None:
                self.logs[self.pod(key, *iterations, attempt=attempt)] = log
            self._nodes[f"{name}(0).executor({attempt})"].move(state)
            for node in (f"{name}(0).executor", f"{name}(0)", name):
                self._nodes[node].move(state)

    def fail_attempt(self, key: str, *iterations: int, attempt: int = 0) -> None:
        """Let one attempt of a step fail that will be made again."""
        with self._lock:
            self.start(key, *iterations, state="PENDING", attempt=attempt)
            name = f"{self._inside(self.steps[key], iterations)}.{key}"
            self._nodes[f"{name}(0).executor({attempt})"].move("FAILED")

    def skip(self, key: str) -> None:
        """Let a branch, or a step of a condition of its own, be skipped."""
        with self._lock:
            parents = next(
                (
                    step.parents[: step.parents.index(key)]
                    for step in self.steps.values()
                    if key in step.parents
                ),
                self.steps[key].parents if key in self.steps else (),
            )
            parent = self._enter(parents, (), frozenset())
            self._driver(parent, key)
            self._node(f"{parent}.{key}", key, f"{parent}.{key}-driver(0)").move("SKIPPED")

    def omit(self, key: str, *iterations: int) -> None:
        """Leave a step out, as Argo does with what depends on a failure: it has no state."""
        with self._lock:
            parent = self._inside(self.steps[key], iterations)
            self._node(f"{parent}.{key}-driver", f"{key}-driver", parent).move("")
            self._node(f"{parent}.{key}", key, f"{parent}.{key}-driver").move("")

    def finish(self, state: str) -> None:
        """End the run, and every node that still runs; one that is over stays as it is."""
        with self._lock:
            if self.record["state"] in ENDED:
                return
            for node in self._nodes.values():
                if node.state in ("RUNNING", "PENDING"):
                    node.move(state)
            self.move(state)

    def pod(self, key: str, *iterations: int, attempt: int = 0) -> str:
        """Return the name of a step's pod: its node's id, with the template in the middle."""
        step = self.steps[key]
        template = "retry-system-container-impl" if step.retried else "system-container-impl"
        return self.node(key, *iterations, attempt=attempt).replace(
            f"{self.name}-", f"{self.name}-{template}-"
        )

    def node(self, key: str, *iterations: int, attempt: int = 0) -> str:
        """Return the id of the node of a step's pod."""
        parent = self._inside(self.steps[key], iterations)
        return node_id(self.name, f"{parent}.{key}(0).executor({attempt})")

    def details(self) -> list[dict[str, Any]]:
        """List the nodes as the API does: sorted by an id that says nothing."""
        with self._lock:
            if self._stands_still:
                return self._told
            told = [self._entry(node) for node in self._nodes.values()]
            if self._exits:
                told.append(self._execution())
            self._told = sorted(told, key=lambda entry: entry["task_id"])
            return self._told

    def stand_still(self) -> None:
        """Let Argo compress the nodes: the list stays as it is, though the run goes on."""
        self.details()
        self._stands_still = True

    def tell_execution(self) -> None:
        """Add an entry such as an exit handler's execution leaves."""
        self._exits = True

    def _inside(self, step: Step, iterations: tuple[int, ...]) -> str:
        return self._enter(step.parents, iterations, step.loops)

    def _enter(
        self, parents: tuple[str, ...], iterations: tuple[int, ...], loops: frozenset[str]
    ) -> str:
        """Have the nodes of all DAGs that a step lies in; returns the name of the innermost."""
        inside = f"{self.name}(0).root(0)"
        left = iter(iterations)
        for key in parents:
            name, parent = f"{inside}.{key}", inside
            if key not in loops:  # that of a loop lies inside
                self._driver(inside, key)
                parent = f"{name}-driver(0)"
            self._dag(name, key, parent=parent)
            inside = f"{name}(0)"
            if key in loops:
                inside = self._iterate(inside, next(left, 0))
        return inside

    def _iterate(self, inside: str, number: int) -> str:
        self._driver(inside, "iteration")
        loop = f"{inside}.iteration-iterations"
        self._node(loop, "iteration-iterations", f"{inside}.iteration-driver(0)").move("RUNNING")
        one = f"iteration-iterations({number}:{number})"
        self._dag(f"{inside}.{one}", one, parent=loop)
        inside = f"{inside}.{one}(0)"
        self._driver(inside, "iteration-item")
        self._dag(
            f"{inside}.iteration-item",
            "iteration-item",
            parent=f"{inside}.iteration-item-driver(0)",
        )
        return f"{inside}.iteration-item(0)"

    def _driver(self, inside: str, key: str, state: str = "SUCCEEDED") -> None:
        name = f"{inside}.{key}-driver"
        self._retried(name, f"{key}-driver", parent=inside, attempt=0)
        if self._nodes[name].state != "SUCCEEDED":
            self._nodes[f"{name}(0)"].move("PENDING")
        if state != "RUNNING":
            self._nodes[f"{name}(0)"].move(state)
            self._nodes[name].move(state)

    def _dag(self, name: str, display: str, *, parent: str) -> None:
        self._retried(name, display, parent=parent, attempt=0)
        if not self._nodes[f"{name}(0)"].state:
            self._nodes[f"{name}(0)"].move("RUNNING")

    def _retried(self, name: str, display: str, *, parent: str, attempt: int) -> None:
        """Have a node that can be tried again, and one of its attempts."""
        node = self._node(name, display, parent)
        if not node.state:
            node.move("RUNNING")
        self._node(f"{name}({attempt})", f"{display}({attempt})", name)

    def _node(self, name: str, display: str, parent: str) -> Node:
        if name not in self._nodes:
            self._nodes[name] = Node(name=name, display=display)
            if parent:
                self._nodes[parent].children.append(name)
        return self._nodes[name]

    def _entry(self, node: Node) -> dict[str, Any]:
        entry: dict[str, Any] = self._head(node.name) | {
            "display_name": node.display,
            "create_time": self.record["created_at"],
            "start_time": node.started or now(),
            "end_time": node.ended,
        }
        if node.state:
            entry["state"] = node.state
        entry["state_history"] = [*node.history]
        if node.children:
            entry["child_tasks"] = [
                {"pod_name": node_id(self.name, child)} for child in node.children
            ]
        return entry

    def _execution(self) -> dict[str, Any]:
        """Tell of the execution of an exit handler, which has neither a name nor a state."""
        times = dict.fromkeys(("create_time", "start_time", "end_time"), now())
        return self._head("execution") | times | {"execution_id": "146"}

    def _head(self, name: str) -> dict[str, Any]:
        unique = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.record['run_id']}/{name}"))
        return {"run_id": self.record["run_id"], "task_id": unique}
