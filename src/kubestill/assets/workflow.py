"""Build the Argo workflow of a run as it is when the run is over.

Kubeflow turns a compiled pipeline into a workflow: one Kubernetes object in which Argo keeps the
inputs and outputs of every step. This module writes the same nodes, with made-up values for what
only a run knows, so that their size can be measured before there is a run.

Read in kubeflow/pipelines 2.17 (argocompiler/container.go and dag.go, driver/driver.go) and
argo-workflows 4.0 (controller/operator.go and dag.go):

- A task is two pods. Its driver gets the task, its component's interface and its container, and
  outputs a patch of the pod's spec, which contains the executor's input and the interface again.
  The executor gets that patch twice: as a DAG, and as the pod inside it.
- A loop, a branch and an exit handler have a driver each, and so has every iteration of a loop. The
  driver gets everything inside.
- Kubeflow's manifests let Argo retry every template, and a retried template is two nodes with the
  same inputs and outputs. So all of this is there twice, and the patch six times.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from typing import Any

from kubestill.assets.pods import Json, Scope, artifact, pod_spec_patch, to_json

_TIME = "2026-01-01T00:00:00Z"
_DRIVER_DEFAULTS = {
    "runtime-config": "",
    "task": "",
    "task-name": "",
    "parent-dag-id": "0",
    "iteration-index": "-1",
    "driver-type": "DAG",
}
_RETRIES = {
    "maxRetryCount": "retry-max-count",
    "backoffDuration": "retry-backoff-duration",
    "backoffFactor": "retry-backoff-factor",
    "backoffMaxDuration": "retry-backoff-max-duration",
}


_EQUALS = re.compile(r"inputs\.parameter_values\['(.+)'\] == '.*'")
"""A branch's condition, as kfp writes it."""


