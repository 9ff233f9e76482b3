"""What is expected of a champion while labels are late, held against labels that came after all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import differentiate, optimize, special
from sklearn.linear_model import LogisticRegression

from kubestill.runtime.evaluation.expected import calibrate, describe, expect
from kubestill.runtime.evaluation.record import Mark
from kubestill.runtime.metrics.intervals import Interval
from kubestill.runtime.metrics.outcome import Outcome


def drawn(rows: int, seed: int, *, moved: float = 0.0, turned: float = 0.0) -> Outcome:
    """Rows of a champion that is too sure of itself; `moved` inputs, or `turned` meanings."""
    random = np.random.default_rng(seed)
    margin = 1.5 * (random.normal(size=rows) + moved)
    targets = (random.random(rows) < special.expit((1 - turned) * margin)).astype(np.int64)
    return Outcome.from_logits("binary", (1.4 * margin + 0.4)[:, None], targets)


def realised(outcome: Outcome) -> dict[str, float]:
    rows = np.arange(outcome.rows)
    loss = -outcome.predictions[rows, outcome.targets].mean()
    return {
        "log_loss": float(loss),
        "accuracy": float((outcome.labels == outcome.targets).mean()),
    }


def covered(windows: int, **world: float) -> dict[str, float]:
    hits = {"log_loss": 0, "accuracy": 0}
    for seed in range(windows):
        calibration = calibrate(drawn(800, 2 * seed))
        assert calibration
        later = drawn(500, 2 * seed + 1, **world)
        told = expect(later.predictions, calibration, confidence=0.95)
        for name, value in realised(later).items():
            hits[name] += told[name].low <= value <= told[name].high
    return {name: count / windows for name, count in hits.items()}


@pytest.mark.parametrize("moved", [0.0, 1.0, -1.0])
def test_the_band_covers_where_only_the_inputs_move(moved) -> None:
    for share in covered(200, moved=moved).values():
        assert 0.91 <= share <= 0.99


def test_concept_drift_is_not_seen() -> None:
    """As the documentation says: only labels show it."""
    assert max(covered(20, turned=1.0).values()) < 0.2


def test_the_correction_is_that_of_a_logistic_regression() -> None:
    outcome = drawn(4000, 7)
    margin = outcome.predictions[:, 1] - outcome.predictions[:, 0]
    peer = LogisticRegression(C=np.inf).fit(margin[:, None], outcome.targets)
    found = calibrate(outcome)
    assert found
    assert found.slope == pytest.approx(peer.coef_[0, 0], rel=2e-3)
    assert found.offsets[1] == pytest.approx(peer.intercept_[0], abs=2e-3)
    told = found.chances(outcome.predictions)[:, 1]
    np.testing.assert_allclose(told, peer.predict_proba(margin[:, None])[:, 1], atol=1e-3)


def test_several_classes_are_corrected_one_by_one() -> None:
    """Against the maximum likelihood that scipy finds, and the second derivatives there."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(3000, 4)) * 1.5
    chances = special.softmax(0.7 * logits + [0.0, 0.5, -0.5, 1.0], axis=1)
    targets = (random.random(3000)[:, None] > chances.cumsum(1)).sum(1)
    outcome = Outcome.from_logits("multiclass", logits, targets)

    def loss(theta: np.ndarray) -> np.ndarray:
        """Of parameters [4, ...], as scipy's differences ask for."""
        margin = theta[0, ..., None, None] * outcome.predictions
        margin[..., 1:] += np.moveaxis(theta[1:], 0, -1)[..., None, :]
        return -special.log_softmax(margin, axis=-1)[..., np.arange(3000), targets].sum(-1)

    peer = optimize.minimize(loss, [1.0, 0, 0, 0], method="BFGS")
    found = calibrate(outcome)
    assert found
    np.testing.assert_allclose([found.slope, *found.offsets[1:]], peer.x, atol=3e-3)
    second = differentiate.hessian(loss, peer.x, initial_step=0.01, maxiter=3)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(second.ddf), rtol=1e-2)


def test_rows_of_an_entity_widen_the_band() -> None:
    single = drawn(400, 3)
    every = np.repeat(np.arange(400), 4)
    found = calibrate(single.take(every), every)
    alone = calibrate(single)
    assert found
    assert alone
    assert found.inflation == pytest.approx(4.0)
    later = drawn(300, 4).predictions
    bands = [expect(later, one, confidence=0.95)["log_loss"] for one in (found, alone)]
    widths = [band.high - band.low for band in bands]
    assert widths[0] > 1.5 * widths[1]


def test_nothing_is_expected_of_a_regression_or_of_too_few_events() -> None:
    values = np.zeros((50, 1))
    assert calibrate(Outcome.from_logits("regression", values, values)) is None
    few = Outcome.from_logits("binary", np.zeros((500, 1)), np.arange(500) < 9)
    assert calibrate(few) is None


@pytest.mark.parametrize(("loss", "evident"), [(0.505, False), (0.52, False), (0.7, True)])
def test_worse_takes_evidence_beyond_noise_and_tolerance(loss, evident) -> None:
    before = {"log_loss": Mark(value=0.5, error=0.01, rows=2000)}
    scores = {"log_loss": Interval(loss, loss - 0.02, loss + 0.02)}
    told = describe(300, scores, before, confidence=0.95, tolerance=0.01)
    assert bool(told.worse) == evident
    assert "300 rows whose labels are late" in told.sentence
    assert "it was 0.5" in told.sentence
