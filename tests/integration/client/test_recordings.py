"""What a real Kubeflow 2.17.0 answered, read by the client, and held against our double of it.

`recordings/` holds its answers; images are named anew. What the double says must have a form that
they have: the entries of the task list by kind, with their fields and the states they went through.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kubeflow_runs import Workflow
from kubestill.cli import main
from kubestill.client import check_server, ensure_version, get_run, list_schedules, start_run
from kubestill.client.nodes import NodeNames, children_of
from kubestill.client.progress import Progress, read_progress, was_canceled
from kubestill.client.steps import Step, read_steps
from kubestill.errors import ClusterError

RECORDINGS = Path(__file__).with_name("recordings")
NAMES = [path.stem for path in sorted(RECORDINGS.glob("run.*.json")) if "missing" not in path.stem]

LOOP: dict[str, Any] = {"parents": ("for-loop-1",), "loops": frozenset({"for-loop-1"})}
DISTILLATION = [
    Step(key="import-dataset", name="import-dataset"),
    Step(key="train-student-2", name="train-control"),
    Step(key="train-teacher", name="train-teacher"),
    Step(key="generate-synthetic-2", name="generate-synthetic", **LOOP),
    Step(key="label-with-teacher", name="label-with-teacher", **LOOP),
    Step(key="train-student", name="train-student"),
]
RETRAINING = [
    Step(key="collect-fresh", name="collect-fresh", parents=("exit-handler-1",)),
    Step(key="continuous-eval", name="judge", parents=("exit-handler-1", "condition-2")),
    Step(key="train-teacher", name="train-first", parents=("exit-handler-1", "condition-5")),
    Step(key="record-outcome", name="record-outcome"),
]


def load(name: str) -> dict[str, Any]:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


def read(name: str, steps: list[Step]) -> Progress:
    return read_progress(load(name), steps, NodeNames())


def words(progress: Progress) -> dict[str, str]:
    return {
        one.step.name: f"{one.state} {one.done}/{one.total} x{one.attempts}"
        for one in progress.steps
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_full_name_of_every_node_is_found(name):
    entries = load(name)["run_details"]["task_details"]
    names = NodeNames()
    names.learn(entries)
    ids = {child for entry in entries for child in children_of(entry)}
    assert ids
    assert [one for one in ids if not names[one]] == []


def test_a_nested_pipeline_that_is_used_twice_has_two_statuses():
    def nested(*names: str) -> dict[str, Any]:
        return {
            "dag": {
                "tasks": {
                    name: {"componentRef": {"name": f"comp-{name.removesuffix('-2')}"}}
                    for name in names
                }
            }
        }

    spec = {
        "pipelineInfo": {"name": "p"},
        "root": nested("inner", "inner-2", "outer"),
        "components": {
            "comp-outer": nested("inner"),
            "comp-inner": nested("train"),
            "comp-train": {"executorLabel": "x"},
        },
    }
    steps = {step.path: step for step in read_steps(spec)}
    assert [step.name for step in steps.values()] == [f"train ({path})" for path in steps]
    record = {"run_id": "r-1", "created_at": "2026-01-01T00:00:00Z"}
    workflow = Workflow(record, spec)
    workflow.begin()
    for path, act in (
        ("inner/train", workflow.end),
        ("inner-2/train", workflow.start),
        ("outer/inner/train", workflow.omit),
    ):
        workflow.steps["train"] = steps[path]
        act("train")
    workflow.steps["train"] = steps["inner-2/train"]
    workflow.fail_attempt("train")
    workflow.start("train", attempt=1)
    told = {**record, "run_details": {"task_details": workflow.details()}}
    progress = read_progress(told, [*steps.values()], NodeNames())
    assert words(progress) == {
        "train (inner/train)": "succeeded 1/1 x1",
        "train (inner-2/train)": "running 0/1 x2",
        "train (outer/inner/train)": "waiting 0/1 x1",
    }
    assert len({one.pods for one in progress.steps}) == 3


def test_shards_are_counted_as_one_step():
    loop = Step(key="generate-synthetic", name="generate", **LOOP)
    progress = read("run.succeeded", [loop, Step(key="train-student", name="train")])
    assert words(progress) == {"generate": "succeeded 2/2 x1", "train": "succeeded 1/1 x1"}
    assert not progress.stands_still


def test_a_list_that_stands_still_is_known_at_the_end_of_the_run():
    progress = read("run.succeeded-nodes-compressed", DISTILLATION)
    assert progress.state == "SUCCEEDED"
    assert progress.stands_still
    assert words(progress) == {
        "import-dataset": "succeeded 1/1 x1",
        "train-control": "succeeded 1/1 x1",
        "train-teacher": "succeeded 1/1 x1",
        "generate-synthetic": "waiting 0/2 x1",
        "label-with-teacher": "waiting 0/2 x1",
        "train-student": "waiting 0/1 x1",
    }
    assert progress.planning_since is not None


def test_a_retried_step_shows_its_attempts_and_what_was_left_out_waits():
    told = words(read("run.killed-step", DISTILLATION))
    assert told["train-teacher"] == "succeeded 1/1 x2"
    assert told["generate-synthetic"] == "succeeded 1/1 x1"
    assert told["train-student"] == "waiting 0/1 x1"


def test_a_terminated_run_is_known_by_its_history_alone():
    run = load("run.terminated")
    assert run["state"] == "FAILED"
    assert was_canceled(run)
    assert words(read("run.terminated", RETRAINING)) == {
        "collect-fresh": "succeeded 1/1 x1",
        "judge": "failed 0/1 x1",
        "train-first": "skipped 0/1 x1",
        "record-outcome": "waiting 0/1 x1",
    }
    assert not was_canceled(load("run.failed"))
    retried = {"state": "SUCCEEDED", "state_history": [*run["state_history"], {"state": "RUNNING"}]}
    assert not was_canceled(retried)


def test_without_the_pipeline_the_steps_are_those_that_the_list_names():
    progress = read("run.failed", [])
    assert [one.step.name for one in progress.steps] == [
        "first",
        "show",
        "boom",
        "art",
        "last",
        "art-2",
    ]
    boom = progress.steps[2]
    assert (boom.state, boom.pods) == ("failed", ("probe-24ssj-2474948270",))


def test_the_server_and_its_lists_are_read_as_they_are(server, api):
    for path in ("healthz", "recurringruns", "pipelines"):
        answer = json.dumps(load(path)).encode()
        server.answers.append(
            lambda request, path=path, answer=answer: (
                (200, "application/json", answer) if request == f"GET {path}" else None
            )
        )
    assert check_server(api) == ""
    assert [one["display_name"] for one in list_schedules(api)] == ["continuous-retraining"]


def test_a_missing_run_is_reported_as_missing(server, api):
    missing = load("run.missing")
    body = json.dumps(missing["body"]).encode()
    server.answers.append(lambda request: (missing["http_status"], "application/json", body))
    with pytest.raises(ClusterError, match="is not at .*it was deleted"):
        get_run(api, "00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize("name", NAMES)
def test_show_says_what_the_recording_says(server, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(place, str(tmp_path / "none"))
    run = load(name)
    server.runs[run["run_id"]] = run
    result = CliRunner().invoke(main, ["runs", "show", run["run_id"], "--host", server.host])
    assert result.exit_code == 0, result.output
    assert run["display_name"] in result.output
    table = result.output.split("\n\n")[1]
    assert table.startswith("step")
    assert not re.search(r"executor|driver|root|iteration|onExit|condition|\(0\)", table)


def test_a_run_under_way_has_no_duration(server):
    run = load("run.going-on")
    server.runs[run["run_id"]] = run
    result = CliRunner().invoke(main, ["runs", "ls", "--host", server.host])
    assert result.output.splitlines()[-1].endswith("  running  2026-11-28 06:08")


# The double, held against the recordings.


def kind_of(display: str | None, workflow: str, steps: set[str]) -> str:
    """Say what an entry is: its name, with a word instead of what is the pipeline's own."""
    if display is None:
        return "execution"
    bare = re.sub(r"\(\d+\)$", "", display)
    tail = display.removeprefix(bare)
    if bare == workflow:
        return f"workflow{tail}"
    inner = bare.removesuffix("-driver")
    if inner in steps:
        return f"step{bare.removeprefix(inner)}{tail}"
    bare = re.sub(r"\(\d+:\d+\)", "(i:i)", bare)
    bare = re.sub(r"^(for-loop|condition|exit-handler)-\d+", r"\1", bare)
    return bare + tail


