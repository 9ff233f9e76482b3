"""Weights of rows: scikit-learn's `sample_weight`, and a weight of 2 is the row twice."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics as reference

from kubestill.runtime.metrics.catalog import METRICS, Metric, point
from kubestill.runtime.metrics.formulas import Reliability
from kubestill.runtime.metrics.intervals import by_group, measure
from kubestill.runtime.metrics.outcome import Outcome

ROWS = 400
SCORED = {name: one for name, one in METRICS.items() if one.statistics or one.exact}
BINARY_ONLY = {"auc", "brier"}
REGRESSION = {"rmse", "mae", "r2", "max_error", "mean_error"}


def outcome(metric: str, *, seed: int = 0, weights=None) -> Outcome:
    """An outcome of the task that the metric is of."""
    random = np.random.default_rng(seed)
    if metric in REGRESSION:
        targets = random.normal(size=(ROWS, 2)) + 100.0
        noise = 0.3 * np.random.default_rng(seed + 1).normal(size=targets.shape)
        return Outcome.from_logits("regression", targets + noise, targets, weights)
    classes = 2 if metric in BINARY_ONLY or metric == "ece" else 4
    targets = np.random.default_rng(5).integers(0, classes, ROWS)
    logits = random.normal(size=(ROWS, classes)) + np.eye(classes)[targets]
    return Outcome.from_logits("binary" if classes == 2 else "multiclass", logits, targets, weights)


def repeated(found: Outcome, counts: np.ndarray) -> tuple[Outcome, np.ndarray]:
    """Return every row as often as it counts, and which row each is."""
    origin = np.repeat(np.arange(ROWS), counts)
    return found.take(origin), origin


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(3).integers(1, 5, ROWS)


BY_SCIKIT_LEARN = {
    "accuracy": lambda y, p, w: reference.accuracy_score(y, p.argmax(1), sample_weight=w),
    "error_rate": lambda y, p, w: reference.zero_one_loss(y, p.argmax(1), sample_weight=w),
    "log_loss": lambda y, p, w: reference.log_loss(y, p, sample_weight=w),
    "macro_f1": lambda y, p, w: reference.f1_score(
        y, p.argmax(1), average="macro", sample_weight=w
    ),
    "auc": lambda y, p, w: reference.roc_auc_score(y, p[:, 1], sample_weight=w),
    "brier": lambda y, p, w: reference.brier_score_loss(y, p[:, 1], sample_weight=w),
    "rmse": lambda y, p, w: reference.mean_squared_error(y, p, sample_weight=w) ** 0.5,
    "mae": lambda y, p, w: reference.mean_absolute_error(y, p, sample_weight=w),
    "mean_error": lambda y, p, w: reference.mean_absolute_error(y, p, sample_weight=w),
    "r2": lambda y, p, w: reference.r2_score(
        y, p, sample_weight=w, multioutput="variance_weighted"
    ),
}


def test_scikit_learn_has_all_metrics_but_two():
    assert set(SCORED) - set(BY_SCIKIT_LEARN) == {"ece", "max_error"}


@pytest.mark.parametrize("name", BY_SCIKIT_LEARN)
def test_weighted_scores_agree_with_scikit_learn(name):
    weights = np.random.default_rng(4).exponential(size=ROWS)
    found = outcome(name, weights=weights)
    answers = found.predictions if name in REGRESSION else softmax(found.predictions, axis=1)
    expected = BY_SCIKIT_LEARN[name](found.targets, answers, weights)
    assert point(METRICS[name], found) == pytest.approx(expected, rel=1e-9)
    assert expected != pytest.approx(point(METRICS[name], outcome(name)), rel=1e-4)


def test_ties_in_a_weighted_auc_agree_with_scikit_learn():
    random = np.random.default_rng(0)
    targets, logits = random.integers(0, 2, ROWS), np.round(random.normal(size=(ROWS, 1)))
    weights = random.exponential(size=ROWS)
    found = point(METRICS["auc"], Outcome.from_logits("binary", logits, targets, weights))
    chances = expit(logits[:, 0])
    expected = reference.roc_auc_score(targets, chances, sample_weight=weights)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", SCORED)
def test_a_weight_of_two_is_the_row_twice(name, counts):
    weighted = outcome(name, weights=counts.astype(float))
    more, origin = repeated(outcome(name), counts)
    if name == "ece":
        # Unbiased over pairs of different rows: a copy of a row is no other one.
        expected = Reliability.of(more, origin).square ** 0.5
    else:
        expected = point(METRICS[name], more)
    assert point(METRICS[name], weighted) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", [n for n, one in SCORED.items() if one.has_error])
def test_a_row_moves_a_score_as_much_as_its_copies_together(name, counts):
    metric: Metric = METRICS[name]
    more, origin = repeated(outcome(name), counts)
    together = by_group(metric.influences(more), origin)
    alone = metric.influences(outcome(name, weights=counts.astype(float)))
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-9 * np.abs(together).max())


@pytest.mark.parametrize("name", [n for n, one in SCORED.items() if one.decides])
def test_intervals_are_those_of_the_copies_as_one_entity(name, counts):
    weights = counts.astype(float)
    pair = {key: outcome(name, seed=seed, weights=weights) for key, seed in (("a", 0), ("b", 7))}
    if name in REGRESSION:
        pair["b"] = Outcome.from_logits(
            "regression", outcome(name, seed=7).predictions, pair["a"].targets, weights
        )
    copies = {
        key: repeated(Outcome.from_logits(one.task, one.predictions, one.targets), counts)[0]
        for key, one in pair.items()
    }
    origin = np.repeat(np.arange(ROWS), counts)
    mine, theirs = measure(pair), measure(copies, groups=origin)
    points = {key: {name: point(METRICS[name], one)} for key, one in pair.items()}
    for found in (mine, theirs):
        object.__setattr__(found, "points", points)
    for of in (
        lambda m: m.interval("a", name),
        lambda m: m.improvement("a", "b", METRICS[name]),
    ):
        wanted, got = of(theirs), of(mine)
        assert wanted.known
        assert [got.low, got.high] == pytest.approx([wanted.low, wanted.high], rel=2e-3)


def test_weights_of_any_scale_say_the_same():
    for name, metric in SCORED.items():
        small, large = (outcome(name, weights=np.linspace(1, 2, ROWS) * s) for s in (1e-3, 1e3))
        assert point(metric, small) == pytest.approx(point(metric, large), rel=1e-9)
        if metric.range is not None:
            bounds = [metric.range(one, None, 0.95) for one in (small, large)]
            assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)
