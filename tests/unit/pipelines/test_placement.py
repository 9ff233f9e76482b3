"""Where the compiled pipelines say that their tasks run, and how they fail."""

import re
from typing import Any

import pytest
import yaml

from kubestill.assets import compile_yaml, find_assets
from kubestill.assets.resources import read_resources
from kubestill.errors import InvalidInput
from kubestill.local import read_parameters
from kubestill.pipelines._resources import DEFAULT, Resources

IMAGE = "registry.example/kubestill@sha256:" + "a" * 64
GPU_IMAGE = "registry.example/kubestill@sha256:" + "b" * 64
ALIASES = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
PIPELINES = [asset for asset in find_assets() if asset.kind == "pipeline"]


def compiled(asset, **options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    spec, platform = yaml.safe_load_all(compile_yaml(asset, **options))
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks(spec: dict[str, Any]) -> list[dict[str, Any]]:
    dags = [spec["root"], *spec["components"].values()]
    found = [task for dag in dags for task in dag.get("dag", {}).get("tasks", {}).values()]
    return [task for task in found if "executorLabel" in component(spec, task)]


def component(spec: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    return spec["components"][task["componentRef"]["name"]]


def container(spec: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    label = component(spec, task)["executorLabel"]
    return spec["deploymentSpec"]["executors"][label]["container"]


@pytest.mark.parametrize("asset", PIPELINES, ids=lambda asset: asset.name)
def test_every_task_is_placed_sized_retried_and_never_skipped(asset):
    spec, platform = compiled(asset, image=IMAGE, gpu_image=GPU_IMAGE)
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["image"]["defaultValue"] == IMAGE
    assert parameters["gpu_image"]["defaultValue"] == GPU_IMAGE
    assert len(tasks(spec)) >= 4
    for task in tasks(spec):
        on_device = "device" in component(spec, task)["inputDefinitions"]["parameters"]
        box = container(spec, task)
        named = "gpu_image" if on_device else "image"
        assert box["image"] == f"{{{{$.inputs.parameters['pipelinechannel--{named}']}}}}"
        assert {"resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"} <= set(
            box["resources"]
        )
        assert task["retryPolicy"] == {
            "maxRetryCount": 3,
            "backoffDuration": "30s",
            "backoffFactor": 2.0,
            "backoffMaxDuration": "172800s",
        }
        assert "enableCache" not in task["cachingOptions"]
        assert "pip install" not in " ".join(box["command"])
        extra = platform.get(component(spec, task)["executorLabel"], {})
        assert on_device == ("accelerator" in box["resources"]) == ("nodeSelector" in extra)
        if on_device:
            # What `kubestill.runtime.base.device` finds a GPU missing by.
            assert "pipelinechannel--accelerators" in task["inputs"]["parameters"]
            assert extra["emptyDirMounts"][0] | {"volumeName": ""} == {
                "medium": "Memory",
                "mountPath": "/dev/shm",
                "sizeLimit": "2Gi",
                "volumeName": "",
            }


@pytest.mark.parametrize("asset", PIPELINES, ids=lambda asset: asset.name)
def test_parameters_reach_a_task_through_loops_and_conditions(asset):
    spec = compiled(asset)[0]
    for dag in [spec["root"], *spec["components"].values()]:
        handed = set(dag.get("inputDefinitions", {}).get("parameters", {}))
        for task in dag.get("dag", {}).get("tasks", {}).values():
            inputs = task.get("inputs", {}).get("parameters", {})
            taken = {part.get("componentInputParameter") for part in inputs.values()} - {None}
            assert taken <= handed
            if "executorLabel" in component(spec, task):
                box = str(container(spec, task))
                assert set(re.findall(r"inputs\.parameters\['([^']+)'\]", box)) <= set(inputs)


@pytest.mark.parametrize("asset", PIPELINES, ids=lambda asset: asset.name)
def test_without_accelerators_a_run_asks_for_none(asset):
    parameters = compiled(asset)[0]["root"]["inputDefinitions"]["parameters"]
    # Kubeflow's driver leaves an accelerator out whose count is empty.
    assert parameters["accelerators"]["defaultValue"] == ""
    assert parameters["node_selector"]["defaultValue"] == {}
    assert parameters["tolerations"]["defaultValue"] == []


def test_resources_apply_to_all_steps_and_to_single_ones(tmp_path):
    path = tmp_path / "resources.yaml"
    path.write_text(
        "retries: 5\ntimeout: 12h\nparallelism: 4\nshared_memory: ''\n"
        "steps: {train-teacher: {retries: 9, timeout: 2d, memory: 64Gi, shared_memory: 8Gi}}\n"
    )
    asset = next(asset for asset in PIPELINES if asset.name == "distillation")
    spec, platform = compiled(asset, resources=str(path))
    retries = {
        task["taskInfo"]["name"]: task["retryPolicy"]["maxRetryCount"] for task in tasks(spec)
    }
    assert retries["train-teacher"] == 9
    assert retries["import-dataset"] == retries["train-student"] == 5
    deadlines = {name: part.get("activeDeadlineSeconds") for name, part in platform.items()}
    assert deadlines["exec-train-teacher"] == "172800"
    assert deadlines["exec-train-student"] == "43200"
    assert platform["exec-train-teacher"]["emptyDirMounts"][0]["sizeLimit"] == "8Gi"
    assert "emptyDirMounts" not in platform["exec-train-student"]
    teacher = next(task for task in tasks(spec) if task["taskInfo"]["name"] == "train-teacher")
    assert container(spec, teacher)["resources"]["resourceMemoryLimit"] == "64Gi"
    loops = [task for task in spec["root"]["dag"]["tasks"].values() if "iteratorPolicy" in task]
    assert loops[0]["iteratorPolicy"] == {"parallelismLimit": 4}


@pytest.mark.parametrize("asset", PIPELINES, ids=lambda asset: asset.name)
def test_variables_and_secrets_reach_every_task(asset, tmp_path):
    path = tmp_path / "resources.yaml"
    path.write_text(
        "env: {AWS_ENDPOINT_URL: 'https://s3.example'}\n"
        "secrets: {AWS_ACCESS_KEY_ID: store/id, AWS_SECRET_ACCESS_KEY: store/secret}\n"
        "steps: {train-teacher: {env: {HF_HOME: /tmp}}}\n"
    )
    spec, platform = compiled(asset, resources=str(path))
    for task in tasks(spec):
        label = component(spec, task)["executorLabel"]
        set_to = {one["name"]: one["value"] for one in container(spec, task)["env"]}
        assert set_to["AWS_ENDPOINT_URL"] == "https://s3.example"
        # Whatever the task is called: `train-first` is a train-teacher, too.
        trains_teacher = container(spec, task)["args"][-1] == "train_teacher"
        assert set_to.get("HF_HOME") == ("/tmp" if trains_teacher else None)
        secrets = {
            mapped["envVar"]: (secret["secretName"], mapped["secretKey"])
            for secret in platform[label]["secretAsEnv"]
            for mapped in secret["keyToEnv"]
        }
        assert secrets == {
            "AWS_ACCESS_KEY_ID": ("store", "id"),
            "AWS_SECRET_ACCESS_KEY": ("store", "secret"),
        }


def test_a_variable_of_one_step_overrides_the_common_one():
    resources = Resources(
        env={"A": "1", "B": "2"},
        secrets={"C": "store/c"},
        steps={"train-teacher": {"env": {"C": "3"}, "secrets": {"A": "store/a"}}},
    )
    own = resources.of("train-teacher")
    assert (own.env, own.secrets) == ({"B": "2", "C": "3"}, {"A": "store/a"})
    assert resources.of("train-student").secrets == {"C": "store/c"}


def test_the_example_file_contains_the_defaults(request):
    path = request.config.rootpath / "docs" / "examples" / "resources.yaml"
    assert read_resources(str(path)) == DEFAULT


def test_all_problems_with_resources_are_reported_at_once(tmp_path):
    path = tmp_path / "resources.yaml"
    path.write_text(
        "retrys: 3\nretries: -1\nbackoff: soon\ncpu: 2\n"
        "env: {A-B: x, PORT: 80, TWICE: x}\nsecrets: {KEY: store, TWICE: store/x}\n"
        "steps: {train-techer: {}, train-teacher: {parallelism: 2}, import-dataset: 3}\n"
    )
    with pytest.raises(InvalidInput) as error:
        read_resources(str(path))
    assert [problem.field for problem in error.value.problems] == [
        "retrys",
        "retries",
        "backoff",
        "cpu",
        "env.A-B",
        "env.PORT",
        "secrets.KEY",
        "env.TWICE",
        "steps",
        "steps.train-teacher.parallelism",
        "steps.import-dataset",
    ]
    assert "did you mean 'train-teacher'" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("env: &a {X: x}\n" + "b: " + "[" * 9_999, "nests too deeply"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + ALIASES, "more than 100,000 values"),
        ("retries: 3 #" + "x" * (2 << 20), "more than 2,097,152 characters"),
        ("retries: 3\n---\nretries: 4", "2 documents"),
        ("retries: 2147483648", "retries = 2147483648"),
        ("backoff_factor: .inf", "backoff_factor = inf"),
    ],
    ids=["deep", "aliases", "long", "two", "large", "infinite"],
)
def test_a_file_that_would_take_for_ever_is_refused_at_once(tmp_path, content, said):
    path = tmp_path / "resources.yaml"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=said):
        read_resources(str(path))


