"""Images in folders and texts without a label through `distillation`, a stranger's three steps."""

# Kubeflow turns calls into tasks and injects outputs.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
from PIL import Image
from sklearn.datasets import load_digits

from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import TextForm
from kubestill.runtime.datasets.text import text_rows
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.serve import add_serving_file

COMPONENTS = Path(__file__).parents[3] / "components"
WORDS = "the parcel came late broken early whole again and never thank you a pity joy".split()
GOOD = {"early", "whole", "thank", "joy"}


def distil(kubestill: Any, output: Path, **given: Any) -> str:
    """Run the pipeline; return where the student is."""
    told = {"gate": {"steps": 20}, "strict": False, "shards": 1} | given
    arguments = [f"-p{name}={json.dumps(v) if v != str(v) else v}" for name, v in told.items()]
    done = kubestill("run", "distillation", "--output", str(output), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (student,) = output.glob("distillation-*/student")
    return str(student)


def test_images_in_folders_teach_a_small_convolutional_network(kubestill, tmp_path: Path) -> None:
    digits = load_digits(n_class=3)
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = tmp_path / "images" / f"is-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).save(folder / f"{number:04}.png")
    place = distil(
        kubestill,
        tmp_path / "runs",
        dataset=str(tmp_path / "images"),
        target="label",
        teacher_network="conv",
        teacher_args={"channels": [16, 16]},
        teacher_rows=0,
        teacher_steps=60,
        rows=400,
        student_network="conv",
        student_args={"channels": [4, 8]},
        student_steps=100,
    )
    student = load_model(place)
    assert student.spec.network["factory"] == "conv"
    add_serving_file(place, "onnx")
    images = (digits.images * 15.9).astype(np.uint8)[:, None]
    session = onnxruntime.InferenceSession(f"{place}/model.onnx")
    label, _ = session.run(None, {"image": images.astype(np.float32)})
    assert (label == [f"is-{one}" for one in digits.target]).mean() > 0.9


def rows(count: int, seed: int) -> pd.DataFrame:
    dice = random.Random(seed)
    body = [" ".join(dice.choices(WORDS, k=dice.randrange(1, 9))) for _ in range(count)]
    mood = ["good" if GOOD & set(text.split()) else "bad" for text in body]
    return pd.DataFrame({"body": body, "mood": mood})


def test_texts_without_a_label_teach_a_small_transformer(kubestill, tmp_path: Path) -> None:
    rows(300, 0).to_csv(tmp_path / "labelled.csv", index=False)
    rows(1500, 1)[["body"]].to_parquet(tmp_path / "texts.parquet", index=False)
    place = distil(
        kubestill,
        tmp_path / "runs",
        dataset=str(tmp_path / "labelled.csv"),
        target="mood",
        kinds={"body": "text"},
        import_settings={"text": {"body": {"words": [1, 1], "length": 12}}},
        teacher_args={"text_buckets": 4096, "hidden": [64]},
        teacher_rows=0,
        teacher_steps=150,
        method="files",
        synthetic_settings={"source": str(tmp_path / "texts.parquet")},
        rows=1400,
        student_network="transformer",
        student_args={"text_buckets": 512, "width": 16, "layers": 1, "heads": 2},
        student_steps=150,
    )
    (gathered,) = (tmp_path / "runs").glob("**/gather-shards/*/output_metadata.json")
    told = json.loads(gathered.read_text())["parameterValues"]["dataset_uri"]
    learned = Dataset.open(told).to_pandas()
    assert learned["body"].tolist()[-1400:] == rows(1500, 1)["body"].tolist()[:1400]
    assert not any(isinstance(mood, str) for mood in learned["mood"][-1400:])
    student, fresh = load_model(place), rows(200, 2)
    assert student.spec.network["factory"] == "transformer"
    add_serving_file(place, "onnx")
    # Without this package: the ids as the tokenizer's file describes them, into ONNX Runtime.
    form = json.loads(Path(place, "tokenizer.json").read_text())["body"]
    words, chars = tuple(form["words"]), tuple(form["chars"])
    ids = text_rows(
        pa.array(fresh["body"]), TextForm(words=words, chars=chars, length=form["length"])
    )
    session = onnxruntime.InferenceSession(f"{place}/model.onnx")
    label, chances = session.run(None, {"body": ids.astype(np.int64)})
    assert (label == fresh["mood"]).mean() > 0.85
    answers = student(fresh)
    np.testing.assert_allclose(chances, answers[["p_bad", "p_good"]], atol=1e-5)
    assert label.tolist() == answers["prediction"].tolist()


STRANGER = """
from kfp import compiler, components, dsl

load = {{name: components.load_component_from_file(f"{folder}/{{name}}/component.yaml")
        for name in ("import_dataset", "import_model", "label_with_teacher", "train_student")}}


@dsl.pipeline(name="student-of-ours")
def ours(table: str, booster: str):
    data = load["import_dataset"](source=table, target="fraud")
    teacher = load["import_model"](
        source=booster, classes=["no", "yes"], dataset=data.outputs["dataset"],
        holdout=data.outputs["holdout"])
    labelled = load["label_with_teacher"](
        model=teacher.outputs["model"], dataset=data.outputs["dataset"], method="munge", rows=500)
    load["train_student"](
        dataset=labelled.outputs["labelled"], validation=data.outputs["validation"],
        network_args={{"hidden": [32]}}, steps=300, learning_rate=0.01, temperature=1.0)


compiler.Compiler().compile(ours, "ours.yaml")
"""


def test_a_stranger_needs_kfp_and_our_yaml_alone(kubestill, tmp_path: Path) -> None:
    import lightgbm

    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(600, 2)), columns=["amount", "age"])
    fraud = frame["amount"] + frame["age"] > 0.5
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1}, lightgbm.Dataset(frame, fraud), 20
    )
    booster.save_model(tmp_path / "booster.txt")
    frame.assign(fraud=np.where(fraud, "yes", "no")).to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "stranger.py").write_text(STRANGER.format(folder=COMPONENTS))
    # Whoever imports kubestill there fails.
    blocked = (
        "import sys; sys.modules['kubestill'] = None; import runpy; runpy.run_path(sys.argv[1])"
    )
    command = [sys.executable, "-I", "-c", blocked, str(tmp_path / "stranger.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given = [f"-ptable={tmp_path / 'table.csv'}", f"-pbooster={tmp_path / 'booster.txt'}"]
    done = kubestill("run", str(tmp_path / "ours.yaml"), "--output", str(tmp_path / "runs"), *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"✓ train-student", done.stdout)
    (place,) = {
        one.parent for one in (tmp_path / "runs").glob("**/train-student/*/model/model.json")
    }
    answers = load_model(str(place))(frame)["prediction"]
    assert (np.array(answers) == np.where(fraud, "yes", "no")).mean() > 0.9
