import json
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubestill.runtime.curves.phases import Boundaries, Phases, detect_phases, phase_of

SPACING = 100


def validation(count: int, *, rise: float = 0.0, at: float = 0.35) -> list[float]:
    """A loss that falls from 2.3 to 0.1 and, from the share `at` of the training on, rises."""
    times = [i / count for i in range(count)]
    return [0.1 + 2.2 * math.exp(-12 * t) + rise * max(0.0, t - at) for t in times]


def training(count: int) -> list[float]:
    return [0.02 + 2.2 * math.exp(-12 * i / count) for i in range(count)]


def noisy(values: list[float], sigma: float, source: random.Random) -> list[float]:
    return [value * math.exp(sigma * source.gauss(0, 1)) for value in values]


def correlated(values: list[float], sigma: float, source: random.Random) -> list[float]:
    error, out = source.gauss(0, 1), []
    for value in values:
        out.append(value * math.exp(sigma * error))
        error = 0.5 * error + math.sqrt(0.75) * source.gauss(0, 1)
    return out


def spiky(values: list[float], sigma: float, source: random.Random) -> list[float]:
    return [
        value * math.exp(sigma * source.gauss(0, 1) * (8 if source.random() < 0.08 else 1))
        for value in values
    ]


def curves(validated: list[float], trained: list[float], *, metric: str = "log_loss") -> dict:
    return {
        "train": [{"step": SPACING * (i + 1), "loss": v} for i, v in enumerate(trained)],
        "validation": [{"step": SPACING * (i + 1), metric: v} for i, v in enumerate(validated)],
    }


def test_three_phases_of_a_clean_training():
    found = detect_phases(curves(validation(40, rise=0.15), training(40)))
    structure, detail = found.boundaries.structure, found.boundaries.detail
    assert structure is not None
    assert detail is not None
    assert 400 <= structure <= 1200
    assert 1300 <= detail <= 1900  # the true minimum lies at step 1,500
    around = (1, structure, structure + 1, detail, detail + 1)
    assert [phase_of(found, step) for step in around] == [1, 1, 2, 2, 3]


def test_the_answer_is_plain_json_and_states_its_rule():
    found = detect_phases(curves(validation(40, rise=0.15), training(40)))
    assert Phases(**json.loads(json.dumps(found.model_dump()))) == found
    assert "80% of its fall" in found.rule
    assert "standard errors" in found.rule
    assert "overfitting after step" in found.why


@pytest.mark.parametrize("add", [noisy, spiky, correlated], ids=lambda add: add.__name__)
@pytest.mark.parametrize("count", [15, 40, 120])
def test_noise_alone_is_not_overfitting(add: Callable, count: int):
    source = random.Random(count)
    alarms = sum(
        detect_phases(
            curves(add(validation(count), 0.05, source), training(count))
        ).boundaries.detail
        is not None
        for _ in range(100)
    )
    assert alarms <= (10 if add is correlated else 3)


@pytest.mark.parametrize("add", [noisy, spiky, correlated], ids=lambda add: add.__name__)
def test_overfitting_is_found_through_noise(add: Callable):
    source = random.Random(7)
    ends = [
        detect_phases(
            curves(add(validation(40, rise=0.15), 0.05, source), training(40))
        ).boundaries.detail
        for _ in range(100)
    ]
    found = [end for end in ends if end is not None]
    assert len(found) >= 95
    # Nine in ten within a tenth and a half of the training of the true minimum.
    assert sum(abs(end - 1500) <= 600 for end in found) >= 0.9 * len(found)


def test_a_bump_that_goes_away_is_not_overfitting():
    bump = [v * (1.6 if 15 <= i < 22 else 1.0) for i, v in enumerate(validation(40))]
    assert detect_phases(curves(bump, training(40))).boundaries.detail is None


