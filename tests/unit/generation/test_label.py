"""A teacher's outputs beside the rows they belong to."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import RawLayout, decode_features, decode_soft
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.generation.labelling import TeacherCopy
from kubestill.runtime.generation.labelling import label as label_rows
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.label_with_teacher import label_with_teacher

FEATURES = (
    Column(name="size", kind="numeric"),
    Column(name="colour", kind="categorical", categories=("blue", "red")),
)
TARGETS = {
    "binary": Column(name="y", kind="categorical", role="target", categories=("no", "yes")),
    "multiclass": Column(name="y", kind="categorical", role="target", categories=("a", "b", "c")),
    "regression": Column(name="y", kind="numeric", role="target"),
}
SCHEMAS = {
    task: Schema(columns=(*FEATURES, target), task=task)  # pyright: ignore
    for task, target in TARGETS.items()
}
every_task = pytest.mark.parametrize("task", SCHEMAS)


def rows(task: str, count: int = 20_000) -> pd.DataFrame:
    random = np.random.default_rng(0)
    labels = TARGETS[task].categories
    return pd.DataFrame(
        {
            "size": np.where(random.random(count) < 0.1, np.nan, random.normal(3, 2, count)),
            "colour": random.choice(np.array(["red", "blue", None]), count),
            "y": random.choice(labels, count) if labels else random.normal(size=count),
        }
    )


def write(folder: Path, schema: Schema, data: pd.DataFrame, **how: Any) -> LocalArtifact:
    with DatasetWriter(str(folder), schema, **how) as writer:
        writer.write(data)
    return LocalArtifact(str(folder), metadata={"kind": "dataset"})


def teacher(folder: Path, task: str) -> LocalArtifact:
    schema = SCHEMAS[task]
    raw = decode_features(rows(task, 500), RawLayout(schema))
    decoder = Decoder([10.0], [2.0]) if task == "regression" else Decoder()
    model = Model.create(schema, encoder=Encoder.fit([raw], RawLayout(schema)), decoder=decoder)
    export_model(model, str(folder))
    return LocalArtifact(str(folder), metadata={"kind": "model"})


def label(tmp_path: Path, model: LocalArtifact, dataset: LocalArtifact) -> Dataset:
    out = LocalArtifact(str(tmp_path / "labelled"))
    (uri,) = label_with_teacher(model=model, dataset=dataset, labelled=out)
    assert out.metadata["kind"] == "dataset"
    return Dataset.open(uri)


@every_task
def test_outputs_are_the_teacher_s_own(tmp_path: Path, task: str):
    model, dataset = teacher(tmp_path / "m", task), write(tmp_path / "d", SCHEMAS[task], rows(task))
    made = label(tmp_path, model, dataset)
    width = {"binary": 1, "multiclass": 3, "regression": 1}[task]
    name = "teacher_prediction" if task == "regression" else "teacher_logits"
    assert made.schema.soft == Column(name=name, kind="tensor", role="soft", shape=(width,))
    soft = decode_soft(made, RawLayout(made.schema))
    predictor = load_model(model.path)
    expected = predictor.logits(decode_features(rows(task), predictor.layout))
    assert soft.tobytes() == expected.tobytes()
    before = Dataset.open(dataset.path).to_pandas()
    pd.testing.assert_frame_equal(made.to_pandas().drop(columns=name), before)


def test_labels_do_not_depend_on_parts_or_threads_ahead(tmp_path: Path):
    model = teacher(tmp_path / "m", "binary")
    whole = write(tmp_path / "one", SCHEMAS["binary"], rows("binary"))
    parts = write(tmp_path / "many", SCHEMAS["binary"], rows("binary"), part_rows=8192)
    assert len(Dataset.open(parts.path).parts) > 1 == len(Dataset.open(whole.path).parts)
    first = label(tmp_path / "a", model, whole).fingerprint
    assert label(tmp_path / "b", model, parts).fingerprint == first


def test_copies_of_a_teacher_take_turns_and_change_no_bit(tmp_path: Path):
    """As every visible GPU has one."""
    model = teacher(tmp_path / "m", "multiclass")
    dataset = write(tmp_path / "d", SCHEMAS["multiclass"], rows("multiclass"))
    copies, asked = [load_model(model.path) for _ in range(3)], list[int]()
    for number, copy in enumerate(copies):
        own = copy.logits
        copy.logits = lambda raw, number=number, own=own: (asked.append(number), own(raw))[1]  # pyright: ignore
    given, root = Dataset.open(dataset.path), str(tmp_path / "shared")
    shared = label_rows([TeacherCopy(copy) for copy in copies], given, root)
    assert sorted(asked) == [0, 1, 2]
    alone = label(tmp_path, model, dataset)
    assert shared.fingerprint == alone.fingerprint


def test_an_empty_dataset_stays_empty(tmp_path: Path):
    with DatasetWriter(str(tmp_path / "d"), SCHEMAS["binary"]):
        pass
    dataset = LocalArtifact(str(tmp_path / "d"), metadata={"kind": "dataset"})
    made = label(tmp_path, teacher(tmp_path / "m", "binary"), dataset)
    assert made.rows == 0
    assert made.schema.soft is not None


def test_a_dataset_without_a_target_gains_an_empty_one(tmp_path: Path):
    bare = Schema(columns=FEATURES)
    data = rows("multiclass", 100).drop(columns="y")
    made = label(tmp_path, teacher(tmp_path / "m", "multiclass"), write(tmp_path / "d", bare, data))
    assert made.schema.task == "multiclass"
    assert made.to_table().column("y").null_count == made.rows


def test_another_teacher_replaces_the_outputs_of_the_first(tmp_path: Path):
    model = teacher(tmp_path / "m", "binary")
    dataset = write(tmp_path / "d", SCHEMAS["binary"], rows("binary", 100))
    once = label(tmp_path / "1", model, dataset)
    again = label(tmp_path / "2", model, LocalArtifact(once.root, metadata={"kind": "dataset"}))
    assert again.fingerprint == once.fingerprint


def test_all_misfits_at_once_and_nothing_written(tmp_path: Path):
    schema = Schema(
        columns=(
            Column(name="colour", kind="boolean"),
            Column(name="teacher_logits", kind="numeric"),
            Column(name="y", kind="categorical", role="target", categories=("no", "maybe")),
        ),
        task="binary",
    )
    data = pd.DataFrame({"colour": [True], "teacher_logits": [1.0], "y": ["no"]})
    dataset = write(tmp_path / "d", schema, data)
    with pytest.raises(InvalidInput) as caught:
        label_with_teacher(
            model=teacher(tmp_path / "m", "binary"),
            dataset=dataset,
            labelled=LocalArtifact(str(tmp_path / "labelled")),
            settings={"batch": 3},
        )
    message = str(caught.value)
    for hint in ("size", "colour", "maybe", "rename this column", "settings.batch"):
        assert hint in message
    assert not (tmp_path / "labelled").exists()


def test_wrong_artifacts_settings_and_devices_together(tmp_path: Path):
    with pytest.raises(InvalidInput) as caught:
        label_with_teacher(
            model=LocalArtifact("x", metadata={"kind": "dataset"}),
            dataset=LocalArtifact("y", metadata={"kind": "model"}),
            labelled=LocalArtifact(str(tmp_path / "out")),
            device="tpu",
            settings={"batch": 3},
        )
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["device", "model", "dataset", "settings.batch"]


def test_a_damaged_teacher_and_a_damaged_dataset_together(tmp_path: Path):
    made, data = (
        teacher(tmp_path / "m", "binary"),
        write(tmp_path / "d", SCHEMAS["binary"], rows("binary", 9)),
    )
    for path in (tmp_path / "m" / "model.safetensors", tmp_path / "d" / "dataset.json"):
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidInput) as caught:
        label_with_teacher(
            model=made, dataset=data, labelled=LocalArtifact(str(tmp_path / "labelled"))
        )
    assert [problem.field for problem in caught.value.problems] == ["model", "dataset"]
    assert not (tmp_path / "labelled").exists()


def test_rows_are_generated_and_labelled_as_two_steps_would(tmp_path: Path):
    model = teacher(tmp_path / "m", "binary")
    original = write(tmp_path / "d", SCHEMAS["binary"], rows("binary", 9000))
    asked = {"method": "munge", "rows": 9000, "shards": 2, "seed": 5}
    for shard in range(2):
        folder = tmp_path / str(shard)
        generated = LocalArtifact(str(folder / "rows"))
        generate_synthetic(dataset=generated, original=original, shard=shard, **asked)
        two = label(folder, model, generated)
        out = LocalArtifact(str(folder / "one" / "labelled"))
        label_with_teacher(model=model, dataset=original, labelled=out, shard=shard, **asked)
        assert Dataset.open(out.path).fingerprint == two.fingerprint
        assert Dataset.open(out.path).rows == two.rows > 8000
        # What is not handed on does not stay behind.
        assert [path.name for path in (folder / "one").iterdir()] == ["labelled"]


def test_what_is_wrong_with_generating_is_said_with_the_rest(tmp_path: Path):
    dataset = write(tmp_path / "d", SCHEMAS["binary"], rows("binary", 100))
    out = LocalArtifact(str(tmp_path / "labelled"))
    with pytest.raises(InvalidInput) as caught:
        label_with_teacher(
            model=teacher(tmp_path / "m", "binary"),
            dataset=dataset,
            labelled=out,
            settings={"fast": True},
            method="jitter",
            shard=2,
            shards=2,
            synthetic_settings={"sigma": 1},
        )
    fields = {problem.field for problem in caught.value.problems}
    assert {"settings.fast", "synthetic_settings.sigma"} <= fields
    assert not (tmp_path / "labelled").exists()
