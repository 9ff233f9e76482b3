"""The whole task on small real models and datasets."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.datasets.decode import RawLayout, decode
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema, Task
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.evaluation.evaluate import evaluate
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.steps.continuous_eval import continuous_eval

LABELS = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c")}


def schema_of(task: Task) -> Schema:
    target = Column(name="y", kind="categorical", role="target", categories=LABELS.get(task))
    if task == "regression":
        target = Column(name="y", kind="numeric", role="target")
    features = [Column(name=name, kind="numeric") for name in ("x0", "x1")]
    place = Column(name="place", kind="categorical", categories=("north", "south"))
    return Schema(columns=(*features, place, target), task=task)


def frame_of(task: str, rows: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 2))
    values = x[:, 0] + 0.5 * x[:, 1] + 0.3 * random.normal(size=rows)
    frame = pd.DataFrame({"x0": x[:, 0], "x1": x[:, 1]})
    frame["place"] = np.where(random.random(rows) < 0.3, "north", "south")
    if task == "regression":
        frame["y"] = values
    else:
        cuts = [0.0] if task == "binary" else [-0.6, 0.6]
        frame["y"] = np.asarray(LABELS[task], dtype=object)[np.digitize(values, cuts)]
    return frame


class Bench:
    """A folder with a training set, a hold-out and models of chosen skill."""

    def __init__(self, root, task: Task):
        self.root, self.task, self.schema = root, task, schema_of(task)
        self.train = self.dataset("train", frame_of(task, 600, seed=1))
        self.holdout = self.dataset("holdout", frame_of(task, 500, seed=2))

    def dataset(self, name: str, frame: pd.DataFrame) -> LocalArtifact:
        path = str(self.root / name)
        with DatasetWriter(path, self.schema, provenance={}) as writer:
            writer.write(frame)
        return LocalArtifact(path, metadata={"kind": "dataset"})

    def model(
        self, name: str, steps: int, hidden: int = 8, *, broken: bool = False
    ) -> LocalArtifact:
        layout = RawLayout(self.schema)
        rows = decode(Dataset.open(self.train.path), layout, ("raw", "target"))
        encoder = Encoder.fit(iter([rows.raw]), layout)
        arguments = {"hidden": [hidden]}
        decoder = Decoder([0.0], [1.0]) if self.task == "regression" else Decoder()
        model = Model.create(
            self.schema, encoder=encoder, decoder=decoder, network_args=arguments, seed=0
        )
        target = torch.from_numpy(np.array(rows.target))
        raw = torch.from_numpy(np.array(rows.raw))
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(steps):
            loss = self._loss(model(raw), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if broken:
            torch.nn.init.constant_(next(model.network.parameters()), float("nan"))
        path = str(self.root / name)
        export = export_model(model, path)
        return LocalArtifact(path, metadata={"kind": "model", "digest": export.digest})

    def _loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.task == "regression":
            return torch.nn.functional.mse_loss(output, target)
        if self.task == "binary":
            return torch.nn.functional.binary_cross_entropy_with_logits(
                output[:, 0], target.float()
            )
        return torch.nn.functional.cross_entropy(output, target)

    def run(self, **inputs):
        names = ("metrics", "report", "summary", "record")
        outputs = {name: LocalArtifact(str(self.root / "out" / name)) for name in names}
        settings = {"resamples": 300.0, **inputs.pop("settings", {})}
        arguments: dict[str, Any] = {"dataset": self.holdout, **inputs, **outputs}
        return continuous_eval(**arguments, settings=settings), outputs


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBESTILL_CACHE", str(tmp_path / "cache"))
    return lambda task: Bench(tmp_path, task)


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_distillation_compares_three_models(bench, task, capsys):
    made = bench(task)
    models = {"model": made.model("good", 60), "baseline": made.model("poor", 4)}
    models["teacher"] = made.model("best", 200, hidden=64)
    (decision, reason), out = made.run(**models, slices=["place"])
    assert decision == "promote"
    assert "better than the control's" in reason
    metadata = out["metrics"].metadata
    assert {type(value) for value in metadata.values()} <= {str, int, float}
    scores = read_record(out["record"])["scores"]
    assert {role: m["name"] for role, m in scores["models"].items()} == {
        "model": "student",
        "baseline": "control",
        "teacher": "teacher",
    }
    assert scores["references"]["student"] == models["model"].metadata["digest"]
    assert {part["value"] for part in scores["slices"]} == {"north", "south"}
    assert sum(part["rows"] for part in scores["slices"]) == 500
    assert metadata["agreement"] > 0.8
    assert metadata["kind"] == "metrics"
    assert "student" in capsys.readouterr().out


def test_a_student_without_skill_is_no_improvement_on_a_control_that_is_worse(bench):
    made = bench("binary")
    student, honest = made.model("untrained", 0), made.train
    frame = frame_of("binary", 600, seed=1)
    turned = frame.assign(y=frame.y.map({"yes": "no", "no": "yes"}))
    made.train = made.dataset("turned", turned)
    control = made.model("control", 40)
    made.train = honest
    (decision, reason), _ = made.run(model=student, baseline=control)
    assert decision == "reject"
    assert "no better than by giving every row the same answer" in reason
    assert "better than the champion's by" in reason


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
@pytest.mark.parametrize(
    ("broken", "roles", "expected"),
    [
        ("model", ("model",), "degraded"),
        ("model", ("model", "baseline", "teacher"), "broken"),
        ("baseline", ("model", "baseline"), "promote"),
    ],
    ids=["alone", "the challenger", "the champion"],
)
def test_answers_that_are_not_finite_are_named_in_a_whole_report(
    bench, task, broken, roles, expected
):
    made = bench(task)
    models = {
        role: made.model(role, 30, hidden=8 if role == "model" else 16, broken=role == broken)
        for role in roles
    }
    (decision, reason), out = made.run(**models, slices=["place"])
    assert decision == expected, reason
    assert "gives NaN or infinity on 500 of 500 rows" in reason
    with open(out["report"].path, encoding="utf-8") as file:
        assert "NaN or infinity" in file.read()
    assert read_record(out["record"])["decision"]["decision"] == expected


def test_the_report_stands_alone(bench):
    made = bench("multiclass")
    good, poor = made.model("good", 60), made.model("poor", 4)
    _, out = made.run(model=good, baseline=poor, teacher=good, slices=["place"])
    with open(out["report"].path, encoding="utf-8") as file:
        html = file.read()
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//|<script|@import|url\((?!#)", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html))
    assert {one or other for one, other in used} <= set(ids)
    with open(out["summary"].path, encoding="utf-8") as file:
        assert file.read().startswith("# The student")


def test_equal_inputs_give_an_equal_decision_and_scores(bench):
    made = bench("binary")
    inputs = {"model": made.model("good", 60), "baseline": made.model("poor", 4)}
    (first, out), (second, again) = made.run(**inputs), made.run(**inputs)
    assert first == second
    found = [read_record(o["record"])["scores"] for o in (out, again)]
    for scores in found:
        for model in scores["models"].values():
            del model["cost"]["latency_seconds"]
    assert found[0] == found[1]


def test_a_model_alone_against_thresholds(bench):
    made = bench("multiclass")
    good = made.model("good", 60)
    assert made.run(model=good, thresholds={"accuracy": {"min": 0.5}})[0][0] == "healthy"
    assert made.run(model=good, thresholds={"accuracy": {"min": 0.999}})[0][0] == "degraded"
    few = made.dataset("few", frame_of("multiclass", 30, seed=4))
    assert made.run(model=good, dataset=few)[0][0] == "insufficient"


def test_rows_without_a_label_are_left_out(bench):
    made = bench("multiclass")
    frame = frame_of("multiclass", 400, seed=5)
    frame.loc[::4, "y"] = None
    frame["soft"] = list(np.zeros((400, 3), np.float32))
    good = made.model("good", 60)
    # Rows may lack a label only where a teacher's output stands instead.
    made.schema = made.schema.with_soft("soft", 3)
    found = evaluate(load_model(good.path), Dataset.open(made.dataset("gaps", frame).path))
    assert len(found.rows) == 300
    assert found.logits.shape == (300, 3)
    assert not (found.rows % 4 == 0).any()


def test_rows_of_an_entity_count_once_and_its_column_is_checked(bench):
    """The very rows four times over are no more evidence than they were once."""
    made = bench("multiclass")
    frame = frame_of("multiclass", 300, seed=5).assign(who=np.arange(300))
    columns = (*made.schema.columns, Column(name="who", kind="numeric", role="ignored"))
    made.schema = Schema(columns=columns, task="multiclass")
    again = made.dataset("again", pd.concat([frame] * 4))
    good = made.model("good", 60)
    widths: dict[str, float] = {}
    for group in ("", "who"):
        _, out = made.run(model=good, dataset=again, settings={"group": group})
        found = read_record(out["record"])["scores"]["models"]["model"]["metrics"]["log_loss"]
        widths[group] = found["high"] - found["low"]
    assert widths["who"] == pytest.approx(2 * widths[""], rel=0.02)
    with pytest.raises(InvalidInput, match="settings.group = 'whom': the dataset has no column"):
        made.run(model=good, dataset=again, settings={"group": "whom"})


def test_everything_wrong_is_reported_at_once_and_nothing_is_written(bench, tmp_path):
    made = bench("multiclass")
    good = made.model("good", 10)
    with pytest.raises(InvalidInput) as caught:
        made.run(
            model=good,
            baseline=made.holdout,
            thresholds={"acuracy": {"min": 0.9}},
            slices=["plaice"],
            settings={"min_row": 5, "confidence": 2},
            step="promote",
        )
    told = str(caught.value)
    assert len(caught.value.problems) == 6
    for words in (
        "baseline",
        "step = 'promote'",
        "'accuracy'",
        "'place'",
        "'min_rows'",
        "settings.confidence",
    ):
        assert words in told
    assert not (tmp_path / "out").exists()


def damage(artifact: LocalArtifact, file: str) -> LocalArtifact:
    Path(artifact.path, file).write_text("{")
    return artifact


def fields_of(caught: pytest.ExceptionInfo[InvalidInput]) -> set[str]:
    return {problem.field for problem in caught.value.problems}


def test_damaged_inputs_hide_nothing_else(bench, tmp_path):
    made = bench("multiclass")
    good = made.model("good", 2)
    empty = made.dataset("empty", frame_of("multiclass", 0, seed=3))
    with pytest.raises(InvalidInput) as caught:
        made.run(
            model=good,
            baseline=damage(made.model("poor", 1), "model.json"),
            teacher=damage(made.model("best", 1), "training.json"),
            dataset=damage(made.train, "dataset.json"),
            golden=empty,
            registry=str(tmp_path / "registry"),
            thresholds={"acuracy": {"min": 0.9}},
            settings={"min_row": 5, "metric": "loss"},
        )
    assert fields_of(caught) == {
        "baseline",
        "teacher",
        "dataset",
        "golden",
        "thresholds.acuracy",
        "settings.min_row",
        "settings.metric",
    }
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_hides_nothing_else(bench):
    made = bench("multiclass")
    with pytest.raises(InvalidInput) as caught:
        made.run(
            model=damage(made.model("good", 1), "model.json"),
            dataset=made.dataset("empty", frame_of("multiclass", 0, seed=3)),
            thresholds={"acuracy": {"min": 0.9}},
            slices=["plaice"],
        )
    assert fields_of(caught) == {"model", "dataset", "thresholds.acuracy", "slices[0]"}


def test_rows_that_do_not_fit_are_reported_once_and_before_scoring(bench):
    made = bench("multiclass")
    good = made.model("good", 2)
    kept = [column for column in made.schema.columns if column.name != "x1"]
    made.schema = Schema(columns=tuple(kept), task="multiclass")
    narrow = made.dataset("narrow", frame_of("multiclass", 20, seed=3).drop(columns="x1"))
    made.schema = Schema(columns=tuple(kept[:-1]))
    bare = made.dataset("bare", frame_of("multiclass", 20, seed=4).drop(columns=["x1", "y"]))
    with pytest.raises(InvalidInput) as caught:
        made.run(
            model=good,
            teacher=good,
            dataset=narrow,
            golden=bare,
            thresholds={"acuracy": {"min": 0.9}},
        )
    assert [(problem.field, problem.value) for problem in caught.value.problems] == [
        ("thresholds.acuracy", {"min": 0.9}),
        ("dataset: columns", "x1"),
        ("golden", bare.path),
        ("golden: columns", "x1"),
    ]


def test_models_that_predict_different_things_are_not_compared(bench, tmp_path):
    made = bench("multiclass")
    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other", "binary").model("m", 2)
    with pytest.raises(InvalidInput, match="predicts something else"):
        made.run(model=made.model("good", 10), teacher=other)
