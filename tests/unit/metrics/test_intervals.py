"""Do the intervals cover what they claim, and does pairing help?"""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.metrics.catalog import METRICS, point
from kubestill.runtime.metrics.intervals import GROUPS, bootstrap, paired_error
from kubestill.runtime.metrics.outcome import Outcome


def classifier(random, targets, strength, noise=None):
    noise = random.normal(size=(len(targets), 4)) if noise is None else noise
    return Outcome.from_logits("multiclass", noise + strength * np.eye(4)[targets], targets)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


def test_equal_seeds_give_equal_intervals(random):
    outcome = classifier(random, random.integers(0, 4, 200), 1.0)
    first, second = (bootstrap({"a": outcome}, resamples=300, seed=5) for _ in range(2))
    assert first.interval("a", "log_loss") == second.interval("a", "log_loss")
    other = bootstrap({"a": outcome}, resamples=300, seed=6)
    assert first.interval("a", "log_loss") != other.interval("a", "log_loss")


@pytest.mark.parametrize("rows", [300, 2 * GROUPS + 17], ids=["by row", "by group"])
def test_the_width_agrees_with_scipy(random, rows):
    error = random.gamma(2.0, size=(rows, 1))
    outcome = Outcome.from_logits("regression", error, np.zeros_like(error))
    found = bootstrap({"a": outcome}, resamples=1000).interval("a", "mae")
    expected = scipy_bootstrap((error[:, 0],), np.mean, method="percentile", n_resamples=1000)
    low, high = expected.confidence_interval
    assert found.high - found.low == pytest.approx(high - low, rel=0.12)
    assert found.low < error.mean() < found.high


def test_a_95_percent_interval_of_the_log_loss_covers_the_truth(random):
    truth = classifier(random, random.integers(0, 4, 50_000), 1.0)
    expected = bootstrap({"a": truth}, resamples=100).points["a"]["log_loss"]
    covered = 0
    for _ in range(100):
        rows = random.choice(truth.rows, 150, replace=False)
        mask = np.zeros(truth.rows, dtype=bool)
        mask[rows] = True
        found = bootstrap({"a": truth.take(mask)}, resamples=200).interval("a", "log_loss")
        covered += found.low <= expected <= found.high
    assert covered >= 87


def test_pairing_sees_a_difference_that_the_single_intervals_hide(random):
    targets = random.integers(0, 4, 400)
    noise = random.normal(size=(400, 4))
    better, worse = (classifier(random, targets, s, noise) for s in (1.1, 1.0))
    scores = bootstrap({"better": better, "worse": worse})
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


def resampled_error(outcomes: dict[str, Outcome], metric: str) -> float:
    """As a selection measures it: each model resampled on its own, by the same seed."""
    samples = [
        bootstrap({"": o}, only=[metric], resamples=800).samples[""] for o in outcomes.values()
    ]
    assert all(set(one) == {metric} for one in samples)
    return paired_error(samples[0][metric], samples[1][metric])


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
    found = [resampled_error(drawn(random, task, rows), metric) for _ in range(20)]
    assert np.mean(found) == pytest.approx(np.std(differences, ddof=1), rel=0.1)


@pytest.mark.parametrize("metric", ["log_loss", "accuracy", "brier"])
def test_the_paired_error_of_a_mean_is_that_of_the_differences_by_row(random, metric):
    outcomes = drawn(random, "binary", 500)
    statistics = METRICS[metric].statistics
    assert statistics
    columns = [statistics(o)(np.arange(500))[:, 0] for o in outcomes.values()]
    gaps = columns[0] - columns[1]
    expected = gaps.std(ddof=1) / np.sqrt(500)
    assert resampled_error(outcomes, metric) == pytest.approx(expected, rel=0.1)
    # Errors of unpaired scores would say several times as much.
    apart = [column.std(ddof=1) / np.sqrt(500) for column in columns]
    assert np.hypot(*apart) > 1.5 * expected


def test_a_perfect_accuracy_still_has_a_width():
    targets = np.arange(40) % 4
    outcome = Outcome.from_logits("multiclass", 20 * np.eye(4)[targets], targets)
    found = bootstrap({"a": outcome}, resamples=100).interval("a", "accuracy")
    assert found.value == found.high == 1
    assert 0.9 < found.low < 0.95


def test_the_recovered_gap(random):
    targets = random.integers(0, 4, 3000)
    noise = random.normal(size=(3000, 4))
    models = {
        name: classifier(random, targets, strength, noise)
        for name, strength in (("teacher", 3.0), ("student", 2.0), ("control", 1.0))
    }
    scores = bootstrap(models)
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
    scores = bootstrap(models)
    metric = METRICS["accuracy"]
    gap = scores.recovered_gap("student", "control", "teacher", metric)
    assert not gap.known


def test_a_maximum_has_no_interval(random):
    values = random.normal(size=(100, 1))
    outcome = Outcome.from_logits("regression", values, np.zeros_like(values))
    found = bootstrap({"a": outcome}, resamples=100).interval("a", "max_error")
    assert np.isfinite(found.value)
    assert not found.known