def forms(run: dict[str, Any]) -> dict[str, set[tuple[Any, ...]]]:
    """Return the forms of a run's entries by their kind: fields, and states gone through."""
    entries = run["run_details"]["task_details"]
    names = NodeNames()
    names.learn(entries)
    progress = read_progress(run, [], names)
    steps = {one.step.key for one in progress.steps}
    found: dict[str, set[tuple[Any, ...]]] = {}
    for entry in entries:
        fields = frozenset(entry) - {"child_tasks"}
        history = tuple(one.get("state") for one in entry.get("state_history", ()))
        assert "state_history" not in entry or entry.get("state") == history[-1]
        kind = kind_of(entry.get("display_name"), names.workflow, steps)
        found.setdefault(kind, set()).add((fields, history))
    return found


def known_forms() -> dict[str, set[tuple[Any, ...]]]:
    known: dict[str, set[tuple[Any, ...]]] = {}
    for name in NAMES:
        for kind, some in forms(load(name)).items():
            known.setdefault(kind, set()).update(some)
    return known


def play_well(workflow: Workflow) -> None:
    workflow.end("prepare")
    for number in range(3):
        workflow.end("label", number)
    workflow.start("train")
    workflow.end("train")
    workflow.skip("condition-2")
    workflow.tell_execution()
    workflow.end("judge-2")


