"""What Kubeflow's backend does to all that passes from one task to the next.

`kfp.local` hands Python objects on as they are. The backend writes parameters as protobuf numbers,
artifacts to ML Metadata, and reads both back changed; a pipeline that works on the objects may fail
on what comes back. So a local run sends everything through here:

    a task's outputs  →  read_outputs  →  Backend.record  →  Handover (kfp.local's store of a DAG)
    the next task     ←  build_input   ←  Artifact.as_input  ←

docs/local-runs.md lists what is imitated and what is not. Where the rules come from: recordings of
a real Kubeflow Pipelines 2.17.0, and the backend's source where no recording shows it.
"""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf import json_format
from kfp import dsl
from kfp.local import io
from kfp.pipeline_spec import pipeline_spec_pb2

from kubestill.errors import KubestillError

LOGS = "executor-logs"
"""The output that every task has, even one that fails: what its process printed."""

_Type = pipeline_spec_pb2.ParameterType
_SESSION = json.dumps({"Provider": "local", "Params": {"fromEnv": "true"}}, separators=(",", ":"))
_LARGEST = 8 << 20
"""Characters of what a task writes about its outputs; more belongs in an artifact."""
_LONGEST_WHOLE = 1e21
"""From here on Go writes a number with an exponent, which Python does not read as a whole one."""


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """One artifact as ML Metadata returns it."""

    number: int
    """Its id, by which alone the next task knows it."""
    uri: str
    metadata: Mapping[str, Any]
    from_above: bool = False
    """Whether it reached the task through an input of the DAG around it, not from a task beside it.
    Such an artifact has no type at all."""

    def as_input(self) -> dict[str, Any]:
        """Return the input that the executor of a task sees: without the name of its type."""
        kind = {} if self.from_above else {"type": {"instanceSchema": ""}}
        number = {"name": str(self.number)}
        return {**number, **kind, "uri": self.uri, "metadata": dict(self.metadata)}


class Backend:
    """The state of one run: the ids of artifacts, and which tasks have ended."""

    def __init__(self, spec: pipeline_spec_pb2.PipelineSpec):
        self._spec = spec
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._over: dict[str, str] = {}

    def record(self, port: str, value: Any) -> Any:
        """Write an output to ML Metadata and read it back; a parameter stays as it is."""
        if isinstance(value, list):
            return [self.record(port, one) for one in value]
        if not isinstance(value, dsl.Artifact):
            return value
        metadata = {name: _as_property(port, name, one) for name, one in value.metadata.items()}
        metadata = {"display_name": port, "store_session_info": _SESSION} | metadata
        with self._lock:
            number = next(self._numbers)
        return StoredArtifact(number=number, uri=value.uri, metadata=dict(sorted(metadata.items())))

    def end(self, task: str, state: str) -> None:
        """Note how a task ended; a task whose condition is false never ends."""
        self._over[task] = state

    def final_status(self, producer: str, run: str) -> dict[str, Any]:
        """Return what Kubeflow tells an exit handler: a state, and nothing about the cause.

        Args:
            producer: The task that stands for everything inside the exit handler.
            run: Name of the run.
        """
        state = "FAILED"
        if self._over.get(producer, "SUCCEEDED") == "SUCCEEDED":
            components = (self._spec.root, *self._spec.components.values())
            around = next((one for one in components if producer in one.dag.tasks), None)
            over = around is None or self._counts_as_over(around.dag.tasks[producer])
            state = "COMPLETE" if over else "RUNNING"
        names = {"pipelineJobResourceName": run, "pipelineTaskName": producer}
        return {"error": {}, **names, "state": state}

    def _counts_as_over(self, task: pipeline_spec_pb2.PipelineTaskSpec) -> bool:
        """Return whether Kubeflow notices that a DAG is over.

        It counts the tasks of a DAG whenever a container in it ends. A condition that is false ends
        no container: if nothing runs after it, the DAG stays RUNNING for ever, and so do those
        around it.
        """
        if task.component_ref.name not in self._spec.components:
            return True
        tasks = self._spec.components[task.component_ref.name].dag.tasks
        ran = {name for name in tasks if name in self._over}
        if not all(self._counts_as_over(tasks[name]) for name in ran):
            return False
        return all(ran - _upstream(tasks, name) for name in set(tasks) - ran)