def test_a_rise_that_the_training_shares_is_instability():
    trained = [v + 0.15 * max(0.0, i / 40 - 0.35) for i, v in enumerate(training(40))]
    found = detect_phases(curves(validation(40, rise=0.15), trained))
    assert found.boundaries.detail is None
    assert "instability" in found.why


def test_a_rise_too_small_to_matter_is_left_alone():
    found = detect_phases(curves(validation(40, rise=0.001), training(40)))
    assert found.boundaries.detail is None


def test_still_falling_has_no_third_phase():
    slow = [0.1 + 2.2 * math.exp(-3 * i / 40) for i in range(40)]
    found = detect_phases(curves(slow, slow))
    assert found.boundaries.detail is None
    assert "still falling" in found.why


def test_without_validation_the_training_curve_shows_phase_one():
    found = detect_phases(curves([], training(40)), metric="train_loss")
    assert found.boundaries.structure is not None
    assert found.boundaries.detail is None


def test_useful_overfitting_over_many_decades_has_a_long_detail_phase():
    power = [(1 + i) ** -2.0 for i in range(100)]
    structure = detect_phases(curves([], power)).boundaries.structure
    assert structure is not None
    assert 1000 <= structure <= 6000


def test_an_initial_explosion_does_not_hide_the_learning():
    spiked = [50.0, *validation(40)[1:]]
    structure = detect_phases(curves(spiked, training(40))).boundaries.structure
    assert structure is not None
    assert structure >= 400


def test_a_training_that_learns_nothing_stays_in_phase_one():
    flat = noisy([0.7] * 30, 0.02, random.Random(1))
    found = detect_phases(curves(flat, flat))
    assert found.boundaries == Boundaries(structure=None, detail=None)
    assert phase_of(found, 3000) == 1


def test_an_accuracy_alone_is_read_upside_down():
    rising = [0.95 - 0.85 * math.exp(-12 * i / 40) - 0.3 * max(0, i / 40 - 0.5) for i in range(40)]
    found = detect_phases(curves(rising, training(40), metric="accuracy"), metric="accuracy")
    detail = found.boundaries.detail
    assert detail is not None
    assert abs(detail - 2000) <= 300


def test_a_loss_is_preferred_to_the_followed_accuracy():
    points = curves(validation(40, rise=0.15), training(40))
    for point in points["validation"]:
        point["accuracy"] = 0.9
    assert detect_phases(points, metric="accuracy") == detect_phases(points, metric="log_loss")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_points_say_so(count: int):
    found = detect_phases(curves(validation(40)[:count], training(40)[:count]))
    assert found.boundaries == Boundaries(structure=None, detail=None)
    assert "cannot be determined" in found.why


def test_values_that_are_not_finite_are_left_out():
    points = curves(validation(40, rise=0.15), training(40))
    points["validation"].insert(5, {"step": 550, "log_loss": float("nan")})
    clean = curves(validation(40, rise=0.15), training(40))
    assert detect_phases(points) == detect_phases(clean)


LOSSES = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), max_size=40)


@settings(deadline=None)
@given(validated=LOSSES, trained=LOSSES)
def test_any_curves_give_ordered_boundaries_at_their_own_steps(
    validated: list[float], trained: list[float]
):
    found = detect_phases(curves(validated, trained))
    structure, detail = found.boundaries.structure, found.boundaries.detail
    steps = {SPACING * (i + 1) for i in range(max(len(validated), len(trained)))}
    assert {structure, detail} <= steps | {None}
    if structure is not None and detail is not None:
        assert structure <= detail
    phases = [phase_of(found, step) for step in sorted(steps)]
    assert phases == sorted(phases)


@pytest.mark.parametrize("scale", [1e-6, 0.3, 7.0, 1e6])
def test_the_unit_of_the_loss_makes_no_difference(scale: float):
    base = noisy(validation(40, rise=0.15), 0.03, random.Random(3))
    scaled = [scale * value for value in base]
    one, other = (detect_phases(curves(v, training(40))) for v in (base, scaled))
    assert one.boundaries == other.boundaries
