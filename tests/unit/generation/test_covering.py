"""A system's domain, covered in shards: the union is the same however it is cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.generation.gathering import gather_shards
from kubestill.runtime.generation.systems import Domain, Output, System
from kubestill.runtime.generation.systems.inputs import Choice, Continuous, Integer
from kubestill.runtime.steps.generate_synthetic import generate_synthetic


class Sum(System):
    """The sum of three inputs, one of which counts and one of which is named."""

    name = "sum"

    def __init__(self, most: int = 9, high: float = 1.0):
        self.domain = Domain(
            [
                Integer(name="count", low=0, high=most),
                Choice(name="sign", choices=("minus", "plus")),
                Continuous(name="share", low=0.0, high=high),
            ]
        )
        self.output = Output(name="total")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        sign = np.where(inputs["sign"] == "plus", 1.0, -1.0)
        return sign * (inputs["count"] + inputs["share"]).to_numpy()


class Broken(Sum):
    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return np.full(len(inputs), np.nan)


class Narrow(Sum):
    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return np.zeros((len(inputs), 2))


class Parity(Sum):
    """Discrete all through: its grid is everything there is."""

    def __init__(self) -> None:
        self.domain = Domain(
            [Integer(name="a", low=0, high=99), Integer(name="b", low=-100, high=99)]
        )
        self.output = Output(name="parity", classes=("even", "odd"))

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        odd = (inputs["a"] + inputs["b"]).to_numpy() % 2 == 1
        return np.where(odd, "odd", "even")


OWN = f"{__name__}:Sum"


def make(folder: Path, **settings: Any) -> Dataset:
    generate_synthetic(dataset=LocalArtifact(str(folder)), **settings)
    return Dataset.open(str(folder))


def in_shards(folder: Path, shards: int, **settings: Any) -> Dataset:
    made = [
        make(folder / f"{shards}-{shard}", shard=shard, shards=shards, **settings)
        for shard in range(shards)
    ]
    return gather_shards([shard.root for shard in reversed(made)], str(folder / f"all-{shards}"))


@pytest.mark.parametrize("method", ["grid", "sobol", "latin-hypercube", "random"])
def test_the_union_does_not_depend_on_shards(tmp_path: Path, method: str) -> None:
    unions = [
        in_shards(tmp_path, n, system=OWN, method=method, rows=30_000, seed=4) for n in (1, 2, 5)
    ]
    assert len({union.fingerprint for union in unions}) == 1
    assert [union.complete_domain for union in unions] == [method == "grid"] * 3
    rows: Any = unions[1].to_pandas()
    domain = Sum().domain
    assert domain.contains(rows[list(domain.names)]).all()
    solved = Sum().solve(rows).astype(np.float32)
    np.testing.assert_array_equal(rows["total"].to_numpy(), solved)


def test_a_discrete_domain_is_covered_completely(tmp_path: Path) -> None:
    made = in_shards(tmp_path, 3, system=f"{__name__}:Parity")
    assert made.provenance["method"] == "grid"
    assert made.rows == 20_000
    assert made.complete_domain
    rows: Any = made.to_pandas()
    assert len(rows.drop_duplicates(["a", "b"])) == 20_000
    assert rows["b"].min() == -100
    assert (rows["parity"] == "odd").sum() == 10_000


def test_a_grid_holds_both_ends_and_what_was_asked_for(tmp_path: Path) -> None:
    made = make(tmp_path, system=OWN, method="grid", settings={"points": {"share": 5}})
    rows: Any = made.to_pandas()
    assert made.rows == 10 * 2 * 5
    assert sorted(set(rows["share"])) == [0.0, 0.25, 0.5, 0.75, 1.0]
    thinned = make(tmp_path, system=OWN, method="grid", settings={"points": {"count": 4}})
    assert not thinned.complete_domain


def test_a_missing_shard_is_no_complete_domain(tmp_path: Path) -> None:
    shards = [make(tmp_path / str(n), system=OWN, method="grid", shard=n, shards=2) for n in (0, 1)]
    assert not any(shard.complete_domain for shard in shards)
    with pytest.raises(InvalidInput, match="missing: 1"):
        gather_shards([shards[0].root], str(tmp_path / "all"))


def test_a_latin_hypercube_has_one_row_in_every_slice(tmp_path: Path) -> None:
    rows: Any = in_shards(
        tmp_path, 2, system="black-scholes", method="latin-hypercube", rows=9000
    ).to_pandas()
    slices = np.floor((rows["moneyness"] - 0.5) / 1.5 * 9000)
    # Rounding to float32 may carry a value over the edge of its slice.
    assert len(set(slices)) > 8990


def test_a_sobol_sequence_covers_more_evenly_than_chance(tmp_path: Path) -> None:
    def emptiest(method: str) -> int:
        rows: Any = make(tmp_path / method, system="heat", method=method, rows=4096).to_pandas()
        cells = np.histogram2d(rows["position"], rows["diffusivity"], bins=16)[0]
        return int(cells.min())

    assert emptiest("sobol") > emptiest("random")


@pytest.mark.parametrize(
    ("settings", "field", "hint"),
    [
        ({"system": "hest"}, "system", "'heston'"),
        ({"system": OWN, "system_args": {"mots": 3}}, "system_args.mots", "'most'"),
        ({"system": OWN, "method": "munge"}, "method", "starts from a dataset"),
        ({"system": OWN, "method": "sobbol"}, "method", "'sobol'"),
        ({"method": "sobol"}, "method", "name one in `system`"),
        ({"system_args": {"most": 3}}, "system_args", "no system"),
        ({"system": OWN, "method": "adaptive"}, "model", "connect one"),
        (
            {"system": OWN, "method": "grid", "settings": {"points": {"shar": 3}}},
            "settings.points.shar",
            "'share'",
        ),
        (
            {"system": OWN, "method": "grid", "settings": {"points": {"sign": 3}}},
            "settings.points.sign",
            "1 to 2",
        ),
        (
            {"system": OWN, "method": "grid", "settings": {"scramble": True}},
            "settings.scramble",
            "",
        ),
        ({"system": OWN, "system_args": {"high": -1}}, "system_args.input 'share'", "below"),
        ({"system": f"{__name__}:Path"}, "system", "subclass"),
        ({"system": "burgers", "method": "grid"}, "settings.points", "use the method random"),
        ({"system": f"{__name__}:Broken", "method": "random"}, "system", "not finite"),
        ({"system": f"{__name__}:Narrow", "method": "random"}, "system", "gave an array"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_requests(tmp_path: Path, settings: dict[str, Any], field: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(tmp_path / "out", **settings)
    found = {problem.field: problem.remedy for problem in caught.value.problems}
    assert hint in found[field]
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_no_rows_at_all_turn_augmentation_off(tmp_path: Path) -> None:
    original = make(tmp_path / "all", system="heat", method="random", rows=500)
    source = LocalArtifact(original.root, metadata={"kind": "dataset"})
    same = make(tmp_path / "same", original=source, rows=0)
    assert same.fingerprint == original.fingerprint
