"""From evidence to one word."""

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from scipy import stats

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.evaluation.comparison import agreement, agreement_matrix, mcnemar
from kubestill.runtime.evaluation.decay import find_decay
from kubestill.runtime.evaluation.decision import Rules, judge_alone, judge_challenger
from kubestill.runtime.evaluation.examine import unlearned
from kubestill.runtime.evaluation.inputs import EvaluationInputs, Lineage
from kubestill.runtime.evaluation.record import GoldenMark, Mark
from kubestill.runtime.evaluation.settings import EvaluationSettings
from kubestill.runtime.evaluation.thresholds import parse_thresholds
from kubestill.runtime.metrics.catalog import BIAS, METRICS, point
from kubestill.runtime.metrics.intervals import measure
from kubestill.runtime.metrics.outcome import Outcome
from kubestill.runtime.retraining import Claim, Registry, State, Window

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


def rare(rows: int, positives: int, **sure: float) -> dict[str, Outcome]:
    """Models of a rare event, more or less sure of it."""
    random = np.random.default_rng(4)
    targets = np.arange(rows) < positives
    noise = random.normal(size=rows) + np.where(targets, 3, 0) - 5
    return {
        name: Outcome.from_logits("binary", (noise + by)[:, None], targets.astype(int))
        for name, by in sure.items()
    }


def test_too_few_events_decide_nothing_and_the_missing_number_is_named():
    found = judge(rare(400, 6, challenger=0.0, champion=2.0))
    assert found.verdict == "insufficient"
    assert "6 rows outside of the most frequent class" in found.reason
    assert "4 more" in found.reason
    assert judge(rare(4000, 60, challenger=0.0, champion=2.0)).verdict == "promote"


def test_a_limit_missed_on_too_few_events_is_no_verdict():
    scores = measure(rare(400, 6, model=0.0))
    limit = Rules(thresholds=parse_thresholds({"auc": {"min": 0.9999}}, "binary"), min_rows=100)
    assert scores.points["model"]["auc"] < 0.9999
    found = judge_alone(scores, "model", limit)
    assert found.verdict == "insufficient"
    assert "4 more" in found.reason


def test_scores_that_differ_by_rounding_are_equal():
    models = outcomes(200, challenger=1.0, champion=1.0)
    models["challenger"].predictions[:] += 1e-15
    gain = measure(models).improvement("challenger", "champion", LOG_LOSS)
    assert gain.value == 0
    assert "e-" not in judge(models).reason.split("(")[0]


def test_a_challenger_without_skill_is_rejected_however_bad_the_champion_is():
    scores = measure(outcomes(2000, challenger=1.0, champion=-1.0))
    told = {
        guessing: judge_challenger(
            scores, "challenger", "champion", rules(), metric=LOG_LOSS, guessing=guessing
        )
        for guessing in (False, True)
    }
    assert (told[False].verdict, told[True].verdict) == ("promote", "reject")
    assert "same answer" in told[True].reason


def test_more_confidence_takes_more_evidence():
    random = np.random.default_rng(2)
    targets = random.integers(0, 4, 400)
    models = {
        name: Outcome.from_logits(
            "multiclass", random.normal(size=(400, 4)) + strength * np.eye(4)[targets], targets
        )
        for name, strength in {"challenger": 1.3, "champion": 1.0}.items()
    }
    told = {
        confidence: judge_challenger(
            measure(models), "challenger", "champion", rules(confidence=confidence), metric=LOG_LOSS
        ).verdict
        for confidence in (0.8, 0.9999)
    }
    assert told == {0.8: "promote", 0.9999: "insufficient"}


def mark(value: float, error: float, skew: float = 0.0) -> Mark:
    return Mark(value=value, error=error, rows=1000, skew=skew, groups=1000)


def decay_of(metric, before: Mark, now: Mark, classes: int = 2) -> float:
    (found,) = find_decay(
        {(metric.name, "all rows"): (before, now)},
        {metric.name: metric},
        alpha=0.05,
        tolerance=0.0,
        max_bias=0.0,
        classes=classes,
    )
    return found.p_value


def test_the_noise_of_both_windows_counts_and_so_does_its_skewness():
    plain = decay_of(LOG_LOSS, mark(1.0, 0.03), mark(1.1, 0.04))
    assert plain == pytest.approx(stats.t.sf(2, 999), rel=1e-6)
    # A loss that few events made is low, and its own error too small: worse than it looks for a
    # record, better for what is held against it.
    assert decay_of(LOG_LOSS, mark(1.0, 0.03, skew=0.5), mark(1.1, 0.04)) > plain
    assert decay_of(LOG_LOSS, mark(1.0, 0.03), mark(1.1, 0.04, skew=0.5)) < plain


