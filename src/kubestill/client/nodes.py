"""Tell the entries of Kubeflow's task list apart.

The list has one entry for each of Argo's nodes: drivers, DAGs, each task, each task's attempt
`(0)`, its `executor`, and the executor's attempts. An entry tells neither its own id nor its
parent, but the ids of its children; and Argo makes the id of a node from its full name by a hash
(FNV-1a). So the names can be found again, from the workflow's down:

    distillation-9knvq(0).root(0).for-loop-1(0).iteration-iterations(0:0)(0).….train-teacher(0)
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

_FNV_START, _FNV_PRIME = 0x811C9DC5, 0x01000193
_MOST_ATTEMPTS = 20


class NodeNames:
    """The full names of a run's nodes by their ids; remembers what it has found out."""

    def __init__(self) -> None:
        self.workflow = ""
        """Argo's name of the run; empty while nothing says it."""
        self._names: dict[str, str] = {}

    def __getitem__(self, node_id: str) -> str:
        """Return a node's full name; empty where it was not found."""
        return self._names.get(node_id, "")

    def name_of(self, entry: Mapping[str, Any]) -> str:
        """Return the full name of a task's entry, by its attempt; empty where it has none."""
        for child in children_of(entry):
            name = self[child]
            if key_of(name) == entry.get("display_name"):
                return re.sub(r"\(\d+\)$", "", name)
        return ""

    def executors(self) -> dict[str, list[str]]:
        """List the nodes that executed each task, its tries in order, by the task's full name.

        Ids as the list has them, such as `probe-24ssj-2474948270`; the names of the pods have the
        template's name in the middle.
        """
        tries: defaultdict[str, dict[int, str]] = defaultdict(dict)
        for node_id, name in self._names.items():
            if found := re.fullmatch(r"(.*)\.executor(?:\((\d+)\))?", name, re.DOTALL):
                # The executor itself is a pod only where nothing of it can be retried.
                tries[found[1]][int(found[2] or -1)] = node_id
        for nodes in tries.values():
            if len(nodes) > 1:
                nodes.pop(-1, None)
        return {
            task: [nodes[attempt] for attempt in sorted(nodes)]
            for task, nodes in sorted(tries.items())
        }

    def count_iterations(self, loop: str) -> int:
        """Count the iterations of a loop that have been planned, by the key of its DAG."""
        pattern = re.compile(
            rf"{re.escape(loop)}(?:\(\d+\))?\.[^.()]*iterations\((\d+):", re.DOTALL
        )
        found = (pattern.search(name) for name in self._names.values())
        return len({one[1] for one in found if one})

    def learn(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Find the names of all children that the entries tell of."""
        entries = list(entries)
        ids = {child for entry in entries for child in children_of(entry)}
        missing = ids - self._names.keys()
        if not missing:
            return
        self.workflow = self.workflow or _workflow_of(entries, ids)
        displays = {str(entry.get("display_name") or "") for entry in entries} - {""}
        suffixes = [f"({attempt})" for attempt in range(_MOST_ATTEMPTS)]
        suffixes += [f".{display}" for display in displays]
        front = [self.workflow, *(name for name in self._names.values())] if self.workflow else []
        while front and missing:
            name = front.pop()
            start = _hash(_FNV_START, name)
            for suffix in suffixes:
                node_id = f"{self.workflow}-{_hash(start, suffix)}"
                if node_id in missing:
                    missing.remove(node_id)
                    self._names[node_id] = name + suffix
                    front.append(name + suffix)


def children_of(entry: Mapping[str, Any]) -> list[str]:
    """List the ids of an entry's children."""
    return [one["pod_name"] for one in entry.get("child_tasks") or () if one.get("pod_name")]


def key_of(name: str) -> str:
    """Return the key of a step from a node's full name: `w(0).root(0).train(0)` gives `train`."""
    return re.sub(r"\(\d+\)$", "", name).rpartition(".")[2]


def keys_of(name: str) -> list[str]:
    """List the keys in a full name: `w(0).root(0).inner(0).train` gives root, inner, train."""
    return [re.sub(r"\(\d+\)$", "", part) for part in name.split(".")[1:]]


def _workflow_of(entries: list[Mapping[str, Any]], ids: set[str]) -> str:
    """Return the display name that all ids begin with."""
    some = next(iter(ids))
    return next(
        (
            display
            for entry in entries
            if (display := str(entry.get("display_name") or ""))
            and some.rpartition("-")[0] == display
        ),
        "",
    )


def _hash(state: int, text: str) -> int:
    """Go on with FNV-1a, 32 bits, from `state`."""
    for byte in text.encode("utf-8", "surrogatepass"):
        state = ((state ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return state
