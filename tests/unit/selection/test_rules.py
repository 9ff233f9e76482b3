from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubestill.errors import InvalidInput
from kubestill.runtime.selection.criterion import COMPARING, RULES, Criterion, Evidence
from kubestill.runtime.selection.rules import select
from kubestill.runtime.training.record import Curves


@dataclass(frozen=True)
class Saved:
    step: int
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    kind: str = "milestone"


def training(losses: Sequence[float], metric: str = "log_loss") -> list[Saved]:
    """One milestone every 100 steps of 32 examples."""
    return [
        Saved(100 * n, 3200 * n, {metric: loss, "accuracy": 1 - loss / 4})
        for n, loss in enumerate(losses, start=1)
    ]


def evidence(saved: Sequence[Saved] = (), **options) -> Evidence:
    points = [
        {"step": entry.step, "epoch": 0.0, "examples": entry.examples, **entry.metrics}
        for entry in saved
    ]
    curves = Curves.model_validate({"train": [], "validation": points})
    return Evidence(curves=curves, **options)


FALLING = [2.3, 1.2, 0.6, 0.35, 0.26, 0.22, 0.21, 0.205, 0.2, 0.201]
OVERFIT = [2.3, 1.2, 0.6, 0.35, 0.26, 0.22, 0.2, 0.21, 0.24, 0.28, 0.33, 0.38, 0.44, 0.5, 0.56]


def choose(losses: Sequence[float], *, own: str = "log_loss", **criterion):
    saved = training(losses)
    return select(saved, Criterion(**criterion), evidence(saved, own_metric=own))


def test_best():
    choice = choose(FALLING)
    assert choice.entry.step == 900
    assert choice.metric == "log_loss"
    assert "step 900 with log_loss 0.2 is the best of 10 milestones" in choice.reason
    assert "next is step 1,000 with log_loss 0.201" in choice.reason


def test_best_by_a_metric_that_rises():
    saved = [Saved(n, n, {"accuracy": value}) for n, value in enumerate([0.5, 0.9, 0.7])]
    assert select(saved, Criterion(), evidence(saved)).entry.step == 1


def test_mode_speaks_for_an_unknown_metric():
    saved = [Saved(n, n, {"profit": value}) for n, value in enumerate([0.5, 0.9, 0.7])]
    assert select(saved, Criterion(mode="max"), evidence(saved)).entry.step == 1
    assert select(saved, Criterion(mode="min"), evidence(saved)).entry.step == 0
    with pytest.raises(InvalidInput, match="lower or higher"):
        select(saved, Criterion(), evidence(saved))


def test_of_equals_the_cheaper_wins():
    assert choose([0.5, 0.3, 0.3, 0.3]).entry.step == 200


def test_last():
    choice = choose(FALLING, rule="last")
    assert choice.entry.step == 1000
    assert choice.metric == ""
    assert choice.front == ()


def test_step():
    choice = choose(FALLING, rule="step", step=400)
    assert choice.entry.step == 400
    assert "by number" in choice.reason


@pytest.mark.parametrize(("tolerance", "step"), [(0.02, 900), (0.06, 700), (0.35, 500), (0.9, 400)])
def test_earliest_within_a_share_of_the_best(tolerance: float, step: int):
    choice = choose(FALLING, rule="earliest-within", tolerance=tolerance)
    assert choice.entry.step == step


def test_earliest_within_says_what_it_saves():
    choice = choose(FALLING, rule="earliest-within", tolerance=0.06)
    assert "within 6% of the best (step 900 with log_loss 0.2)" in choice.reason
    assert "22,400 examples, 78% of what the best one cost" in choice.reason
    assert "(4 of 10 milestones lie within)" in choice.reason


def test_earliest_within_the_scatter_where_no_rows_are_scored_again():
    noisy = [2.3, 1.0, 0.5, 0.30, 0.21, 0.24, 0.20, 0.23, 0.19, 0.22, 0.20, 0.23]
    choice = choose(noisy, rule="earliest-within")
    assert choice.entry.step == 500
    assert "within the scatter of the curve" in choice.reason
    assert "from 12 validations" in choice.reason
    assert "standard error" not in choice.reason


def test_the_scatter_uses_pruned_milestones_too():
    saved = training(FALLING)
    criterion = Criterion(rule="earliest-within", metric="log_loss")
    assert select(saved[-2:], criterion, evidence(saved)).reason
    with pytest.raises(InvalidInput, match="insufficient.* 2 validations"):
        select(saved[-2:], criterion, evidence(saved[-2:]))


