"""From evidence to one word."""

import numpy as np
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.evaluation.comparison import agreement, agreement_matrix, mcnemar
from kubestill.runtime.evaluation.decision import Rules, judge_alone, judge_challenger
from kubestill.runtime.evaluation.record import GoldenMark
from kubestill.runtime.evaluation.thresholds import parse_thresholds
from kubestill.runtime.metrics.catalog import METRICS, point
from kubestill.runtime.metrics.intervals import measure
from kubestill.runtime.metrics.outcome import Outcome

LOG_LOSS = METRICS["log_loss"]


def outcomes(rows: int, seed: int = 0, **strengths: float) -> dict[str, Outcome]:
    """Classifiers whose skill grows with their strength, on the same rows."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 4, rows)
    noise = random.normal(size=(rows, 4))
    return {
        name: Outcome.from_logits("multiclass", noise + strength * np.eye(4)[targets], targets)
        for name, strength in strengths.items()
    }


def rules(thresholds=None, **others) -> Rules:
    return Rules(
        thresholds=parse_thresholds(thresholds or {}, "multiclass"), **{"min_rows": 100, **others}
    )


def judge(models, thresholds=None, golden=None, min_rows=100, min_improvement=0.01, best=None):
    return judge_challenger(
        measure(models),
        "challenger",
        "champion",
        rules(thresholds, min_rows=min_rows, min_improvement=min_improvement),
        metric=LOG_LOSS,
        golden=measure(golden) if golden else None,
        best=best,
    )


@pytest.mark.parametrize(
    ("rows", "challenger", "expected", "words"),
    [
        (2000, 1.5, "promote", "better than the champion's"),
        (2000, 0.7, "reject", "ruled out"),
        (2000, 1.0, "reject", "ruled out"),
        (40, 1.5, "insufficient", "40 rows"),
    ],
    ids=["better", "worse", "the same", "too few rows"],
)
def test_challenger_against_champion(rows, challenger, expected, words):
    found = judge(outcomes(rows, challenger=challenger, champion=1.0))
    assert found.verdict == expected
    assert words in found.reason


def test_rows_that_decide_nothing_are_insufficient():
    random = np.random.default_rng(1)
    targets = random.integers(0, 4, 150)
    models = {
        name: Outcome.from_logits(
            "multiclass", random.normal(size=(150, 4)) + np.eye(4)[targets], targets
        )
        for name in ("challenger", "champion")
    }
    found = judge(models)
    assert found.verdict == "insufficient"
    assert "cannot tell" in found.reason


def test_a_better_challenger_that_breaks_a_limit_is_rejected():
    found = judge(
        outcomes(2000, challenger=1.5, champion=1.0), thresholds={"accuracy": {"min": 0.99}}
    )
    assert found.verdict == "reject"
    assert "Broken: accuracy" in found.reason


def test_a_challenger_that_forgets_the_golden_set_is_rejected():
    fresh = outcomes(2000, challenger=1.5, champion=1.0)
    golden = outcomes(500, seed=9, challenger=0.6, champion=1.0)
    found = judge(fresh, golden=golden)
    assert found.verdict == "reject"
    assert "golden" in found.reason


@pytest.mark.parametrize(("lead", "expected"), [(0.3, "reject"), (0.005, "promote")])
def test_where_the_champion_has_nan_on_the_golden_set_its_best_mark_is_what_counts(lead, expected):
    """Lower log loss by `lead` than the challenger's: by far, or within noise."""
    golden = outcomes(500, seed=9, challenger=1.0, champion=1.0)
    reached = point(LOG_LOSS, golden["challenger"]) - lead
    golden["champion"].predictions[0] = np.nan
    fresh = outcomes(2000, challenger=1.5, champion=1.0)
    best = GoldenMark(fingerprint="f", value=reached, best=reached)
    found = judge(fresh, golden=golden, best=best)
    assert found.verdict == expected
    assert ("worse than the best it has been" in found.reason) == (expected == "reject")


def test_a_challenger_with_nan_is_broken_even_on_few_rows():
    models = outcomes(50, challenger=1.5, champion=1.0)
    models["challenger"].predictions[7] = np.nan
    found = judge(models)
    assert found.verdict == "broken"
    assert "1 of 50 rows" in found.reason


def test_a_challenger_with_nan_on_the_golden_set_is_broken():
    golden = outcomes(500, seed=9, challenger=1.0, champion=1.0)
    golden["challenger"].predictions[0] = np.inf
    found = judge(outcomes(2000, challenger=1.5, champion=1.0), golden=golden)
    assert found.verdict == "broken"
    assert "golden set" in found.reason


