"""What every component and pipeline promises, whatever it does."""

import datetime
import importlib
import inspect
import re
from typing import cast

import pytest
import yaml
from kfp.dsl.python_component import PythonComponent

import kubestill.components
import kubestill.pipelines
from kubestill.assets import build, compile_yaml, find_assets
from kubestill.components._image import IMAGE

ASSETS = {asset.name: asset for asset in find_assets()}
COMPONENTS = {
    name: cast(PythonComponent, asset.definition)
    for name, asset in ASSETS.items()
    if asset.kind == "component"
}
FILES = {change.path: change for change in build()}


def ports_of(name):
    spec = ASSETS[name].documented.component_spec
    return {**(spec.inputs or {}), **(spec.outputs or {})}


@pytest.mark.parametrize(
    "package", [kubestill.components, kubestill.pipelines], ids=lambda p: p.__name__
)
def test_a_package_exports_exactly_its_folders(package, root):
    folder = root / package.__name__.removeprefix("kubestill.")
    folders = {path.parent.name for path in folder.glob("*/metadata.yaml")}
    assert set(package.__all__) == folders
    assert package.__all__ == sorted(package.__all__)


@pytest.mark.parametrize("name", ASSETS)
def test_the_package_of_an_asset_exports_only_that_asset(name):
    kind = ASSETS[name].kind
    package = importlib.import_module(f"kubestill.{kind}s.{name}")
    assert package.__all__ == [name]
    assert getattr(package, name) is ASSETS[name].definition


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.split("/")[-2:]))
def test_a_checked_in_file_is_what_the_code_generates(path):
    assert not FILES[path].stale, "run `make compile`"


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_has_the_parameters_of_its_step(name):
    def parameters(function):
        # A task says None where Kubeflow shows an empty list or mapping.
        return {
            parameter.name: None if parameter.default in ([], {}) else parameter.default
            for parameter in inspect.signature(function).parameters.values()
        }

    task = getattr(importlib.import_module(f"kubestill.runtime.steps.{name}"), name)
    assert parameters(COMPONENTS[name].python_func) == parameters(task)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_one_call_of_its_step(name):
    body = inspect.getsource(COMPONENTS[name].python_func).split('"""')[-1]
    assert body.strip() == f'return call_step("{name}", locals())'


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_input_and_output_is_described(name):
    assert [port for port, part in ports_of(name).items() if not part.description] == []


@pytest.mark.parametrize("name", COMPONENTS)
def test_component_py_imports_only_kfp_and_the_standard_library(name):
    with open(f"{ASSETS[name].folder}/component.py") as file:
        imports = re.findall(r"^(?:from|import) (\S+)", file.read(), re.MULTILINE)
    assert set(imports) <= {
        "typing",
        "kfp",
        "kubestill.components._call",
        "kubestill.components._image",
    }


@pytest.mark.parametrize("name", ASSETS)
def test_every_asset_runs_in_our_image_and_installs_nothing(name):
    content = compile_yaml(ASSETS[name])
    assert images_of(content) == {IMAGE}
    assert "pip install" not in content
    pinned = compile_yaml(ASSETS[name], image="example.org/k@sha256:0")
    assert images_of(pinned) == {"example.org/k@sha256:0"}


def images_of(content: str) -> set[str]:
    """The image of every container step; where a pipeline's parameter names it, its default."""
    spec = next(yaml.safe_load_all(content))
    named = [
        executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()
    ]
    parameters = spec["root"]["inputDefinitions"].get("parameters", {})
    channels = [re.search(r"pipelinechannel--(\w+)", image) for image in named]
    return {
        parameters[channel[1]]["defaultValue"] if channel else image
        for image, channel in zip(named, channels, strict=True)
    }


@pytest.mark.parametrize("name", ASSETS)
def test_metadata_follows_the_community_format(name):
    folder = ASSETS[name].folder
    with open(f"{folder}/metadata.yaml") as file:
        metadata = yaml.safe_load(file)
    with open(f"{folder}/OWNERS") as file:
        owners = yaml.safe_load(file)
    assert list(metadata) == ["name", "stability", "dependencies", "tags", "lastVerified"]
    assert metadata["name"] == name
    assert metadata["stability"] in {"experimental", "alpha", "beta", "stable"}
    for dependency in metadata["dependencies"]["kubeflow"]:
        assert re.fullmatch(r"(>=|<=|==)\d+\.\d+\.\d+", dependency["version"])
    assert metadata["tags"]
    age = datetime.datetime.now(datetime.UTC) - metadata["lastVerified"]
    assert age < datetime.timedelta(days=365)
    assert list(owners)[0] == "approvers"
    assert owners["approvers"]


def test_the_same_port_has_the_same_type_everywhere():
    types: dict[str, dict[str, list[str]]] = {}
    for name in COMPONENTS:
        for port, part in ports_of(name).items():
            types.setdefault(port, {}).setdefault(str(part.type), []).append(name)
    assert {port: kinds for port, kinds in types.items() if len(kinds) > 1} == {}


def test_a_pipeline_retries_every_task_for_days_and_never_caches():
    spec = next(yaml.safe_load_all(compile_yaml(ASSETS["distillation"])))
    dags = [spec["root"]["dag"], spec["components"]["comp-shards"]["dag"]]
    tasks = {name: task for dag in dags for name, task in dag["tasks"].items()}
    assert "label-with-teacher" in tasks
    for name, task in tasks.items():
        if name != "shards":
            assert task["retryPolicy"]["backoffMaxDuration"] == "172800s"
            assert task["cachingOptions"] == {}
