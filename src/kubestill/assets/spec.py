"""The workflow before its run starts: components by value, and a template for each DAG.

Kubeflow writes each component's interface and container once, under a hash of the container, and
each task's specification into the template that starts it; a loop's three times.
"""

from __future__ import annotations

import hashlib

from kubestill.assets.pods import Json, to_json
from kubestill.assets.workflow import SimulatedRun, is_exit, retry_parameters

_SYSTEM = {
    "system-dag-driver": 2310,
    "system-container-driver": 2500,
    "system-importer": 2500,
    "system-container-executor": 460,
    "system-container-impl": 1990,
    "retry-system-container-executor": 1005,
    "retry-system-container-impl": 2430,
}
"""Bytes of the templates that look the same in every workflow."""
_ENVELOPE = 2500
"""Bytes of the workflow's metadata, settings and own status."""


def spec_size(run: SimulatedRun) -> int:
    """Count the bytes of a run's workflow without its nodes."""
    writer = _Writer(run)
    writer.dag("root", run.pipeline["root"])
    for name, component in run.pipeline.get("components", {}).items():
        if "dag" in component:
            writer.dag(name, component)
    system = sum(size for name, size in _SYSTEM.items() if name in writer.used)
    written = to_json([list(writer.arguments.items()), writer.templates])
    each = len('{"name":,"value":},') * len(writer.arguments)
    return _ENVELOPE + system + each + len(written.encode())


class _Writer:
    def __init__(self, run: SimulatedRun) -> None:
        self.run = run
        self.arguments: dict[str, str] = {}
        self.templates: list[Json] = []
        self.used = {"system-dag-driver"}

    def dag(self, name: str, component: Json) -> None:
        self.arguments[f"components-{name}"] = to_json(component)
        tasks: list[Json] = []
        for key, task in component["dag"]["tasks"].items():
            made = self._task(key, task)
            if is_exit(task):
                self._template(f"exit-hook-{name}-{key}", made)
            else:
                tasks += made
        self._template(name, tasks)
        if name == "root":
            config = {"runtime-config": self.run.runtime_config, "driver-type": "ROOT_DAG"}
            values = {"component": _workflow("components-root"), **config}
            driver = _argo("root-driver", "system-dag-driver", values)
            self._template("entrypoint", [driver, _dag("root", "root", "root-driver")])

    def _template(self, name: str, tasks: list[Json], *inputs: str) -> None:
        names = [{"name": one} for one in ("parent-dag-id", *inputs)]
        note = {"annotations": {"sidecar.istio.io/inject": "false"}}
        self.templates.append(
            {
                "dag": {"tasks": tasks},
                "inputs": {"parameters": names},
                "metadata": note,
                "name": name,
                "outputs": {},
            }
        )

    def _task(self, key: str, task: Json) -> list[Json]:
        if "parameterIterator" not in task:
            return self._once(key, task, key, task.get("dependentTasks", []))
        reference = task["componentRef"]["name"]
        driver = _argo("iteration-driver", "system-dag-driver", self._driver(key, task))
        iterations = {
            **_dag("iteration-iterations", f"{reference}-iteration", "iteration-driver"),
            "withSequence": {"count": _answer("iteration-driver", "iteration-count")},
        }
        self._template(f"{reference}-{key}-iterator", [driver, iterations])
        once = self._once("iteration-item", task, key, [])
        self._template(f"{reference}-iteration", once, "iteration-index")
        loop = _argo(key, f"{reference}-{key}-iterator", {"parent-dag-id": _input("parent-dag-id")})
        return [{**loop, "depends": _depends(task.get("dependentTasks", []))}]

    def _once(self, key: str, task: Json, task_name: str, after: list[str]) -> list[Json]:
        component = self.run.component(task)
        driver_name = f"{key}-driver"
        if "dag" in component:
            values = self._driver(task_name, task)
            driver = _argo(driver_name, "system-dag-driver", values)
            made = [driver, _dag(key, task["componentRef"]["name"], driver_name)]
        else:
            made = self._executor(key, driver_name, task, task_name, component)
        if after:
            made[0]["depends"] = _depends(after)
        return made

    def _driver(self, task_name: str, task: Json) -> Json:
        return {
            "component": _workflow(f"components-{task['componentRef']['name']}"),
            "parent-dag-id": _input("parent-dag-id"),
            "task": to_json(task),
            "task-name": task_name,
        }

    def _executor(
        self, key: str, driver_name: str, task: Json, task_name: str, component: Json
    ) -> list[Json]:
        label = component["executorLabel"]
        executor = self.run.pipeline["deploymentSpec"]["executors"][label]
        written = to_json(executor.get("container", executor))
        name = hashlib.sha256(written.encode()).hexdigest()
        self.arguments.setdefault(f"components-{name}", to_json(component))
        self.arguments.setdefault(f"implementations-{name}", written)
        values = {
            "component": _workflow(f"components-{name}"),
            "task": to_json(task),
            "container": _workflow(f"implementations-{name}"),
            "task-name": task_name,
            "parent-dag-id": _input("parent-dag-id"),
        }
        if "importer" in executor:
            self.used.add("system-importer")
            return [_argo(key, "system-importer", values)]
        reference = task["componentRef"]["name"]
        if kubernetes := self.run.kubernetes.get(label):
            self.arguments[f"kubernetes-{reference}"] = to_json(kubernetes)
            values["kubernetes-config"] = _workflow(f"kubernetes-{reference}")
        retries = {one["name"]: one["value"] for one in retry_parameters(task)}
        prefix = "retry-" if retries else ""
        template = f"{prefix}system-container-executor"
        self.used |= {"system-container-driver", template, f"{prefix}system-container-impl"}
        patch = {
            "pod-spec-patch": _answer(driver_name, "pod-spec-patch"),
            "cached-decision": _answer(driver_name, "cached-decision"),
        }
        executor_task = _argo(key, template, {**patch, **retries})
        return [
            _argo(driver_name, "system-container-driver", values),
            {**executor_task, "depends": _depends([driver_name])},
        ]


def _argo(name: str, template: str, values: Json) -> Json:
    parameters = [{"name": key, "value": value} for key, value in values.items()]
    return {"arguments": {"parameters": parameters}, "name": name, "template": template}


def _dag(name: str, template: str, driver: str) -> Json:
    values = {"parent-dag-id": _answer(driver, "execution-id"), "condition": ""}
    return {**_argo(name, template, values), "depends": _depends([driver])}


def _depends(tasks: list[str]) -> str:
    return " && ".join(f"{task}.Succeeded" for task in tasks)


def _answer(task: str, name: str) -> str:
    return f"{{{{tasks.{task}.outputs.parameters.{name}}}}}"


def _input(name: str) -> str:
    return f"{{{{inputs.parameters.{name}}}}}"


def _workflow(name: str) -> str:
    return f"{{{{workflow.parameters.{name}}}}}"
