"""Load a compiled pipeline by name or from a file, to run or upload it."""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from kubestill.assets.build import compile_yaml
from kubestill.assets.catalog import find_assets
from kubestill.assets.reading import MOST_CHARACTERS, read_documents
from kubestill.errors import Problems, nearest

_IMAGE = re.compile(r"[a-zA-Z0-9][\w./:-]*(@sha256:[0-9a-fA-F]+)?", re.ASCII)


@dataclass(frozen=True)
class Package:
    """One pipeline as Kubeflow takes it."""

    text: str
    """The compiled YAML."""

    @cached_property
    def documents(self) -> dict[str, Any]:
        """The content of the YAML: `pipeline_spec`, and `platform_spec` if there is one."""
        found = read_documents(self.text)
        return dict(zip(("pipeline_spec", "platform_spec"), found, strict=False))

    @cached_property
    def spec(self) -> pipeline_spec_pb2.PipelineSpec:
        """The pipeline without its platform's part, as kfp reads it."""
        return json_format.ParseDict(
            self.documents["pipeline_spec"], pipeline_spec_pb2.PipelineSpec()
        )

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.spec.pipeline_info.name

    @property
    def twice(self) -> list[tuple[str, list[str]]]:
        """Tasks, and which of their inputs are one and the same artifact.

        ML Metadata takes an artifact once as the input of an execution. Kubeflow's driver fails
        where it comes twice, or leaves one of the two inputs empty.
        """
        found: list[tuple[str, list[str]]] = []
        for component in (self.spec.root, *self.spec.components.values()):
            for name, task in component.dag.tasks.items():
                ports: dict[bytes, list[str]] = {}
                for port, given in sorted(task.inputs.artifacts.items()):
                    source = given.SerializeToString(deterministic=True)
                    ports.setdefault(source, []).append(port)
                found += [(name, same) for same in ports.values() if len(same) > 1]
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its content, regardless of comments and layout."""
        canonical = json.dumps(self.documents, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_package(
    pipeline: str, *, image: str = "", gpu_image: str = "", resources: str = ""
) -> Package:
    """Find a pipeline by name, or read a compiled one from its file.

    Args:
        pipeline: A name such as `distillation`, or the path of a YAML file.
        image: Image of our own pipelines; a file keeps its images.
        gpu_image: Image of their steps with a device.
        resources: File of compile-time resources for our own pipelines.

    Raises:
        InvalidInput: Unknown name, a file that is not a compiled pipeline, or no image's name.
    """
    problems = Problems()
    for name, value in (("--image", image), ("--gpu-image", gpu_image)):
        if value and not _IMAGE.fullmatch(value):
            remedy = "names no image; give HOST/NAME:TAG or HOST/NAME@sha256:DIGEST in full"
            problems.add(name, value, remedy)
    problems.raise_if_any()
    if pipeline.endswith((".yaml", ".yml")):
        package = _read(pipeline, problems)
        for name, value in (
            ("--image", image),
            ("--gpu-image", gpu_image),
            ("--resources", resources),
        ):
            if value:
                problems.add(name, value, "a compiled file has its own; compile it with that")
    else:
        assets = {asset.name: asset for asset in find_assets() if asset.kind == "pipeline"}
        asset = assets.get(pipeline.replace("-", "_"))
        package = Package(compile_yaml(asset, image, gpu_image, resources)) if asset else None
        if package is None:
            shown = nearest(pipeline, [name.replace("_", "-") for name in assets])
            problems.add("PIPELINE", pipeline, f"no such pipeline or file; {shown}")
    for task, ports in package.twice if package else []:
        remedy = "are one artifact, which Kubeflow's driver refuses; connect it once"
        problems.add(f"task {task!r}", ", ".join(ports), remedy)
    problems.raise_if_any()
    assert package is not None
    return package


def _read(path: str, problems: Problems) -> Package | None:
    try:
        with open(path, encoding="utf-8") as file:
            package = Package(file.read(MOST_CHARACTERS + 1))
        if package.name:
            return package
    except (OSError, UnicodeDecodeError) as error:
        problems.add("PIPELINE", path, f"cannot be read ({error})")
        return None
    except (yaml.YAMLError, json_format.ParseError, KeyError, AttributeError, TypeError):
        pass
    problems.add("PIPELINE", path, "is no pipeline that `kfp` or `kubestill compile` compiled")
    return None
