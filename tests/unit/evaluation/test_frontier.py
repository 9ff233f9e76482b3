"""The smallest of several models that is good enough: by evidence, and never by chance."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.evaluation.cost import RunningCost
from kubestill.runtime.evaluation.frontier import Frontier, choose_smallest
from kubestill.runtime.metrics.catalog import METRICS
from kubestill.runtime.metrics.intervals import measure
from kubestill.runtime.metrics.outcome import Outcome
from kubestill.runtime.models.export import load_model
from kubestill.runtime.reports.frontier import frontier_report, frontier_text
from kubestill.runtime.steps.choose_student import choose_student
from kubestill.runtime.steps.train_student import train_student


def outcome(hits: np.ndarray) -> Outcome:
    """Answers to rows of one class, right where `hits` says so."""
    logits = np.where(hits[:, None], [[4.0, -4.0, -9.0]], [[-4.0, 4.0, -9.0]])
    targets = np.zeros(len(hits), np.int64)
    return Outcome.from_logits("multiclass", logits.astype(np.float32), targets, None)


def choose(hits: dict[str, np.ndarray], tolerance: float, reference: str = "teacher") -> Frontier:
    """Choose among models of growing size, in the order given, by accuracy."""
    costs = {
        name: RunningCost(
            parameters=place, flops=0, bytes=place, latency={1: 1e-5 * place, 1024: 1.0}
        )
        for place, name in enumerate(hits, 1)
    }
    scores = measure({name: outcome(one) for name, one in hits.items()}, confidence=0.95)
    names = [name for name in hits if name != reference]
    accuracy = METRICS["accuracy"]
    return choose_smallest(scores, costs, names, reference, metric=accuracy, tolerance=tolerance)


def rates(rows: int, seed: int, **shares: float) -> dict[str, np.ndarray]:
    """Models that are right on these shares of the rows, on the same easy rows as far as can be."""
    random = np.random.default_rng(seed)
    common, own = random.random(rows), random.random((len(shares), rows))
    return {
        name: np.where(random.random(rows) < 0.7, common, one) < share
        for (name, share), one in zip(shares.items(), own, strict=True)
    }


def test_the_smallest_that_is_shown_to_be_as_good_is_chosen() -> None:
    found = choose(rates(20_000, 0, small=0.80, middle=0.95, large=0.95, teacher=0.95), 0.02)
    assert [one.standing for one in found.entries] == ["outside", "within", "within", "reference"]
    assert (found.chosen, found.verdict) == ("middle", "within")
    assert "middle is the smallest that is within 0.019 of the accuracy of teacher" in found.reason
    assert [one.name for one in found.entries if one.on_front][:2] == ["small", "middle"]


def test_few_rows_show_nothing_and_the_verdict_says_so() -> None:
    found = choose(rates(60, 1, small=0.9, large=0.95, teacher=0.95), 0.01)
    assert found.verdict == "unproven"
    assert "60 rows cannot show" in found.reason


def test_where_all_are_worse_the_best_is_chosen_and_called_worse() -> None:
    found = choose(rates(9_000, 2, small=0.5, large=0.7, teacher=0.95), 0.02)
    assert (found.chosen, found.verdict) == ("large", "outside")


def test_without_a_teacher_the_best_of_them_is_the_reference() -> None:
    found = choose(rates(20_000, 3, small=0.5, middle=0.9, large=0.9), 0.03, reference="")
    assert found.chosen == "middle"
    assert {one.standing for one in found.entries} == {"outside", "within"}


def test_a_model_that_answers_with_nan_is_never_chosen() -> None:
    hits = rates(500, 4, small=0.9, large=0.9, teacher=0.9)
    broken = outcome(hits["small"])
    scores = {name: outcome(one) for name, one in hits.items()}
    logits = np.full((500, 3), np.nan, np.float32)
    scores["small"] = Outcome.from_logits("multiclass", logits, broken.targets, None)
    cost = RunningCost(parameters=1, flops=0, bytes=1, latency={1: 1.0, 1024: 1.0})
    found = choose_smallest(
        measure(scores),
        dict.fromkeys(scores, cost),
        ["small", "large"],
        "teacher",
        metric=METRICS["accuracy"],
        tolerance=0.5,
    )
    assert found.chosen == "large"


@pytest.mark.parametrize("reference", ["", "teacher"])
def test_where_there_is_no_score_to_compare_with_nothing_is_called_within(reference: str) -> None:
    random = np.random.default_rng(0)
    scores = {  # of rows of one class, which have no AUC
        name: Outcome.from_logits("binary", random.normal(size=(50, 1)), np.zeros(50, np.int64))
        for name in ("large", "small", "teacher")
    }
    costs = {
        name: RunningCost(parameters=size, flops=0, bytes=size, latency={1: 1.0, 1024: 1.0})
        for name, size in (("large", 2), ("small", 1), ("teacher", 3))
    }
    auc = METRICS["auc"]
    found = choose_smallest(
        measure(scores), costs, ["large", "small"], reference, metric=auc, tolerance=0.1
    )
    assert (found.chosen, found.verdict) == ("small", "unproven")
    assert not any(one.on_front for one in found.entries)
    assert "has no AUC on 50 rows" in found.reason
    assert "nan" not in found.reason
    assert "unproven" in frontier_text(found)
    assert frontier_report(found, "students")


def test_of_models_of_one_size_the_better_is_chosen_whatever_their_times() -> None:
    hits = rates(20_000, 0, first=0.90, second=0.95, teacher=0.95)
    cost = RunningCost(parameters=1, flops=0, bytes=1, latency={1: 2.0, 1024: 1.0})
    costs = dict.fromkeys(hits, cost) | {"first": replace(cost, latency={1: 1.0, 1024: 1.0})}
    scores = measure({name: outcome(one) for name, one in hits.items()})
    names, accuracy = ["first", "second"], METRICS["accuracy"]
    found = choose_smallest(scores, costs, names, "teacher", metric=accuracy, tolerance=0.2)
    assert found.chosen == "second"


@pytest.mark.parametrize("candidates", [1, 5])
def test_a_student_that_loses_what_may_just_not_be_lost_is_seldom_called_within(
    candidates: int,
) -> None:
    """The error that the choice promises, by simulation: every candidate is a chance to be wrong.

    All lose exactly the tolerance, so that each `within` is an error; 5% of them, and three
    standard errors of 250 draws, may occur among all candidates of a choice together.
    """
    lost = 0.05
    shares = {f"student {place}": 0.9 - lost for place in range(candidates)}
    wrong = [
        choose(rates(400, seed, **shares, teacher=0.9), lost / 0.9).verdict == "within"
        for seed in range(250)
    ]
    assert np.mean(wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 250)


def table(path: str, rows: int, seed: int) -> LocalArtifact:
    """Write three classes that a line of one input tells apart, and a second input of noise."""
    random = np.random.default_rng(seed)
    x: Any = np.float32(random.uniform(-3, 3, (rows, 2)))
    labels = np.asarray(["a", "b", "c"], dtype=object)[
        np.digitize(np.sin(2 * x[:, 0]), [-0.4, 0.4])
    ]
    target = Column(name="y", kind="categorical", role="target", categories=("a", "b", "c"))
    columns = (Column(name="u", kind="numeric"), Column(name="v", kind="numeric"), target)
    import pandas as pd

    with DatasetWriter(path, Schema(columns=columns, task="multiclass")) as writer:
        writer.write(pd.DataFrame({"u": x[:, 0], "v": x[:, 1], "y": labels}))
    return LocalArtifact(path, metadata={"kind": "dataset"})


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three students of a wave: one is too small to follow it."""
    root = tmp_path_factory.mktemp("students")
    rows, held = table(str(root / "rows"), 1500, 0), table(str(root / "held"), 1200, 1)
    ports = ("model", "ledger", "metrics", "report", "summary")
    for width in (2, 24, 96):
        outputs: Any = {name: LocalArtifact(str(root / str(width) / name)) for name in ports}
        train_student(
            dataset=rows,
            **outputs,
            mode="hard",
            network_args={"hidden": [float(width)]},  # as Kubeflow hands whole numbers on
            steps=500,
            learning_rate=0.03,
            checkpoint_uri=str(root / "kept"),
            settings={"threads": 1},
        )
    return {"root": root, "rows": held, "uris": [str(root / str(n) / "model") for n in (96, 2, 24)]}


