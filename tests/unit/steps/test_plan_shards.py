"""The list that a fan-out loops over, and what is found out before it starts."""

import re
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.generation.systems import Domain, Output, System
from kubestill.runtime.generation.systems.inputs import Continuous
from kubestill.runtime.steps.plan_shards import plan_shards


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
        ({"system": f"{__name__}:Broken"}, "is not finite in 8 rows"),
        ({"system": "haet"}, "did you mean 'heat'"),
        ({"system": "heat", "method": "munge"}, "it varies a dataset"),
        ({"system": "heat", "method": "grid", "settings": {"point": 3}}, "settings.point"),
        ({"method": "jiter"}, "did you mean 'jitter'"),
    ],
)
def test_what_the_shards_would_refuse_is_refused_before_them(asked, said):
    with pytest.raises(InvalidInput, match=said):
        plan_shards(2, rows=100, **asked)