def rescored(losses: Sequence[np.ndarray]):
    """Milestones with a loss by row each."""
    saved = training([float(each.mean()) for each in losses])
    influences = {entry.step: each - each.mean() for entry, each in zip(saved, losses, strict=True)}
    return saved, evidence(saved, own_metric="log_loss", influences=influences)


def test_one_standard_error_is_that_of_the_paired_difference():
    """Hard rows are hard for all: each score alone is uncertain by far more than it differs."""
    source = np.random.default_rng(1)
    hard = source.gamma(2.0, size=300)
    losses = [hard + gap + 0.02 * source.normal(size=300) for gap in (0.5, 0.1, 0.001, 0.0)]
    saved, known = rescored(losses)
    choice = select(saved, Criterion(rule="earliest-within", rescoring=True), known)
    # The scores' own standard error of 0.08 would let nearly all of them pass.
    assert hard.std() / 300**0.5 > 0.07
    assert choice.entry.step == 300
    paired = float((losses[2] - losses[3]).std(ddof=1) / 300**0.5)
    assert f"one standard error ({paired:.2g}" in choice.reason
    assert "(2 of 4 milestones lie within)" in choice.reason


def test_equal_answers_are_within_any_standard_error():
    same = np.linspace(0, 1, 50)
    saved, known = rescored([same, same, same])
    choice = select(saved, Criterion(rule="earliest-within", rescoring=True), known)
    assert choice.entry.step == 100


def test_a_metric_without_a_standard_error_needs_a_tolerance():
    saved = [Saved(n, n, {"max_error": 1 / n}) for n in (1, 2, 3)]
    criterion = Criterion(rule="earliest-within", rescoring=True)
    with pytest.raises(InvalidInput, match="max_error has no standard error"):
        select(saved, criterion, evidence(saved))


@pytest.mark.parametrize("rule", COMPARING)
@pytest.mark.parametrize(("metric", "mode"), [("log_loss", "max"), ("accuracy", "min")])
def test_a_mode_that_would_choose_the_worst_is_refused(rule: str, metric: str, mode: str):
    with pytest.raises(InvalidInput, match=f"settings.mode = '{mode}': contradicts {metric}"):
        choose(FALLING, rule=rule, metric=metric, mode=mode)


def test_the_best_of_those_kept_says_so_and_names_a_better_one():
    saved = training(FALLING)
    known = evidence(saved, own_metric="log_loss")
    reason = select(saved[:5], Criterion(), known).reason
    assert "the best of the 5 milestones kept of 10" in reason
    assert "step 900 with 0.2 was better, but was pruned or is damaged" in reason
    scored = select(saved[:5], Criterion(rescoring=True), known).reason
    assert "the 5 milestones kept of 10" in scored
    assert "better" not in scored


def test_a_milestone_without_the_metric_was_not_pruned():
    saved = training(FALLING)
    saved[3] = Saved(400, 12800)
    known = evidence(saved, own_metric="log_loss")
    assert "the best of 9 milestones;" in select(saved, Criterion(), known).reason


def test_before_overfitting():
    choice = choose(OVERFIT, rule="before-overfitting")
    assert choice.entry.step in (600, 700, 800)
    assert "last milestone before overfitting" in choice.reason
    assert "standard errors" in choice.reason


def test_before_overfitting_takes_the_last_where_nothing_overfits():
    choice = choose(FALLING, rule="before-overfitting")
    assert choice.entry.step == 1000
    assert "no overfitting" in choice.reason


def test_before_overfitting_takes_what_was_kept():
    saved = training(OVERFIT)
    kept = [saved[2], saved[10], saved[14]]
    known = evidence(saved, own_metric="log_loss")
    choice = select(kept, Criterion(rule="before-overfitting"), known)
    assert choice.entry.step == 300
    assert "the last milestone kept before overfitting" in choice.reason
    assert "in between, to step 7" in choice.reason
    assert "not kept" in choice.reason
    with pytest.raises(InvalidInput, match="keep more of them"):
        select(kept[1:], Criterion(rule="before-overfitting"), known)


def test_pareto_returns_the_front_and_its_knee():
    losses = [2.0, 1.0, 0.4, 0.3, 0.45, 0.28, 0.27, 0.29, 0.265, 0.26]
    choice = choose(losses, rule="pareto")
    assert [entry.step for entry in choice.front] == [100, 200, 300, 400, 600, 700, 900, 1000]
    assert choice.entry.step == 300
    assert "is the knee" in choice.reason
    assert "30% of what the best one cost" in choice.reason


