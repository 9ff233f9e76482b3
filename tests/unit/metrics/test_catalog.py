"""What the catalog says of every metric, held against what training and evaluation measure."""

import ast
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import get_scorer_names

import kubestill.runtime
from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.metrics.catalog import (
    METRICS,
    TASKS,
    direction,
    find_metric,
    headline_metric,
    score,
)
from kubestill.runtime.metrics.outcome import Outcome


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        ("loss", "min"),
        ("log_loss", "min"),
        ("train_loss", "min"),
        ("brier", "min"),
        ("accuracy", "max"),
        ("auc", "max"),
        ("r2", "max"),
        ("val_loss", "min"),
        ("validation/Accuracy", "max"),
        ("Log-Loss", "min"),
    ],
)
def test_names_are_known(metric: str, way: str):
    assert direction(metric) == way


def test_unknown_offers_the_nearest():
    with pytest.raises(InvalidInput, match="'accuracy'"):
        direction("acuracy")


SCORERS = {
    "rmse": "neg_root_mean_squared_error",
    "mae": "neg_mean_absolute_error",
    "max_error": "neg_max_error",
    "r2": "r2",
    "accuracy": "accuracy",
    "log_loss": "neg_log_loss",
    "auc": "roc_auc",
    "brier": "neg_brier_score",
    "macro_f1": "f1_macro",
}


@pytest.mark.parametrize("name", SCORERS)
def test_directions_agree_with_scikit_learn(name: str):
    known = SCORERS[name]
    assert known in get_scorer_names()
    assert METRICS[name].sign == (-1 if known.startswith("neg_") else 1)


ANSWERS = {
    "regression": (np.array([[1.0], [2.5], [2.0]]), np.array([[1.0], [2.0], [4.0]])),
    "binary": (np.array([[2.0], [-1.0], [0.5], [0.1]]), np.array([1, 0, 0, 1])),
    "multiclass": (np.array([[2.0, 0, 0], [0, 1.0, 0], [0.5, 0, 0]]), np.array([0, 1, 2])),
}


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_uses_is_in_the_catalog(task: Task):
    used = TASKS[task]
    names = {used.primary, *used.scored, *used.validated, *used.enumerated, *used.watched}
    assert names <= set(METRICS)
    assert {used.primary, *used.validated, *used.watched} <= set(used.scored)
    assert used.primary in used.validated


@pytest.mark.parametrize("task", TASKS)
def test_scores_lie_within_their_bounds_and_perfect_answers_fall_short_of_nothing(task: Task):
    # Calibration shows in rows of a bin that err alike.
    outputs, targets = (np.repeat(one, 5, axis=0) for one in ANSWERS[task])
    for name, value in score(Outcome.from_logits(task, outputs, targets)).items():
        low, high = METRICS[name].bounds
        assert low <= value <= high, name
        assert METRICS[name].shortfall(value) > 0, name
    sure = targets if task == "regression" else 1e3 * np.where(targets > 0, 1, -1)[:, None]
    sure = 1e3 * np.eye(3)[targets] if task == "multiclass" else sure
    for name, value in score(Outcome.from_logits(task, sure, targets)).items():
        assert METRICS[name].shortfall(value) == pytest.approx(0), name


def test_shortfall_is_what_is_left_to_gain():
    assert METRICS["r2"].shortfall(0.99) == pytest.approx(0.01)
    assert METRICS["r2"].shortfall(-1.0) == 2
    assert METRICS["rmse"].shortfall(0.25) == 0.25


def test_a_sentence_quotes_the_most_telling_metric():
    found = headline_metric({"rmse": 0.1, "mae": 0.1, "r2": 0.9})
    assert found is METRICS["r2"]
    assert headline_metric({"profit": 1.0}) is None


@pytest.mark.parametrize("name", METRICS)
def test_every_name_finds_itself(name: str):
    assert find_metric(name) is METRICS[name]


GENERIC = ("loss", "train_loss")


def tables_of_metrics(source: str) -> list[int]:
    """Return the lines where a literal, or a comparison with one, lists metrics by name."""
    found: list[int] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            # A dict of what was just measured is no table: its values are computed.
            fixed = all(not isinstance(v, ast.Call | ast.BinOp | ast.Name) for v in node.values)
            listed = node.keys if fixed else []
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            listed = node.elts
        elif isinstance(node, ast.Compare):
            listed = [node.left, *node.comparators] * 2
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            listed = [ast.Constant(word) for word in words] if len(words) > 3 else []
            if not all(word.isidentifier() for word in words):
                listed = []
        else:
            continue
        names = [one.value for one in listed if isinstance(one, ast.Constant)]
        if sum(name in METRICS and name not in GENERIC for name in names) >= 2:
            found.append(node.lineno)
    return found


def test_no_other_module_keeps_a_table_of_metrics():
    runtime = Path(kubestill.runtime.__file__).parent
    found = {
        f"{path.relative_to(runtime)}:{line}"
        for path in runtime.rglob("*.py")
        if path.relative_to(runtime) != Path("metrics/catalog.py")
        for line in tables_of_metrics(path.read_text())
    }
    assert not found, "ask kubestill.runtime.metrics.catalog instead"


@pytest.mark.parametrize(
    "source",
    [
        'SHARES = ("accuracy", "macro_f1")',
        'BEST = {"multiclass": ["log_loss", "accuracy"]}',
        'TITLES = {"rmse": "RMSE", "mae": "MAE"}',
        'LOWER = "rmse mae log_loss brier"',
        'shown = metric.name == "accuracy"',
    ],
)
def test_a_table_of_metrics_is_seen(source: str):
    assert tables_of_metrics(source)


def test_measured_values_are_no_table():
    assert not tables_of_metrics('found = {"rmse": sqrt(a), "mae": b / n, "r2": 1 - c}')
