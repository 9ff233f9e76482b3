"""Bad input to the training tasks: everything named at once, before anything is written."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher

CLASSES = ("a", "b", "c")


def dataset(path: Path, *, classes: int = 3, soft: int = 0, rows: int = 60) -> LocalArtifact:
    columns = [
        Column(name="x", kind="numeric"),
        Column(name="y", kind="categorical", role="target", categories=CLASSES[:classes]),
    ]
    frame = pd.DataFrame(
        {"x": np.arange(rows, dtype=np.float32), "y": [CLASSES[i % classes] for i in range(rows)]}
    )
    if soft:
        columns.append(Column(name="teacher_logits", kind="tensor", role="soft", shape=(soft,)))
        frame["teacher_logits"] = list(np.zeros((rows, soft), np.float32))
    task = "binary" if classes == 2 else "multiclass"
    schema = Schema(columns=tuple(columns), task=task)
    with DatasetWriter(str(path), schema, provenance={}) as writer:
        writer.write(frame)
    return LocalArtifact(str(path), metadata={"kind": "dataset"})


def outputs(root: Path) -> dict[str, Any]:
    names = ("model", "ledger", "metrics", "report", "summary")
    return {name: LocalArtifact(str(root / name)) for name in names}


def problems(run: Any, out: Path, **arguments: Any) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        run(**arguments, **outputs(out), checkpoint_uri=str(out / "store"))
    assert not out.exists(), "something was written"
    return {problem.field: problem.remedy for problem in caught.value.problems}


def test_everything_wrong_with_one_call_is_said_at_once(tmp_path: Path) -> None:
    found = problems(
        train_student,
        tmp_path / "out",
        dataset=dataset(tmp_path / "train", classes=2),
        validation=dataset(tmp_path / "validation", classes=3),
        optimizer="Adamm",
        device="cuda:7",
        resume="perhaps",
        settings={"patiense": 3},
    )
    assert "'Adam'" in found["optimizer"]
    assert "'auto'" in found["resume"] or "auto" in found["resume"]
    assert "'patience'" in found["settings.patiense"]
    assert any("validation" in field for field in found)


@pytest.mark.parametrize(
    ("arguments", "field", "hint"),
    [
        ({"temperature": 0}, "temperature", "use a number above 0"),
        ({"hard_weight": 2}, "hard_weight", "in [0, 1]"),
        ({"mode": "distill"}, "mode", "'distil'"),
        ({"network": "mpl"}, "network", "'mlp'"),
        ({"network": "nowhere.nets:Net"}, "network", "nowhere"),
        ({"device": "cuda:7"}, "device", "GPU"),
        ({"settings": {"loss": "mse"}}, "loss", "distillation"),
        ({"settings": {"metric": "rmse"}}, "metric", "log_loss"),
        ({"settings": {"patience": 2}}, "patience", "validation set"),
        ({"settings": {"step_path": "fused", "precision": "bf16"}}, "step_path", "float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_problem_names_its_remedy(
    tmp_path: Path, arguments: dict[str, Any], field: str, hint: str
) -> None:
    data = dataset(tmp_path / "train", soft=3)
    out = tmp_path / "out"
    with pytest.raises(InvalidInput) as caught:
        train_student(dataset=data, **arguments, **outputs(out))
    found = {problem.field: problem.remedy for problem in caught.value.problems}
    assert hint in found[field]
    assert not (out / "model").exists()


def test_distillation_needs_a_teacher(tmp_path: Path) -> None:
    found = problems(train_student, tmp_path / "out", dataset=dataset(tmp_path / "train"))
    assert "label-with-teacher" in found["dataset"]


def test_teacher_and_student_must_have_the_same_outputs(tmp_path: Path) -> None:
    found = problems(train_student, tmp_path / "out", dataset=dataset(tmp_path / "train", soft=5))
    assert "5" in found["dataset"]
    assert "3" in found["dataset"]


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    model = LocalArtifact(str(tmp_path / "model"), metadata={"kind": "model"})
    found = problems(train_teacher, tmp_path / "out", dataset=model)
    assert "dataset" in found["dataset"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"network_args": {"dropout": 0.5}}, "network_args.dropout"),
        (
            {"settings": {"optimizer_args": {"weight_decay": 0.1}}},
            "settings.optimizer_args.weight_decay",
        ),
    ],
    ids=["dropout", "weight-decay"],
)
def test_overfitting_refuses_regularisation(
    tmp_path: Path, arguments: dict[str, Any], field: str
) -> None:
    data = dataset(tmp_path / "train")
    found = problems(train_student, tmp_path / "out", dataset=data, mode="overfit", **arguments)
    assert "without regularisation" in found[field]


def test_diverging_stops_with_a_remedy_and_is_remembered(tmp_path: Path) -> None:
    from kubestill.errors import Diverged, TrainingFailed

    data, out = dataset(tmp_path / "train"), tmp_path / "out"
    options: dict[str, Any] = {
        "optimizer": "SGD",
        "learning_rate": 1e30,
        "network_args": {"hidden": [8]},
        "checkpoint_uri": str(tmp_path / "store"),
    }
    with pytest.raises(Diverged, match="lower learning_rate"):
        train_teacher(dataset=data, **options, **outputs(out))
    with pytest.raises(TrainingFailed, match="learning_rate"):
        train_teacher(dataset=data, **options, **outputs(out))
    assert not (out / "model").exists()


def test_one_wrong_field_hides_no_other(tmp_path: Path) -> None:
    found = problems(
        train_student,
        tmp_path / "out",
        dataset=dataset(tmp_path / "train"),
        mode="distl",
        statistic="meen",
        learning_rate=-1,
        network="mpl",
        device="cuda:7",
        resume="perhaps",
        settings={"patience": 3, "loss": "mse", "optimizer_args": {"wieght_decay": 1}},
    )
    assert found.keys() == {
        "mode",
        "statistic",
        "learning_rate",
        "network",
        "device",
        "resume",
        "patience",
        "loss",
        "optimizer_args.wieght_decay",
    }


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"settings": {"schedule_args": {"T_max": "x"}}}, "schedule_args"),
        ({"settings": {"schedule_args": {"T_max": 0}}}, "schedule_args"),
        ({"schedule": "StepLR", "settings": {"schedule_args": {"step_size": 0}}}, "schedule_args"),
        ({"settings": {"optimizer_args": {"betas": [0.9]}}}, "optimizer_args"),
        ({"epochs": float("inf")}, "epochs"),
        ({"temperature": float("inf")}, "temperature"),
        ({"network_args": {"hiden": [3]}}, "network_args.hiden"),
        ({"network_args": {"hidden": [-3]}}, "network_args"),
        ({"settings": {"checkpoints": {"keep_bst": 1}}}, "settings.checkpoints.keep_bst"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_torch_would_stumble_over_is_found_before_the_store_is_touched(
    tmp_path: Path, arguments: dict[str, Any], field: str
) -> None:
    data = dataset(tmp_path / "train")
    found = problems(train_student, tmp_path / "out", dataset=data, mode="hard", **arguments)
    (named,) = found
    assert named.startswith(field)
    if "keep_bst" in field:
        assert "'keep_best'" in found[field]


def test_a_damaged_manifest_hides_no_other_problem(tmp_path: Path) -> None:
    data = dataset(tmp_path / "train")
    manifest = Path(data.path) / "dataset.json"
    manifest.write_bytes(manifest.read_bytes()[:40])
    found = problems(train_teacher, tmp_path / "out", dataset=data, optimizer="Adm")
    assert found.keys() == {"dataset", "optimizer"}


def test_a_part_that_was_cut_off_hides_no_other_problem(tmp_path: Path) -> None:
    """Classes are compared by reading labels, which such a part does not give."""
    data = dataset(tmp_path / "train")
    (part,) = Path(data.path).glob("*.parquet")
    part.write_bytes(part.read_bytes()[:50])
    held = dataset(tmp_path / "validation")
    found = problems(
        train_teacher, tmp_path / "out", dataset=data, validation=held, optimizer="Adm"
    )
    assert {"dataset", "optimizer"} <= found.keys()
    assert "50 bytes" in found["dataset"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_rows_without_a_target_are_refused_beside_everything_else(
    tmp_path: Path, task: Literal["binary", "multiclass", "regression"]
) -> None:
    """Such rows come with a teacher's outputs, which only a distillation can do with."""
    classes = {"binary": ("a", "b"), "multiclass": ("a", "b", "c"), "regression": None}[task]
    kind = "numeric" if classes is None else "categorical"
    columns = (
        Column(name="x", kind="numeric"),
        Column(name="y", kind=kind, role="target", categories=classes),
    )
    width = len(classes) if classes and len(classes) > 2 else 1
    schema = Schema(columns=columns, task=task).with_soft("teacher", width)
    labels = list(classes or (1.0, 2.0)) * 4
    frame = pd.DataFrame(
        {"x": 1.0, "y": [*labels, None], "teacher": [[0.5] * width] * (len(labels) + 1)}
    )
    with DatasetWriter(str(tmp_path / "rows"), schema) as writer:
        writer.write(frame)
    rows = LocalArtifact(str(tmp_path / "rows"), metadata={"kind": "dataset"})
    given: dict[str, Any] = {"dataset": rows, "validation": rows, "optimizer": "Adm"}
    out = tmp_path / "out"
    found = problems(train_teacher, out, **given)
    assert found.keys() == {"dataset", "validation", "optimizer"}
    assert "no target" in found["dataset"]
    assert "no target" in found["validation"]
    assert problems(train_student, out, mode="distil", **given).keys() == {
        "validation",
        "optimizer",
    }