@pytest.mark.parametrize(
    ("losses", "step"),
    [([0.3], 100), ([0.3, 0.2], 200), ([0.9, 0.8, 0.1], 300), ([0.1, 0.2, 0.3], 100)],
    ids=["one", "two", "returns grow", "only the first"],
)
def test_pareto_without_a_knee_takes_the_best(losses: list[float], step: int):
    assert choose(losses, rule="pareto").entry.step == step


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"step"}))
def test_recovery_checkpoints_are_never_chosen(rule: str):
    saved = training(FALLING)
    recovery = [
        Saved(50 + e.step, e.examples // 2, {"log_loss": 0.001, "accuracy": 1.0}, "recovery")
        for e in saved
    ]
    known = evidence(saved, own_metric="log_loss")
    criterion = Criterion(rule=rule)
    assert select([*recovery, *saved], criterion, known) == select(saved, criterion, known)


def test_a_recovery_checkpoint_cannot_be_asked_for_by_number():
    saved = [*training(FALLING), Saved(440, 14080, {}, "recovery")]
    with pytest.raises(InvalidInput, match=r"recovery checkpoint.*nearest: 300, 400, 500"):
        select(saved, Criterion(rule="step", step=440), evidence())


def test_milestones_without_the_metric_do_not_compete():
    saved = [Saved(0, 0), *training(FALLING)]
    choice = select(saved, Criterion(), evidence(saved, own_metric="log_loss"))
    assert len(choice.candidates) == 10


@pytest.mark.parametrize(
    ("criterion", "fields"),
    [
        (Criterion(rule="bests"), ["rule = 'bests'", "'best'"]),
        (Criterion(rule="best", tolerance=0.1), ["tolerance", "earliest-within"]),
        (Criterion(rule="earliest-within", tolerance=1.5), ["tolerance = 1.5"]),
        (Criterion(rule="earliest-within", tolerance=-0.1), ["tolerance = -0.1"]),
        (Criterion(rule="best", step=100), ["settings.step", "rule 'step'"]),
        (Criterion(rule="step"), ["settings.step = None"]),
        (Criterion(rule="step", step=450), ["settings.step = 450", "nearest: 300, 400, 500"]),
        (Criterion(rule="last", rescoring=True), ["dataset", "compares no scores"]),
        (Criterion(metric="auc"), ["metric = 'auc'", "accuracy, log_loss"]),
        (
            Criterion(rule="last", tolerance=0.1, step=3, rescoring=True, metric="f1"),
            ["tolerance", "settings.step", "dataset", "metric = 'f1'", "4 problems"],
        ),
    ],
    ids=lambda value: value.rule if isinstance(value, Criterion) else "",
)
def test_all_wrong_settings_are_reported_together(criterion: Criterion, fields: list[str]):
    saved = training(FALLING)
    with pytest.raises(InvalidInput) as caught:
        select(saved, criterion, evidence(saved, own_metric="log_loss"))
    for text in fields:
        assert text in str(caught.value)


def test_several_metrics_and_no_favourite():
    with pytest.raises(InvalidInput, match="recorded: accuracy, log_loss"):
        choose(FALLING, own="")


def test_metrics_that_were_never_recorded():
    saved = [Saved(100, 3200), Saved(200, 6400)]
    with pytest.raises(InvalidInput, match="train with a validation set"):
        select(saved, Criterion(), evidence())
    assert select(saved, Criterion(rule="last"), evidence()).entry.step == 200


def test_a_ledger_without_milestones():
    with pytest.raises(InvalidInput, match="no milestone to choose"):
        select([Saved(100, 3200, {}, "recovery")], Criterion(), evidence())


@settings(deadline=None)
@given(
    losses=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20),
    rule=st.sampled_from(COMPARING),
    tolerance=st.floats(0.001, 0.5),
)
def test_what_is_chosen_is_never_dominated(losses: list[float], rule: str, tolerance: float):
    saved = training(losses)
    criterion = Criterion(rule=rule, tolerance=tolerance if rule == "earliest-within" else 0.0)
    choice = select(saved, criterion, evidence(saved, own_metric="log_loss"))
    assert choice.entry in choice.front
    best = min(losses)
    if rule == "earliest-within":
        assert choice.entry.metrics["log_loss"] <= best * (1 + tolerance) * (1 + 1e-9)
    if rule == "best":
        assert choice.entry.metrics["log_loss"] == best
