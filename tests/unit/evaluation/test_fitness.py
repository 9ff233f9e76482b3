"""Rows that are broken are told from rows that are merely different."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.evaluation.fitness import compare_rows, stability_index
from kubestill.runtime.evaluation.labels import check_labels, skill
from kubestill.runtime.evaluation.profile import Profile, columns_of, profile_of, sketch
from kubestill.runtime.evaluation.units import change_of_unit
from kubestill.runtime.metrics.outcome import Outcome

ROWS = 2000
CLASSES = ("calm", "rough", "storm")


def frame_of(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    """Weather at sea: temperature, gusts, distance, place, and how the sea was."""
    random = np.random.default_rng(seed)
    wind = random.gamma(3.0, 4.0, rows)
    state = np.digitize(wind + random.normal(0, 3, rows), [12, 25])
    return pd.DataFrame(
        {
            "wind": wind,
            "temp": random.normal(50, 12, rows),
            "miles": random.lognormal(5, 0.6, rows),
            "rain": np.where(random.random(rows) < 0.9, 0.0, random.exponential(2, rows)),
            "place": random.choice(["north", "south", "west"], rows, p=[0.5, 0.3, 0.2]),
            "sea": np.asarray(CLASSES, object)[state],
        }
    )


def values_of(frame: pd.DataFrame) -> dict[str, Any]:
    return {str(name): frame[name] for name in frame.columns}


def profile(frame: pd.DataFrame) -> Profile:
    columns = {name: sketch(column) for name, column in values_of(frame).items()}
    return Profile(rows=len(frame), target=columns.pop("sea"), columns=columns)


REFERENCE = profile(frame_of(seed=1))


def found(frame: pd.DataFrame, **options):
    return compare_rows(REFERENCE, values_of(frame), target="sea", alpha=0.05, **options)


def miles_to_kilometres(frame):
    return frame.assign(miles=frame.miles * 1.609344)


def fahrenheit_to_celsius(frame):
    return frame.assign(temp=(frame.temp - 32) / 1.8)


def sixty_percent_missing(frame):
    return frame.assign(wind=frame.wind.mask(frame.index % 5 < 3))


def labels_missing_from_places(frame):
    return frame.assign(place=frame.place.mask(frame.index % 5 < 3))


def no_storms(frame):
    return frame[frame.sea != "storm"]


def some_in_metres(frame):
    return frame.assign(miles=frame.miles.where(frame.index % 10 > 0, 1609 * frame.miles))


@pytest.mark.parametrize(
    ("spoil", "kind", "column", "words"),
    [
        (miles_to_kilometres, "unit", "miles", "miles to kilometres"),
        (fahrenheit_to_celsius, "unit", "temp", "Fahrenheit to Celsius"),
        (sixty_percent_missing, "missing", "wind", "60% of the values are missing, 0% were"),
        (labels_missing_from_places, "missing", "place", "60% of the values are missing"),
        (no_storms, "class", "sea", "'storm' is gone"),
        (some_in_metres, "range", "miles", "10% of the values lie far outside"),
    ],
    ids=["unit", "scale", "missing", "missing labels", "class gone", "mixed units"],
)
def test_broken_rows_are_named(spoil, kind, column, words):
    frame = spoil(frame_of(seed=2))
    shifts = [shift for shift in found(frame) if shift.unfit]
    assert [(shift.kind, shift.column) for shift in shifts] == [(kind, column)]
    assert words in shifts[0].statement
    assert not found(frame, ignore=(column,))


def season(frame):
    return frame.assign(temp=80 + (frame.temp - 50) * 0.6)


def windless(frame):
    """All of it is shrunk, by no factor that two units have."""
    return frame.assign(wind=0.34 * frame.wind)


def other_places(frame):
    return frame.assign(place=np.where(frame.index % 2 == 0, "south", "east"))


@pytest.mark.parametrize(
    ("change", "column"),
    [(season, "temp"), (windless, "wind"), (other_places, "place")],
    ids=["season", "stretched season", "new places"],
)
def test_a_changed_world_is_drift_and_no_fault(change, column):
    frame = change(frame_of(seed=3))
    assert [(shift.kind, shift.column) for shift in found(frame)] == [("drift", column)]


def test_a_small_difference_is_not_reported_however_certain():
    frame = frame_of(rows=40_000, seed=4)
    assert not found(frame.assign(wind=0.9 * frame.wind))


def test_healthy_rows_raise_no_alarm():
    alarms = sum(bool(found(frame_of(rows=300, seed=seed))) for seed in range(40))
    assert alarms == 0


def test_a_small_factor_is_growth_and_a_large_one_a_unit():
    column: Any = frame_of(seed=5)["miles"]
    other: Any = frame_of(seed=6)["miles"]
    known = sketch(other)
    assert change_of_unit(known, column * 1.2) is None
    assert "a unit to its thousandth" in (change_of_unit(known, column * 1000) or "")
    assert change_of_unit(known, -column) is None


def test_the_stability_index_of_equal_shares_is_nothing():
    assert stability_index(np.array([50.0, 50.0]), np.array([500.0, 500.0])) < 1e-4
    assert stability_index(np.array([90.0, 10.0]), np.array([10.0, 90.0])) > 1


def answers(frame: pd.DataFrame) -> Outcome:
    """A champion that reads the wind."""
    middles = np.array([6.0, 18.0, 32.0])
    logits = -np.square(frame.wind.to_numpy()[:, None] - middles) / 60
    return Outcome.from_logits("multiclass", logits, [CLASSES.index(s) for s in frame.sea])


RECORD = skill(answers(frame_of(seed=1)))


def shuffled(frame):
    return frame.assign(sea=frame.sea.sample(frac=1, random_state=0).to_numpy())


def swapped(frame):
    other = {"calm": "storm", "rough": "rough", "storm": "calm"}
    return frame.assign(sea=frame.sea.map(other))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(shuffled, "shuffled"), (swapped, "inverted or swapped")],
    ids=["shuffled", "swapped"],
)
def test_labels_without_meaning_are_named(spoil, words):
    frame = spoil(frame_of(seed=7))
    (shift,) = check_labels(answers(frame), RECORD, values_of(frame), "sea")
    assert shift.unfit
    assert words in shift.statement


def test_a_champion_that_knows_nothing_any_more_is_no_fault_of_the_labels():
    """The rule moved to another column: a fresh model could learn it."""
    frame = frame_of(seed=8)
    noise = np.random.default_rng(0).normal(0, 3, len(frame))
    frame["sea"] = np.asarray(CLASSES, object)[np.digitize(frame.temp + noise, [45, 60])]
    assert not check_labels(answers(frame), RECORD, values_of(frame), "sea")


def test_healthy_labels_raise_no_alarm():
    frame = frame_of(seed=9)
    assert not check_labels(answers(frame), RECORD, values_of(frame), "sea")
    assert not check_labels(answers(frame), None, values_of(frame), "sea")


def test_a_profile_is_small_and_survives_json(tmp_path):
    numbers = [Column(name=f"x{i}", kind="numeric") for i in range(150)]
    picture = Column(name="picture", kind="tensor", shape=(4, 4))
    target = Column(name="y", kind="numeric", role="target")
    schema = Schema(columns=(picture, *numbers, target), task="regression")
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(300, 150)), columns=[c.name for c in numbers])
    frame["y"] = random.normal(size=300)
    frame["picture"] = list(random.normal(size=(300, 16)).astype(np.float32))
    with DatasetWriter(str(tmp_path / "rows"), schema) as writer:
        writer.write(frame)
    dataset = Dataset.open(str(tmp_path / "rows"))
    made = profile_of(dataset)
    form = made.model_dump_json()
    assert len(form) < 60_000
    assert Profile.model_validate_json(form) == made
    assert {"mean of picture", "spread of picture", "x0"} <= made.columns.keys()
    values = columns_of(dataset)
    assert not compare_rows(made, values, target="y", alpha=0.05)


CURRENCY = 0.86


@pytest.mark.parametrize("factor", [2.0, 0.5, CURRENCY, 1.609344, 1000.0])
def test_any_factor_is_another_unit_where_it_comes_from_one_row_to_the_next(factor):
    frame = frame_of(seed=2).assign(price=lambda rows: rows.miles.clip(100, 200))
    known = sketch(frame_of(seed=1).miles.clip(100, 200))
    last, now = frame.price[:1000], frame.price[1000:]
    assert "Has its unit changed?" in (change_of_unit(known, now * factor, last) or "")
    assert change_of_unit(known, now, last) is None
    # It came with the season: the rows right before have it, too.
    assert change_of_unit(known, now * factor, last * factor) is None


def shares_told(factor: float, spread: float, draws: int = 10) -> float:
    """How many windows of log-normal prices are called another unit, with the rows before known."""
    told = 0
    for seed in range(draws):
        random = np.random.default_rng(seed)
        before, last, now = (
            pd.Series(100 * np.exp(spread * random.normal(size=rows))) for rows in (5000, 300, 1000)
        )
        told += change_of_unit(sketch(before), factor * now, last) is not None
        assert change_of_unit(sketch(before), now, last) is None
    return told / draws


def test_the_small_factors_that_are_told_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "judging.md").read_text()
    lines = re.findall(r"^\| ([\d.]+) \|[^|]*\| (\d+)% \| (\d+)% \| (\d+)% \|$", text, re.MULTILINE)
    assert len(lines) == 5
    for factor, *shares in lines:
        found = [shares_told(float(factor), spread) for spread in (0.2, 0.5, 1.0)]
        assert found == pytest.approx([int(share) / 100 for share in shares])


def test_a_season_that_comes_slowly_is_no_unit_even_where_it_doubles_everything():
    former: Any = frame_of(seed=1)["miles"]
    known, frame = sketch(former), frame_of(rows=4000, seed=2)
    risen = frame.miles * np.linspace(1.0, 2.0, 4000)
    assert change_of_unit(known, risen[2000:], risen[:2000]) is None


def test_a_month_of_weather_is_no_unit_where_its_rows_are_few() -> None:
    """The rows next to the beginning of a month are then half of it."""
    told = 0
    for seed in range(12, 24):
        random = np.random.default_rng(seed)
        slow = np.zeros(365)
        for day in range(1, 365):
            slow[day] = 0.7 * slow[day - 1] + random.normal(0, 5)
        warmth = 55 - 25 * np.cos(2 * np.pi * np.arange(365) / 365) + slow
        rows = np.repeat(warmth, 15) + random.normal(0, 3, 365 * 15)
        months = [pd.Series(part) for part in np.array_split(rows, 12)]
        for number in range(3, 12):
            known = sketch(pd.concat(months[:number]))
            told += change_of_unit(known, months[number], months[number - 1]) is not None
    assert told == 0


def test_the_profile_of_several_windows_knows_what_is_usual_in_one_of_them(tmp_path):
    """A winter without storms, and a summer in which a gauge is down."""
    schema = Schema(
        columns=(
            Column(name="wind", kind="numeric"),
            Column(name="sea", kind="categorical", role="target", categories=CLASSES),
        ),
        task="multiclass",
    )
    calm, summer = no_storms(frame_of(seed=1)), sixty_percent_missing(frame_of(seed=2))
    windows: list[Dataset] = []
    for name, frame in {"all": frame_of(seed=3), "winter": calm, "summer": summer}.items():
        with DatasetWriter(str(tmp_path / name), schema) as writer:
            writer.write(frame[["wind", "sea"]].reset_index(drop=True))
        windows.append(writer.dataset)

    def broken(reference, frame):
        values = {name: frame[name] for name in ("wind", "sea")}
        shifts = compare_rows(reference, values, target="sea", alpha=0.05)
        return {shift.kind for shift in shifts if shift.unfit}

    for frame, kind in (
        (no_storms(frame_of(seed=4)), "class"),
        (sixty_percent_missing(frame_of(seed=4)), "missing"),
    ):
        assert broken(profile_of(windows[0]), frame) == {kind}
        assert broken(profile_of(*windows), frame) == set()
    assert broken(profile_of(*windows), frame_of(seed=4).assign(wind=np.nan)) == {"missing"}
