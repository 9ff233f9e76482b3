"""Every built-in system against its reference, and against itself."""

from typing import Any

import numpy as np
import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.base.random import uniforms
from kubestill.runtime.generation.systems import BUILTIN, System, load_system
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Continuous, Integer

ROWS = 24
SMALL = {
    "burgers": {"points": 128, "steps": 128},
    "collision-avoidance": {"distances": 8, "angles": 7, "horizon": 3},
    "lorenz": {"samples": 5},
}


def some(system: System, rows: int = ROWS) -> Any:
    return system.domain.at(uniforms(3, 0, 0, rows, width=system.domain.width))


@pytest.fixture(params=[name for name in BUILTIN if "table" not in name])
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


def test_it_agrees_with_its_reference(system: System) -> None:
    if system.reference is None:
        pytest.skip(f"{system.name} has no independent reference")
    inputs = some(system, 6)
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
        (Integer(name="x", low=0, high=1 << 30), "2^24"),
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
