"""Training on text: the same bits after a death, and students of a teacher on unlabelled text."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ended import dies_after, same_states

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema, TextForm
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.gather_shards import gather_shards
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student

Train = Callable[..., Path]
WORDS = "the parcel came late broken early whole again and never thank you a pity joy".split()
GOOD = {"early", "whole", "thank", "joy"}
BODY = Column(name="body", kind="text", text=TextForm(length=16))
MOOD = Column(name="mood", kind="categorical", role="target", categories=("bad", "good"))
ARGS = {"text_buckets": 400, "text_dim": 6, "hidden": [8]}
SMALL = {"text_buckets": 400, "width": 8, "layers": 1, "heads": 2}
"""A transformer."""


def rows(count: int, seed: int) -> pd.DataFrame:
    dice = random.Random(seed)
    body = [" ".join(dice.choices(WORDS, k=dice.randrange(1, 9))) for _ in range(count)]
    mood = ["good" if GOOD & set(text.split()) else "bad" for text in body]
    return pd.DataFrame({"body": body, "mood": mood, "size": range(count)})


def written(folder: Path, frame: pd.DataFrame, *columns: Column) -> LocalArtifact:
    schema = Schema(columns=columns, task="binary" if MOOD in columns else None)
    with DatasetWriter(str(folder), schema) as writer:
        writer.write(frame[[column.name for column in columns]])
    return LocalArtifact(str(folder), metadata={"kind": "dataset"})


@pytest.mark.parametrize(
    ("network", "workers"), [("mlp", 1), ("mlp", 2), ("transformer", 1), ("transformer", 2)]
)
def test_a_training_run_that_dies_ends_with_the_same_bits(
    train: Train, tmp_path: Path, network: str, workers: int
) -> None:
    given: dict[str, Any] = {"dataset": written(tmp_path / "rows", rows(200, 0), BODY, MOOD)}
    given |= {"steps": 12, "settings": {"virtual_workers": workers}}
    given |= {"network": network, "network_args": ARGS if network == "mlp" else SMALL}
    whole = train("whole", **given)
    given["checkpoint_uri"] = str(tmp_path / "another")
    with dies_after(7):
        train("again", **given)
    same_states(whole, train("again", **given))


def test_a_student_learns_from_unlabelled_text(train: Train, tmp_path: Path) -> None:
    given = {"dataset": written(tmp_path / "rows", rows(400, 0), BODY, MOOD), "steps": 150}
    teacher = train("teacher", network_args=ARGS, **given)
    texts = written(tmp_path / "texts", rows(600, 1), BODY)
    soft = LocalArtifact(str(tmp_path / "soft"))
    model = LocalArtifact(str(teacher / "model"), metadata={"kind": "model"})
    label_with_teacher(model=model, dataset=texts, labelled=soft)
    student = train(
        "student", train_student, dataset=soft, steps=200, network_args={**ARGS, "text_dim": 3}
    )
    fresh = rows(300, 2)
    found = load_model(str(student / "model"))(fresh)
    right = sum(one == other for one, other in zip(found["prediction"], fresh["mood"], strict=True))
    assert right > 270


def test_new_rows_keep_the_text_of_their_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = Column(name="size", kind="numeric")
    original = written(tmp_path / "rows", rows(50, 0), BODY, size, MOOD)
    made = LocalArtifact(str(tmp_path / "made"))
    generate_synthetic(original=original, rows=60, method="munge", dataset=made)
    assert "text is not varied" in capsys.readouterr().out
    found = Dataset.open(made.path).to_pandas()
    assert found["body"].tolist()[50:] == (rows(50, 0)["body"].tolist() * 2)[:60]
    with pytest.raises(InvalidInput, match="cannot vary text, and there is nothing else"):
        generate_synthetic(
            original=written(tmp_path / "alone", rows(50, 0), BODY, MOOD),
            rows=60,
            method="munge",
            dataset=LocalArtifact(str(tmp_path / "none")),
        )


def test_texts_of_files_are_labelled_in_place_of_rows_that_are_made(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = written(tmp_path / "rows", rows(400, 0), BODY, MOOD)
    teacher = train("teacher", network_args=ARGS, dataset=original, steps=150)
    model = LocalArtifact(str(teacher / "model"), metadata={"kind": "model"})
    texts = rows(9_000, 1)[["body"]]
    texts.to_csv(tmp_path / "texts.csv", index=False)
    parts: list[str] = []
    capsys.readouterr()
    for shard in range(2):
        soft = LocalArtifact(str(tmp_path / f"soft{shard}"))
        given = {"method": "files", "rows": 8_500, "shard": shard, "shards": 2}
        source = {"source": str(tmp_path / "texts.csv")}
        label_with_teacher(
            model=model, dataset=original, labelled=soft, synthetic_settings=source, **given
        )
        parts.append(soft.path)
    assert "the first 8,500 rows without a label from" in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="synthetic_settings.source = 'nowhere.csv'"):
        label_with_teacher(
            model=model,
            dataset=original,
            labelled=LocalArtifact(str(tmp_path / "none")),
            method="files",
            synthetic_settings={"source": "nowhere.csv"},
        )
    gathered = LocalArtifact(str(tmp_path / "gathered"))
    gather_shards(uris=parts, dataset=gathered)
    found = Dataset.open(gathered.path).to_pandas()
    assert found["body"].tolist() == [*rows(400, 0)["body"], *texts["body"][:8_500]]
    assert sum(isinstance(mood, str) for mood in found["mood"]) == 400
    told = ["good" if one[0] > 0 else "bad" for one in found["teacher_logits"]][400:]
    right = sum(one == mood for one, mood in zip(told, rows(9_000, 1)["mood"], strict=False))
    assert right > 0.9 * 8_500


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "settings.source"),
        ({"source": "nowhere.csv"}, "settings.source"),
        ({"source": "other.csv"}, "is learned from, and these files lack it; did you mean 'bodi'"),
    ],
)
def test_files_that_hold_no_such_texts_are_refused(
    settings: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("bodi\nnever late\n")
    with pytest.raises(InvalidInput, match=said):
        generate_synthetic(
            original=written(tmp_path / "rows", rows(50, 0), BODY, MOOD),
            method="files",
            settings=settings,
            dataset=LocalArtifact(str(tmp_path / "none")),
        )


def test_files_bring_labels_that_are_unknown_and_lack_what_nobody_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Column(name="shop", kind="categorical", categories=("a", "b"))
    size = Column(name="size", kind="numeric", role="ignored")
    frame = rows(50, 0).assign(shop="a")
    original = written(tmp_path / "rows", frame, BODY, shop, size, MOOD)
    rows(30, 1).assign(shop=["b", "c", None] * 10)[["shop", "mood", "body"]].to_parquet(
        tmp_path / "more.parquet"
    )
    made = LocalArtifact(str(tmp_path / "made"))
    settings = {"source": str(tmp_path / "more.parquet")}
    generate_synthetic(original=original, rows=99, method="files", settings=settings, dataset=made)
    assert "WARNING: 10 labels of 'shop' that the dataset does not have" in capsys.readouterr().out
    found = Dataset.open(made.path).to_pandas()[50:]
    assert [str(one) for one in found["shop"]] == ["b", "nan", "nan"] * 10
    assert not any(isinstance(mood, str) for mood in found["mood"])
    assert found["body"].tolist() == rows(30, 1)["body"].tolist()