def test_a_bias_may_point_either_way_and_be_of_any_class():
    one = stats.t.sf(2, 999)
    before, now = mark(0.0, 0.03), mark(0.1, 0.04)
    assert decay_of(BIAS, before, now) == pytest.approx(2 * one, rel=1e-6)
    assert decay_of(BIAS, before, now, classes=5) == pytest.approx(5 * one, rel=1e-6)


def inputs_of(**lineage) -> EvaluationInputs:
    return EvaluationInputs(
        settings=EvaluationSettings(),
        candidates={},
        dataset=cast("Dataset", None),
        lineage=Lineage(
            registry=cast("Registry", None), run_id="r", champion=None, record=None, **lineage
        ),
    )


def test_a_window_of_a_schedule_spends_its_part_of_the_year():
    spent = {years: inputs_of(years=years).alpha for years in (None, 1.0, 1 / 12, 1 / 52)}
    assert spent == pytest.approx({None: 0.05, 1.0: 0.05, 1 / 12: 0.2 / 12, 1 / 52: 0.2 / 52})


ROWS = ("2013-01", "promoted", 1000), ("2013-02", "healthy", 60), ("2013-03", "unfit", 500)


@pytest.mark.parametrize(
    ("windows", "held", "most", "told"),
    [
        (ROWS[:1], 90, 0.1, ""),
        (
            ROWS[:1],
            100,
            0.1,
            "100 rows arrived since a challenger was last tried, 10% of the 1,000",
        ),
        (ROWS, 40, 0.1, "100 rows arrived"),
        ((*ROWS, ("2013-04", "rejected", 40)), 100, 0.1, ""),
        ((*ROWS, ("2013-04", "rejected", 40)), 110, 0.1, "10% of the 1,100 before them"),
        (ROWS, 5000, 0.0, ""),
    ],
)
def test_rows_that_wait_to_be_learned_from_ask_for_a_challenger(windows, held, most, told):
    def window(day: str, verdict: str, rows: int) -> Window:
        times = dict.fromkeys(("first", "last", "end"), f"{day}-01T00:00:00Z")
        given = {"run_id": "r", "rows": rows, "judge_rows": 1, "manifest": "", "holdout": ""}
        return Window.model_validate({"id": day, "verdict": verdict, **times, **given})

    claim = Claim(run_id="r", at=0, lease_seconds=1, window=window("2013-05", "", held))
    state = State(windows=tuple(window(*one) for one in windows), claim=claim)
    asked = replace(
        inputs_of(state=state), settings=EvaluationSettings.model_validate({"max_unlearned": most})
    )
    said = unlearned(asked)
    assert told in said
    assert bool(said) == bool(told)


def test_a_champion_without_decay_is_degraded_by_rows_that_wait_and_the_cause_says_so():
    scores = measure(outcomes(2000, champion=1.0))
    rules = Rules(min_rows=100)
    found = judge_alone(scores, "champion", rules, unlearned="100 rows wait.")
    assert (found.verdict, found.cause) == ("degraded", "rows")
    assert judge_alone(scores, "champion", rules).verdict == "healthy"


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


@pytest.mark.parametrize(
    ("weight", "golden", "expected"),
    [
        (None, 0.9, "reject"),
        (1.0, 0.9, "promote"),
        (1.0, 0.2, "reject"),
        (0.1, 0.2, "promote"),
    ],
    ids=["the user's own", "little is forgotten", "much is forgotten", "long ago"],
)
def test_what_is_forgotten_is_weighed_against_the_gain_and_its_age(weight, golden, expected):
    """The gain on the fresh rows is 0.24 nats."""
    found = judge_challenger(
        measure(outcomes(2000, challenger=1.5, champion=1.0)),
        "challenger",
        "champion",
        rules(max_forgetting=0.02, golden_weight=weight),
        metric=LOG_LOSS,
        golden=measure(outcomes(2000, seed=9, challenger=golden, champion=1.0)),
    )
    assert found.verdict == expected
    assert "Forgets: on the golden set" in found.reason
    assert found.cause == ("golden" if expected == "reject" else None)
    assert ("counts less than the gain" in found.reason) == (expected == "promote")


@pytest.mark.parametrize(
    ("age", "weight"), [(None, None), (0.0, 1.0), (180.0, 0.5), (360.0, 0.25), (-5.0, 1.0)]
)
def test_golden_rows_count_half_after_their_half_life(age, weight):
    inputs = inputs_of(golden_age=age)
    assert inputs.golden_weight == (weight if weight is None else pytest.approx(weight))


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
