"""The list that a fan-out loops over, and what is found out before it starts."""

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import yaml

from kubestill.errors import InvalidInput
from kubestill.runtime.generation.systems import Domain, Output, System
from kubestill.runtime.generation.systems.inputs import Continuous
from kubestill.runtime.steps.plan_shards import plan_shards

PIPELINE = Path(__file__).parents[3] / "pipelines" / "surrogate" / "pipeline.yaml"


class Circle(System):
    """The area of a circle."""

    name = "circle"
    solved: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.domain = Domain([Continuous(name="radius", low=0.0, high=1.0)])
        self.output = Output(name="area")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        self.solved.append(len(inputs))
        return np.pi * inputs["radius"].to_numpy() ** 2


class Disc(Circle):
    solved: ClassVar[list[int]] = []


@pytest.mark.parametrize("shards", [1, 3, 128])
def test_every_shard_is_listed_once(shards):
    assert plan_shards(shards) == list(range(shards))


@pytest.mark.parametrize("shards", [0, -1, 129])
def test_a_count_out_of_range_is_refused(shards):
    with pytest.raises(InvalidInput, match=f"shards = {shards}: give 1 to 128"):
        plan_shards(shards)


class Fickle(Circle):
    """Gives another label each time."""

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return np.random.default_rng().normal(size=len(inputs))


class Broken(Circle):
    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return np.full(len(inputs), np.nan)


def test_what_the_certificate_will_solve_is_told_before_the_shards_start(capsys):
    asked: dict[str, Any] = {"rows": 4000, "system": f"{__name__}:Disc", "network": "mlp"}
    asked["steps"] = 10
    plan_shards(2, **asked)
    said = (
        r"certify-surrogate, at that rate: at most \d+,\d{3} rows are solved \(16 for the probe, "
    )
    assert re.search(said, capsys.readouterr().out)
    for settings, why in (
        ({"solves": 50}, r"certificate_settings\.solves = 50: .* are the fewest"),
        ({"bands": [0.999999]}, r"certificate_settings\.bands = .*random points"),
    ):
        with pytest.raises(InvalidInput, match=why):
            plan_shards(2, **asked, certificate_settings=settings)


def test_a_system_solves_a_few_rows_before_the_shards_start(capsys):
    assert plan_shards(4, rows=40_000, system=f"{__name__}:Circle") == [0, 1, 2, 3]
    assert re.search(
        r"8 rows solved in .* 4 shards with 10,000 rows takes", capsys.readouterr().out
    )
    assert Circle.solved == [8, 8]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"system": f"{__name__}:Fickle"}, "gave the same inputs other labels"),
        ({"system": f"{__name__}:Broken"}, "gives what is not finite in 8 of the rows"),
        ({"system": "haet"}, "did you mean 'heat'"),
        ({"system": "heat", "method": "munge"}, "it starts from a dataset"),
        ({"system": "heat", "method": "grid", "settings": {"point": 3}}, "settings.point"),
        ({"method": "jiter"}, "did you mean 'jitter'"),
    ],
)
def test_what_the_shards_would_refuse_is_refused_before_them(asked, said):
    with pytest.raises(InvalidInput, match=said):
        plan_shards(2, rows=100, **asked)


LATER = {"system": f"{__name__}:Circle", "rows": 100_000, "network": "mlp"}


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"network": "mlpp"}, "network", "did you mean 'mlp'"),
        ({"network_args": {"hiden": [8]}}, "network_args.hiden", "hidden"),
        ({"student_settings": {"warmup_step": 3}}, "student_settings.warmup_step", "warmup_steps"),
        ({"student_settings": {"patience": 3}}, "student_settings.patience", "mode 'overfit'"),
        ({"student_settings": {"choose": "frist"}}, "student_settings.choose", "'best'"),
        ({"learning_rate": -1.0}, "learning_rate", "0"),
        ({"assurance": "prooven"}, "assurance", "'proven'"),
        ({"statistic": "maxx"}, "statistic", "'max'"),
        ({"exceptions": True}, "exceptions", "only classes"),
        ({"tolerance": -1.0}, "tolerance", "0"),
        ({"certificate_settings": {"hunt": 3}}, "certificate_settings.hunt", "did you mean"),
        ({"gate": {"step": 3}}, "gate.step", "unknown key"),
    ],
    ids=lambda value: value if isinstance(value, str) and "'" not in value else "",
)
def test_what_the_steps_after_the_shards_would_refuse_is_refused_before_them(asked, field, said):
    with pytest.raises(InvalidInput) as caught:
        plan_shards(2, **{**LATER, **asked})
    (problem,) = caught.value.problems
    assert problem.field == field
    assert said in problem.remedy


def test_everything_wrong_with_a_surrogate_is_reported_at_once():
    wrong = {"network": "mlpp", "statistic": "maxx", "system": "haet", "gate": {"step": 3}}
    with pytest.raises(InvalidInput) as caught:
        plan_shards(200, **{**LATER, **wrong})
    assert {p.field for p in caught.value.problems} == {"shards", *wrong} - {"gate"} | {"gate.step"}


@pytest.mark.parametrize("asked", [{}, {"student_settings": {"precision": "fp16"}}])
def test_a_surrogate_that_nothing_is_wrong_with_is_planned(asked):
    """On a node without a GPU as well, though the training run will have one."""
    assert plan_shards(2, **LATER, **asked) == [0, 1]


def test_the_pipeline_passes_what_its_later_steps_get_on_to_its_first():
    spec = next(yaml.load_all(PIPELINE.read_text(), yaml.CSafeLoader))
    given = {
        name: {str(one.get("componentInputParameter")) for one in parameters.values()}
        for name, task in spec["root"]["dag"]["tasks"].items()
        if (parameters := task.get("inputs", {}).get("parameters"))
    }
    later = given["overfit-batch"] | given["train-student"] | given["certify-surrogate"]
    # Where steps run, and what any value is right for.
    free = {"gpu_image", "cpu", "memory", "accelerator", "accelerators", "device"}
    free |= {"seed", "strict", "checkpoint_uri"}
    assert later - given["plan-shards"] == free
