"""What a compiled step starts: a command that names a function, and that function."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from kubestill.assets import compile_yaml, find_assets

ASSETS = {asset.name: asset for asset in find_assets()}
COMPONENTS = [name for name, asset in ASSETS.items() if asset.kind == "component"]
COMMAND = ["python3", "-m", "kubestill.step", "kfp.dsl.executor_main"]


def executors(name):
    spec = next(yaml.safe_load_all(compile_yaml(ASSETS[name])))
    return spec["deploymentSpec"]["executors"]


@pytest.mark.parametrize("name", ASSETS)
def test_a_compiled_step_carries_no_source(name):
    for label, executor in executors(name).items():
        container = executor["container"]
        assert container["command"] == COMMAND, label
        *given, function = container["args"]
        assert given == ["--executor_input", "{{$}}", "--function_to_execute"]
        assert function in COMPONENTS


def test_every_function_that_a_step_names_loads_as_in_the_image(without):
    # Where steps run there is no compiler, and nothing of what it needs.
    code = (
        "import inspect\n"
        "from kubestill.step import load_function\n"
        f"for name in {COMPONENTS!r}:\n"
        "    assert inspect.isfunction(load_function(name)), name\n"
    )
    without("kubernetes,kfp_server_api,kfp_kubernetes,click,docstring_parser,torch", code)


def start(folder, component, **parameters):
    """Start a component as Kubeflow's launcher does: its end, its outputs, and why it failed."""
    root = folder / "run"
    uri = root / component / "0b0b3b9e-4c3c-4f6e-9d5f-6f1a2b3c4d5e" / "summary"
    outputs = {
        "parameters": {"Output": {"outputFile": str(folder / "Output")}},
        "artifacts": {"summary": {"artifacts": [{"name": "summary", "uri": str(uri)}]}},
        "outputFile": str(folder / "executor_output.json"),
    }
    if component == "plan_shards":
        del outputs["artifacts"]
    given = {"inputs": {"parameterValues": parameters}, "outputs": outputs}
    command = [sys.executable, *COMMAND[1:], "--executor_input", json.dumps(given)]
    done = subprocess.run(
        [*command, "--function_to_execute", component],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"KUBESTILL_RUN_ROOT": str(root)},
    )
    failures = [json.loads(file.read_text()) for file in root.glob("failures/*.json")]
    return done, folder / "executor_output.json", failures


def test_a_step_runs_through_kubeflows_own_executor(tmp_path):
    done, written, _ = start(tmp_path, "plan_shards", shards=3)
    assert done.returncode == 0, done.stderr
    assert json.loads(written.read_text()) == {"parameterValues": {"Output": [0, 1, 2]}}


def test_a_failed_step_reports_its_cause_and_records_it(tmp_path):
    status = {"state": "COMPLETE", "pipelineJobResourceName": "", "pipelineTaskName": ""}
    done, written, failures = start(
        tmp_path, "record_outcome", registry="", run_id="r", final_status=status
    )
    assert done.returncode == 1
    assert not written.exists()
    (failure,) = failures
    assert (failure["component"], failure["error"]) == ("record_outcome", "InvalidInput")
    assert "registry" in failure["message"]
    assert failure["message"] in done.stderr + done.stdout


def test_an_unknown_component_fails(tmp_path):
    done, written, _ = start(tmp_path, "no_such_component")
    assert done.returncode != 0
    assert "no_such_component" in done.stderr
    assert not written.exists()
