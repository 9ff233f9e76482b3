"""Gains of several windows become evidence together, at the rate that is stated."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from kubestill.runtime.evaluation.decision import Rules, judge_challenger
from kubestill.runtime.evaluation.inputs import Lineage
from kubestill.runtime.evaluation.pooling import Pool, entity_name, gain_of, pool
from kubestill.runtime.metrics.catalog import METRICS
from kubestill.runtime.metrics.intervals import Interval, measure
from kubestill.runtime.metrics.outcome import Outcome
from kubestill.runtime.retraining import (
    Champion,
    Claim,
    Registry,
    State,
    Window,
    open_registry,
    transitions,
)
from kubestill.runtime.retraining.decision import DecisionRecord
from kubestill.runtime.retraining.history import Gain, Judgement
from kubestill.runtime.retraining.state import Verdict

LOG_LOSS = METRICS["log_loss"]
BUDGET, MOST = 0.05, 0.0125


def window(seed: int, rows: int = 300, *, better: float = 0.5) -> dict[str, Outcome]:
    """A rare event, of which the challenger knows more than the champion."""
    random = np.random.default_rng(seed)
    z = random.normal(size=rows)
    targets = (random.random(rows) < 1 / (1 + np.exp(4 - 2 * z))).astype(np.int64)
    margins = {"champion": 2 * z - 4 - better, "challenger": 2 * z - 4 + 0.0 * z}
    return {
        name: Outcome.from_logits("binary", margin[:, None], targets)
        for name, margin in margins.items()
    }


def gained(models: dict[str, Outcome], entities: list[str] | None = None) -> Gain:
    groups = None if entities is None else np.unique(entities, return_inverse=True)[1]
    names = None if entities is None else sorted(set(entities))
    found = gain_of(measure(models, groups=groups), "challenger", "champion", LOG_LOSS, names)
    assert found is not None
    return found


def joined(windows: list[dict[str, Outcome]]) -> dict[str, Outcome]:
    return {
        name: Outcome.from_logits(
            "binary",
            np.concatenate([one[name].predictions for one in windows]),
            np.concatenate([one[name].targets for one in windows]),
        )
        for name in windows[0]
    }


@pytest.mark.parametrize("entities", [False, True], ids=["rows", "entities that come back"])
def test_the_sum_of_windows_is_the_interval_of_all_their_rows(entities: bool) -> None:
    """Up to what each window's own mean takes away, which is little beside the noise."""
    windows = [window(seed) for seed in range(6)]
    who = [f"e{place // 4}" for place in range(300)] if entities else None
    found = pool([gained(one, who) for one in windows], budget=BUDGET, most=MOST)
    every = joined(windows)
    groups = np.tile(np.arange(300) // 4, 6) if entities else None
    whole = measure(every, groups=groups)
    alike = whole.improvement("challenger", "champion", LOG_LOSS, found.confidence)
    assert found.rows == 1800
    assert found.gain.value == pytest.approx(alike.value)
    width = alike.high - alike.low
    assert (found.gain.low, found.gain.high) == pytest.approx(
        (alike.low, alike.high), abs=width / 50
    )


def test_a_sum_may_be_looked_at_in_every_window_of_a_year() -> None:
    """Normal gains of no mean, however they are continued: here, for as long as they look bad."""
    random = np.random.default_rng(0)
    steps = random.normal(size=(20_000, 104))
    sums = np.cumsum(steps, axis=1) / np.sqrt(np.arange(1, 105))
    gains = [
        Gain(value=0.0, rows=100, events=100, second=1e4, third=0.0, fourth=0.03)
        for _ in range(104)
    ]
    limits = [
        stats.norm.isf((1 - pool(gains[:n], budget=BUDGET, most=1).confidence) / 2)
        for n in range(1, 105)
    ]
    crossed = (sums[:, 1:] > limits[1:]).any(axis=1).mean()
    assert 0.02 < crossed <= BUDGET


@pytest.mark.parametrize("entities", [False, True], ids=["rows", "entities"])
def test_a_gain_is_read_as_it_was_written(entities: bool) -> None:
    who = [f"e{place // 4}" for place in range(300)] if entities else None
    gain = gained(window(0), who)
    assert Gain.model_validate_json(gain.model_dump_json()) == gain


def test_an_entity_with_events_in_every_window_counts_once() -> None:
    """As in one window: nine customers are too few, however often each of them comes back."""
    targets = np.zeros(300, np.int64)
    targets[:36] = 1
    margins = np.linspace(-1, 1, 300)
    models = {
        name: Outcome.from_logits("binary", (margins + by)[:, None], targets)
        for name, by in (("champion", 0.0), ("challenger", -1.0))
    }
    found = [
        pool([gained(models, [f"e{place // of}" for place in range(300)])] * 8, budget=0.05, most=1)
        for of in (4, 3)
    ]
    assert [one.gain.known for one in found] == [False, True]


def test_entities_have_one_name_for_ever_and_rows_without_one_stand_for_themselves() -> None:
    assert entity_name("a", "w1", 3) == entity_name("a", "w2", 7)
    assert entity_name(7, "w1", 3) == entity_name("7", "w2", 7)
    alone = {
        entity_name(None, "w1", 3),
        entity_name(float("nan"), "w1", 4),
        entity_name("", "w", 0),
    }
    assert len(alone) == 3


def challenge(models: dict[str, Outcome], pooled: Pool | None) -> tuple[str, str]:
    rules = Rules(min_rows=100, confidence=0.996)
    scores = measure(models)
    found = judge_challenger(
        scores, "challenger", "champion", rules, metric=LOG_LOSS, pooled=pooled
    )
    return found.verdict, found.reason


def test_windows_that_cannot_tell_alone_can_together() -> None:
    windows = [window(seed) for seed in range(12)]
    assert {challenge(one, Pool(windows=1))[0] for one in windows} == {"insufficient"}
    gains = [gained(one) for one in windows]
    ends = [
        challenge(windows[n - 1], pool(gains[:n], budget=BUDGET, most=MOST)) for n in range(2, 13)
    ]
    assert ends[0][0] == "insufficient"
    first = [verdict for verdict, _ in ends].index("promote")
    told = f"Challengers of {first + 2} windows ({300 * (first + 2):,} rows) together are better"
    assert told in ends[first][1]


@pytest.mark.parametrize("loses", [False, True])
def test_what_others_gained_promotes_no_challenger_that_does_not(loses: bool) -> None:
    models = window(1)
    if loses:
        models = {"champion": models["challenger"], "challenger": models["champion"]}
    strong = Pool(windows=9, rows=2700, gain=Interval(0.02, 0.01, 0.03), confidence=0.99)
    assert challenge(models, strong)[0] == ("insufficient" if loses else "promote")


def test_a_sum_takes_half_of_what_a_window_may_spend() -> None:
    models = window(3, 4000)
    told = [challenge(models, pooled)[1] for pooled in (None, Pool(windows=1))]
    assert "99.6% interval" in told[0]
    assert "99.8% interval" in told[1]
    assert "together" not in told[1]


STEPS = (
    *("inconclusive", "rejected", "healthy", "unfit", "promoted", "dies", "retried"),
    *("rollback", "quarantine", "release"),
)
"""What may come next: the end of a run, its death before or a retry of its last step, or a person's
action on the last window."""
BEGUN = datetime(2013, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Line:
    """A registry's state, and what ought to be added up, kept in another way."""

    registry: Registry
    state: State = field(default_factory=State)
    number: int = 0
    gains: tuple[tuple[str, int, float], ...] = ()
    """Window, version of the champion and gain, since the last promotion."""

    def claimed(self, days: float = 30) -> State:
        number = self.number + 1
        end = (BEGUN + timedelta(days=days * number)).isoformat()
        window = Window(
            id=f"w{number}-{uuid.uuid4().hex}",
            run_id=f"run{number}-{uuid.uuid4().hex}",
            end=end,
            first=end,
            last=end,
            rows=100,
            judge_rows=30,
            manifest="",
            holdout="",
        )
        champion = self.state.champion
        claim = Claim(
            run_id=window.run_id,
            at=0,
            lease_seconds=1,
            champion=champion.version if champion else 0,
            after=len(self.state.windows),
            window=window,
            pool=transitions.trainable(self.state),
        )
        return transitions.claim(self.state, claim)

    def then(self, step: str) -> Line | None:
        """Return the line after one more step; None where the step cannot be."""
        windows = self.state.windows
        if step == "rollback":
            if not self.state.previous:
                return None
            return replace(self, state=transitions.rollback(self.state))
        if step in ("quarantine", "release"):
            act = getattr(transitions, step)
            wanted = "trainable" if step == "quarantine" else "quarantined"
            if windows[-1].judge != wanted:
                return None
            return replace(self, state=act(self.state, [windows[-1].id]))
        held = self.claimed()
        assert held.claim
        gain = 0.001 * (self.number + 1)
        if step in ("inconclusive", "rejected", "promoted", "dies", "retried"):
            self.challenged(held, gain)
        if step == "retried":  # the step's first attempt stands
            self.challenged(held, 9.0)
        after = replace(self, number=self.number + 1)
        if step == "dies":
            return replace(after, state=transitions.abandon(held, held.claim.run_id))
        if step == "promoted":
            made = champion_of(held.claim)
            return replace(after, state=transitions.promote(held, made), gains=())
        verdict: Verdict = "inconclusive" if step == "retried" else step  # type: ignore[assignment]
        told = ((held.claim.window.id, held.claim.champion, gain),)
        if step in ("healthy", "unfit"):
            told = ()
        closed = transitions.close(held, held.claim.run_id, verdict)
        return replace(after, state=closed, gains=(*self.gains, *told))

    def challenged(self, held: State, gain: float) -> None:
        assert held.claim
        champion = held.champion
        assert champion
        self.registry.append(
            Judgement(
                run_id=held.claim.run_id,
                step="challenge",
                decision="insufficient",
                reason="So it is.",
                model="m",
                baseline=champion.model_digest,
                dataset="d",
                window=held.claim.window.id,
                metric="log_loss",
                gain=Gain(value=gain, rows=30, events=3),
            )
        )

    def added(self, days: float = 365, **others: float) -> list[float]:
        held = self.claimed(**others)
        assert held.claim
        lineage = Lineage(
            registry=self.registry,
            run_id=held.claim.run_id,
            champion=held.champion,
            record=None,
            window=held.claim.window.id,
            end=held.claim.window.end,
            state=held,
        )
        return [gain.value for gain in lineage.gains("log_loss", days)]


def champion_of(claim: Claim) -> Champion:
    decision = DecisionRecord(decision="promote", reason="", model="m", baseline="", dataset="d")
    return Champion(
        version=1,
        run_id=claim.run_id,
        window=claim.window.id,
        promoted_at=claim.window.end,
        folder=f"models/{claim.window.id}",
        model_digest=claim.window.id,
        decision=decision,
    )


def started() -> Line:
    line = Line(open_registry(f"memory://{uuid.uuid4().hex}"))
    held = line.claimed()
    assert held.claim
    return replace(line, state=transitions.promote(held, champion_of(held.claim)), number=1)


def lines(line: Line, depth: int) -> Iterator[tuple[tuple[str, ...], Line]]:
    for step in STEPS if depth else ():
        after = line.then(step)
        if after is not None:
            yield (step,), after
            yield from (((step, *path), end) for path, end in lines(after, depth - 1))


def test_what_is_added_up_is_right_after_every_sequence_of_ends() -> None:
    """With a champion before and an inconclusive window behind."""
    second = started().then("promoted")
    begun = second and second.then("inconclusive")
    assert begun
    met = 0
    for path, line in lines(begun, 3):
        champion = line.state.champion
        assert champion
        wanted = [
            gain
            for id, version, gain in line.gains
            if version == champion.version
            and (kept := line.state.window(id))
            and kept.judge != "quarantined"
        ]
        assert line.added() == wanted, path
        met += bool(wanted)
    assert met > 300


def test_a_sum_begins_anew_after_a_promotion_and_after_its_days() -> None:
    line = started()
    for _ in range(7):
        line = line.then("inconclusive")
        assert line is not None
    # Windows end 30, 60, ... days after the promotion; the next one after 240.
    assert line.added(365) == pytest.approx([0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008])
    assert line.added(100) == pytest.approx([0.008])
    assert line.added(1) == []
