"""What a run's workflow will weigh, held against runs on a real Kubeflow Pipelines 2.17.0."""

# kfp's decorators turn functions into components, which types do not say.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl

from kubestill.assets import compile_yaml, find_assets
from kubestill.assets.packages import Package
from kubestill.assets.pods import to_json
from kubestill.assets.size import LIMIT, measure, size_warnings
from kubestill.assets.workflow import SimulatedRun, whole_numbers

MEASURED = Path(__file__).parent / "measured"
"""The pipelines of 7a8c949 as they ran, and the nodes that the API told of one run."""
PINNED = "registry.example/kubestill@sha256:" + "a" * 64
PIPELINES = {asset.name: asset for asset in find_assets() if asset.kind == "pipeline"}


def as_it_ran(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((MEASURED / f"{name}.json.gz").read_bytes()))


def without_source(documents: dict[str, Any]) -> dict[str, Any]:
    """Return the pipeline with the commands that BACKEND.md tried on a real one."""
    for executor in documents["pipeline_spec"]["deploymentSpec"]["executors"].values():
        container = executor["container"]
        module = f"/opt/kubestill/components/{container['args'][-1]}/plain_component.py"
        container["command"] = ["env", "_KFP_RUNTIME=true", "python", "-m", "kfp.dsl.executor_main"]
        container["args"] = ["--component_module_path", module, *container["args"]]
    return documents


def ours(name: str) -> dict[str, Any]:
    return Package(compile_yaml(PIPELINES[name], image=PINNED)).documents


@pytest.mark.parametrize(
    ("lean", "iterations", "part", "measured", "error"),
    [
        pytest.param(False, 1, "nodes", 1.30e6, 0.02, id="1-shard"),
        pytest.param(False, 2, "nodes", 1.47e6, 0.02, id="2-shards"),
        pytest.param(False, 2, "compressed_nodes", 212e3, 0.05, id="2-shards-compressed"),
        pytest.param(False, 40, "whole_compressed", 1.0e6, 0.05, id="40-shards-compressed"),
        pytest.param(True, 2, "nodes", 1.11e6, 0.02, id="without-source"),
        pytest.param(True, 2, "compressed_nodes", 152e3, 0.05, id="without-source-compressed"),
    ],
)
def test_the_model_errs_as_little_as_it_says(lean, iterations, part, measured, error):
    documents = as_it_ran("distillation")
    found = measure(without_source(documents) if lean else documents, iterations=iterations)
    assert getattr(found, part) == pytest.approx(measured, rel=error)


def test_the_model_starts_as_many_pods_as_the_real_run_did():
    assert measure(as_it_ran("distillation")).pods == 34


def test_the_model_has_the_nodes_that_the_api_told_of():
    documents = whole_numbers(as_it_ran("surrogate"))
    run = SimulatedRun(pipeline=documents["pipeline_spec"], iterations=2)
    run.execute()
    told = json.loads((MEASURED / "surrogate.nodes.json").read_text())
    assert Counter(node["displayName"] for node in run.nodes.values()) == Counter(told)


def test_distillation_by_default_keeps_the_task_list_alive():
    found = measure(ours("distillation"))
    assert found.nodes <= 0.9e6
    assert found.whole <= 0.9 * LIMIT
    assert found.pods <= 26


@pytest.mark.parametrize("name", ["distillation", "surrogate"])
def test_64_shards_fit_into_half_of_the_hard_limit(name):
    assert measure(ours(name), iterations=64).whole_compressed <= LIMIT / 2


@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_is_to_be_said_of_our_own_defaults(name):
    assert size_warnings(ours(name)) == []


@pytest.mark.parametrize("name", PIPELINES)
def test_everything_that_the_api_tells_of_has_a_name_that_says_what_it_is(name):
    spec = ours(name)["pipeline_spec"]
    dags = [spec["root"], *spec["components"].values()]
    named = {key: task for dag in dags for key, task in dag.get("dag", {}).get("tasks", {}).items()}
    assert [key for key in named if key.rpartition("-")[2].isdigit()] == []
    assert {key: task["taskInfo"]["name"] for key, task in named.items()} == {
        key: key for key in named
    }


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_takes_ports_without_their_descriptions(name):
    spec = ours(name)["pipeline_spec"]
    assert '"description"' not in to_json(spec["components"])
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert all(one["description"] for one in parameters.values())


@dsl.component(base_image="python:3.11")
def square(number: int) -> int:
    return number * number


def pipeline_of(*, tasks: int, source: str = "", loop: bool = False) -> dict[str, Any]:
    @dsl.component(base_image="python:3.11")
    def listed() -> list:
        return [1]

    @dsl.pipeline(name="theirs")
    def theirs(shards: int = 2):
        def body(number: Any) -> None:
            for _ in range(tasks):
                square(number=number)

        if loop:
            with dsl.ParallelFor(listed().output) as number:
                body(number)
        else:
            body(shards)

    path = Path(source) / "theirs.yaml"
    compiler.Compiler().compile(theirs, str(path))
    return {"pipeline_spec": yaml.safe_load(path.read_text())}


def test_argo_keeps_eight_copies_of_a_command_and_of_an_interface(tmp_path):
    documents = pipeline_of(tasks=1, source=str(tmp_path))
    spec = documents["pipeline_spec"]
    spec["deploymentSpec"]["executors"]["exec-square"]["container"]["command"].append("MARKED")
    spec["components"]["comp-square"]["inputDefinitions"]["parameters"]["number"] |= {
        "description": "TOLD"
    }
    run = SimulatedRun(pipeline=whole_numbers(spec), iterations=1)
    run.execute()
    assert to_json(run.nodes).count("MARKED") == 8
    assert to_json(run.nodes).count("TOLD") == 8


def test_a_large_pipeline_of_anybodys_is_warned_of_with_numbers_and_remedy(tmp_path):
    assert size_warnings(pipeline_of(tasks=5, source=str(tmp_path))) == []
    (warning,) = size_warnings(pipeline_of(tasks=40, source=str(tmp_path)))
    assert "of 81 pods' states" in warning
    assert "above 1.05 MB Argo compresses it, and Kubeflow's list of tasks stands still" in warning
    assert "take fewer steps" in warning


def test_a_fan_out_is_warned_of_with_the_iterations_that_it_has_room_for(tmp_path):
    documents = pipeline_of(tasks=4, source=str(tmp_path), loop=True)
    assert size_warnings(documents) == []
    first, second = size_warnings(documents, {"shards": 150})
    assert "stands still" in first
    assert "with 150 iterations of its loops" in second
    room = int(second.partition("which about ")[2].partition(" ")[0])
    assert measure(documents, iterations=room).whole_compressed == pytest.approx(LIMIT, rel=0.05)


def test_of_branches_that_exclude_each_other_only_the_largest_counts(tmp_path):
    @dsl.component(base_image="python:3.11")
    def word() -> str:
        return "a"

    @dsl.pipeline(name="branches")
    def branches():
        asked = word()
        with dsl.If(asked.output == "a"):
            square(number=1)
        with dsl.If(asked.output == "b"):
            square(number=2)
            square(number=3)
        with dsl.If(word().output == "a"):
            square(number=4)

    path = tmp_path / "branches.yaml"
    compiler.Compiler().compile(branches, str(path))
    found = measure({"pipeline_spec": yaml.safe_load(path.read_text())})
    words, drivers, squares = 2 * 2, 3, (2 + 1) * 2
    assert found.pods == 1 + words + drivers + squares
