"""Where milestones fall, and what a step stands for."""

from typing import Any

import pytest

from kubestill.runtime.training.plan import Plan
from kubestill.runtime.training.settings import TrainingSettings


def plan(rows: int = 1000, **settings: Any) -> Plan:
    return Plan(rows=rows, settings=TrainingSettings(batch_size=100, **settings))


def milestones(of: Plan) -> list[int]:
    found = [of.next_milestone(0)]
    while found[-1] < of.steps:
        found.append(of.next_milestone(found[-1]))
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 3, "milestone_every": 1}, [10, 20, 30]),
        ({"steps": 25, "milestone_every": 10, "milestone_unit": "steps"}, [10, 20, 25]),
        ({"epochs": 1, "milestone_every": 250, "milestone_unit": "examples"}, [3, 5, 8, 10]),
        ({"steps": 10, "milestone_every": 10, "finish_steps": 40}, [10, *range(12, 51, 2)]),
        ({"steps": 4, "milestone_every": 10, "finish_steps": 3}, [4, 5, 6, 7]),
    ],
    ids=["epochs", "steps", "examples", "finish", "short finish"],
)
def test_milestones(settings: dict[str, Any], expected: list[int]) -> None:
    assert milestones(plan(**settings)) == expected


def test_any_step_finds_the_same_milestones() -> None:
    of = plan(epochs=7.3, milestone_every=0.37, finish_steps=50)
    marks = milestones(of)
    for step in range(of.steps):
        assert of.next_milestone(step) == next(mark for mark in marks if mark > step)


def test_a_step_of_the_finish_sees_every_row_ten_times() -> None:
    of = plan(rows=950, epochs=2, finish_steps=5)
    assert (of.finish_from, of.steps) == (20, 25)
    assert (of.epochs(20), of.examples(20)) == (2.0, 1900)
    assert (of.epochs(21), of.examples(21)) == (12.0, 1900 + 9500)
