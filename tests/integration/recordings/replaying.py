"""Drive components through Kubeflow's own executor, by inputs as a runner or a launcher makes them.

`local_input` makes what `kfp.local` hands to a step; `Recording` is what the launcher of a real
Kubeflow handed to one. Both go to `execute`, in this process, and end as `Ended`.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kfp.dsl.executor import Executor
from kfp.dsl.types import artifact_types

import kubestill.components

DATA = Path(__file__).with_name("data")
OUTPUTS = "/tmp/kfp/outputs"
"""Where the launcher lets components write parameters."""

LOGS = "executor-logs"
"""The output that the launcher itself writes."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An artifact of a step that has ended."""

    uri: str
    path: Path
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a step told its runner."""

    parameters: dict[str, Any]
    artifacts: dict[str, Port]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What the launcher handed to a component, whole."""

    name: str
    component: str
    content: dict[str, Any]
    task: str
    """The run and the task that it is of, as outputs' URIs name them."""

    @classmethod
    def read(cls, name: str) -> Recording:
        content = json.loads((DATA / f"{name}.json").read_text())
        task = producer(content["outputs"]["outputFile"])
        return cls(name=name, component=name.split(".")[1], content=content, task=task)

    @property
    def parameters(self) -> dict[str, Any]:
        """What was given, defaults included."""
        return self.content["inputs"].get("parameterValues", {})

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """The artifact of every connected input."""
        ports = self.content["inputs"].get("artifacts", {})
        return {port: given["artifacts"][0] for port, given in ports.items()}

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """The artifact of every output but the launcher's own."""
        ports = self.content["outputs"].get("artifacts", {})
        return {port: made["artifacts"][0] for port, made in ports.items() if port != LOGS}


def names(pipeline: str) -> list[str]:
    """Return the names of a pipeline's recordings."""
    return sorted(path.stem for path in DATA.glob(f"{pipeline}.*.json"))


def producer(uri: str) -> str:
    """Return `<run>/<task>`, the run shortened, out of the URI or the path of an artifact."""
    run, task, *_ = uri.partition("/v2/artifacts/")[2].split("/")[1:]
    return f"{run[:8]}/{task}"


def find_component(name: str) -> Any:
    """Return one of our components, as people import it."""
    return getattr(kubestill.components, name)


