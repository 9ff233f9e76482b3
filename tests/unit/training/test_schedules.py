import pytest
import torch
from torch.optim import lr_scheduler

from kubestill.errors import InvalidInput
from kubestill.runtime.training.schedules import LearningRates, check_arguments, names


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CosineAnnealingLR", {"T_max": 40}),
        ("StepLR", {"step_size": 7, "gamma": 0.5}),
        ("ExponentialLR", {"gamma": 0.97}),
        ("PolynomialLR", {"total_iters": 40, "power": 2.0}),
        ("OneCycleLR", {"max_lr": 0.3, "total_steps": 41, "cycle_momentum": False}),
    ],
)
def test_the_table_is_what_torch_steps_through(name: str, arguments: dict) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
    rates = LearningRates(name, arguments, peak=0.3, steps=40)
    for step in range(40):
        assert rates.at(step) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", names())
def test_every_schedule_runs_with_what_the_length_fills_in(name: str) -> None:
    rates = LearningRates(name, {}, peak=0.1, steps=50)
    values = [rates.at(step) for step in range(2000)]
    assert all(0 <= value <= 0.1 + 1e-9 for value in values)


def test_a_rate_does_not_depend_on_the_ones_asked_for_before() -> None:
    forward = LearningRates("CosineAnnealingLR", {}, peak=1.0, steps=5000, warmup=10)
    resumed = LearningRates("CosineAnnealingLR", {}, peak=1.0, steps=5000, warmup=10)
    expected = [forward.at(step) for step in range(5000)][4321]
    assert resumed.at(4321) == expected


def test_warmup_rises_to_the_peak_and_epochs_tick_once() -> None:
    rates = LearningRates("constant", {}, peak=0.4, steps=20, warmup=4)
    assert [round(rates.at(i), 9) for i in range(6)] == [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    by_epoch = LearningRates(
        "StepLR", {"step_size": 1, "gamma": 0.5}, peak=1.0, steps=9, steps_per_tick=3
    )
    assert [by_epoch.at(i) for i in range(9)] == [1.0] * 3 + [0.5] * 3 + [0.25] * 3


@pytest.mark.parametrize("name", names())
def test_warmup_leads_to_where_the_schedule_begins(name: str) -> None:
    """`OneCycleLR` begins at a 25th of its peak: from the peak it would be a jump."""
    alone = LearningRates(name, {}, peak=0.4, steps=90)
    rates = LearningRates(name, {}, peak=0.4, steps=100, warmup=10)
    first = alone.at(0)
    assert [rates.at(i) for i in range(10)] == [first * (i + 1) / 10 for i in range(10)]
    assert [rates.at(i + 10) for i in range(90)] == [alone.at(i) for i in range(90)]


def test_unknown_arguments_are_named_together() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_arguments("CosineAnnealingLR", {"T_maxx": 3, "gama": 1})
    assert len(caught.value.problems) == 2
    assert "T_max" in str(caught.value)