@pytest.mark.parametrize("content", ["", "steps:\n", "steps: {}"])
def test_what_is_left_empty_keeps_its_default(tmp_path, content):
    path = tmp_path / "resources.yaml"
    path.write_text(content)
    assert read_resources(str(path)) == DEFAULT


def test_a_timeout_is_converted_to_seconds():
    assert [Resources(timeout=text).timeout_s for text in ("", "90s", "2h")] == [0, 90, 7200]


@pytest.mark.parametrize("preset", ["gke-spot-l4", "nvidia-device-plugin"])
def test_each_preset_fits_every_pipeline(request, preset):
    path = request.config.rootpath / "docs" / "examples" / "presets" / f"{preset}.yaml"
    for asset in PIPELINES:
        spec = asset.definition.pipeline_spec
        needed = {
            name: "x"
            for name, part in spec.root.input_definitions.parameters.items()
            if not part.is_optional
        }
        given = read_parameters(spec, [f"{name}=x" for name in needed], str(path))
        assert given["accelerators"] == "1"


GATES = {"overfit-batch", "check-distillation"}


@pytest.mark.parametrize("asset", PIPELINES, ids=lambda asset: asset.name)
def test_what_the_evaluation_would_refuse_the_gate_refuses_first(asset):
    """A threshold of no metric was told after the training run, hours later."""
    spec, _ = compiled(asset)
    given: dict[str, set[str]] = {}
    for task in tasks(spec):
        label = component(spec, task)["executorLabel"].removeprefix("exec-")
        given.setdefault(label, set()).update(task.get("inputs", {}).get("parameters", {}))
    evaluations = [ports for name, ports in given.items() if name.startswith(("judge", "cont"))]
    gates = [ports for name, ports in given.items() if name in GATES]
    assert gates
    for ports in evaluations:
        checked = {"thresholds", "slices"} & ports
        assert checked == {"thresholds", "slices"}
        assert all(checked <= gate for gate in gates)
