"""A table that is interpolated: against scipy, over boxes, and what is no grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import RegularGridInterpolator

from kubestill.errors import InvalidInput
from kubestill.runtime.certification.proof.space import Space
from kubestill.runtime.generation.systems import load_system
from kubestill.runtime.generation.systems.interpolation import InterpolatedTable
from kubestill.runtime.generation.systems.taylor import boxed

KNOTS = {"p": (0.0, 1.0, 4.0), "q": (-2.0, -1.0, 0.0, 3.0), "r": (0.5, 0.75)}


def rows() -> pd.DataFrame:
    grid = pd.MultiIndex.from_product(list(KNOTS.values()), names=list(KNOTS)).to_frame(index=False)
    return grid.assign(z=np.random.default_rng(0).integers(-8, 8, len(grid)).astype(float))


def load(folder: Path, frame: pd.DataFrame, **args: Any) -> InterpolatedTable:
    frame.sample(frac=1, random_state=1).to_parquet(folder / "rows.parquet", index=False)
    made = load_system("interpolated-table", {"source": str(folder), "target": "z", **args})
    assert isinstance(made, InterpolatedTable)
    return made


def test_it_interpolates_as_scipy_does(tmp_path: Path) -> None:
    frame = rows()
    system = load(tmp_path, frame)
    known = RegularGridInterpolator(
        tuple(np.array(k) for k in KNOTS.values()), frame["z"].to_numpy().reshape(3, 4, 2)
    )
    inputs = system.domain.at(np.random.default_rng(1).random((500, 3)))
    np.testing.assert_allclose(system.solve(inputs), known(inputs.to_numpy()), atol=1e-12)
    np.testing.assert_array_equal(system.solve(frame), frame["z"])
    assert system.table_bytes == 4 * len(frame)


def test_it_interpolates_the_tables_own_numbers_not_what_a_dataset_holds(tmp_path: Path) -> None:
    frame = rows()
    frame["p"], frame["z"] = frame["p"] / 3 + 0.1, frame["z"] * 0.1
    system = load(tmp_path, frame)
    assert system.domain.inputs[0].bounds == (0.1, 4 / 3 + 0.1)  # pyright: ignore
    np.testing.assert_allclose(system.solve(frame), frame["z"], rtol=0, atol=1e-15)


def test_boxes_are_cut_at_the_grid_and_enclosed_exactly_within(tmp_path: Path) -> None:
    system = load(tmp_path, rows())
    space, random = Space(system.domain, system.breaks), np.random.default_rng(0)
    boxes = space.whole
    for turn in range(9):
        columns = (space.columns(ends, boxes) for ends in (boxes.low, boxes.high))
        found = system.expand(boxed(*columns))
        for corner in (True, False):
            share = random.random(boxes.low.shape)
            share = np.round(share) if corner else share
            points = np.clip(boxes.low + (boxes.high - boxes.low) * share, boxes.low, boxes.high)
            shift = points - boxes.centred[0]
            bent = np.einsum("bi,bij,bj->b", shift, found.hessian, shift) / 2
            told = found.value + (found.gradient * shift).sum(1) + bent
            assert (
                np.abs(system.solve(space.frame(points, boxes)) - told) <= found.remainder
            ).all()
        boxes = space.halves(boxes, np.full(len(boxes), turn % 3))
    # In every dimension the grid's own points came first.
    inside = [set(np.unique(boxes.low[:, place])) for place in range(3)]
    assert all(set(k[:-1]) <= found for k, found in zip(KNOTS.values(), inside, strict=True))


@pytest.mark.parametrize("between", ["previous", "nearest"])
def test_a_piecewise_constant_table_is_looked_up_and_enclosed_exactly(
    tmp_path: Path, between: str
) -> None:
    frame = rows()
    system = load(tmp_path, frame, between=between)
    np.testing.assert_array_equal(system.solve(frame), frame["z"])
    random = np.random.default_rng(1)
    inputs = system.domain.at(random.random((500, 3)))
    cells = []
    for name, knots in KNOTS.items():
        away = inputs[name].to_numpy()[:, None] - np.array(knots)
        away = np.where(away >= 0, away, np.inf) if between == "previous" else np.abs(away)
        cells.append(away.argmin(1))
    table = frame["z"].to_numpy().reshape(3, 4, 2)
    np.testing.assert_array_equal(system.solve(inputs), table[tuple(cells)])
    space = Space(system.domain, system.breaks)
    boxes = space.whole
    for turn in range(9):
        low, high = system.enclose(*(space.frame(ends, boxes) for ends in (boxes.low, boxes.high)))
        share = random.random((200, *boxes.low.shape)).round(1)
        points = np.clip(boxes.low + (boxes.high - boxes.low) * share, boxes.low, boxes.high)
        found = np.array([system.solve(space.frame(some, boxes)) for some in points])
        assert (low <= found).all()
        assert (found <= high).all()
        # Of so few numbers, 200 points of the whole meet the largest and the smallest.
        assert turn or (found.min(), found.max()) == (low[0], high[0])
        boxes = space.halves(boxes, np.full(len(boxes), turn % 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.iloc[1:], "no complete grid of 3 x 4 x 2"),
        (lambda frame: pd.concat([frame, frame.iloc[:1]]), "no complete grid"),
        (lambda frame: frame.assign(q=frame["q"].map(lambda n: f"at {n}")), "is not numeric"),
        (lambda frame: frame[frame["r"] < 0.6], "two and more along each input"),
    ],
    ids=["hole", "twice", "labels", "flat"],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        load(tmp_path, change(rows()))


def test_other_ways_between_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="between = 'linea': .*'linear'"):
        load(tmp_path, rows(), between="linea")
