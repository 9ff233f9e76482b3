"""Every built-in system against its reference, and against itself."""

import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.fft import dctn

from kubestill.errors import InvalidInput
from kubestill.runtime.base.random import uniforms
from kubestill.runtime.generation.systems import BUILTIN, System, load_system, solving
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Continuous, Integer

ROWS = 24
SMALL = {
    "burgers": {"points": 128, "steps": 128},
    "collision-avoidance": {"distances": 8, "angles": 7, "horizon": 3},
    "lorenz": {"samples": 5},
}
SLOW = {"robertson": 1}
"""Rows for which a reference takes long."""


def some(system: System, rows: int = ROWS) -> Any:
    return system.domain.at(uniforms(3, 0, 0, rows, width=system.domain.width))


@pytest.fixture(params=[name for name in BUILTIN if "table" not in name and name != "model"])
def system(request: pytest.FixtureRequest) -> System:
    return load_system(request.param, SMALL.get(request.param))


def test_it_gives_what_it_declares(system: System) -> None:
    solution = np.asarray(system.solve(some(system)))
    assert solution.shape == (ROWS, *system.output.shape)
    if system.output.classes:
        assert set(solution) <= set(system.output.classes)
    else:
        assert np.isfinite(solution).all()
    assert type(system).__doc__
    assert system.schema.target