def test_a_students_loss_must_learn_from_the_teacher(tmp_path: Path) -> None:
    data = dataset(tmp_path / "train", soft=3)
    found = problems(
        train_student, tmp_path / "out", dataset=data, settings={"loss": "cross_entropy"}
    )
    assert "mode hard" in found["loss"]


def test_keeping_by_another_metric_than_the_exported_one(tmp_path: Path) -> None:
    found = problems(
        train_teacher,
        tmp_path / "out",
        dataset=dataset(tmp_path / "train"),
        validation=dataset(tmp_path / "validation"),
        settings={"checkpoints": {"metric": "train_loss"}},
    )
    assert "log_loss" in found["settings.checkpoints.metric"]


@pytest.mark.parametrize(
    ("checkpoints", "field", "words"),
    [
        ({"mode": "max"}, "mode", "contradicts log_loss"),
        ({"metric": "log_loss", "mode": "max"}, "mode", "contradicts log_loss"),
        ({"metric": "acuracy"}, "metric", "did you mean 'accuracy'"),
        ({"metric": "rmse"}, "metric", "not followed while training"),
    ],
)
def test_milestones_are_kept_by_a_metric_that_is_followed_and_the_best_of_it(
    tmp_path: Path, checkpoints: dict[str, str], field: str, words: str
) -> None:
    found = problems(
        train_teacher,
        tmp_path / "out",
        dataset=dataset(tmp_path / "train"),
        validation=dataset(tmp_path / "validation"),
        settings={"checkpoints": checkpoints, "choose": "last"},
    )
    assert words in found[f"settings.checkpoints.{field}"]