def whole_numbers(value: Any) -> Any:
    """Return the same JSON with whole numbers as integers, as Go prints them."""
    if isinstance(value, Mapping):
        return {key: whole_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [whole_numbers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def retry_parameters(task: Json) -> list[Json]:
    """Return the retry parameters of a task's executor; none for a task without retries."""
    policy = task.get("retryPolicy", {})
    return [
        {"name": name, "value": str(policy[key]).removesuffix("s")}
        for key, name in _RETRIES.items()
        if key in policy
    ]


def is_exit(task: Json) -> bool:
    """Return whether a task runs however the others ended."""
    return task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"


@dataclass(kw_only=True)
class SimulatedRun:
    """A run in which every step succeeds at once.

    Every branch is taken, but of those that exclude each other only the largest.
    """

    pipeline: Json
    """The pipeline's specification, as in the compiled YAML."""
    kubernetes: Json = field(default_factory=dict[str, Any])
    """The Kubernetes settings of each executor."""
    iterations: int
    """Iterations of a loop whose list only a run knows."""
    arguments: Json = field(default_factory=dict[str, Any])
    """Parameters that differ from the defaults."""
    nodes: dict[str, Json] = field(default_factory=dict[str, Json])
    """Argo's record of each node, by its id."""

    @property
    def pipeline_name(self) -> str:
        """The pipeline's name."""
        return self.pipeline["pipelineInfo"]["name"]

    @property
    def name(self) -> str:
        """The name that Kubeflow gives the workflow: the pipeline's and five letters."""
        return f"{self.pipeline_name.rpartition('/')[2]}-xxxxx"

    @property
    def runtime_config(self) -> str:
        """The run's parameters, as the first driver gets them."""
        return to_json({"parameterValues": self._parameters()})

    def execute(self) -> None:
        """Fill `nodes`."""
        root = self.pipeline["root"]
        entry = self._template(self.name, "entrypoint", "", [], kind="DAG")
        values = {"runtime-config": self.runtime_config, "driver-type": "ROOT_DAG"}
        driver = self._dag_driver(f"{entry}.root-driver", entry, root, values)
        inside = self._template(f"{entry}.root", "root", entry, [_PARENT], kind="DAG")
        self._hang(entry, [f"{entry}.root-driver"])
        self._hang(driver, [f"{entry}.root"])
        self._dag("root", root, inside, Scope(parameters=self._parameters()))

    def component(self, task: Json) -> Json:
        """Return the component that a task refers to."""
        return self.pipeline["components"][task["componentRef"]["name"]]

    def _parameters(self) -> Json:
        inputs = self.pipeline["root"].get("inputDefinitions", {}).get("parameters", {})
        defaults = {name: spec.get("defaultValue", "") for name, spec in inputs.items()}
        return defaults | self.arguments

    # What runs. Each method returns the nodes that its successors hang from.

    def _dag(self, name: str, component: Json, path: str, scope: Scope) -> list[str]:
        tasks = component["dag"]["tasks"]
        before = {key: task.get("dependentTasks", []) for key, task in tasks.items()}
        skipped = self._skipped(name, tasks)
        ends: dict[str, list[str]] = {}
        for key in TopologicalSorter(before).static_order():
            task = tasks[key]
            if is_exit(task):
                hook = f"{path}.{before[key][0]}.onExit"
                self._hang(f"{path}.{before[key][0]}", [hook])
                inside = self._template(
                    hook, f"exit-hook-{name}-{key}", path, [_PARENT], kind="DAG"
                )
                self._hang(inside, [f"{inside}.{key}-driver"])
                self._task(key, task, component, inside, scope)
                continue
            if key in skipped:
                ends[key] = self._skip(key, task, path)
            else:
                ends[key] = self._task(key, task, component, path, scope)
            first = f"{path}.{key}" + ("" if "parameterIterator" in task else "-driver")
            for parent in [end for other in before[key] for end in ends[other]] or [path]:
                self._hang(parent, [first])
        followed = {other for key in ends for other in before[key]}
        return self._close(path, [end for key in ends.keys() - followed for end in ends[key]])

    def _skipped(self, name: str, tasks: Json) -> set[str]:
        """Return the branches that are not taken: all but one of those with the same condition."""
        chosen: dict[str, tuple[int, str]] = {}
        branches: dict[str, str] = {}
        for key, task in tasks.items():
            condition = task.get("triggerPolicy", {}).get("condition", "")
            asked = _EQUALS.fullmatch(condition)
            source = task.get("inputs", {}).get("parameters", {}).get(asked[1]) if asked else None
            if condition and name.startswith("comp-condition-branches"):
                branches[key] = name
            elif source:
                branches[key] = to_json(source)
        for key, question in branches.items():
            size = self._size(tasks[key])
            chosen[question] = max(chosen.get(question, (0, "")), (size, key))
        return {key for key, question in branches.items() if chosen[question][1] != key}

    def _size(self, task: Json) -> int:
        inside = self.component(task).get("dag", {}).get("tasks", {})
        return len(to_json(task)) + sum(self._size(one) for one in inside.values())

    def _skip(self, key: str, task: Json, path: str) -> list[str]:
        values = {"task": to_json(task), "task-name": key, "parent-dag-id": "42"}
        self._dag_driver(f"{path}.{key}-driver", path, self.component(task), values)
        self._node(f"{path}.{key}", task["componentRef"]["name"], path, "Skipped")
        self._hang(f"{path}.{key}-driver(0)", [f"{path}.{key}"])
        return [f"{path}.{key}"]

    def _task(self, key: str, task: Json, parent: Json, path: str, scope: Scope) -> list[str]:
        component, inside = self.component(task), self._enter(key, task, parent, scope)
        if "parameterIterator" in task:
            return self._loop(key, task, path, inside)
        if "dag" not in component:
            return self._executor(key, task, path, inside)
        values = {"task": to_json(task), "task-name": key, "parent-dag-id": "42"}
        driver = self._dag_driver(f"{path}.{key}-driver", path, component, values)
        reference = task["componentRef"]["name"]
        dag = self._template(f"{path}.{key}", reference, path, [_PARENT], kind="DAG")
        self._hang(driver, [f"{path}.{key}"])
        return self._dag(reference, component, dag, inside)

    def _loop(self, key: str, task: Json, path: str, scope: Scope) -> list[str]:
        component, reference = self.component(task), task["componentRef"]["name"]
        values = {"task": to_json(task), "task-name": key, "parent-dag-id": "42"}
        dag = self._template(
            f"{path}.{key}", f"{reference}-{key}-iterator", path, [_PARENT], kind="DAG"
        )
        driver = self._dag_driver(f"{dag}.iteration-driver", dag, component, values)
        group = f"{dag}.iteration-iterations"
        self._node(group, f"{reference}-iteration", dag, "TaskGroup")
        self._hang(dag, [f"{dag}.iteration-driver"])
        self._hang(driver, [group])
        iterator = task["parameterIterator"]
        ends: list[str] = []
        for index, item in enumerate(self._items(iterator, scope)):
            at = f"{group}({index}:{index})"
            inputs = [_PARENT, {"name": "iteration-index", "value": str(index)}]
            one = self._template(at, f"{reference}-iteration", dag, inputs, kind="DAG")
            self._hang(group, [at])
            self._hang(one, [f"{one}.iteration-item-driver"])
            body = replace(
                scope,
                place=f"{scope.place}{index}/",
                parameters={**scope.parameters, iterator["itemInput"]: item},
            )
            if "dag" in component:
                step = f"{one}.iteration-item-driver"
                step = self._dag_driver(step, one, component, {**values, "iteration-index": index})
                item_dag = self._template(
                    f"{one}.iteration-item", reference, one, [_PARENT], kind="DAG"
                )
                self._hang(step, [f"{one}.iteration-item"])
                last = self._dag(reference, component, item_dag, body)
            else:
                last = self._executor("iteration-item", task, one, body)
            ends += self._close(one, last)
        return self._close(dag, ends or [driver])

    def _executor(self, key: str, task: Json, path: str, scope: Scope) -> list[str]:
        component = self.component(task)
        executor = self.pipeline["deploymentSpec"]["executors"][component["executorLabel"]]
        values: Json = {"component": to_json(component), "task": to_json(task)}
        if "importer" in executor:
            values |= {"importer": to_json(executor["importer"]), "parent-dag-id": "42"}
            inputs = [{"name": name, "value": value} for name, value in values.items()]
            return [self._template(f"{path}.{key}", "system-importer", path, inputs)]
        kubernetes = self.kubernetes.get(component["executorLabel"], {})
        values |= {"container": to_json(executor["container"]), "task-name": key}
        values |= {"parent-dag-id": "42"}
        inputs = [{"name": name, "value": value} for name, value in values.items()]
        inputs.append({"name": "iteration-index", "default": "-1", "value": "-1"})
        settings = to_json(kubernetes) if kubernetes else ""
        inputs.append({"name": "kubernetes-config", "default": "", "value": settings})
        patch = to_json(
            pod_spec_patch(
                self.pipeline_name,
                component,
                executor["container"],
                kubernetes,
                scope,
                outputs=scope.place_of(self.pipeline_name, key),
            )
        )
        answers = {"pod-spec-patch": patch, "cached-decision": "false", "condition": "true"}
        driver = self._template(
            f"{path}.{key}-driver", "system-container-driver", path, inputs, answers
        )
        retries = retry_parameters(task)
        prefix = "retry-" if retries else ""
        given = {"name": "pod-spec-patch", "value": patch}
        inputs = [given, {"name": "cached-decision", "default": "false", "value": "false"}]
        inputs += [{**one, "default": "0"} for one in retries]
        dag = self._template(
            f"{path}.{key}", f"{prefix}system-container-executor", path, inputs, kind="DAG"
        )
        inside = f"{dag}.executor"
        pod = self._template(inside, f"{prefix}system-container-impl", dag, [given, *retries])
        self._hang(driver, [f"{path}.{key}"])
        self._hang(dag, [inside])
        return self._close(dag, [pod])

    # What tasks pass on.

    def _enter(self, key: str, task: Json, parent: Json, scope: Scope) -> Scope:
        """Return the inputs of a task; outputs of other tasks are made up."""
        inputs = task.get("inputs", {})
        parameters: Json = {}
        for name, source in inputs.get("parameters", {}).items():
            if "runtimeValue" in source:
                parameters[name] = source["runtimeValue"]["constant"]
            elif "componentInputParameter" in source:
                parameters[name] = scope.parameters.get(source["componentInputParameter"], "")
            elif "taskOutputParameter" in source:
                origin = source["taskOutputParameter"]
                parameters[name] = self._output(origin, parent, scope)
            else:
                parameters[name] = {"state": "COMPLETE", "error": {}}
        artifacts: Json = {}
        for name, source in inputs.get("artifacts", {}).items():
            if "componentInputArtifact" in source:
                artifacts[name] = scope.artifacts.get(
                    source["componentInputArtifact"], {"artifacts": []}
                )
                continue
            origin = source["taskOutputArtifact"]
            producer = parent["dag"]["tasks"][origin["producerTask"]]
            count = self.iterations if "parameterIterator" in producer else 1
            key = origin["outputArtifactKey"]
            places = [self._place(scope, origin, index) for index in range(count)]
            artifacts[name] = {"artifacts": [artifact(key, place) for place in places]}
        return Scope(place=scope.place, parameters=parameters, artifacts=artifacts)

    def _output(self, origin: Json, parent: Json, scope: Scope) -> Any:
        producer = parent["dag"]["tasks"][origin["producerTask"]]
        outputs = self.component(producer).get("outputDefinitions", {}).get("parameters", {})
        kind = outputs.get(origin["outputParameterKey"], {}).get("parameterType")
        uris = [f"{self._place(scope, origin, index)}/dataset" for index in range(self.iterations)]
        if "parameterIterator" in producer:
            return uris
        known = {"LIST": list(range(self.iterations)), "STRUCT": {}, "BOOLEAN": True}
        known |= {"NUMBER_INTEGER": 4096, "NUMBER_DOUBLE": 0.0123456789}
        return known.get(kind or "", uris[0] if uris else "")

    def _items(self, iterator: Json, scope: Scope) -> list[Any]:
        """Return the items of a loop; as many as requested if only a run knows them."""
        items = iterator["items"]
        found = json.loads(items["raw"]) if "raw" in items else None
        found = found or scope.parameters.get(items.get("inputParameter", ""))
        return found if isinstance(found, list) and found else list(range(self.iterations))

    def _place(self, scope: Scope, origin: Json, index: int) -> str:
        """Return a made-up location for another task's outputs."""
        return scope.place_of(self.pipeline_name, origin["producerTask"], index)

    # What Argo records.

    def _dag_driver(self, path: str, boundary: str, component: Json, values: Json) -> str:
        inputs: list[Json] = [{"name": "component", "value": to_json(component)}]
        for name, default in _DRIVER_DEFAULTS.items():
            value = str(values.get(name, default))
            inputs.append({"name": name, "default": default, "value": value})
        answers = {"execution-id": "42", "iteration-count": "0", "condition": "true"}
        return self._template(path, "system-dag-driver", boundary, inputs, answers)

    def _template(
        self,
        path: str,
        template: str,
        boundary: str,
        inputs: list[Json],
        answers: Mapping[str, str] | None = None,
        kind: str = "Pod",
    ) -> str:
        """Write the two nodes of a template, and return the path of the attempt."""
        values: Json = {"inputs": {"parameters": inputs}} if inputs else {}
        if kind == "Pod":
            log = f"private-artifacts/kubeflow/{self.name}/2026/01/01/{self._id(path)}/main.log"
            values["outputs"] = {
                "artifacts": [{"name": "main-logs", "s3": {"key": log}}],
                "exitCode": "0",
                "parameters": [
                    {
                        "name": name,
                        "value": value,
                        "valueFrom": {"path": f"/tmp/outputs/{name}", "default": ""},
                    }
                    for name, value in (answers or {}).items()
                ],
            }
        attempt = f"{path}(0)"
        self._node(path, template, boundary, "Retry", values)
        self._node(attempt, template, boundary, kind, {**values, "nodeFlag": {"retried": True}})
        self._hang(path, [attempt])
        return attempt

    def _node(
        self, path: str, template: str, boundary: str, kind: str, values: Json | None = None
    ) -> None:
        node: Json = {
            "id": self._id(path),
            "name": path,
            "displayName": path.removeprefix(f"{boundary}."),
            "type": kind,
            "templateName": template,
            "templateScope": f"local/{self.name}",
            "phase": "Succeeded",
            "boundaryID": self._id(boundary),
            "startedAt": _TIME,
            "finishedAt": _TIME,
            "progress": "1/1",
            "resourcesDuration": {"cpu": 0, "memory": 10},
            **(values or {}),
            "children": [],
        }
        if kind == "Pod":
            node |= {"hostNodeName": "a-node-of-the-cluster", "taskResultSynced": True}
        self.nodes[node["id"]] = node

    def _hang(self, parent: str, children: Iterable[str]) -> None:
        self.nodes[self._id(parent)]["children"] += [self._id(child) for child in children]

    def _close(self, path: str, ends: list[str]) -> list[str]:
        self.nodes[self._id(path)]["outboundNodes"] = [self._id(end) for end in ends]
        return ends

    def _id(self, path: str) -> str:
        number = zlib.crc32(path.encode())
        return path if path == self.name else f"{self.name}-{number:010d}"


_PARENT = {"name": "parent-dag-id", "value": "42"}
