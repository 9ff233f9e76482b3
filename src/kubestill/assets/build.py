"""Generate the YAML and README of every component and pipeline, and find files that differ."""

from __future__ import annotations

import ast
import os
import re
import tempfile
from dataclasses import dataclass

from kfp import compiler, dsl
from kfp.dsl import graph_component

from kubestill.assets.catalog import Asset, find_assets
from kubestill.assets.readme import render_readme
from kubestill.assets.resources import read_resources
from kubestill.components._image import IMAGE
from kubestill.pipelines._policy import using


@dataclass(frozen=True)
class GeneratedFile:
    """A generated file and what it should hold."""

    path: str
    content: str
    is_pipeline: bool = False
    """Whether it is a compiled pipeline, not a component or README."""

    @property
    def stale(self) -> bool:
        """Whether the file on disk is missing or different."""
        return _read(self.path) != self.content


def build(
    output: str = "", image: str = "", gpu_image: str = "", resources: str = ""
) -> list[GeneratedFile]:
    """Generate all files, without writing any.

    Args:
        output: Folder for copies of the YAML alone, as `components/<name>.yaml` and
            `pipelines/<name>.yaml`; empty stands for the files beside the code, READMEs included.
        image: The image that the copies run in; empty leaves `kubestill:<version>`.
        gpu_image: The image of steps that have a device; empty stands for `image`.
        resources: File of compile-time resources; empty stands for the defaults.
    """
    changes: list[GeneratedFile] = []
    for asset in find_assets():
        content = compile_yaml(asset, image, gpu_image, resources)
        if output:
            path = os.path.join(output, f"{asset.kind}s", f"{asset.name}.yaml")
            changes.append(GeneratedFile(path, content, asset.kind == "pipeline"))
        else:
            readme = render_readme(asset, previous=_read(asset.readme_path) or "")
            changes.append(GeneratedFile(asset.yaml_path, content, asset.kind == "pipeline"))
            changes.append(GeneratedFile(asset.readme_path, readme))
    return changes


def compile_yaml(asset: Asset, image: str = "", gpu_image: str = "", resources: str = "") -> str:
    """Compile one component or pipeline to Kubeflow's YAML.

    Args:
        asset: What to compile.
        image: Replaces `kubestill:<version>` where given.
        gpu_image: The same for steps that have a device; empty stands for `image`.
        resources: File of compile-time resources; empty stands for the defaults.

    Raises:
        InvalidInput: For resources that cannot work.
    """
    definition = asset.documented
    if resources and isinstance(definition, graph_component.GraphComponent):
        with using(read_resources(resources)):
            name = definition.pipeline_spec.pipeline_info.name
            definition = dsl.pipeline(name=name)(definition.pipeline_func)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "compiled.yaml")
        compiler.Compiler().compile(definition, path)
        content = _read(path)
    assert content is not None
    content = re.sub(r"(?<= dict \[Default: )\{.*\}(?=\]$)", _ordered, content, flags=re.M)
    return _with_images(content, image or IMAGE, gpu_image or image or IMAGE)


def _with_images(content: str, image: str, gpu_image: str) -> str:
    """Pin the images: in a component its own, in a pipeline the defaults of its parameters."""
    ours = re.escape(IMAGE)
    named = rf"(gpu_image: str \[Default: '|gpu_image:\n +defaultValue: ){ours}(?='?\]?$)"
    content = re.sub(named, rf"\g<1>{gpu_image}", content, flags=re.M)
    named = rf"(\bimage: str \[Default: '|\bimage: |\bimage:\n +defaultValue: ){ours}(?='?\]?$)"
    return re.sub(named, rf"\g<1>{image}", content, flags=re.M)


def _ordered(mapping: re.Match[str]) -> str:
    """Sort a default in the header comment, where protobuf's order changes from run to run."""
    return repr(dict(sorted(ast.literal_eval(mapping.group()).items())))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
