"""import-model in front of the components that take a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from foreign_samples import dataset, features, table

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import RawLayout, decode_features, decode_soft
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.identity import read_digest
from kubestill.runtime.steps.check_distillation import check_distillation
from kubestill.runtime.steps.continuous_eval import continuous_eval
from kubestill.runtime.steps.import_model import import_model
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_teacher import train_teacher
from kubestill.runtime.stores import open_store

CLASSES = ["ok", "bad"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a LightGBM model, and rows of which it has seen the first 400."""
    folder = tmp_path_factory.mktemp("teacher")
    frame = features().assign(shop=pd.Categorical(features()["shop"])).head(400)
    known = (table()["label"] == "bad").to_numpy(np.int64)[:400]
    given = {"objective": "binary", "verbose": -1, "num_threads": 1}
    lightgbm.train(given, lightgbm.Dataset(frame, known), 8).save_model(folder / "model.txt")
    dataset(folder / "rows", rows=table().head(400))
    dataset(folder / "holdout", rows=table().tail(200).reset_index(drop=True))
    return folder


def rows_in(folder: Path) -> LocalArtifact:
    return LocalArtifact(str(folder), metadata={"kind": "dataset"})


def outputs(folder: Path, *names: str) -> dict[str, Any]:
    return {name: LocalArtifact(str(folder / name)) for name in names}


def brought(place: Path, folder: Path, **given: Any) -> dict[str, Any]:
    made = outputs(folder, "model", "metrics", "report", "summary")
    told = {"source": str(place / "model.txt"), "classes": CLASSES} | given
    import_model(
        dataset=rows_in(place / "rows"), holdout=rows_in(place / "holdout"), **made, **told
    )
    return made


def test_a_model_is_scored_labels_rows_and_is_judged(place: Path, tmp_path: Path) -> None:
    made = brought(place, tmp_path)
    teacher = load_model(made["model"].path)
    assert (
        made["model"].metadata["digest"]
        == teacher.digest
        == read_digest(open_store(made["model"].path))
    )
    answers = teacher(features()[400:])
    right = (answers["prediction"] == table()["label"][400:]).mean()
    assert made["metrics"].metadata["accuracy"] == pytest.approx(right)
    assert (
        "lightgbm: 4 inputs. Scored on 200 rows held out." in Path(made["summary"].path).read_text()
    )

    labelled = LocalArtifact(str(tmp_path / "labelled"))
    label_with_teacher(
        model=made["model"],
        dataset=rows_in(place / "rows"),
        labelled=labelled,
        method="munge",
        rows=500,
    )
    found = Dataset.open(labelled.path)
    assert found.provenance["teacher"] == teacher.digest
    block = next(found.iter_blocks())
    np.testing.assert_array_equal(
        decode_soft(block, RawLayout(found.schema)),
        teacher.logits(decode_features(block, teacher.layout)),
    )

    judged = outputs(tmp_path, "judged", "page", "text", "record")
    decision, _ = continuous_eval(
        dataset=rows_in(place / "holdout"),
        model=made["model"],
        teacher=made["model"],
        metrics=judged["judged"],
        report=judged["page"],
        summary=judged["text"],
        record=judged["record"],
    )
    assert decision == "healthy"
    scores = json.loads(Path(judged["record"].path).read_text())["scores"]["models"]["model"]
    assert scores["metrics"]["accuracy"]["value"] == pytest.approx(right)
    assert scores["cost"]["bytes"] == (place / "model.txt").stat().st_size


