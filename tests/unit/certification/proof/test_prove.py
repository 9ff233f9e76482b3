"""Proofs over whole domains: what is proven holds everywhere, and what cannot be is refused."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from proof_parts import (
    Declared,
    Enclosed,
    Expanded,
    Line,
    Powers,
    Saddle,
    Waves,
    make_predictor,
    plain_predictor,
)

from kubestill.errors import InvalidInput
from kubestill.runtime.certification.proof import prove
from kubestill.runtime.certification.proof.prove import (
    _difference,  # pyright: ignore[reportPrivateUsage]
)
from kubestill.runtime.certification.proof.sides import NetworkSide, SystemSide
from kubestill.runtime.certification.proof.space import Boxes, Space
from kubestill.runtime.generation.systems import Domain, Output, System, load_system
from kubestill.runtime.generation.systems.inputs import Choice, Continuous, Field, Integer
from kubestill.runtime.generation.systems.taylor import Taylor
from kubestill.runtime.models.predict import Predictor

BOXES = 1500
UNIT = 1e-9, 1 - 1e-9
SYSTEMS = {
    "saddle": Expanded,
    "waves": Waves,
    "heat": lambda: load_system("heat"),
    "black-scholes": lambda: load_system("black-scholes"),
}
NETWORKS = {
    "relu": {"hidden": [12, 12]},
    "tanh": {"hidden": [12, 12], "activation": "tanh"},
    "silu": {"hidden": [12, 12], "activation": "silu"},
    "siren": {"network": "siren", "hidden": [12, 12]},
    "resmlp": {"network": "resmlp", "width": 8, "blocks": 2, "activation": "gelu"},
    "fourier": {"network": "fourier", "hidden": [12], "frequencies": 4},
}


def errors(predictor: Predictor, system: System, frame: Any) -> np.ndarray:
    told = predictor(frame).to_numpy(np.float64)
    return np.abs(told - np.asarray(system.solve(frame)).reshape(len(frame), -1)).max(1)


def climb(predictor: Predictor, system: System, unit: np.ndarray, step: float) -> np.ndarray:
    """Follow the gradient of the error, by differences, for two steps."""
    for _ in range(2):
        rises = np.zeros_like(unit)
        for place in range(unit.shape[1]):
            ends = [unit.copy(), unit.copy()]
            for end, side in zip(ends, (-1, 1), strict=True):
                end[:, place] = np.clip(end[:, place] + side * 1e-3, *UNIT)
            low, high = (errors(predictor, system, system.domain.at(end)) for end in ends)
            rises[:, place] = high - low
        unit = np.clip(unit + step * np.sign(rises), *UNIT)
    return unit


def hunt(predictor: Predictor, system: System) -> float:
    """Look for the largest error: at random, at corners, then ever closer to the worst."""
    random = np.random.default_rng(5)
    unit = random.random((1000, system.domain.width))
    unit[::2] = np.where(random.random(unit[::2].shape) < 0.5, np.round(unit[::2]), unit[::2])
    unit = np.clip(unit, *UNIT)
    worst = 0.0
    for radius in (0.1, 0.01, 0.001):
        found = errors(predictor, system, system.domain.at(unit))
        worst = max(worst, float(found.max()))
        best = unit[np.argsort(-found)[:20]]
        moved = np.repeat(best, 20, axis=0)
        moved += radius * random.uniform(-1, 1, moved.shape)
        unit = np.clip(np.concatenate([best, climb(predictor, system, best, radius), moved]), *UNIT)
    return worst


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_no_point_exceeds_what_is_proven(name: str, network: str) -> None:
    system = SYSTEMS[name]()
    predictor = make_predictor(system, **NETWORKS[network], steps=15)
    proof = prove(predictor, system, gap=0.5, boxes=BOXES)
    found = hunt(predictor, system)
    assert proof.lower <= proof.upper
    assert found <= proof.upper
    if proof.status == "proven":
        assert proof.upper <= 1.5 * proof.lower * (1 + 1e-9)
        assert proof.done == 1
    else:
        assert proof.boxes >= BOXES
        assert proof.done < 1
    again = errors(predictor, system, pd.DataFrame([proof.at]))
    assert again[0] == pytest.approx(proof.lower, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["saddle", "enclosed", "waves", "powers"])
def test_no_difference_exceeds_its_bound_on_boxes_of_every_size(name: str) -> None:
    """On the smallest boxes the bound is rounding, and nothing hides what it forgets."""
    system = {**SYSTEMS, "enclosed": Enclosed, "powers": Powers}[name]()
    predictor = make_predictor(system, hidden=[12], activation="tanh", steps=15)
    space, random = Space(system.domain), np.random.default_rng(0)
    sides = NetworkSide(predictor, space), SystemSide(system, space)
    for size in (1.0, 0.1, 1e-3, 0.0):
        whole = space.whole.take(random.integers(0, len(space.whole), 400))
        width = (whole.high - whole.low) * size
        low = whole.low + (whole.high - whole.low - width) * random.random(width.shape)
        low, high = low.astype(np.float32), (low + width).astype(np.float32)
        boxes = Boxes(low=low.astype(float), high=high.astype(float), choice=whole.choice)
        bounded = _difference(space, boxes, *(side.over(boxes) for side in sides))
        for turn in range(6):
            share = random.random(width.shape)
            share = np.round(share) if turn % 2 else share
            points = np.clip(boxes.low + (boxes.high - boxes.low) * share, boxes.low, boxes.high)
            ours, theirs = (side.at(points, boxes) for side in sides)
            assert (np.abs(ours - theirs).max(1) <= bounded.upper).all()


def test_several_outputs_are_proven_together() -> None:
    system = Powers()
    predictor = make_predictor(system, hidden=[16, 16], activation="tanh", steps=60)
    proof = prove(predictor, system, gap=0.1)
    assert proof.status == "proven"
    frame = system.domain.at(np.linspace(1e-9, 1 - 1e-9, 20_001)[:, None])
    apart = np.abs(predictor(frame).to_numpy() - system.solve(frame))
    assert proof.lower * 0.999 <= apart.max() <= proof.upper
    assert proof.output == apart.max(0).argmax()


class Slow(Declared):
    """Counts what it solves; every row takes a hundredth of a second."""

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        time.sleep(0.01 * len(inputs))
        return super().solve(inputs)


def test_a_slow_solver_is_asked_little_and_in_time() -> None:
    predictor = make_predictor(Saddle(), hidden=[4])
    proof = prove(predictor, Slow(), tolerance=10.0, seconds=0.8)
    assert proof.solves < 200
    assert proof.seconds < 2.5


def test_a_tolerance_is_proven_or_refuted() -> None:
    system = Expanded()
    predictor = make_predictor(system, hidden=[16, 16], activation="tanh", steps=60)
    worst = prove(predictor, system, gap=0.05)
    assert worst.status == "proven"
    good = prove(predictor, system, tolerance=1.1 * worst.upper)
    bad = prove(predictor, system, tolerance=0.8 * worst.lower)
    assert (good.status, bad.status) == ("proven", "refuted")
    assert good.upper <= 1.1 * worst.upper == good.tolerance
    assert bad.lower > 0.8 * worst.lower == bad.tolerance
    assert "No point of the domain has an error above" in good.reason
    assert "The error at" in bad.reason


def test_what_the_budget_does_not_reach_is_said() -> None:
    system = load_system("black-scholes")
    predictor = make_predictor(system, hidden=[8], activation="tanh")
    proof = prove(predictor, system, tolerance=1e-3 + hunt(predictor, system), boxes=400)
    assert proof.status == "unfinished"
    assert 0 <= proof.done < 1
    assert np.isfinite(proof.upper)
    assert f"After {proof.boxes:,} boxes" in proof.reason


@pytest.mark.parametrize(
    ("system", "conditional"),
    [(Expanded(), False), (Enclosed(), False), (Declared(), True)],
    ids=["expand", "enclose", "lipschitz"],
)
def test_three_ways_to_enclose(system: System, conditional: bool) -> None:
    predictor = make_predictor(system, hidden=[8], activation="tanh", steps=20)
    proof = prove(predictor, system, gap=1.0, boxes=60_000)
    assert proof.status == "proven"
    assert proof.conditional == conditional
    assert hunt(predictor, system) <= proof.upper
    assert ("Conditional" in " ".join(proof.assumptions)) == conditional


def test_two_networks_are_compared_on_a_box() -> None:
    system = Saddle()
    teacher = make_predictor(system, hidden=[24, 24], activation="tanh", steps=60)
    student = make_predictor(system, hidden=[8], activation="silu", steps=60, seed=1)
    proof = prove(student, teacher, system.domain, gap=0.3)
    assert proof.status == "proven"
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 151)] * 2), -1).reshape(-1, 2)
    frame = system.domain.at(np.clip(grid, 1e-9, 1 - 1e-9))
    apart = np.abs(student(frame).to_numpy() - teacher(frame).to_numpy()).max()
    assert proof.lower * 0.98 <= apart <= proof.upper
    assert prove(teacher, teacher, system.domain, tolerance=1e-3).status == "proven"


def test_a_network_that_overflows_is_never_proven() -> None:
    system = Expanded()
    predictor = make_predictor(system, hidden=[8, 8, 8], scale=1e13)
    proof = prove(predictor, system, tolerance=1.0, boxes=200)
    assert proof.status != "proven"
    assert proof.upper > 1.0


def test_an_answer_that_is_no_number_is_infinitely_wrong() -> None:
    far, nothing = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        far.weight.fill_(3e38)
        far.bias.fill_(3e38)
        nothing.weight.zero_()
    proof = prove(plain_predictor(torch.nn.Sequential(far, nothing)), Line(), boxes=100)
    assert (proof.status, proof.lower, proof.upper) == ("unfinished", math.inf, math.inf)


class Unenclosed(Saddle):
    name = "unenclosed"


class Unbounded(Expanded):
    def __init__(self) -> None:
        super().__init__()
        normal = Continuous(name="x", mapping="normal")
        self.domain = Domain([normal, Continuous(name="y", low=-1, high=1)])


class Whole(Expanded):
    def __init__(self) -> None:
        super().__init__()
        self.domain = Domain([Integer(name="x", low=0, high=3), Integer(name="y", low=0, high=3)])


class Sides(Expanded):
    def __init__(self) -> None:
        super().__init__()
        self.output = Output(name="side", classes=("no", "yes"))


class Fielded(Expanded):
    def __init__(self) -> None:
        super().__init__()
        self.domain = Domain([Field(name="x", shape=(4,), numbers=1, draw=lambda unit: unit)])


class Labelled(Expanded):
    def __init__(self) -> None:
        super().__init__()
        label = Choice(name="x", choices=("0", "1"))
        self.domain = Domain([label, Continuous(name="y", low=-1, high=1)])


REFUSED: dict[str, tuple[System, dict[str, Any], str]] = {
    "tolerance 0": (Expanded(), {"tolerance": 0.0}, "tolerance = 0.0: must be a finite number"),
    "no seconds": (Expanded(), {"seconds": 0}, "seconds = 0: must be above 0"),
    "no enclosure": (Unenclosed(), {}, "three ways: `expand`"),
    "too short": (Enclosed(short=0.2), {}, "outside of what its `enclose` says"),
    "turned": (Enclosed(turned=True), {}, "lower is above upper on the box"),
    "too flat": (Declared(slope=0.3), {}, "outside of what its `lipschitz` says"),
    "negative": (Declared(slope=-0.3), {}, r"lipschitz\.x = -0\.3: is no size of a slope"),
    "no slope": (Declared(slope=math.nan), {}, r"lipschitz\.x = nan: is no size of a slope"),
    "no number": (Declared(slope="1"), {}, r"lipschitz\.x = '1': is no size of a slope"),  # pyright: ignore
    "overflows": (Expanded(far=1e39), {}, r"input 'x' = \(-1e\+39, 1e\+39\): float32"),
    "other kinds": (Labelled(), {}, "the model reads x numeric, not categorical"),
    "unbounded": (Unbounded(), {}, "input 'x' = 'normal': unbounded"),
    "finite": (Whole(), {}, "ask for the assurance 'enumerated'"),
    "classes": (Sides(), {}, "only numbers are proven"),
    "field": (Fielded(), {}, "nothing is proven over fields"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_proven_is_refused(case: str) -> None:
    system, options, said = REFUSED[case]
    predictor = make_predictor(Saddle(), hidden=[4], activation="tanh")
    with pytest.raises(InvalidInput, match=said):
        prove(predictor, system, **options)


ANSWERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "raises": (lambda right: [][0], "raises IndexError"),
    "ends": (lambda right: sys.exit(1), "raises SystemExit: 1"),
    "nothing": (lambda right: None, "returns "),
    "too few": (lambda right: [] if isinstance(right, Taylor) else right[:1], "returns "),
    "twice": (lambda right: [right, right, right], "returns "),
    "text": (lambda right: "0.5", "returns "),
}


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("way", ["solve", "expand", "enclose"])
def test_what_a_system_gives_back_is_checked(way: str, case: str) -> None:
    spoil, said = ANSWERS[case]
    system = Enclosed() if way == "enclose" else Expanded()
    honest = getattr(system, way)
    setattr(system, way, lambda *given: spoil(honest(*given)))
    predictor = make_predictor(Saddle(), hidden=[4], activation="tanh")
    with pytest.raises(InvalidInput, match=rf"system\.{way} = 'saddle': {said}"):
        prove(predictor, system)


def test_bounds_that_are_whole_numbers_are_numbers() -> None:
    system = Expanded(far=1)
    predictor = make_predictor(system, hidden=[16, 16], activation="tanh", steps=60)
    assert prove(predictor, system, gap=0.25).status == "proven"


def test_boxes_are_split_until_nothing_lies_between_their_ends() -> None:
    """A domain of four numbers: what float32 loses is left, and no time is lost on it."""
    narrow = Line(1.0, 1.0 + 3 * 2.0**-52)
    proof = prove(plain_predictor(torch.nn.Linear(1, 1)), narrow, tolerance=1e300)
    assert proof.status == "proven"
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(-1.0)
    proof = prove(plain_predictor(layer), narrow)
    assert (proof.status, proof.lower) == ("unfinished", 0.0)
    assert proof.boxes < 20


def test_no_sentence_promises_less_than_is_proven() -> None:
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(0.123441)
    proof = prove(plain_predictor(layer), Line())
    assert 0.1234 < proof.upper < 0.12345
    assert "above 0.1235." in proof.reason


def test_other_inputs_and_outputs_are_refused() -> None:
    predictor = make_predictor(Saddle(), hidden=[4])
    with pytest.raises(InvalidInput, match="no input of the domain"):
        prove(predictor, load_system("heat"))
    with pytest.raises(InvalidInput, match="domain = None: two networks have none"):
        prove(predictor, predictor)


def test_arithmetic_outside_of_the_model_of_rounding_is_noticed() -> None:
    """A network that is not evaluated in float32 as assumed contradicts its own bounds."""
    system = Expanded()
    predictor = make_predictor(system, hidden=[16, 16], activation="tanh")
    half = torch.autocast("cpu", dtype=torch.bfloat16)
    with half, pytest.raises(InvalidInput, match="outside of what float32"):
        prove(predictor, system, boxes=3000)
