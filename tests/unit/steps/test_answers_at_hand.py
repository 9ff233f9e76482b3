"""Rows that carry a teacher's answers are distilled without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import RawLayout, decode_soft
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.steps.check_distillation import check_distillation
from kubestill.runtime.steps.continuous_eval import continuous_eval
from kubestill.runtime.steps.gather_shards import gather_shards
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher

ROWS = 9_000  # two blocks


def write(root: Path, rows: int, *, answers: bool = True) -> LocalArtifact:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=rows).astype(np.float32)})
    frame["y"] = np.where(rng.random(rows) < 1 / (1 + np.exp(-3 * frame["x"])), "yes", "no")
    frame["said"] = list((3 * frame[["x"]]).to_numpy(np.float32))
    columns = [
        Column(name="x", kind="numeric"),
        Column(name="y", kind="categorical", role="target", categories=("no", "yes")),
        Column(name="said", kind="tensor", role="soft", shape=(1,)),
    ]
    schema = Schema(columns=tuple(columns[: 3 if answers else 2]), task="binary")
    with DatasetWriter(str(root), schema, provenance={"made_by": "test"}) as writer:
        writer.write(frame[list(schema.names)])
    return LocalArtifact(str(root), metadata={"kind": "dataset"})


def ports(folder: Path, *names: str) -> dict[str, Any]:
    return {name: LocalArtifact(str(folder / name)) for name in names}


OUT = ("model", "ledger", "metrics", "report", "summary")


def skipped(folder: Path, rows: LocalArtifact, validation: LocalArtifact | None) -> dict[str, Any]:
    made = ports(folder / "teacher", *OUT)
    train_teacher(dataset=rows, validation=validation, if_labelled="skip", steps=1, **made)
    return made


def test_a_student_learns_from_answers_that_are_there(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows", ROWS)
    bare = write(tmp_path / "bare", 500, answers=False)  # as generated ones are
    validation = write(tmp_path / "validation", 500)
    teacher = skipped(tmp_path, bare, validation)
    assert teacher["model"].metadata["kind"] == "no-model"
    assert not Path(teacher["ledger"].path).exists()

    uris: list[str] = []
    for shard in range(2):
        labelled = LocalArtifact(str(tmp_path / f"shard{shard}"))
        given = {"method": "munge", "rows": 1000, "shard": shard, "shards": 2}
        label_with_teacher(model=teacher["model"], dataset=rows, labelled=labelled, **given)
        uris.append(labelled.path)
    gathered = LocalArtifact(str(tmp_path / "gathered"))
    gather_shards(uris=uris[::-1], dataset=gathered)
    before, after = Dataset.open(rows.path), Dataset.open(gathered.path)
    assert after.fingerprint == before.fingerprint
    layout = RawLayout(after.schema)
    said = np.vstack([decode_soft(block, layout) for block in after.iter_blocks()])
    np.testing.assert_array_equal(said[:, 0], 3 * before.to_pandas()["x"].to_numpy(np.float32))

    student = ports(tmp_path / "student", *OUT)
    train_student(
        dataset=gathered,
        validation=validation,
        network_args={"hidden": [8]},
        steps=20,
        learning_rate=0.02,
        temperature=1.0,
        **student,
    )
    judged = ports(tmp_path / "judged", "metrics", "report", "summary", "record")
    continuous_eval(
        dataset=validation,
        model=student["model"],
        teacher=teacher["model"],
        settings={"resamples": 100},
        **judged,
    )
    scores = json.loads(Path(judged["record"].path).read_text())["scores"]["models"]
    assert list(scores) == ["model"]
    assert "student" in Path(judged["summary"].path).read_text()


def test_a_teacher_is_trained_where_nothing_was_answered(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows", 500, answers=False)
    made = skipped(tmp_path, rows, None)
    assert made["model"].metadata["kind"] == "model"


def test_without_teacher_and_answers_nothing_can_be_labelled(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows", 500)
    teacher = skipped(tmp_path, rows, None)
    bare = write(tmp_path / "bare", 500, answers=False)
    with pytest.raises(InvalidInput, match="these rows carry no answers of one"):
        label_with_teacher(
            model=teacher["model"], dataset=bare, labelled=LocalArtifact(str(tmp_path / "out"))
        )
    with pytest.raises(InvalidInput, match="use 'train' or 'skip'"):
        train_teacher(dataset=rows, if_labelled="no", **ports(tmp_path, *OUT))


def test_the_check_asks_for_no_teacher_then(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows", 500)
    made = ports(tmp_path, "metrics", "report", "summary", "findings")
    check_distillation(
        dataset=rows,
        validation=rows,
        student_args={"hidden": [8]},
        student_steps=40,
        gate={"steps": 20, "rows": 8},
        strict=False,
        **made,
    )
    found = json.loads(Path(made["findings"].path).read_text())
    assert "student" in found
    assert "teacher" not in found