def test_the_arguments_of_a_misspelt_optimizer_are_not_called_wrong(tmp_path: Path) -> None:
    found = problems(
        train_teacher,
        tmp_path / "out",
        dataset=dataset(tmp_path / "train"),
        optimizer="SDG",
        settings={"optimizer_args": {"momentum": 0.9}},
    )
    assert found.keys() == {"optimizer"}


def test_a_network_may_count_on_a_feature_that_only_gaps_make(tmp_path: Path) -> None:
    schema = Schema(
        columns=(Column(name="x", kind="numeric"), Column(name="y", kind="numeric", role="target")),
        task="regression",
    )
    with DatasetWriter(str(tmp_path / "rows"), schema) as writer:
        writer.write(pd.DataFrame({"x": [0.0, np.nan] * 8, "y": [0.0, 1.0] * 8}))
    rows = LocalArtifact(str(tmp_path / "rows"), metadata={"kind": "dataset"})
    out = outputs(tmp_path / "out")
    train_teacher(dataset=rows, steps=3, network_args={"in_features": 2, "hidden": [4]}, **out)


@pytest.mark.parametrize(
    ("rows", "batch_size", "steps"), [(129, 128, 3), (65, 32, 6), (2, 2, 3)], ids=str
)
def test_batch_norm_trains_whatever_is_left_over(
    tmp_path: Path, rows: int, batch_size: int, steps: int
) -> None:
    """The row that would be alone joins the batch before it: no row is left out."""
    out = outputs(tmp_path / "out")
    given = {"network_args": {"hidden": [4], "norm": "batch"}, "batch_size": batch_size}
    train_teacher(dataset=dataset(tmp_path / "rows", rows=rows), epochs=3, **given, **out)
    record = json.loads((tmp_path / "out" / "model" / "training.json").read_text())
    assert (record["steps"], record["examples"]) == (steps, 3 * rows)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"batch_size": 1}, "batch_size"),
        ({"rows": 1}, "dataset"),
        ({"settings": {"finish_steps": 2}}, "settings.finish_steps"),
        ({"settings": {"freeze": ["1.wieght"]}}, "settings.freeze[0]"),
    ],
    ids=["batch_size", "rows", "finish", "freeze"],
)
def test_what_batch_norm_cannot_do_is_said_before_a_step(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    rows = dataset(tmp_path / "rows", rows=changes.pop("rows", 60))
    given = {"network_args": {"hidden": [4], "norm": "batch"}, **changes}
    found = problems(train_teacher, tmp_path / "out", dataset=rows, **given)
    assert found.keys() == {field}