class Handover(io.IOStore):
    """Where `kfp.local` keeps the outputs of one DAG's tasks, with the backend in between."""

    def __init__(self, backend: Backend, parent: io.IOStore | None = None):
        super().__init__(parent)
        self._backend = backend

    def put_task_output(self, task_name: str, key: str, value: Any) -> None:
        """Record an output."""
        super().put_task_output(task_name, key, self._backend.record(key, value))

    def get_task_output(self, task_name: str, key: str) -> Any:
        """Return the output of another task of this DAG."""
        return _seen(super().get_task_output(task_name, key), from_above=False)

    def get_parent_input(self, key: str) -> Any:
        """Return an input of the DAG, or the items of a loop, which kfp asks for in the same way.

        By itself kfp finds the items of a loop only in a task's single, unnamed output.
        """
        try:
            return _seen(super().get_parent_input(key), from_above=True)
        except ValueError:
            for task, outputs in self._task_output_data.items():
                for output, value in outputs.items():
                    if key.removeprefix("pipelinechannel--") == f"{task}-{output}":
                        return value
            raise

    def put_task_status(self, task_name: str, task_status: str) -> None:
        """Note how a task ended."""
        super().put_task_status(task_name, task_status)
        self._backend.end(task_name, task_status)


def build_input(
    component: pipeline_spec_pb2.ComponentSpec,
    arguments: Mapping[str, Any],
    folder: str,
    final_status: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the input of a task's executor.

    Args:
        component: The task's.
        arguments: Values by the names of its inputs, and of the channels in its settings.
        folder: Where its outputs go.
        final_status: How the tasks before it ended, for a component that asks for that.

    Raises:
        KubestillError: An artifact comes twice, which makes Kubeflow's driver fail the task.
    """
    defined = component.input_definitions
    parameters: dict[str, Any] = {}
    for name in {*arguments, *defined.parameters} - set(defined.artifacts):
        known = defined.parameters[name] if name in defined.parameters else None
        value = arguments.get(name)
        if known is not None and known.parameter_type == _Type.TASK_FINAL_STATUS:
            value = final_status
        elif value is None and known is not None and known.HasField("default_value"):
            value = json_format.MessageToDict(known.default_value)
        # An optional input without a value is absent rather than null.
        if value is not None:
            parameters[name] = _as_kind(value, known.parameter_type if known else 0)
    artifacts: dict[str, Any] = {}
    ports: dict[int, str] = {}
    for name in sorted(defined.artifacts):
        given = arguments.get(name)
        if given is not None:
            listed = [given] if isinstance(given, StoredArtifact) else given
            for one in listed:
                # ML Metadata takes an artifact once as the input of an execution.
                if one.number in ports:
                    raise KubestillError(
                        f"{ports[one.number]} and {name} are one artifact ({one.uri}): Kubeflow's "
                        "driver fails the task; connect it once"
                    )
                ports[one.number] = name
            artifacts[name] = {"artifacts": [one.as_input() for one in listed]}
    inputs: dict[str, Any] = {"artifacts": artifacts} if artifacts else {}
    if parameters:
        inputs["parameterValues"] = dict(sorted(parameters.items()))
    return {"inputs": inputs, "outputs": _build_outputs(component.output_definitions, folder)}


def read_outputs(
    executor_input: Mapping[str, Any], component: pipeline_spec_pb2.ComponentSpec
) -> dict[str, Any]:
    """Return what a task that succeeded passes on: parameter values, and artifacts to record.

    Raises:
        KubestillError: For anything that makes Kubeflow's launcher fail the task.
    """
    given = executor_input["outputs"]
    written = _read_executor_output(given["outputFile"])
    outputs: dict[str, Any] = {}
    for name, place in given.get("parameters", {}).items():
        kind = component.output_definitions.parameters[name].parameter_type
        values: Mapping[str, Any] = written.get("parameterValues", {})
        found = name in values
        outputs[name] = values[name] if found else _read_text(name, place["outputFile"], kind)
        outputs[name] = as_sent(outputs[name])
    for name, listed in given["artifacts"].items():
        if name == LOGS:
            continue
        (artifact,) = listed["artifacts"]
        told = written.get("artifacts", {}).get(name, {}).get("artifacts", [{}])[0]
        uri, metadata = told.get("uri") or artifact["uri"], told.get("metadata", {})
        outputs[name] = dsl.Artifact(name=name, uri=uri, metadata=metadata)
    return outputs


def as_sent(value: Any) -> Any:
    """Return a value as protobuf and Go's JSON pass it on.

    Every number travels as a float and arrives as a whole number if it has no fraction; keys arrive
    sorted.
    """
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | float):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < _LONGEST_WHOLE else number
    if isinstance(value, Mapping):
        return {str(key): as_sent(value[key]) for key in sorted(value)}
    return [as_sent(one) for one in value]


def _as_property(port: str, name: str, value: Any) -> Any:
    """Return one value of an artifact's metadata as ML Metadata returns it."""
    if value is None:
        raise KubestillError(
            f"{port}: metadata[{name!r}] is None: ML Metadata has no null, and Kubeflow fails the "
            "task after it went well; leave the key out"
        )
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Mapping):
        return {"struct": as_sent(value)}
    if isinstance(value, list | tuple):
        return {"list": as_sent(value)}
    return as_sent(value)


