"""Do the intervals agree with other ways to find them, and does pairing help?

`tests/unit/metrics/test_truth.py` holds what they cover.
"""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.metrics.catalog import METRICS, point
from kubestill.runtime.metrics.intervals import EVENTS, Spread, influences, measure, paired_error
from kubestill.runtime.metrics.outcome import Outcome


def classifier(random, targets, strength, noise=None):
    noise = random.normal(size=(len(targets), 4)) if noise is None else noise
    return Outcome.from_logits("multiclass", noise + strength * np.eye(4)[targets], targets)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


SCIPYS = {
    "log_loss": lambda loss: loss.mean(),
    "rmse": lambda error: np.sqrt(np.square(error).mean()),
    "mae": lambda error: np.abs(error).mean(),
}


@pytest.mark.parametrize("metric", SCIPYS)
def test_intervals_agree_with_scipys_bootstrap(random, metric):
    """BCa intervals of a skewed score: both ends, not only the width."""
    if metric == "log_loss":
        outcome = classifier(random, random.integers(0, 4, 400), 1.0)
        values = -outcome.predictions[np.arange(400), outcome.targets]
    else:
        values = random.gamma(2.0, size=400)
        outcome = Outcome.from_logits("regression", values, np.zeros(400))
    found = measure({"a": outcome}).interval("a", metric)
    drawn = scipy_bootstrap(
        (values,), SCIPYS[metric], vectorized=False, n_resamples=1500, method="BCa", rng=1
    )
    expected = drawn.confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.1 * width)
    assert found.high == pytest.approx(expected.high, abs=0.1 * width)


TASK_OF: dict[str, Task] = {
    "auc": "binary",
    "brier": "binary",
    "accuracy": "binary",
    "log_loss": "multiclass",
    "macro_f1": "multiclass",
    "rmse": "regression",
    "r2": "regression",
}


@pytest.mark.parametrize("metric", TASK_OF)
def test_influences_are_what_leaving_a_row_out_shows(random, metric):
    """The jackknife: (N - 1) times what the score loses without a row."""
    rows, task = 400, TASK_OF[metric]
    if task == "multiclass":
        outcome = classifier(random, random.integers(0, 4, rows), 1.0)
    else:
        outcome = drawn(random, task, rows)["a"]
    whole, without = point(METRICS[metric], outcome), np.empty(rows)
    for row in range(rows):
        without[row] = point(METRICS[metric], outcome.take(np.arange(rows) != row))
    jackknife = (rows - 1) * (whole - without)
    assert influences(outcome, METRICS[metric]) == pytest.approx(jackknife, rel=0.05, abs=0.02)


def test_rows_of_a_group_are_counted_once(random):
    """A window that comes twice says no more than it did once."""
    outcomes = drawn(random, "binary", 300)
    twice = {name: one.take(np.tile(np.arange(300), 2)) for name, one in outcomes.items()}
    once, grouped = measure(outcomes), measure(twice, groups=np.tile(np.arange(300), 2))
    for metric in METRICS.values():
        if metric.name not in once.points["a"] or metric.range:
            continue
        for one, two in (
            (once.interval("a", metric.name), grouped.interval("a", metric.name)),
            (once.improvement("a", "b", metric), grouped.improvement("a", "b", metric)),
        ):
            assert (two.low, two.high) == pytest.approx((one.low, one.high), rel=0.02, nan_ok=True)


def test_too_few_events_have_no_interval_but_are_counted(random):
    targets = np.zeros(500, dtype=int)
    targets[:7] = 1
    margin = random.normal(size=(500, 1)) + 2 * targets[:, None] - 4
    scores = measure({"a": Outcome.from_logits("binary", margin, targets)})
    for metric in ("log_loss", "auc", "brier", "ece"):
        assert not scores.interval("a", metric).known
        told = scores.missing("a", METRICS[metric])
        assert f"7 rows outside of the most frequent class, and at least {EVENTS}" in told
        assert "3 more" in told
    assert scores.interval("a", "accuracy").known


def test_a_difference_that_two_rows_make_has_no_interval(random):
    outcome = classifier(random, random.integers(0, 4, 400), 1.0)
    other = outcome.take(np.arange(400))
    other.predictions[:2] = np.log(0.25)
    scores = measure({"a": outcome, "b": other})
    assert not scores.improvement("a", "b", METRICS["log_loss"]).known
    assert "rests on about" in scores.missing("a", METRICS["log_loss"], "b")
    assert scores.improvement("a", "a", METRICS["log_loss"]).high == 0


def test_models_that_err_alike_may_differ_on_other_rows(random):
    outcome = classifier(random, random.integers(0, 4, 200), 1.0)
    found = measure({"a": outcome, "b": outcome}).improvement("a", "b", METRICS["accuracy"])
    assert found.value == 0
    assert -0.02 < found.low < -0.008
    assert found.high == pytest.approx(-found.low)


def test_the_noise_of_an_auc_is_delongs(random):
    """By the definition of DeLong et al. 1988: every pair of a positive and a negative."""
    outcome = drawn(random, "binary", 250)["a"]
    margin = outcome.predictions[:, 1] - outcome.predictions[:, 0]
    positives, negatives = margin[outcome.targets == 1], margin[outcome.targets == 0]
    won = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    variance = won.mean(1).var(ddof=1) / len(positives) + won.mean(0).var(ddof=1) / len(negatives)
    error = Spread.of(influences(outcome, METRICS["auc"])).error
    assert error == pytest.approx(np.sqrt(variance), rel=0.01)


