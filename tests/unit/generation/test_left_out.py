"""Solvers that fail on some inputs: which are named, and what is left when they are left out."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.generation.covering import sobol
from kubestill.runtime.generation.gathering import gather_shards
from kubestill.runtime.generation.systems.left_out import LeftOut
from kubestill.runtime.generation.systems.solving import Solving
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.plan_shards import plan_shards
from kubestill.systems import Axis, Choice, Continuous, Domain, Integer, Output, System


class Kiln(System):
    """Does not converge when iron is hot, and has no answer at high pressure."""

    name = "kiln"
    solved: ClassVar[int] = 0

    def __init__(
        self,
        message: str = "did not converge",
        error: str = "ArithmeticError",
        hot: float = 0.98,
    ) -> None:
        self.domain = Domain(
            [
                Continuous(name="heat", low=0.0, high=1.0),
                Continuous(name="pressure", low=1.0, high=100.0, mapping="log"),
                Choice(name="metal", choices=("iron", "tin")),
            ]
        )
        self.output = Output(name="strain", axes=(Axis(name="end", values=(0.0, 1.0)),))
        kinds = {k.__name__: k for k in (ArithmeticError, OSError, TimeoutError)}
        self._message, self._kind, self._hot = message, kinds[error], hot

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        Kiln.solved += len(inputs)
        heat, pressure = (inputs[name].to_numpy() for name in ("heat", "pressure"))
        hot = (heat > self._hot) & (inputs["metal"] == "iron").to_numpy()
        if hot.any():
            raise self._kind(self._message.format(heat[hot][0]))
        strain = np.stack([heat * pressure, heat], 1)
        strain[pressure > 80] = np.nan, 1.0
        return strain


class Grid(System):
    """A finite domain of 200 x 100 points, of which a corner has no label."""

    name = "grid"

    def __init__(self) -> None:
        self.domain = Domain(
            [Integer(name="a", low=1, high=200), Integer(name="b", low=1, high=100)]
        )
        self.output = Output(name="side", classes=("left", "right"))

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        a, b = inputs["a"].to_numpy(), inputs["b"].to_numpy()
        return np.where((a > 190) & (b > 50), "nowhere", np.where(a > 100, "right", "left"))


class Dead(Grid):
    """Answers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.output = Output(name="side")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return np.full(len(inputs), np.inf)


KILN, GRID = f"{__name__}:Kiln", f"{__name__}:Grid"


