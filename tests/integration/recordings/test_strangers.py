"""Components of other people, as the documentation shows them, on a cluster's inputs."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.python_component import PythonComponent
from replaying import (
    Port,
    Volumes,
    cluster_input,
    optional_artifacts,
    output_artifacts,
    output_parameters,
)
from story import begin

import kubestill.components
from emulators import S3Server

DOCS = Path(__file__).parents[3] / "docs"
OURS = [getattr(kubestill.components, name) for name in kubestill.components.__all__]
VALUES = {"String": "x", "Integer": 1, "Float": 0.5, "Boolean": True, "Dict": {}, "List": []}


def strangers(folder: Path) -> dict[str, Any]:
    """Import all that the pages and the examples show; return the components of their own."""
    files = [*DOCS.glob("examples/*.py")]
    for page in (DOCS / "reuse.md", DOCS / "cookbook.md"):
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S)):
            if "@dsl.component" in code:
                # kfp reads the source of a component from a file.
                files.append(folder / f"{page.stem}_{number}.py")
                files[-1].write_text(code)
    found: dict[str, Any] = {}
    for file in files:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, one in vars(module).items():
            if isinstance(one, PythonComponent) and one not in OURS:
                found[f"{file.stem}-{name}"] = one
    return found


@pytest.fixture(scope="module")
def made(minio: S3Server, tmp_path_factory) -> dict[str, Port]:
    """A dataset and a model of ours, by the types that ports ask for."""
    story = begin("strangers", tmp_path_factory.mktemp("made"), minio.client)
    rows = story.step("rows", "import_dataset", source="digits").artifacts["dataset"]
    training = {"dataset": rows, "network_args": {"hidden": [4]}, "steps": 4}
    model = story.step("trained", "train_teacher", **training).artifacts["model"]
    return {"system.Dataset": rows, "system.Model": model}


def test_components_that_follow_the_documentation_run_on_a_cluster(
    made: dict[str, Port], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = strangers(tmp_path)
    walked = 0
    for where, component in found.items():
        optional = optional_artifacts(component)
        subsets = (itertools.combinations(optional, count) for count in range(len(optional) + 1))
        for given in itertools.chain.from_iterable(subsets):
            volumes = Volumes(tmp_path / f"{where}-{'-'.join(given)}")
            check(component, given, made, volumes)
            walked += 1
    assert {name.rpartition("-")[2] for name in found} >= {"announce", "weigh"}
    assert walked > len(found), "no component in the documentation has an optional artifact"


def check(
    component: BaseComponent, given: tuple[str, ...], made: dict[str, Port], volumes: Volumes
) -> None:
    """Run it with just these optional artifacts; all of its outputs have to be there."""
    optional = optional_artifacts(component)
    inputs: dict[str, Port] = {}
    parameters: dict[str, Any] = {}
    for name, port in (component.component_spec.inputs or {}).items():
        kind = str(port.type)
        if "@" not in kind:
            parameters[name] = VALUES[kind] if port.default is None else port.default
        elif name in given or name not in optional:
            one = made[kind.partition("@")[0]]
            uri = f"minio://mlpipeline/strangers/{name}"
            volumes.lay(uri, one.path)
            inputs[name] = Port(uri=uri, path=one.path, metadata=one.metadata)
    folder = "minio://mlpipeline/strangers/run"
    executor_input = cluster_input(component, folder, inputs, parameters)
    ended = volumes.execute(component, executor_input)
    assert ended.artifacts.keys() == output_artifacts(component).keys()
    assert ended.parameters.keys() == set(output_parameters(component))
    assert all(one.path.exists() for one in ended.artifacts.values())