def test_pairing_sees_a_difference_that_the_single_intervals_hide(random):
    targets = random.integers(0, 4, 400)
    noise = random.normal(size=(400, 4))
    better, worse = (classifier(random, targets, s, noise) for s in (1.1, 1.0))
    scores = measure({"better": better, "worse": worse})
    single = [scores.interval(name, "log_loss") for name in ("better", "worse")]
    gain = scores.improvement("better", "worse", METRICS["log_loss"])
    assert single[0].high > single[1].low
    assert gain.low > 0
    turned = scores.improvement("worse", "better", METRICS["log_loss"])
    assert (turned.value, turned.low, turned.high) == pytest.approx(
        (-gain.value, -gain.high, -gain.low)
    )


def drawn(random, task: Task, rows: int) -> dict[str, Outcome]:
    """Two models that err on much the same rows, on rows drawn afresh."""
    if task == "regression":
        targets = random.normal(size=(rows, 1))
        common = random.standard_t(5, size=(rows, 1))
        answers = [targets + common + s * random.normal(size=(rows, 1)) for s in (0.2, 0.4)]
        return {
            n: Outcome.from_logits(task, a, targets) for n, a in zip("ab", answers, strict=True)
        }
    targets = random.integers(0, 2, rows)
    common = random.normal(size=(rows, 1)) + 1.5 * targets[:, None] - 0.75
    logits = [common + s * random.normal(size=(rows, 1)) for s in (0.2, 0.5)]
    return {n: Outcome.from_logits(task, one, targets) for n, one in zip("ab", logits, strict=True)}


def error_of_difference(outcomes: dict[str, Outcome], metric: str) -> float:
    return paired_error(*(METRICS[metric].influences(one) for one in outcomes.values()))


@pytest.mark.parametrize(
    ("task", "metric"),
    [("binary", "log_loss"), ("binary", "brier"), ("regression", "rmse"), ("regression", "r2")],
)
def test_the_paired_error_is_how_far_the_difference_scatters_over_fresh_rows(random, task, metric):
    rows = 400
    differences: list[float] = []
    for _ in range(600):
        first, second = drawn(random, task, rows).values()
        differences.append(point(METRICS[metric], first) - point(METRICS[metric], second))
    found = [error_of_difference(drawn(random, task, rows), metric) for _ in range(20)]
    assert np.mean(found) == pytest.approx(np.std(differences, ddof=1), rel=0.1)


@pytest.mark.parametrize("metric", ["log_loss", "accuracy", "brier"])
def test_the_paired_error_of_a_mean_is_that_of_the_differences_by_row(random, metric):
    outcomes = drawn(random, "binary", 500)
    statistics = METRICS[metric].statistics
    assert statistics
    columns = [statistics(o)(np.arange(500))[:, 0] for o in outcomes.values()]
    gaps = columns[0] - columns[1]
    expected = gaps.std(ddof=1) / np.sqrt(500)
    assert error_of_difference(outcomes, metric) == pytest.approx(expected, rel=0.1)
    # Errors of unpaired scores would say several times as much.
    apart = [column.std(ddof=1) / np.sqrt(500) for column in columns]
    assert np.hypot(*apart) > 1.5 * expected


def test_a_perfect_accuracy_still_has_a_width():
    targets = np.arange(40) % 4
    outcome = Outcome.from_logits("multiclass", 20 * np.eye(4)[targets], targets)
    found = measure({"a": outcome}).interval("a", "accuracy")
    assert found.value == found.high == 1
    assert 0.9 < found.low < 0.95


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_every_score_of_a_perfect_model_has_an_interval(classes: int):
    targets = np.repeat(np.arange(classes), 30)
    outcome = Outcome.from_logits("multiclass", 20 * np.eye(classes)[targets], targets)
    scores = measure({"a": outcome})
    found = {metric: scores.interval("a", metric) for metric in scores.points["a"]}
    # The error of 3 and of 5 classes is one of rounding.
    assert found["macro_f1"].value == found["macro_f1"].high == 1
    assert 0.8 < found["macro_f1"].low < 1


def test_the_recovered_gap(random):
    targets = random.integers(0, 4, 3000)
    noise = random.normal(size=(3000, 4))
    models = {
        name: classifier(random, targets, strength, noise)
        for name, strength in (("teacher", 3.0), ("student", 2.0), ("control", 1.0))
    }
    scores = measure(models)
    metric = METRICS["log_loss"]
    gap = scores.recovered_gap("student", "control", "teacher", metric)
    losses = {name: scores.points[name]["log_loss"] for name in models}
    expected = (losses["control"] - losses["student"]) / (losses["control"] - losses["teacher"])
    assert gap.value == pytest.approx(expected)
    assert gap.low < gap.value < gap.high
    upside_down = scores.recovered_gap("student", "teacher", "control", metric)
    assert np.isnan(upside_down.value)


def test_a_lead_within_noise_has_a_gap_without_interval(random):
    targets = random.integers(0, 4, 60)
    models = {name: classifier(random, targets, 1.0) for name in ("teacher", "student", "control")}
    scores = measure(models)
    metric = METRICS["accuracy"]
    gap = scores.recovered_gap("student", "control", "teacher", metric)
    assert not gap.known


def test_a_maximum_has_no_interval(random):
    values = random.normal(size=(100, 1))
    outcome = Outcome.from_logits("regression", values, np.zeros_like(values))
    found = measure({"a": outcome}).interval("a", "max_error")
    assert np.isfinite(found.value)
    assert not found.known