def play_badly(workflow: Workflow) -> None:
    workflow.end("prepare")
    workflow.end("train", state="FAILED")
    workflow.omit("judge-2")
    raise RuntimeError("train failed")


@pytest.fixture
def played(server, api, package):
    """Play a run, and return it as the API tells of it."""

    def play(executor: Any) -> dict[str, Any]:
        version = ensure_version(api, package)
        run_id = start_run(api, version, {}, name="a run", experiment="e")
        server.start(run_id, executor)
        server.wait(run_id)
        return get_run(api, run_id)

    return play


@pytest.mark.parametrize("executor", [play_well, play_badly])
def test_the_double_tells_of_nodes_in_no_form_that_kubeflow_does_not_have(played, executor):
    run = played(executor)
    known = known_forms()
    for kind, some in forms(run).items():
        assert kind in known
        assert some <= known[kind], kind


def test_the_double_tells_of_a_run_as_kubeflow_does(played):
    assert set(played(play_well)) == set(load("run.succeeded"))
    words = [one["state"] for one in played(play_badly)["state_history"]]
    assert words == [one["state"] for one in load("run.failed")["state_history"]]


def test_the_double_says_when_a_run_ends_that_goes_on_as_kubeflow_does(server, api, package):
    run_id = start_run(api, ensure_version(api, package), {}, name="a run", experiment="e")
    server.start(run_id, lambda workflow: workflow.stopped.wait(10))
    assert get_run(api, run_id)["finished_at"] == load("run.going-on")["finished_at"]
    api.post(f"runs/{run_id}:terminate")


def test_the_double_has_every_kind_of_node_that_a_run_with_a_loop_has(played):
    told = set(forms(played(play_well)))
    assert set(forms(load("run.succeeded"))) <= told


def test_the_double_stands_still_as_kubeflow_does(server, api, package):
    def play(workflow: Workflow) -> None:
        workflow.end("prepare")
        workflow.plan("label", 0)
        workflow.stand_still()
        play_well(workflow)

    server.executor = play
    run_id = start_run(api, ensure_version(api, package), {}, name="a run", experiment="e")
    server.wait(run_id)
    run = get_run(api, run_id)
    progress = read_progress(run, read_steps(package.documents), NodeNames())
    assert (run["state"], progress.stands_still, progress.counted) == ("SUCCEEDED", True, (1, 5))


def test_the_double_says_what_is_missing_as_kubeflow_does(server, api):
    recorded = load("run.missing")["body"]
    try:
        server.answer("GET", "runs/none", {}, None, b"")
    except Exception as refused:
        body = refused.body  # pyright: ignore[reportAttributeAccessIssue]
    assert body.keys() == recorded.keys()
    assert body["code"] == recorded["code"]
    assert body["details"][0].keys() == recorded["details"][0].keys()


def test_the_double_retries_a_failed_run_as_the_same_run(server, api, package):
    attempts: list[int] = []

    def play(workflow: Workflow) -> None:
        attempts.append(len(attempts))
        workflow.end("prepare")
        if len(attempts) == 1:
            workflow.end("train", state="FAILED")
            raise RuntimeError("train failed")
        workflow.end("train")

    server.executor = play
    run_id = start_run(api, ensure_version(api, package), {}, name="a run", experiment="e")
    server.wait(run_id)
    api.post(f"runs/{run_id}:retry")
    server.wait(run_id)
    run = get_run(api, run_id)
    words = [one["state"] for one in run["state_history"]]
    assert words == [one["state"] for one in load("run.killed-step")["state_history"]]
    progress = read_progress(run, [Step(key="train", name="train")], NodeNames())
    assert progress.steps[0].attempts == 2
    with pytest.raises(ClusterError, match="cannot be retried"):
        api.post(f"runs/{run_id}:retry")
