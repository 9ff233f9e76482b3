"""Retention rules and the recovery schedule: pure functions."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubestill.errors import InvalidInput
from kubestill.runtime.checkpoints.ledger import LedgerEntry, ManifestRef
from kubestill.runtime.checkpoints.protocol import Marks, with_phases
from kubestill.runtime.checkpoints.retention import (
    MOST_BY_SIZE,
    KeepBest,
    KeepBytes,
    KeepEvery,
    KeepLast,
    KeepPhaseBoundaries,
    Rule,
    keep_entries,
    policy_of,
)
from kubestill.runtime.checkpoints.schedule import RecoverySchedule, SaveCost, best_interval
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.curves.phases import boundary_candidates, detect_phases, phase_of


def entry(step: int, loss: float = 0.0, **changes: object) -> LedgerEntry:
    made = LedgerEntry(
        step=step,
        epoch=0,
        examples=0,
        kind="milestone",
        metrics={"loss": loss, "accuracy": 1 - loss},
        bytes=1,
        manifest=ManifestRef(key=f"{step}-{changes}", sha256=""),
        created=0,
        attempt=1,
    )
    return replace(made, **changes)  # pyright: ignore


def marks(steps: Iterable[int], candidates: Iterable[int] = ()) -> Marks:
    """What the curves say of milestones at these steps."""
    return Marks(phases=dict.fromkeys(steps, 1), candidates=frozenset(candidates))


HISTORY = [entry(step, loss) for step, loss in ((10, 3), (20, 1), (30, 2), (40, 4), (50, 5))]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        pytest.param(KeepLast(2), [40, 50], id="last"),
        pytest.param(KeepLast(0), [], id="last-none"),
        pytest.param(KeepLast(9), [10, 20, 30, 40, 50], id="last-all"),
        pytest.param(KeepLast(2, "recovery"), [], id="last-recovery"),
        pytest.param(KeepBest(2, "loss", "min"), [20, 30], id="best-low"),
        pytest.param(KeepBest(2, "accuracy", "max"), [20, 30], id="best-high"),
        pytest.param(KeepBest(1, "loss", "max"), [50], id="best-told"),
        pytest.param(KeepBest(2, "rmse", "min"), [], id="best-unmeasured"),
        pytest.param(KeepEvery(2), [10, 20, 40], id="every"),
        pytest.param(KeepEvery(0), [], id="every-none"),
        pytest.param(KeepBytes(5), [10, 20, 30, 40, 50], id="bytes-all"),
        pytest.param(KeepBytes(4.9), [10, 30, 40, 50], id="bytes-one-less"),
        pytest.param(KeepBytes(3), [10, 30, 50], id="bytes-thinned"),
        pytest.param(KeepBytes(2), [10, 50], id="bytes-ends"),
        pytest.param(KeepBytes(1), [], id="bytes-no-room-for-two"),
        pytest.param(KeepBytes(0), [], id="bytes-none"),
    ],
)
def test_each_rule(rule: Rule, kept: list[int]) -> None:
    assert sorted(e.step for e in rule.wanted(HISTORY, marks(range(10, 60, 10)))) == kept


def kept_as_one_goes(rule: Rule, steps: Sequence[int]) -> list[int]:
    kept: list[LedgerEntry] = []
    for step in steps:
        kept = list(rule.wanted([*kept, entry(step)], Marks()))
    return [e.step for e in kept]


@given(
    room=st.integers(2, 40),
    gaps=st.lists(st.integers(1, 3), min_size=3, max_size=150),
)
def test_a_history_that_outgrows_its_bytes_keeps_its_shape(room: int, gaps: list[int]) -> None:
    steps = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    kept = kept_as_one_goes(KeepBytes(room), steps)
    assert len(kept) == min(room, len(steps))
    assert kept[0] == steps[0]
    assert kept[-1] == steps[-1]
    if len(kept) > 2:
        # No hole is much larger than an even spread would have: nothing is forgotten.
        widest = max(b - a for a, b in zip(kept, kept[1:], strict=False))
        assert widest <= 3 * max(3, (steps[-1] - steps[0]) / (len(kept) - 1))


def test_bytes_count_milestones_that_can_be_read_only() -> None:
    history = [entry(1), entry(2, kind="recovery"), entry(3, damaged="flipped"), entry(4)]
    assert [e.step for e in KeepBytes(2).wanted(history, Marks())] == [1, 4]


def test_however_small_the_states_the_ledger_stays_small() -> None:
    kept = kept_as_one_goes(KeepBytes(1e9), range(1, 3 * MOST_BY_SIZE))
    assert len(kept) == MOST_BY_SIZE


def test_by_default_a_small_training_keeps_its_whole_history() -> None:
    keep = policy_of(CheckpointSettings(metric="loss"))
    small = [entry(step, 1 / step, bytes=12_000_000) for step in range(1, 84)]
    assert keep(small, Marks()) == tuple(small)
    large = [replace(e, bytes=1_200_000_000) for e in small]
    assert [e.step for e in keep(large, Marks())] == [81, 82, 83]


def test_the_last_before_each_phase_boundary() -> None:
    phased = [replace(e, phase=phase) for e, phase in zip(HISTORY, (1, 1, 2, 3, None), strict=True)]
    assert [e.step for e in KeepPhaseBoundaries().wanted(phased, Marks())] == [20, 30]


def test_the_last_before_each_step_where_overfitting_may_begin() -> None:
    wanted = KeepPhaseBoundaries().wanted(HISTORY, marks((), candidates=[5, 25, 39, 50]))
    assert sorted({e.step for e in wanted}) == [20, 30, 50]


def overfitting(seed: int, count: int, noise: float) -> list[float]:
    """A validation loss that falls, and rises from somewhere in the middle on."""
    source = random.Random(seed)
    turn = source.uniform(0.35, 0.6) * count
    return [
        (0.2 + 2 * math.exp(-8 * n / count) + 0.3 * max(0.0, n - turn) / count)
        * math.exp(noise * source.gauss(0, 1))
        for n in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [10, 20, 30, 60])
@pytest.mark.parametrize("noise", [0.01, 0.03, 0.08])
def test_where_overfitting_turns_out_to_begin_the_last_milestone_before_it_is_still_there(
    count: int, noise: float
) -> None:
    keep = policy_of(CheckpointSettings(keep_bytes=0, metric="log_loss"))
    begins = 0
    for seed in range(4):
        kept: list[LedgerEntry] = []
        losses, found = overfitting(seed, count, noise), None
        for step in range(1, count + 1):
            curves = {
                "train": [{"step": n, "loss": 1 / n} for n in range(1, step + 1)],
                "validation": [{"step": n, "log_loss": losses[n - 1]} for n in range(1, step + 1)],
            }
            found = detect_phases(curves, metric="log_loss")
            known = Marks(
                phases={n: phase_of(found, n) for n in range(1, step + 1)},
                candidates=boundary_candidates(curves, metric="log_loss", most=count),
            )
            new = entry(step, metrics={"log_loss": losses[step - 1]})
            kept = list(keep(with_phases([*kept, new], known.phases), known))
            assert len(kept) <= max(8, count // 5), "few, whatever may turn out"
        assert found
        if (end := found.boundaries.detail) is not None:
            begins += 1
            assert end in {e.step for e in kept}
    assert begins


@pytest.mark.parametrize("distance", [1, 2, 3, 5])
@pytest.mark.parametrize("spacing", [1.0, 1.5, 2.4, 7.5, 10 / 3, 0.7])
def test_every_mth_milestone_counts_milestones_and_not_rounded_steps(
    distance: int, spacing: float
) -> None:
    steps = sorted({max(1, math.floor(n * spacing + 0.5)) for n in range(1, 61)})
    kept: list[LedgerEntry] = []
    for count, step in enumerate(steps, start=1):
        kept = list(KeepEvery(distance).wanted([*kept, entry(step)], marks(steps[:count])))
    assert [e.step for e in kept] == [
        step for n, step in enumerate(steps, start=1) if n == 1 or n % distance == 0
    ]


@pytest.mark.parametrize(
    ("metric", "mode", "refused"),
    [
        ("log_loss", "max", True),
        ("accuracy", "min", True),
        ("val_loss", "max", True),
        ("log_loss", "min", False),
        ("accuracy", "max", False),
        ("profit", "max", False),
        ("profit", "auto", False),
        ("", "max", False),
    ],
)
def test_a_mode_that_would_keep_the_worst_is_refused(metric: str, mode: str, refused: bool) -> None:
    settings = CheckpointSettings.model_validate({"metric": metric, "mode": mode})
    if refused:
        with pytest.raises(
            InvalidInput, match=f"settings.checkpoints.mode = '{mode}': contradicts"
        ):
            policy_of(settings)
        return
    policy_of(settings)


def test_the_newest_good_one_always_stays() -> None:
    history = [entry(1), entry(2, kind="recovery"), entry(3, damaged="flipped")]
    assert [e.step for e in keep_entries(history, [], Marks())] == [2]


entries = st.lists(
    st.builds(
        entry,
        st.integers(1, 500),
        st.integers(0, 5).map(float),
        kind=st.sampled_from(["milestone", "recovery"]),
        phase=st.sampled_from([None, 1, 2, 3]),
    ),
    unique_by=lambda e: (e.step, e.kind),
    max_size=30,
)


@given(history=entries)
def test_pruning_as_one_goes_keeps_what_pruning_at_the_end_would(
    history: list[LedgerEntry],
) -> None:
    # Otherwise what is left would depend on when a training was interrupted.
    history = sorted(
        (replace(e, phase=None) for e in history), key=lambda e: (e.step, e.kind == "milestone")
    )
    keep = policy_of(CheckpointSettings(metric="loss", keep_bytes=0, keep_best=2, keep_every=3))
    kept: list[LedgerEntry] = []
    for position in range(len(history)):
        seen = [e.step for e in history[: position + 1] if e.kind == "milestone"]
        kept = list(keep([*kept, history[position]], marks(seen)))
    steps = [e.step for e in history if e.kind == "milestone"]
    assert kept == list(keep(history, marks(steps)))


def test_the_best_interval_is_where_waste_is_least() -> None:
    cost, failures = 2.0, 7200.0
    best = best_interval(cost, failures)
    assert best == pytest.approx(math.sqrt(2 * cost * failures), rel=0.05)
    assert best_interval(10.0, 2.0) == 2.0


def schedule(**changes: object) -> RecoverySchedule:
    options = {
        "seconds": 120.0,
        "auto": False,
        "budget": 0.02,
        "interruptions_per_hour": 1.0,
        "now": 0.0,
    }
    return RecoverySchedule(**{**options, **changes})  # pyright: ignore


def test_a_fixed_interval_is_due_again_after_any_save() -> None:
    clock = schedule()
    assert not clock.due(119)
    assert clock.due(120)
    clock.saved(130)
    assert not clock.due(249)
    assert clock.due(250)


def test_zero_seconds_turn_recovery_off() -> None:
    assert not schedule(seconds=0.0).due(1e9)


@pytest.mark.parametrize(
    ("cost", "budget", "interval"),
    [
        pytest.param(0.5, 0.02, math.sqrt(2 * 0.5 * 3600), id="young"),
        pytest.param(5.0, 0.02, 250.0, id="budget"),
        pytest.param(0.0, 0.02, 8.0, id="no-faster-than-a-save"),
    ],
)
def test_auto_chooses_from_what_saves_cost(cost: float, budget: float, interval: float) -> None:
    clock = schedule(auto=True, budget=budget)
    assert clock.interval == 30.0
    clock.measured(SaveCost(blocked=cost, behind=8.0, stolen=0.0))
    assert clock.interval == pytest.approx(interval, rel=0.05)
    report = clock.report(now=1000.0)
    assert report.blocked_share == pytest.approx(cost / 1000)
    assert report.expected_overhead is not None
    assert report.expected_overhead <= budget
    assert report.expected_lost_seconds_per_kill == pytest.approx(clock.interval / 2 + 8)


def test_ledgers_are_read_without_torch() -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'kfp', 'scipy', 'sklearn', 'pandas']))\n"
        "import kubestill.runtime.checkpoints.inspection\n"
        "import kubestill.runtime.checkpoints.writer\n"
        "import kubestill.runtime.checkpoints.retention\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