def fails(inputs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the inputs raise, and which of the others are not finite."""
    raising = ((inputs["heat"] > 0.98) & (inputs["metal"] == "iron")).to_numpy()
    return raising, (inputs["pressure"] > 80).to_numpy() & ~raising


def make(folder: Path, **settings: Any) -> Dataset:
    settings = {"system": KILN, "rows": 17_000, "on_failure": "leave-out", **settings}
    generate_synthetic(dataset=LocalArtifact(str(folder)), **settings)
    return Dataset.open(str(folder))


def test_by_default_the_first_input_that_fails_is_named(tmp_path: Path) -> None:
    said = (
        r"`solve` raises ArithmeticError: did not converge in 1 of the rows, such as "
        r"{'heat': 0\.\d*, 'pressure': .*, 'metal': 'iron'}; .*on_failure='leave-out'"
    )
    with pytest.raises(InvalidInput, match=said):
        make(tmp_path / "rows", on_failure="stop", system_args={"hot": 0.0})
    with pytest.raises(InvalidInput, match="on_failure"):
        make(tmp_path / "rows", on_failure="leave out")


def test_what_is_left_out_is_counted_and_described_whatever_the_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make(tmp_path / "whole")
    shown = capsys.readouterr().out
    # What the shards were asked for.
    every = Kiln().domain.at(sobol(0, 17_000, 3, seed=0, scramble=True))
    raising, broken = fails(every)
    told = LeftOut.model_validate(whole.provenance["left_out"])
    assert (told.rows, told.of) == (raising.sum() + broken.sum(), 17_000)
    assert whole.rows == 17_000 - told.rows
    assert told.said in shown
    other, one = told.regions
    assert (one.reason, one.rows) == ("raises ArithmeticError: did not converge", raising.sum())
    assert (other.reason, other.rows) == ("gives what is not finite", broken.sum())
    for region, where in ((one, raising), (other, broken)):
        for name, side in region.box.items():
            values = every[where][name]
            assert (side.low, side.high) == (values.min(), values.max())
        assert region.first[0]["heat"] == every["heat"].to_numpy()[where][0]
    assert one.labels == {"metal": ("iron",)}
    assert other.labels == {}
    assert one.box["heat"].start == pytest.approx(0.98, abs=2e-3)
    assert other.box["pressure"].end - other.box["pressure"].start == pytest.approx(
        1 - np.log(80) / np.log(100), abs=2e-3
    )
    kept = whole.to_pandas()
    assert not any(found.any() for found in fails(kept))
    parts = [make(tmp_path / f"{n}", shard=n, shards=3) for n in range(3)]
    gathered = gather_shards([part.root for part in parts], str(tmp_path / "all"))
    assert gathered.fingerprint == whole.fingerprint
    joined = LeftOut.model_validate(gathered.provenance["left_out"])
    assert (joined.rows, joined.of) == (told.rows, told.of)
    assert {r.reason: (r.rows, r.box, r.labels) for r in joined.regions} == {
        r.reason: (r.rows, r.box, r.labels) for r in told.regions
    }


def test_a_finite_domain_without_some_points_is_not_complete(tmp_path: Path) -> None:
    made = make(tmp_path / "rows", system=GRID)
    assert made.rows == 20_000 - 10 * 50
    assert not made.complete_domain
    told = LeftOut.model_validate(made.provenance["left_out"])
    assert (
        "It gives a value that is not one of its classes on 500, within a 191 to 200, b 51 to 100"
        in told.said
    )
    assert "(a box of 2.5% of the domain)" in told.said
    parts = [make(tmp_path / f"{n}", system=GRID, shard=n, shards=2) for n in range(2)]
    gathered = gather_shards([part.root for part in parts], str(tmp_path / "all"))
    assert not gathered.complete_domain
    assert gathered.fingerprint == made.fingerprint


def test_rows_of_a_batch_that_raises_are_solved_again_a_few_times_at_most() -> None:
    inputs = Kiln().domain.at(np.random.default_rng(0).random((8000, 3)))
    solving = Solving(Kiln(), "leave-out")
    Kiln.solved = 0
    answers = solving(inputs)
    raising, broken = fails(inputs)
    assert (np.isnan(answers).all(axis=1) == raising | broken).all()
    assert np.array_equal(answers[~(raising | broken), 1], inputs["heat"][~(raising | broken)])
    assert Kiln.solved == solving.solved < 3.5 * len(inputs)


def test_messages_that_tell_every_input_apart_are_one_reason() -> None:
    solving = Solving(Kiln(message="lost at {}"), "leave-out")
    solving(Kiln().domain.at(np.random.default_rng(0).random((4000, 3))))
    told = solving.failures.record(solving.asked)
    assert [region.reason for region in told.regions] == [
        "gives what is not finite",
        "raises ArithmeticError",
    ]


def test_a_machine_that_fails_is_no_property_of_an_input() -> None:
    inputs = Kiln().domain.at(np.random.default_rng(0).random((400, 3)))
    with pytest.raises(OSError, match="no space left"):
        Solving(Kiln(message="no space left", error="OSError"), "leave-out")(inputs)
    assert np.isnan(Solving(Kiln(error="TimeoutError"), "leave-out")(inputs)).any()


def test_a_system_that_fails_everywhere_is_refused_before_the_shards_and_in_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {"rows": 100, "on_failure": "leave-out"}
    iron: dict[str, Any] = {"system": KILN, "system_args": {"hot": 0.0}}
    assert plan_shards(2, **asked, **iron) == [0, 1]
    assert "; the solver fails on 4 of them, which are left out" in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="did not converge in 1 of the rows"):
        plan_shards(2, rows=100, **iron)
    everywhere = r"nothing is left: The solver fails on .* inputs \(100%\). It gives what is not"
    with pytest.raises(InvalidInput, match=everywhere):
        plan_shards(2, **asked, system=f"{__name__}:Dead")
    with pytest.raises(InvalidInput, match=everywhere):
        make(tmp_path / "dead", system=f"{__name__}:Dead")
    assert not (tmp_path / "dead" / "dataset.json").exists()
    with pytest.raises(InvalidInput, match="there is no system that could fail"):
        plan_shards(2, method="munge", rows=9, on_failure="leave-out")