def test_a_teacher_of_unknown_size_is_judged_as_any_other(place: Path, tmp_path: Path) -> None:
    (tmp_path / "scale").write_text("4")
    told = {"source": "foreign_teachers:Rule", "settings": {"weights": str(tmp_path / "scale")}}
    teacher = brought(place, tmp_path / "teacher", classes=[], **told)["model"]
    student = brought(place, tmp_path / "student")["model"]
    made = outputs(tmp_path, "metrics", "report", "summary", "record")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBESTILL_TYPED", "foreign_teachers")
        continuous_eval(
            dataset=rows_in(place / "holdout"),
            model=student,
            baseline=teacher,
            teacher=teacher,
            **made,
        )
    said = Path(made["summary"].path).read_text()
    assert "of its parameters" not in said
    assert "| – |" in said


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "new"])
def test_a_teacher_that_was_fitted_on_the_rows_is_told(
    seen: bool, place: Path, tmp_path: Path
) -> None:
    frame = features().assign(shop=pd.Categorical(features()["shop"]))
    known = (table()["label"] == "bad").to_numpy(np.int64)
    given = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 1}
    part = slice(0, 400) if seen else slice(400, 600)
    booster = lightgbm.train(given, lightgbm.Dataset(frame.iloc[part], known[part]), 60)
    booster.save_model(tmp_path / "model.txt")
    rest = dataset(tmp_path / "rest", rows=table().head(400 if seen else 200))
    held = table().tail(200) if seen else table().iloc[200:400]
    dataset(tmp_path / "held", rows=held.reset_index(drop=True))
    made = outputs(tmp_path, "model", "metrics", "report", "summary")
    import_model(
        dataset=rows_in(Path(rest.root)),
        holdout=rows_in(tmp_path / "held"),
        source=str(tmp_path / "model.txt"),
        classes=CLASSES,
        **made,
    )
    said = Path(made["summary"].path).read_text()
    assert ("it was fitted on the rows of the dataset" in said) == seen


def test_an_exported_model_is_copied(place: Path, tmp_path: Path) -> None:
    first = brought(place, tmp_path / "first")
    again = brought(place, tmp_path / "again", source=first["model"].path, classes=[])
    assert again["model"].metadata["digest"] == first["model"].metadata["digest"]
    with pytest.raises(InvalidInput, match="says all that itself"):
        brought(place, tmp_path / "again", source=first["model"].path)


def test_all_problems_of_the_parameters_are_told_at_once(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        brought(
            place,
            tmp_path,
            source="",
            output="logits",
            settings={"category": {}, "classes": CLASSES},
        )
    said = str(caught.value)
    for part in ("give a source", "output = 'logits'", "settings.category", "settings.classes"):
        assert part in said
    assert not (tmp_path / "model").exists()


def test_train_teacher_brings_a_teacher_in_instead_of_training_one(
    place: Path, tmp_path: Path
) -> None:
    made = outputs(tmp_path, "model", "ledger", "metrics", "report", "summary")
    train_teacher(
        dataset=rows_in(place / "rows"),
        validation=rows_in(place / "holdout"),
        teacher_uri=str(place / "model.txt"),
        teacher_options={"classes": CLASSES},
        **made,
    )
    assert load_model(made["model"].path).spec.network["factory"] == "lightgbm"
    assert made["metrics"].metadata["accuracy"] > 0.8
    assert not Path(made["ledger"].path).exists()


def check(place: Path, folder: Path, **given: Any) -> dict[str, Any]:
    made = outputs(folder, "metrics", "report", "summary", "findings")
    check_distillation(
        dataset=rows_in(place / "rows"),
        validation=rows_in(place / "holdout"),
        strict=False,
        student_args={"hidden": [8]},
        student_steps=40,
        **made,
        **given,
    )
    return json.loads(Path(made["findings"].path).read_text())


def test_the_check_before_a_distillation_tries_the_teacher(place: Path, tmp_path: Path) -> None:
    given = {"teacher_uri": str(place / "model.txt"), "teacher_options": {"classes": CLASSES}}
    found = check(place, tmp_path, **given)
    assert "student" in found
    assert "teacher" not in found
    with pytest.raises(InvalidInput, match=r"teacher_options\.classes = \[\]: the file"):
        check(place, tmp_path, teacher_uri=given["teacher_uri"])
    with pytest.raises(InvalidInput) as caught:
        check(
            place,
            tmp_path,
            teacher_uri=given["teacher_uri"],
            teacher_options={"clases": []},
            rows=-1,
        )
    assert "teacher_options.clases" in str(caught.value)
    assert "rows" in str(caught.value)


def test_a_teacher_that_later_steps_would_not_import_is_refused_early(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "scale").write_text("1")
    options = {"weights": str(tmp_path / "scale")}
    with pytest.raises(InvalidInput, match="KUBESTILL_TRUST=foreign_teachers"):
        check(place, tmp_path, teacher_uri="foreign_teachers:Rule", teacher_options=options)
