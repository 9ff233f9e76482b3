"""Every component with every combination of given and missing optional inputs, as on a cluster.

Kubeflow's executor gets inputs as the launcher hands them over: artifacts without a type, named by
a number. A call ends with all of its outputs, or refuses its input in words; nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from replaying import (
    Ended,
    Port,
    Volumes,
    cluster_input,
    find_component,
    optional_artifacts,
    output_artifacts,
    output_parameters,
)
from story import Story, begin

import kubestill.components
from emulators import S3Server
from kubestill.errors import InvalidInput

ROOT = "minio://mlpipeline/walk"
TRAINING = {"network_args": {"hidden": [4]}, "steps": 30, "batch_size": 64, "learning_rate": 0.05}
GATE = {"strict": False, "gate": {"steps": 10, "rows": 8}}
NETWORKS = {"teacher_args": {"hidden": [4]}, "student_args": {"hidden": [4]}, "shards": 1}
LABELLED = {"dataset": "rows/dataset", "validation": "rows/validation"}
FINAL = {"state": "RUNNING", "error": {}, "pipelineTaskName": "exit-handler-1"}


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How a component is called."""

    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    """What it needs, and what makes it cheap."""
    ports: dict[str, str] = field(default_factory=dict[str, str])
    """What each artifact is where it is given: `<task>/<port>` of `made`."""
    registry: str = ""
    """After which task of `made` the registry stands."""
    refused: tuple[str, ...] = ()
    """With just which optional artifacts it refuses its input."""


WALKS = {
    "certify_surrogate": Walk(
        parameters={"samples": 100, "strict": False},
        ports={"model": "student/model", "dataset": "solved/dataset"},
    ),
    "check_distillation": Walk(
        parameters={**NETWORKS, **GATE}, ports={**LABELLED, "augmented": "rows/dataset"}
    ),
    "choose_student": Walk(
        parameters={"uris": [f"{ROOT}/students/{name}" for name in ("trained", "other")]},
        ports={"dataset": "rows/validation", "teacher": "other/model"},
    ),
    "collect_fresh": Walk(
        parameters={
            "source": f"{ROOT}/source/",
            "timestamp": "when",
            "target": "late",
            "registry": f"{ROOT}/registry",
            "run_id": "first",
            "min_rows": 40,
            "settings": {"min_judge_rows": 10},
        },
        registry="empty",
    ),
    "continuous_eval": Walk(
        parameters={"settings": {"resamples": 100}},
        ports={
            "dataset": "rows/holdout",
            "model": "trained/model",
            "baseline": "other/model",
            "teacher": "other/model",
            "golden": "rows/validation",
            "unlabelled": "rows/validation",
        },
        # All without a model.
        refused=tuple(
            " ".join(given)
            for count in range(5)
            for given in itertools.combinations(
                ("baseline", "golden", "teacher", "unlabelled"), count
            )
        ),
    ),
    "finetune_fresh": Walk(
        parameters={"steps": 4, "batch_size": 16},
        ports={**LABELLED, "checkpoint": "chosen/checkpoint", "replay": "rows/holdout"},
    ),
    "gather_shards": Walk(parameters={"uris": [f"{ROOT}/shard"]}),
    "generate_synthetic": Walk(
        parameters={"system": "heat", "rows": 32},
        ports={"original": "solved/dataset", "model": "student/model"},
        refused=("model", "model original"),
    ),
    "import_dataset": Walk(
        parameters={"target": "late"}, ports={"table": "rows/dataset"}, refused=("",)
    ),
    "import_model": Walk(
        ports={"dataset": "rows/dataset", "holdout": "rows/holdout", "file": "trained/model"},
        refused=("", "holdout"),
    ),
    "label_with_teacher": Walk(ports={"model": "trained/model", "dataset": "rows/dataset"}),
    "open_champion": Walk(parameters={"registry": f"{ROOT}/registry"}, registry="promoted"),
    "overfit_batch": Walk(parameters={**TRAINING, **GATE}, ports=LABELLED),
    "plan_shards": Walk(parameters={"shards": 1}),
    "promote_model": Walk(
        parameters={"registry": f"{ROOT}/registry", "run_id": "first"},
        ports={
            "model": "trained/model",
            "ledger": "trained/ledger",
            "record": "judged/record",
            "metrics": "judged/metrics",
            "whole": "rows/dataset",
            "checkpoint": "chosen/checkpoint",
            "replay": "rows/holdout",
        },
        registry="judged",
        # All without a record.
        refused=tuple(
            " ".join(given)
            for count in range(5)
            for given in itertools.combinations(("checkpoint", "metrics", "replay", "whole"), count)
        ),
    ),
    "quantise_model": Walk(
        ports={
            "model": "trained/model",
            "calibration": "rows/dataset",
            "dataset": "rows/validation",
        },
    ),
    "record_outcome": Walk(
        parameters={"registry": f"{ROOT}/registry", "run_id": "first", "final_status": FINAL},
        registry="promoted",
    ),
    "select_checkpoint": Walk(ports={"ledger": "trained/ledger", "dataset": "rows/validation"}),
    "train_student": Walk(
        parameters={**TRAINING, "mode": "hard"}, ports={**LABELLED, "teacher": "other/model"}
    ),
    "train_teacher": Walk(parameters=TRAINING, ports=LABELLED),
}


