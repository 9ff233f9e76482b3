"""Solving rows of the built-in systems on several cores, beside one.

Each system is asked to share its rows out (`parallel`), whether it does by itself or not: those
that gain nothing show why they do not. Both rivals go through `Solving`, with equal bits.

    python -m bench.bench_systems [--rounds 5]
"""

from __future__ import annotations

import argparse

import numpy as np

from bench.harness import clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.datasets.parts import workers
from kubestill.runtime.generation.systems.load import load_system
from kubestill.runtime.generation.systems.solving import Solving, probe_inputs

ROWS = {
    "heat": 8192,
    "burgers": 1024,
    "heston": 512,
    "darcy": 64,
    "black-scholes": 8192,
    "lorenz": 1024,
    "robertson": 128,
}
"""By system; enough for a second at most."""
GAIN = 1.3
"""On two cores, of those that share their rows out by themselves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    told = parser.parse_args()
    write("systems", [measure(name, rows, told.rounds) for name, rows in ROWS.items()])


def measure(name: str, count: int, rounds: int) -> Measure:
    """Return how much faster one system's rows are solved."""
    one, several = load_system(name), load_system(name)
    shares = several.parallel
    one.parallel, several.parallel = False, True
    inputs = probe_inputs(one.domain, count)
    rivals = {"one core": Solving(one), "several": Solving(several)}
    alone, shared = (solve(inputs) for solve in rivals.values())
    assert np.array_equal(alone, shared), f"{name}: other bits"
    timed = {who: clock(lambda solve=solve: solve(inputs)) for who, solve in rivals.items()}
    return Measure(
        name=f"{name}, {count:,} rows: on {workers()} cores",
        value=take_turns(timed, rounds).ratio("one core", "several"),
        bar=GAIN if shares else None,
        unit="times as fast",
        peer="one core; " + ("shares its rows out" if shares else "does not by itself"),
    )


if __name__ == "__main__":
    main()