def _as_kind(value: Any, kind: int) -> Any:
    """Return a parameter as the driver passes it on: for a string parameter, any value as JSON."""
    value = as_sent(value)
    if kind == _Type.STRING and not isinstance(value, str):
        return json.dumps(value, separators=(",", ":"))
    return value


def _build_outputs(defined: pipeline_spec_pb2.ComponentOutputsSpec, folder: str) -> dict[str, Any]:
    artifacts = {
        name: _build_output(name, f"{folder}/{name}", json_format.MessageToDict(one.artifact_type))
        for name, one in defined.artifacts.items()
    }
    # The launcher numbers logs by the attempt; here all attempts of a task share one.
    artifacts[LOGS] = _build_output(LOGS, f"{folder}/{LOGS}-0", {"schemaTitle": "system.Artifact"})
    outputs: dict[str, Any] = {}
    if defined.parameters:
        places = {name: {"outputFile": f"{folder}/{name}"} for name in sorted(defined.parameters)}
        outputs["parameters"] = places
    outputs["artifacts"] = dict(sorted(artifacts.items()))
    return {**outputs, "outputFile": f"{folder}/output_metadata.json"}


def _build_output(name: str, uri: str, kind: Mapping[str, str]) -> dict[str, Any]:
    return {"artifacts": [{"name": name, "type": dict(kind), "uri": uri}]}


def _read_executor_output(path: str) -> dict[str, Any]:
    """Read what the executor says about its outputs, which may be nothing."""
    if not os.path.exists(path):
        return {}
    try:
        return json.loads(_read_output(path), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise KubestillError(
            f"{path}: {error}: Kubeflow's launcher fails the task; write only what JSON has, and "
            "leave out what is not finite"
        ) from error


def _read_output(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ValueError(f"it holds more than {_LARGEST:,} characters, and belongs in an artifact")
    return text


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _read_text(name: str, path: str, kind: int) -> Any:
    """Read an output parameter from the file that `dsl.OutputPath` names."""
    try:
        text = _read_output(path)
        if kind == _Type.STRING:
            return text
        return json.loads(text.strip().lower() if kind == _Type.BOOLEAN else text)
    except (OSError, ValueError, RecursionError) as error:
        wanted = _Type.ParameterTypeEnum.Name(kind)
        raise KubestillError(
            f"{name}: {path} does not hold its value ({error}): Kubeflow's launcher fails the "
            f"task; write a {wanted} there, or return it"
        ) from error


def _seen(value: Any, *, from_above: bool) -> Any:
    if isinstance(value, StoredArtifact):
        return replace(value, from_above=from_above)
    if isinstance(value, list) and any(isinstance(one, StoredArtifact) for one in value):
        return [_seen(one, from_above=from_above) for one in value]
    return value


def _upstream(tasks: Mapping[str, pipeline_spec_pb2.PipelineTaskSpec], name: str) -> set[str]:
    """Return the tasks of a DAG that one of them waits for, directly or not."""
    found: set[str] = set()
    waiting = list(tasks[name].dependent_tasks)
    while waiting:
        one = waiting.pop()
        if one in tasks and one not in found:
            found.add(one)
            waiting += tasks[one].dependent_tasks
    return found