def combinations() -> Iterator[Any]:
    """Every component with every set of its optional artifacts."""
    for name in kubestill.components.__all__:
        optional = optional_artifacts(find_component(name))
        for count in range(len(optional) + 1):
            for given in itertools.combinations(optional, count):
                yield pytest.param(name, given, id=f"{name}-{'-'.join(given) or 'none'}")


@pytest.fixture(scope="module")
def made(minio: S3Server, tmp_path_factory) -> Story:
    """Small artifacts of every kind, made by our own components."""
    story = begin("walk", tmp_path_factory.mktemp("made"), minio.client)
    table = _table(tmp_path_factory.mktemp("source") / "table.parquet")
    story.bucket.put(f"{ROOT}/source", table.parent)
    parts = {"validation_fraction": 0.2, "holdout_fraction": 0.3}
    rows = story.step("rows", "import_dataset", source=str(table), target="late", **parts).artifacts
    keeping = {"checkpoint_uri": "kept", **TRAINING}
    training = {"dataset": rows["dataset"], "validation": rows["validation"], **keeping}
    trained = story.step("trained", "train_teacher", **training).artifacts
    other = story.step("other", "train_teacher", **training, seed=1).artifacts
    for name, one in (("trained", trained), ("other", other)):
        story.bucket.put(f"{ROOT}/students/{name}", one["model"].path)
    story.step("chosen", "select_checkpoint", ledger=trained["ledger"])
    solved = story.step("solved", "generate_synthetic", system="heat", rows=64).artifacts
    story.step("student", "train_student", **solved, **keeping, mode="overfit")
    story.bucket.put(f"{ROOT}/shard", solved["dataset"].path)
    collecting = WALKS["collect_fresh"].parameters
    own = {name: collecting[name] for name in ("registry", "run_id")}
    story.step("empty", "plan_shards", **own)
    collected = story.step("collected", "collect_fresh", **collecting).artifacts
    judging = {"dataset": collected["holdout"], "model": trained["model"], **own}
    judged = story.step("judged", "continuous_eval", **judging, step="challenge").artifacts
    promoting = {name: trained[name] for name in ("model", "ledger")}
    story.step("promoted", "promote_model", **promoting, record=judged["record"], **own)
    return story


def _table(path: Path) -> Path:
    random = np.random.default_rng(0)
    values = random.normal(size=(1500, 2))
    table = pd.DataFrame(values, columns=["a", "b"])
    table["when"] = pd.date_range("2026-01-01", periods=len(table), freq="min")
    table["late"] = np.where(values @ [2, 1] + random.normal(size=len(table)) > 0, "yes", "no")
    table.to_parquet(path)
    return path


def call(
    name: str, given: tuple[str, ...], made: Story, volumes: Volumes, *, defaults: bool = True
) -> Ended:
    """Call a component as the launcher does, with just these optional artifacts."""
    component, walk = find_component(name), WALKS[name]
    inputs: dict[str, Port] = {}
    optional = optional_artifacts(component)
    for port, source in walk.ports.items():
        if port in given or port not in optional:
            task, _, output = source.partition("/")
            one = made.told[task].ended.artifacts[output]
            inputs[port] = replace(one, uri=f"{ROOT}/{source}")
            volumes.lay(inputs[port].uri, one.path)
    if walk.registry:
        made.bucket.restore(f"{ROOT}/registry", made.told[walk.registry].after)
    executor_input = cluster_input(component, f"{ROOT}/v2/{name}", inputs, walk.parameters)
    if not defaults:
        executor_input["inputs"]["parameterValues"] = dict(walk.parameters)
    return volumes.execute(component, executor_input)


def check_complete(name: str, ended: Ended) -> None:
    component = find_component(name)
    assert ended.artifacts.keys() == output_artifacts(component).keys()
    assert ended.parameters.keys() == set(output_parameters(component))
    assert not [value for value in ended.parameters.values() if value is None]


def test_every_component_is_walked():
    assert sorted(WALKS) == sorted(kubestill.components.__all__)
    for name, walk in WALKS.items():
        spec = find_component(name).component_spec
        assert walk.ports.keys() == {port for port, one in spec.inputs.items() if "@" in one.type}


@pytest.mark.parametrize(("name", "given"), list(combinations()))
def test_every_combination_ends_or_is_refused_in_words(name, given, made, tmp_path) -> None:
    if " ".join(sorted(given)) in WALKS[name].refused:
        with pytest.raises(InvalidInput, match="problems? with the input"):
            call(name, given, made, Volumes(tmp_path))
    else:
        check_complete(name, call(name, given, made, Volumes(tmp_path)))


@pytest.mark.parametrize("name", sorted(WALKS))
def test_parameters_that_nobody_gave_have_their_defaults(name, made, tmp_path) -> None:
    given = optional_artifacts(find_component(name))
    given = () if " ".join(sorted(given)) in WALKS[name].refused else given
    check_complete(name, call(name, given, made, Volumes(tmp_path), defaults=False))