def local_input(
    component: Any, folder: Path, inputs: Mapping[str, Port], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the executor's input as `kfp.local` does: paths for URIs, declared names and types."""
    spec = component.component_spec
    given = {
        port: {
            "name": port,
            "type": _type(spec.inputs[port]),
            "uri": one.uri,
            "metadata": dict(one.metadata),
        }
        for port, one in inputs.items()
    }
    made = {
        port: {"name": port, "type": _type(spec.outputs[port]), "uri": str(folder / port)}
        for port in output_artifacts(component)
    }
    return {
        "inputs": {
            "artifacts": {port: {"artifacts": [one]} for port, one in given.items()},
            "parameterValues": {
                name: value for name, value in parameters.items() if name in spec.inputs
            },
        },
        "outputs": {
            "artifacts": {port: {"artifacts": [one]} for port, one in made.items()},
            "parameters": {
                name: {"outputFile": str(folder / name)} for name in output_parameters(component)
            },
            "outputFile": str(folder / "executor_output.json"),
        },
    }


def cluster_input(
    component: Any, folder: str, inputs: Mapping[str, Port], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the executor's input as the launcher does, for a call that nobody recorded.

    Input artifacts have no `schemaTitle`, a number for a name, and metadata of Kubeflow's own.

    Args:
        component: What is called.
        folder: URI below which its outputs go.
        inputs: Which artifacts are connected.
        parameters: Which are given; the driver adds the others' defaults.
    """
    executor_input = local_input(component, Path("/"), inputs, parameters)
    for number, port in enumerate(executor_input["inputs"]["artifacts"].values()):
        (artifact,) = port["artifacts"]
        artifact |= {"name": str(100 + number), "type": {"instanceSchema": ""}}
        artifact["metadata"] |= {"display_name": "x", "store_session_info": '{"Provider":"minio"}'}
    outputs = executor_input["outputs"]
    for name, port in outputs["artifacts"].items():
        port["artifacts"][0]["uri"] = f"{folder}/{name}"
    for name, parameter in outputs["parameters"].items():
        parameter["outputFile"] = f"{OUTPUTS}/{name}"
    outputs["outputFile"] = f"/{folder.replace('://', '/', 1)}/output_metadata.json"
    known = component.component_spec.inputs
    defaults = {name: one.default for name, one in known.items() if _is_parameter(one)}
    given = executor_input["inputs"]["parameterValues"]
    executor_input["inputs"]["parameterValues"] = {
        name: value for name, value in (defaults | given).items() if value is not None
    }
    return executor_input


def optional_artifacts(component: Any) -> tuple[str, ...]:
    """Return the input artifacts that a component works without."""
    known = component.component_spec.inputs or {}
    return tuple(name for name, one in known.items() if one.optional and not _is_parameter(one))


def output_artifacts(component: Any) -> dict[str, Any]:
    """Return the output artifacts of a component's interface."""
    made = component.component_spec.outputs or {}
    return {name: one for name, one in made.items() if not _is_parameter(one)}


def output_parameters(component: Any) -> list[str]:
    """Return the names of a component's output parameters."""
    made = component.component_spec.outputs or {}
    return [name for name, one in made.items() if _is_parameter(one)]


def _is_parameter(port: Any) -> bool:
    return "@" not in port.type


def _type(port: Any) -> dict[str, str]:
    title, _, version = port.type.partition("@")
    return {"schemaTitle": title, "schemaVersion": version}


def execute(component: Any, executor_input: Mapping[str, Any]) -> Ended:
    """Run a component through Kubeflow's executor, in this process."""
    # The executor keeps the metadata that it is given.
    given = copy.deepcopy(dict(executor_input))
    Executor(executor_input=given, function_to_execute=component).execute()
    return read_outputs(executor_input)


def read_outputs(executor_input: Mapping[str, Any], find: Mapping[str, str] | None = None) -> Ended:
    """Read what the executor wrote for the launcher.

    Args:
        executor_input: What it was given.
        find: Prefixes of paths in a container, and where they lie on this machine.
    """
    written = json.loads(_find(executor_input["outputs"]["outputFile"], find or {}).read_text())
    artifacts: dict[str, Port] = {}
    for name, port in written.get("artifacts", {}).items():
        if name == LOGS:
            continue
        (one,) = port["artifacts"]
        path = _find(artifact_types.Artifact(uri=one["uri"]).path or "", find or {})
        artifacts[name] = Port(uri=one["uri"], path=path, metadata=one["metadata"])
    return Ended(parameters=written.get("parameterValues", {}), artifacts=artifacts)


def _find(path: str, places: Mapping[str, str]) -> Path:
    for prefix, place in places.items():
        if path.startswith(prefix):
            return Path(place + path.removeprefix(prefix))
    return Path(path)


@dataclass
class Volumes:
    """The launcher's volumes, below a folder of this machine."""

    folder: Path

    @property
    def places(self) -> dict[str, str]:
        """Prefixes in a pod, and where they lie here."""
        return {"/minio/": f"{self.folder}/minio/", f"{OUTPUTS}/": f"{self.folder}/outputs/"}

    def path(self, uri: str) -> Path:
        """Return where the launcher lays an artifact."""
        return _find("/" + uri.replace("://", "/", 1), self.places)

    def lay(self, uri: str, source: Path) -> None:
        """Lay an artifact as the launcher downloads it; of what was never written there is none."""
        place = self.path(uri)
        if source.is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True)
        elif source.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Let artifacts of this process's executor lie on the volumes."""
        with pytest.MonkeyPatch.context() as patch:
            place = self.places["/minio/"]
            patch.setattr(artifact_types, "_MINIO_LOCAL_MOUNT_PREFIX", place)
            # The executor leaves it behind.
            patch.setattr(artifact_types, "CONTAINER_TASK_ROOT", None)
            yield

    def execute(self, component: Any, executor_input: Mapping[str, Any]) -> Ended:
        """Run a component in this process on the launcher's input, of which only paths change."""
        moved = copy.deepcopy(dict(executor_input))
        outputs = moved["outputs"]
        for parameter in outputs.get("parameters", {}).values():
            parameter["outputFile"] = str(_find(parameter["outputFile"], self.places))
        outputs["outputFile"] = str(_find(outputs["outputFile"], self.places))
        with self.mounted():
            return execute(component, moved)


@dataclass
class Bucket:
    """Kubeflow's own bucket, as recordings name it: `minio://mlpipeline`."""

    client: Any
    name: str = "mlpipeline"
    _made: list[bool] = field(default_factory=list[bool])

    def begin(self) -> None:
        """Make it; there may be one already."""
        known = [one["Name"] for one in self.client.list_buckets()["Buckets"]]
        if self.name not in known:
            self.client.create_bucket(Bucket=self.name)

    def key(self, uri: str) -> str:
        prefix = f"minio://{self.name}/"
        assert uri.startswith(prefix), uri
        return uri.removeprefix(prefix)

    def put(self, uri: str, source: Path) -> None:
        """Copy a folder of this machine to a URI."""
        for file in source.rglob("*"):
            if file.is_file():
                key = f"{self.key(uri)}/{file.relative_to(source)}"
                self.client.put_object(Bucket=self.name, Key=key, Body=file.read_bytes())

    def read(self, uri: str) -> dict[str, bytes]:
        """Return all that lies below a URI."""
        return {
            key: self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
            for key in self._keys(uri)
        }

    def restore(self, uri: str, content: Mapping[str, bytes]) -> None:
        """Let below a URI lie what did when it was read, and nothing else."""
        for key in self._keys(uri):
            if key not in content:
                self.client.delete_object(Bucket=self.name, Key=key)
        for key, body in content.items():
            self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def _keys(self, uri: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.name, Prefix=f"{self.key(uri)}/")
        return [one["Key"] for page in found for one in page.get("Contents", ())]