def test_a_row_alone_has_the_same_bits(system: System) -> None:
    inputs = some(system)
    together = np.asarray(system.solve(inputs))
    for row in (0, ROWS // 2, ROWS - 1):
        alone = np.asarray(system.solve(inputs.iloc[row : row + 1]))[0]
        np.testing.assert_array_equal(alone, together[row])


@pytest.mark.parametrize("cores", [2, 3])
def test_rows_that_cores_share_have_the_same_bits(
    system: System, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, solve = set[int](), system.solve

    met = threading.Barrier(cores if system.parallel else 1)

    def watched(inputs: pd.DataFrame) -> Any:
        met.wait(60)
        threads.add(threading.get_ident())
        return solve(inputs)

    monkeypatch.setattr(system, "solve", watched)
    monkeypatch.setattr(solving, "workers", lambda: cores)
    monkeypatch.setattr(solving, "_FEWEST", 1)
    inputs = some(system)
    shared = solving.Solving(system)(inputs)
    alone = np.asarray(solve(inputs))
    if system.output.classes:
        alone = pd.Index(system.output.classes).get_indexer_for(alone)
    np.testing.assert_array_equal(shared, alone.reshape(ROWS, -1))
    assert len(threads) == (cores if system.parallel else 1)


def test_a_failure_on_one_core_names_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    system = load_system("heat")
    inputs, solve = some(system), system.solve

    def failing(rows: pd.DataFrame) -> Any:
        if 20 in rows.index:
            raise ArithmeticError("no convergence")
        return solve(rows)

    monkeypatch.setattr(system, "solve", failing)
    monkeypatch.setattr(solving, "workers", lambda: 3)
    asked = solving.Solving(system, "leave-out")
    lost = np.isnan(asked(inputs)).any(axis=1)
    assert list(np.flatnonzero(lost)) == [20]
    assert [one.reason for one in asked.failures.record(ROWS).regions] == [
        "raises ArithmeticError: no convergence"
    ]
    with pytest.raises(InvalidInput, match="ArithmeticError: no convergence"):
        solving.Solving(system)(inputs)


def test_it_agrees_with_its_reference(system: System) -> None:
    if system.reference is None:
        pytest.skip(f"{system.name} has no independent reference")
    inputs = some(system, SLOW.get(system.name, 6))
    solution, exact = system.solve(inputs), system.reference(inputs)
    scale = np.abs(exact).max()
    assert np.abs(solution - exact).max() < 2e-6 * scale


def test_every_value_of_a_domain_is_one_that_float32_holds(system: System) -> None:
    inputs = some(system)
    assert system.domain.contains(inputs).all()
    for given in system.domain.inputs:
        if isinstance(given, Continuous):
            values = inputs[given.name].to_numpy()
            np.testing.assert_array_equal(values, values.astype(np.float32))


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (Continuous(name="x"), "unbounded"),
        (Continuous(name="x", low=0.0), "unbounded"),
        (Continuous(name="x", low=1.0, high=1.0), "below the upper"),
        (Continuous(name="x", low=0.0, high=1.0, mapping="log"), "above 0"),
        (Continuous(name="x", mapping="exponential"), "finite low"),
        (Integer(name="x", low=3, high=2), "must not be above"),
        (Integer(name="x", low=0, high=1 << 30), "2^25"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_domain_refuses_what_cannot_be_covered(given: Any, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Domain([given])
    assert hint in str(caught.value)


@pytest.mark.parametrize("mapping", ["normal", "exponential"])
def test_an_unbounded_input_is_covered_by_an_explicit_mapping(mapping: Any) -> None:
    given = Continuous(name="x", low=0.0 if mapping == "exponential" else -np.inf, mapping=mapping)
    domain = Domain([given])
    values = domain.at(uniforms(0, 0, 0, 20_000, width=1))["x"].to_numpy()
    assert abs(values.mean() - (0.0 if mapping == "normal" else 1.0)) < 0.05
    assert np.all(domain.contains(domain.grid(np.arange(9), {"x": 9})))


def by_chebyshev(permeability: Any, count: int = 28) -> Any:
    """Solve -div(a grad u) = 1 by collocation (Trefethen 2000, programs 13 and 16), to 1e-6."""
    angle = np.pi * np.arange(count + 1) / count
    place = np.cos(angle)
    weight = np.r_[2, np.ones(count - 1), 2] * (-1) ** np.arange(count + 1)
    apart = place[:, None] - place + np.eye(count + 1)
    slope = np.outer(weight, 1 / weight) / apart
    # Twice, since the interval is half as long as Chebyshev's own.
    slope = 2 * (slope - np.diag(slope.sum(axis=1)))
    side, one = (place + 1) / 2, np.eye(count + 1)
    y, x = np.meshgrid(side, side, indexing="ij")
    by_y, by_x = np.kron(slope, one), np.kron(one, slope)
    medium = permeability(x, y).ravel()[:, None]
    operator = -(by_y @ (medium * by_y) + by_x @ (medium * by_x))
    inside = np.zeros((count + 1, count + 1), bool)
    inside[1:-1, 1:-1] = True
    kept = np.flatnonzero(inside)
    values = np.zeros(len(medium))
    values[kept] = np.linalg.solve(operator[np.ix_(kept, kept)], np.ones(len(kept)))
    found = np.polynomial.chebyshev.chebvander2d(2 * y - 1, 2 * x - 1, (count, count))
    weights = np.linalg.solve(found.reshape(len(medium), -1), values)
    table = weights.reshape(count + 1, count + 1)
    return lambda x, y: np.polynomial.chebyshev.chebval2d(2 * y - 1, 2 * x - 1, table)


def smooth(x: Any, y: Any) -> Any:
    return np.exp(0.5 * np.cos(2 * x + y) + 0.3 * np.sin(3 * y))


@pytest.mark.parametrize("medium", [lambda x, y: 1.0 + 0 * x, smooth], ids=["even", "smooth"])
def test_darcy_approaches_the_equation_s_solution_with_the_square_of_the_grid(medium: Any) -> None:
    exact, off = by_chebyshev(medium), []
    for points in (16, 32, 64):
        system = load_system("darcy", {"points": points})
        side = (np.arange(points) + 0.5) / points
        y, x = np.meshgrid(side, side, indexing="ij")
        (found,) = system.solve(pd.DataFrame({"permeability": [medium(x, y)]}))
        # In the mean: at the edge, where the medium varies most, the largest falls more slowly.
        off.append(((found - exact(x, y)) ** 2).mean() ** 0.5 / found.max())
    assert off[1] < 2e-3
    assert off[0] / off[1] == pytest.approx(4, rel=0.05)
    assert off[1] / off[2] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("medium", ["two-phase", "log-normal"])
def test_what_flows_out_of_a_darcy_medium_is_what_comes_in(medium: str) -> None:
    system = load_system("darcy", {"medium": medium})
    inputs = some(system)
    for a, u in zip(inputs["permeability"], system.solve(inputs), strict=True):
        edges = [(0, slice(None)), (-1, slice(None)), (slice(None), 0), (slice(None), -1)]
        assert sum((2 * a * u)[edge].sum() for edge in edges) == pytest.approx(1.0, rel=1e-12)


def test_darcy_s_random_field_has_the_covariance_that_it_says() -> None:
    """The log of a log-normal medium over 9 has the spreads (pi^2 k^2 + 9)^-1 in cosines."""
    system = load_system("darcy", {"medium": "log-normal", "points": 24})
    unit = uniforms(0, 0, 0, 2_000, width=system.domain.width)
    fields = np.log(np.stack(system.domain.at(unit)["permeability"].to_list())) / 9
    waves = np.asarray(dctn(fields, axes=(1, 2), norm="ortho"))[:, :6, :6] / 24
    k = np.arange(6)
    wanted = 1 / (np.pi**2 * (k[:, None] ** 2 + k**2) + 9)
    wanted[0, 0] = 0.0
    np.testing.assert_allclose(waves.std(axis=0), wanted, rtol=0.08, atol=1e-6)


# What CVODE's example cvRoberts_dns prints (SUNDIALS 7, relative error of a step 1e-4).
ROBERTSON = [
    (0.4, 9.8517e-01, 3.3864e-05, 1.4794e-02),
    (4.0, 9.0552e-01, 2.2405e-05, 9.4462e-02),
    (40.0, 7.1583e-01, 9.1851e-06, 2.8416e-01),
    (400.0, 4.5049e-01, 3.2226e-06, 5.4951e-01),
    (4000.0, 1.8320e-01, 8.9422e-07, 8.1680e-01),
]


def test_robertson_s_reaction_is_the_one_that_is_known() -> None:
    system = load_system("robertson")
    known = np.array(ROBERTSON)
    times = known[:, 0]
    inputs = pd.DataFrame({"time": times, "decay": 0.04, "pairing": 3e7, "return": 1e4})
    found = system.solve(inputs)
    np.testing.assert_allclose(found, known[:, 1:], rtol=5e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-12)
    # Each species by itself: the second is 1e-5 of the others.
    assert system.reference
    np.testing.assert_allclose(found[4:], system.reference(inputs.iloc[4:]), rtol=1e-8)