@pytest.mark.parametrize(
    ("lost", "challenger", "limits", "expected"),
    [
        (2000, 1.0, {}, "promote"),
        (1, 1.0, {}, "promote"),
        (1, 0.5, {}, "reject"),
        (2000, 0.5, {}, "promote"),
        (2000, 1.0, {"accuracy": {"min": 0.99}}, "reject"),
    ],
    ids=["all", "one", "worse on the others", "all, and weak", "limits hold all the same"],
)
def test_a_champion_that_gives_nan_is_replaced_unless_the_challenger_is_worse(
    lost, challenger, limits, expected
):
    models = outcomes(2000, challenger=challenger, champion=1.0)
    models["champion"].predictions[:lost] = np.nan
    found = judge(models, thresholds=limits)
    assert found.verdict == expected
    if limits:
        return
    assert f"The champion gives NaN or infinity on {lost:,} of 2,000 rows" in found.reason


@pytest.mark.parametrize(
    ("limit", "rows", "expected"),
    [
        ({"accuracy": {"min": 0.3}}, 1000, "healthy"),
        ({"accuracy": {"min": 0.99}}, 1000, "degraded"),
        ({"log_loss": {"max": 0.01}}, 1000, "degraded"),
        ({"accuracy": {"min": 0.3}}, 20, "insufficient"),
        ({}, 1000, "healthy"),
    ],
    ids=["kept", "accuracy broken", "log loss broken", "few rows", "no limits"],
)
def test_a_model_alone(limit, rows, expected):
    scores = measure(outcomes(rows, model=1.0))
    found = judge_alone(scores, "model", rules(limit))
    assert found.verdict == expected
    assert found.reason


def test_a_limit_missed_within_noise_is_no_verdict():
    scores = measure(outcomes(300, model=1.0))
    limit = {"accuracy": {"min": scores.points["model"]["accuracy"] + 0.005}}
    found = judge_alone(scores, "model", rules(limit))
    assert found.verdict == "insufficient"


def test_false_alarms_stay_at_the_stated_rate():
    """A limit exactly at the true accuracy is called broken in at most 2.5% of windows."""
    whole = outcomes(20_000, model=1.0)["model"]
    true = float((whole.labels == whole.targets).mean())
    limit = rules({"accuracy": {"min": true}})
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(150):
        mask = np.zeros(whole.rows, dtype=bool)
        mask[random.choice(whole.rows, 200, replace=False)] = True
        scores = measure({"model": whole.take(mask)})
        alarms += judge_alone(scores, "model", limit).verdict == "degraded"
    assert alarms <= 8


def test_thresholds_list_every_problem_with_nearest_names():
    with pytest.raises(InvalidInput) as caught:
        parse_thresholds(
            {
                "acuracy": {"min": 0.9},
                "log_loss": {"maximum": 0.2},
                "macro_f1": {"min": 0.9, "max": 0.5},
                "accuracy": {"min": 1.5},
                "ece": {"max": "low"},
            },
            "multiclass",
        )
    told = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "did you mean 'accuracy'?" in told
    assert "did you mean 'max'?" in told
    assert "contradiction" in told
    assert "no model can meet this" in told
    assert "give a finite number" in told


@pytest.mark.parametrize("bounds", [0.9, {}, None, [0.9]], ids=repr)
def test_a_threshold_without_bounds_is_refused(bounds):
    with pytest.raises(InvalidInput, match="min"):
        parse_thresholds({"accuracy": bounds}, "multiclass")


def test_agreement_and_its_matrix():
    first = Outcome.from_logits("multiclass", np.eye(3)[[0, 1, 2, 2]], [0, 1, 2, 0])
    second = Outcome.from_logits("multiclass", np.eye(3)[[0, 2, 2, 2]], [0, 1, 2, 0])
    assert agreement(first, second) == 0.75
    assert agreement_matrix(first, second).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 2]]


def test_mcnemar_counts_only_the_discordant_rows():
    right, wrong = np.eye(2)[[1] * 20], np.eye(2)[[1] * 10 + [0] * 10]
    targets = [1] * 20
    found = mcnemar(
        Outcome.from_logits("multiclass", right, targets),
        Outcome.from_logits("multiclass", wrong, targets),
    )
    assert (found.only_first, found.only_second) == (10, 0)
    assert found.p_value == pytest.approx(2 * 0.5**10)
