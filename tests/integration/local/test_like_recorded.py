"""What a step is given here is what it is given by a real Kubeflow, field by field.

`recorded/` holds the three pipelines as they were compiled for the recordings, less the steps'
source, so that nothing differs but who runs them. They run through the whole local runner; each
step is a stand-in that writes the metadata which the recordings show on the other side.
"""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false

import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from kubestill.local import run_pipeline

RECORDINGS = Path(__file__).parents[1] / "recordings" / "data"
PIPELINES = Path(__file__).parent / "recorded"
STANDIN = Path(__file__).parent / "standin.py"
ALL = sorted(path.stem for path in RECORDINGS.glob("*.json"))

ARGUMENTS = {
    "surrogate": {"system": "heat"},
    "distillation": {},
    "continuous_retraining": {
        "source": "/rows",
        "timestamp": "when",
        "target": "late",
        "registry": "/registry",
    },
}
_FIRST = {"collect-fresh": {"status": "bootstrap"}, "continuous-eval-3": {"decision": "promote"}}
PATHS: dict[str, tuple[dict[str, dict[str, Any]], list[str]]] = {
    "3f640197-b5f9-4720-b97b-f363131b8f4b": (_FIRST, []),
    "b3ce64cf-751a-4601-826d-22407b8b4a01": (_FIRST, []),
    "80e06b6d-c5a2-416d-91d6-f87c8860fa97": (_FIRST, ["overfit-batch"]),
    "0ac6d390-700c-4995-a5d2-e89f511da909": ({"collect-fresh": {"status": "nothing-new"}}, []),
    "cc693f83-f843-42f8-93ee-d142d2e2a087": (
        {
            "collect-fresh": {"status": "ready"},
            "continuous-eval": {"decision": "degraded"},
            "continuous-eval-2": {"decision": "promote"},
        },
        [],
    ),
}
"""Which way the recorded runs with conditions went: outputs of steps, and those that failed."""

DIFFERENCES = {
    "outputs.parameters.*.outputFile": "below the task's folder, not /tmp/kfp: steps share a /tmp",
    "outputs.outputFile": "below the run's folder, not the mount of a bucket",
    "*.artifacts.[0-9].uri": "a path, not minio://…; its end, <task>/<uuid>/<port>, is the same",
    "inputs.artifacts.*.metadata.store_session_info": "the same form, of another store",
    "inputs.parameterValues.final_status.pipelineJobResourceName": "the run's folder's name",
}
"""All there are, with the reason."""

ONE = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""A UUID."""


def read(name: str) -> dict[str, Any]:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


def task_of(recording: dict[str, Any]) -> str:
    return recording["outputs"]["outputFile"].split("/")[-3]


def run_of(recording: dict[str, Any]) -> str:
    return recording["outputs"]["outputFile"].split("/")[-4]


def written(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that a step wrote, from what the next one got of it."""
    added = ("display_name", "store_session_info")
    return {
        name: next(iter(value.values())) if isinstance(value, dict) else value
        for name, value in metadata.items()
        if name not in added
    }


def artifacts_written(names: list[str]) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    for name in names:
        for listed in read(name)["inputs"].get("artifacts", {}).values():
            for artifact in listed["artifacts"]:
                *_, task, _, port = artifact["uri"].split("/")
                ports = outputs.setdefault(task, {"parameters": {}, "artifacts": {}})["artifacts"]
                ports[port] = written(artifact["metadata"])
    return outputs


def run(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Run a pipeline with stand-ins as in a recorded run; returns what its steps were given."""
    pipeline = names[0].partition(".")[0]
    spec = pipeline_spec_pb2.PipelineSpec()
    json_format.Parse((PIPELINES / f"{pipeline}.json").read_text(), spec)
    parameters, fails = PATHS.get(run_of(read(names[0])), ({"plan-shards": {"Output": [0]}}, []))
    outputs = artifacts_written(names)
    for task, values in parameters.items():
        outputs.setdefault(task, {})["parameters"] = values
    answers = folder / "answers.json"
    answers.write_text(json.dumps({"outputs": outputs, "fails": fails}))
    for executor in spec.deployment_spec["executors"].values():
        command = [sys.executable, str(STANDIN), str(answers), "kfp.dsl.executor_main", "{{$}}"]
        executor["container"]["command"].extend(command)
    result = run_pipeline(spec, ARGUMENTS[pipeline], root=str(folder / "runs"))
    assert result.error == ""
    assert (result.failed is None) == (not fails), result.failed
    given = {
        path.stem: json.loads(path.read_text()) for path in Path(result.folder, "seen").iterdir()
    }
    return {name: given[task_of(read(name))] for name in names}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What every recorded step is given here, by the name of its recording."""
    folder = tmp_path_factory.mktemp("recorded")
    runs: dict[str, list[str]] = {}
    for name in ALL:
        runs.setdefault(run_of(read(name)), []).append(name)
    return {name: given for names in runs.values() for name, given in run(folder, names).items()}


def differences(here: Any, there: Any, path: str = "") -> list[str]:
    """Compare two values by their form, and where the form says all, by what they say."""
    if any(fnmatch(path, pattern) for pattern in DIFFERENCES):
        return compare_excused(here, there, path)
    if type(here) is not type(there):
        return [f"{path}: {here!r} here, {there!r} there"]
    if isinstance(there, dict):
        if set(here) != set(there):
            return [f"{path}: {sorted(set(here) ^ set(there))} only on one side"]
        return [
            one
            for key in there
            for one in differences(here[key], there[key], f"{path}.{key}".strip("."))
        ]
    if isinstance(there, list) and "artifacts." in path:
        if len(here) != len(there):
            return [f"{path}: {len(here)} here, {len(there)} there"]
        pairs = enumerate(zip(here, there, strict=True))
        return [one for i, (a, b) in pairs for one in differences(a, b, f"{path}.{i}")]
    if fnmatch(path, "inputs.artifacts.*.artifacts.[0-9].name"):
        return [] if here.isdigit() and there.isdigit() else [f"{path}: {here!r} is no id"]
    # Values of parameters are whatever somebody chose for that run.
    says_all = not path.startswith("inputs.parameterValues") or path.endswith(".state")
    return [f"{path}: {here!r} here, {there!r} there"] if says_all and here != there else []


def compare_excused(here: str, there: str, path: str) -> list[str]:
    """Compare what remains the same where a difference has a reason."""
    if path.endswith(".uri"):
        ends = [re.sub(ONE, "UUID", "/".join(uri.split("/")[-3:])) for uri in (here, there)]
        return [] if ends[0] == ends[1] else [f"{path}: {ends}"]
    if path.endswith("outputFile"):
        ends = [Path(place).name for place in (here, there)]
        return [] if ends[0] == ends[1] else [f"{path}: {ends}"]
    if path.endswith("store_session_info"):
        forms = [sorted(json.loads(text)) for text in (here, there)]
        return [] if forms[0] == forms[1] else [f"{path}: {forms}"]
    return [] if here and isinstance(here, str) else [f"{path}: {here!r}"]


def test_there_are_recordings():
    assert len(ALL) == 33


@pytest.mark.parametrize("name", ALL)
def test_a_step_is_given_what_a_real_kubeflow_gives_it(seen, name):
    assert differences(seen[name], read(name)) == []


def test_keys_arrive_in_the_same_order(seen):
    name = "surrogate.train_student"
    for given in (seen[name], read(name)):
        values = given["inputs"]["parameterValues"]
        assert list(values) == sorted(values)
        assert list(values["network_args"]) == ["activation", "hidden"]
