"""Every formula against scikit-learn's, and what the formulas do at the edges."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics as reference

from kubestill.runtime.evaluation.comparison import calibration_curve
from kubestill.runtime.metrics.catalog import METRICS, point, score
from kubestill.runtime.metrics.formulas import CALIBRATION_BINS, Reliability, losses
from kubestill.runtime.metrics.outcome import Outcome


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def multiclass(random, rows=400, classes=5):
    targets = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[targets]
    return targets, logits


def binary(random, rows=500):
    targets = random.integers(0, 2, rows)
    return targets, random.normal(size=(rows, 1)) + targets[:, None]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", lambda y, p: reference.accuracy_score(y, p.argmax(1))),
        ("log_loss", lambda y, p: reference.log_loss(y, p)),
        ("macro_f1", lambda y, p: reference.f1_score(y, p.argmax(1), average="macro")),
    ],
)
def test_multiclass_agrees_with_scikit_learn(random, name, expected):
    targets, logits = multiclass(random)
    found = score(Outcome.from_logits("multiclass", logits, targets))
    assert found[name] == pytest.approx(expected(targets, softmax(logits, axis=1)), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", lambda y, p: reference.accuracy_score(y, p > 0.5)),
        ("log_loss", reference.log_loss),
        ("auc", reference.roc_auc_score),
        ("brier", reference.brier_score_loss),
    ],
)
def test_binary_agrees_with_scikit_learn(random, name, expected):
    targets, logits = binary(random)
    found = score(Outcome.from_logits("binary", logits, targets))
    assert found[name] == pytest.approx(expected(targets, expit(logits[:, 0])), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rmse", lambda y, p: np.sqrt(reference.mean_squared_error(y, p))),
        ("mae", reference.mean_absolute_error),
        ("r2", lambda y, p: reference.r2_score(y, p, multioutput="variance_weighted")),
        ("max_error", lambda y, p: np.abs(y - p).max()),
    ],
)
@pytest.mark.parametrize("width", [1, 3])
def test_regression_agrees_with_scikit_learn(random, name, expected, width):
    targets = random.normal(size=(300, width)) + 1000.0
    predictions = targets + 0.3 * random.normal(size=targets.shape)
    found = score(Outcome.from_logits("regression", predictions, targets))
    assert found[name] == pytest.approx(expected(targets, predictions), rel=1e-9)


def test_what_training_follows_over_a_whole_domain_agrees_with_scikit_learn(random):
    targets, logits = multiclass(random)
    wrong = point(METRICS["error_rate"], Outcome.from_logits("multiclass", logits, targets))
    assert wrong == pytest.approx(reference.zero_one_loss(targets, logits.argmax(1)), abs=1e-12)
    values = random.normal(size=(300, 3))
    answers = values + random.normal(size=values.shape)
    off = point(METRICS["mean_error"], Outcome.from_logits("regression", answers, values))
    assert off == pytest.approx(reference.mean_absolute_error(values, answers), rel=1e-9)


def test_a_binary_logit_equals_two_class_logits(random):
    targets, logits = binary(random)
    two = np.concatenate([np.zeros_like(logits), logits], axis=1)
    one = score(Outcome.from_logits("binary", logits, targets))
    assert one == score(Outcome.from_logits("binary", two, targets))


def test_tied_scores_count_half_in_the_auc():
    outcome = Outcome.from_logits("binary", np.zeros((10, 1)), [0, 1] * 5)
    assert point(METRICS["auc"], outcome) == pytest.approx(0.5)


def test_calibration_error_is_made_of_pairs_of_rows_in_a_bin(random):
    """By its definition: the mean product of the gaps of two different rows of a bin."""
    targets, logits = multiclass(random)
    outcome = Outcome.from_logits("multiclass", 3 * logits, targets)
    confidence = outcome.probabilities.max(axis=1)
    gaps = confidence - (outcome.labels == targets)
    bins = np.digitize(confidence, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1])
    square = 0.0
    for b in np.unique(bins):
        mine = gaps[bins == b]
        pairs = np.outer(mine, mine)[~np.eye(len(mine), dtype=bool)]
        square += len(mine) / len(gaps) * (pairs.mean() if len(pairs) else 0.0)
    assert square > 0.01
    assert score(outcome)["ece"] == pytest.approx(np.sqrt(square), rel=1e-9)


def test_calibration_error_has_no_bias(random):
    """The plain one calls a calibrated model of 300 rows wrong by 0.07."""
    squares: list[float] = []
    for _ in range(300):
        logits = 1.5 * random.normal(size=(300, 1))
        targets = (random.random(300) < expit(logits[:, 0])).astype(int)
        squares.append(Reliability.of(Outcome.from_logits("binary", logits, targets)).square)
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares)) < 3 * error
    assert error < 0.1 * 0.07**2


def test_calibration_joins_thin_bins_and_keeps_every_row(random):
    targets, logits = multiclass(random)
    curve = calibration_curve(Outcome.from_logits("multiclass", logits * 4, targets), least=20)
    assert curve.rows.sum() == len(targets)
    assert curve.rows.min() >= 20
    assert (np.diff(curve.stated) > 0).all()


def test_log_loss_survives_certain_mistakes():
    outcome = Outcome.from_logits("binary", [[800.0]], [0])
    assert losses(outcome) == pytest.approx([800.0])


def test_answers_that_are_not_finite_make_every_score_nan(random):
    targets, logits = multiclass(random)
    logits[3, 2] = np.nan
    found = score(Outcome.from_logits("multiclass", logits, targets))
    assert all(np.isnan(value) for value in found.values())


def test_one_class_alone_has_no_auc():
    found = score(Outcome.from_logits("binary", [[1.0], [2.0]], [1, 1]))
    assert np.isnan(found["auc"])
    assert np.isfinite(found["log_loss"])
