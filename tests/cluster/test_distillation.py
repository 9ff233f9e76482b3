"""The whole distillation: uploaded twice, run, and its student found in the store."""

import re
from collections import Counter

import pytest
from session import Cluster, Done

from kubestill.runtime.datasets.dataset import Dataset

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SMALL = {
    "teacher_args": {"hidden": [128, 128]},
    "teacher_rows": 2048,
    "teacher_steps": 200,
    "rows": 16384,
    "shards": 2,
    "student_args": {"hidden": [32]},
    "student_steps": 300,
    "gate": {"steps": 50, "held_out_rows": 0},
    "strict": False,
}
STEPS = {
    "import-dataset": 1,
    "augment": 1,
    "check-distillation": 1,
    "train-teacher": 1,
    "train-control": 1,
    "label-with-teacher": 2,
    "gather-shards": 1,
    "train-student": 1,
    "select-checkpoint": 1,
    "continuous-eval": 1,
}
"""How often each runs: once, or once for each of the two shards."""


@pytest.fixture(scope="module")
def done(cluster: Cluster) -> Done:
    """What the command said of a run that it followed."""
    return cluster.run("distillation", checkpoint_uri=cluster.checkpoints, **SMALL)


def test_uploading_twice_makes_one_version(cluster: Cluster) -> None:
    options = ["--image", cluster.image, "--resources", str(cluster.resources())]
    # A name of its own: another test may have uploaded the same content just now.
    options += ["--name", f"{cluster.mark}-upload"]
    first, second = (cluster.kubestill("upload", "distillation", *options) for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.out + second.out
    assert first.out.split()[1:2] == ["uploaded"]
    assert "was there already" in second.out
    (pipeline,) = (
        one["pipeline_id"]
        for one in cluster.every("pipelines", "pipelines", **cluster.space)
        if one["display_name"] == f"{cluster.mark}-upload"
    )
    versions = list(cluster.every(f"pipelines/{pipeline}/versions", "pipeline_versions"))
    assert [one["display_name"] for one in versions] == [first.out.split()[0]]


def test_the_server_says_that_every_step_succeeded(cluster: Cluster, done: Done) -> None:
    assert done.code == 0, done.out
    run = cluster.get(f"runs/{done.run_id}")
    assert run["state"] == "SUCCEEDED"
    assert cluster.history(done.run_id)[-2:] == ["RUNNING", "SUCCEEDED"]
    tasks = cluster.tasks(done.run_id)
    assert {name: tasks.get(name) for name in STEPS} == {
        name: Counter(SUCCEEDED=times) for name, times in STEPS.items()
    }


def test_the_command_ends_with_the_scores(done: Done) -> None:
    table = [line for line in done.out.splitlines() if line.startswith("|")]
    assert any("accuracy" in line for line in table), done.out
    assert done.out.index("accuracy") > done.out.index("continuous-eval")


def test_each_task_is_told_by_name_and_no_node_of_argo(done: Done) -> None:
    for task in STEPS:
        assert re.search(rf"\b{task}\b", done.out), f"{task} is missing in\n{done.out}"
    nodes = r"(?<!\S)(?:executor|\S+-driver|iteration-\S+|root)(?:\(\d+\))?(?!\S)"
    assert not re.findall(nodes, done.out)


def test_the_student_lies_in_the_store(stored: Cluster, done: Done) -> None:
    kept = stored.outputs("distillation", done.run_id, "select-checkpoint")
    assert "model/model.safetensors" in kept, sorted(kept)
    found = stored.kubestill("checkpoints", "ls", f"{stored.checkpoints}/student")
    assert "milestone" in found.out, found.out
    assert stored.kubestill("checkpoints", "verify", f"{stored.checkpoints}/student").code == 0


def test_every_shard_reached_the_student(stored: Cluster, done: Done) -> None:
    kept = stored.outputs("distillation", done.run_id, "gather-shards")
    (key,) = (key for name, key in kept.items() if name == "dataset/dataset.json")
    gathered = Dataset.open(f"{stored.root}/{key.removesuffix('/dataset.json')}")
    assert gathered.rows > SMALL["rows"]
    assert gathered.schema.soft is not None