def run(students: dict[str, Any], **options: Any) -> tuple[Any, dict[str, LocalArtifact]]:
    names = ("model", "metrics", "report", "summary", "record")
    outputs = {name: LocalArtifact(str(students["root"] / "out" / name)) for name in names}
    given: Any = {"uris": students["uris"], "dataset": students["rows"], **outputs, **options}
    return choose_student(**given), outputs


def test_the_step_hands_on_the_chosen_model_with_its_reason_and_its_size(students) -> None:
    (verdict, reason, arguments), outputs = run(students, tolerance=0.05)
    assert verdict == "within"
    assert arguments == {"hidden": [24]}
    assert reason.startswith("hidden=[24] is the smallest")
    chosen = load_model(outputs["model"].path)
    assert chosen.digest == load_model(students["uris"][2]).digest
    assert outputs["model"].metadata["digest"] == chosen.digest
    record = read_record(outputs["record"])
    assert record["models"]["hidden=[2]"]["standing"] == "outside"
    assert list(record["models"]) == ["hidden=[2]", "hidden=[24]", "hidden=[96]"]
    page = Path(outputs["report"].path).read_text()
    assert page.count("<svg") >= 2
    assert "hidden=[24]" in Path(outputs["summary"].path).read_text()
    assert outputs["metrics"].metadata["candidates"] == 3


def test_a_teacher_is_compared_with_and_never_chosen(students) -> None:
    teacher = LocalArtifact(students["uris"][0], metadata={"kind": "model"})
    (verdict, _, arguments), outputs = run(
        students, uris=students["uris"][1:], teacher=teacher, tolerance=0.05
    )
    assert (verdict, arguments) == ("within", {"hidden": [24]})
    assert read_record(outputs["record"])["models"]["teacher"]["standing"] == "reference"


def test_where_rows_carried_the_answers_there_is_no_teacher(students, tmp_path) -> None:
    none = LocalArtifact(str(tmp_path), metadata={"kind": "no-model"})
    assert run(students, teacher=none, tolerance=0.05)[0][2] == {"hidden": [24]}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"uris": []}, "uris = .*name at least one student"),
        ({"uris": ["/nowhere"]}, "no exported model here"),
        ({"tolerance": 1.5}, r"tolerance = 1.5: must be in \[0, 1\)"),
        ({"confidence": 95.0}, "confidence = 95"),
        ({"metric": "acuracy"}, "metric = 'acuracy'.*did you mean 'accuracy'"),
        ({"metric": "ece"}, "metric = 'ece'"),
    ],
)
def test_bad_input_is_refused_in_words(students, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        run(students, **options)
