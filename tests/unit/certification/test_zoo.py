"""No verdict is false: systems of every kind, networks of every kind, and an adversary."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from zoo import FINITE, NETWORKS, SYSTEMS, Adversary, build

from kubestill.runtime.certification.errors import off_grid, on_domain
from kubestill.runtime.certification.hunt import hunt
from kubestill.runtime.certification.proof import prove
from kubestill.runtime.certification.truth import Truth

BOXES, EVALUATIONS = 200, 2_000
CASES = [
    pytest.param(system, network, id=f"{system}-{network}")
    # Each system has two networks, each network a system; `bench.bench_zoo` runs all.
    for place, system in enumerate(SYSTEMS)
    for network in itertools.islice(itertools.cycle(NETWORKS), 2 * place, 2 * place + 2)
]


@pytest.mark.parametrize(("system", "network"), CASES)
def test_no_point_exceeds_a_bound(system: str, network: str) -> None:
    solver = SYSTEMS[system]()
    predictor = build(solver, NETWORKS[network])
    proof = prove(predictor, solver, boxes=BOXES, seconds=20, gap=0.02)
    found = Adversary(predictor, solver).search(EVALUATIONS)
    assert proof.lower <= proof.upper
    assert found <= proof.upper


@pytest.mark.parametrize("system", ["periodic", "mixed", "tensor", "black-scholes"])
def test_the_search_of_a_certificate_comes_close_to_the_adversary(system: str) -> None:
    """At a tenth of its evaluations, and never at a point that errs by less than it says."""
    solver = SYSTEMS[system]()
    predictor = build(solver, NETWORKS["trained relu"])
    truth = Truth(solver, predictor)
    samples = off_grid(truth, 500, seed=0)
    worst, error = hunt(truth, samples.unit, samples.errors, 16, 1024, seed=0)
    apart = np.abs(truth.solve(worst) - truth.predict(worst)).max()
    assert apart == pytest.approx(error, rel=1e-6)
    assert error >= 0.99 * Adversary(predictor, solver).search(30_000)


@pytest.mark.parametrize("network", ["trained tanh", "untrained relu", "saturating", "constant"])
@pytest.mark.parametrize("name", FINITE)
def test_no_point_of_a_finite_domain_is_left_out(name: str, network: str) -> None:
    """Every combination by another route than the domain's own grid."""
    solver = FINITE[name]()
    predictor = build(solver, NETWORKS[network])
    levels = [
        given.on_grid(np.arange(given.levels or 0), given.levels or 0)
        for given in solver.domain.inputs
    ]
    frame = solver.domain.at(np.full((1, solver.domain.width), 0.5))
    rows = list(itertools.product(*levels))
    frame = frame.iloc[[0] * len(rows)].reset_index(drop=True)
    for place, column in enumerate(solver.domain.names):
        frame[column] = [row[place] for row in rows]
    seen = on_domain(Truth(solver, predictor), solver.domain.points(rows=1 << 20))
    told, right = predictor(frame)["prediction"].to_numpy(), solver.solve(frame)
    assert len(seen.errors) == len(rows) == math.prod(len(values) for values in levels)
    if solver.output.classes:
        assert int(seen.errors.sum()) == int((told != right).sum())
    else:
        assert seen.errors.max() == np.abs(told.astype(np.float64) - right).max()
