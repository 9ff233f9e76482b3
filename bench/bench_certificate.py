"""Proofs over whole domains: the bound against the largest error that a long hunt finds.

python -m bench.bench_certificate [--steps 2000] [--seconds 600] [--hunt 2000000] [--only heat]
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from bench.results import Measure, write
from kubestill.runtime.certification.proof import Proof, prove
from kubestill.runtime.certification.proof.sides import NetworkSide
from kubestill.runtime.certification.proof.space import Boxes, Space
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.generation.systems import Domain, Output, System, load_system
from kubestill.runtime.generation.systems.inputs import Continuous
from kubestill.runtime.generation.systems.taylor import Taylor, boxed, exp, sin
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor

HIDDEN = [64, 64, 64]
"""The default of the surrogate pipeline: 8,641 parameters at three inputs."""
ROWS = 40_000
BATCH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--hunt", type=int, default=2_000_000)
    parser.add_argument("--only", default="", help="measure the cases of this name alone")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "heat, tanh": (load_system("heat"), "tanh", 1),
            "Black-Scholes, tanh": (load_system("black-scholes"), "tanh", 1),
            "interpolated table, tanh": (table(Path(folder)), "tanh", 1),
            "heat, relu": (load_system("heat"), "relu", 1),
            "smooth ridge, tanh, trained 6 times as long": (Ridge(3), "tanh", 6),
        }
        for name, (system, activation, longer) in cases.items():
            if told.only not in name:
                continue
            steps = longer * told.steps
            predictor = train(system, steps, hidden=HIDDEN, activation=activation)
            # Of the processor: a busy machine takes no more of it.
            began = time.process_time()
            proof = prove(predictor, system, seconds=told.seconds)
            spent = time.process_time() - began
            found = max(hunt(predictor, system, told.hunt), proof.lower)
            others = [
                Measure(
                    name=f"{name}: {way} on as many boxes, over the error found",
                    value=bound / found,
                    unit="times",
                    peer="a grid of boxes, the system's range by interval arithmetic",
                )
                for way, network in peers().items()
                if (bound := grid_bound(predictor, system, proof.boxes, network)) is not None
            ]
            measures = judged(name, predictor, proof, found, spent)
            write("certificate", [*measures, *others], keep=True)
    for width in (2, 3) if told.only in "close" else ():
        write("certificate", [close(width, told.seconds, told.steps // 6)], keep=True)
    for width in (2, 3, 4, 5, 6) if told.only in "student" else ():
        measure = students(width, min(told.seconds, 60), told.steps // 4)
        write("certificate", [measure], keep=True)


def peers() -> dict[str, Callable[[Predictor, NetworkSide, Boxes], Bounds]]:
    """Return other ways to bound a network; bound-propagation (GPL) where it is installed."""
    known = importlib.util.find_spec("bound_propagation") is not None
    return {"interval arithmetic": interval, **({"bound-propagation": crown} if known else {})}


def judged(
    name: str, predictor: Predictor, proof: Proof, found: float, seconds: float
) -> list[Measure]:
    """Hold a proof that took so many seconds of the processor against the bars of its promise."""
    size = f"{predictor.spec.parameters:,} parameters"
    hunted = "largest error that hunting and proof found"
    return [
        Measure(
            name=f"{name}: proven bound over the largest error found",
            value=proof.upper / found,
            bar=2,
            at_least=False,
            unit="times",
            peer=hunted,
        ),
        Measure(
            name=f"{name}: time of the proof, {size}",
            value=seconds,
            bar=600,
            at_least=False,
            unit="s",
            peer="of the processor, all threads together",
        ),
        Measure(name=f"{name}: boxes", value=proof.boxes, unit="boxes", peer=""),
        Measure(name=f"{name}: proven bound", value=proof.upper, unit="of the output", peer=hunted),
        Measure(name=f"{name}: largest error found", value=found, unit="of the output", peer=""),
        Measure(
            name=f"{name}: largest error found over the output's standard deviation",
            value=found / predictor.model.decoder.to_spec()["std"][0],
            unit="",
            peer="",
        ),
    ]


def train(system: System, steps: int, network: str = "mlp", **args: Any) -> Predictor:
    """Train by Adam on random rows, the learning rate falling to nothing."""
    torch.manual_seed(0)
    frame = system.domain.at(np.random.default_rng(0).random((ROWS, system.domain.width)))
    target = np.asarray(system.solve(frame), np.float32).reshape(ROWS, -1)
    layout = RawLayout(system.schema)
    raw = decode_features(frame, layout)
    model = Model.create(
        system.schema,
        encoder=Encoder.fit([raw], layout),
        decoder=Decoder.fit([target]),
        network=network,
        network_args=args,
    )
    features = model.encoder(torch.from_numpy(np.array(raw)))
    wanted = model.decoder.standardise(torch.from_numpy(target))
    optimizer = torch.optim.Adam(model.network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(ROWS, (BATCH,))
        loss = (model.network(features[rows]) - wanted[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Predictor(model)


def errors(predictor: Predictor, system: System, unit: NDArray[np.float64]) -> NDArray[Any]:
    frame = system.domain.at(np.clip(unit, 1e-12, 1 - 1e-12))
    told = predictor(frame).to_numpy(np.float64)
    return np.abs(told - np.asarray(system.solve(frame)).reshape(len(frame), -1)).max(1)


def hunt(predictor: Predictor, system: System, count: int) -> float:
    """Look for the largest error: at random, on faces and corners, then closer and closer."""
    random, width = np.random.default_rng(3), system.domain.width
    best, worst = np.zeros((0, width)), np.zeros(0)

    def keep(unit: NDArray[np.float64], most: int = 300) -> None:
        nonlocal best, worst
        unit = np.concatenate([best, unit])
        found = np.concatenate([worst, errors(predictor, system, unit[len(best) :])])
        top = np.argsort(-found)[:most]
        best, worst = unit[top], found[top]

    for _ in range(count // 2 // 50_000):
        unit = random.random((50_000, width))
        faces = random.random(unit.shape) < 0.15
        keep(np.where(faces, np.round(unit), unit))
    for radius in np.geomspace(0.1, 1e-6, max(1, count // 2 // 30_000)):
        moved = np.repeat(best, 100, axis=0)
        keep(np.clip(moved + radius * random.normal(0, 1, moved.shape), 0, 1))
    return float(worst[0])


Bounds = tuple[NDArray[Any], NDArray[Any]]


def grid_bound(
    predictor: Predictor,
    system: System,
    count: int,
    network: Callable[[Predictor, NetworkSide, Boxes], Bounds],
) -> float | None:
    """Bound the error by the ranges of both sides, on the largest grid of no more boxes.

    None where the network's bounds break off: bound-propagation asserts that no unit saturates. The
    system's range is the one that `expand` gives, which is no wider than interval arithmetic's.
    """
    space = Space(system.domain)
    each = max(2, int(count ** (1 / len(space.names))))
    whole, side = space.whole, NetworkSide(predictor, space)
    edges = [np.linspace(a, b, each + 1) for a, b in zip(whole.low[0], whole.high[0], strict=True)]
    low = np.array(list(itertools.product(*(e[:-1] for e in edges))))
    high = np.array(list(itertools.product(*(e[1:] for e in edges))))
    worst = 0.0
    for part in np.array_split(np.arange(len(low)), max(1, len(low) // 512)):
        boxes = Boxes(low=low[part], high=high[part], choice=np.zeros(len(part), np.int64))
        assert system.expand is not None
        with np.errstate(all="ignore"):
            solved = system.expand(
                boxed(*(space.columns(e, boxes) for e in (boxes.low, boxes.high)))
            )
        assert isinstance(solved, Taylor)
        try:
            bottom, top = network(predictor, side, boxes)
        except AssertionError:
            return None
        apart = np.maximum(top - solved.low, solved.high - bottom)
        worst = max(worst, float(apart.max()))
    return worst


def interval(predictor: Predictor, side: NetworkSide, boxes: Boxes) -> Bounds:
    """Return bounds of a plain MLP on boxes by interval arithmetic, rounding left out: [N], [N]."""
    features = side.encode(boxes)
    reach = features.gradient.abs() @ features.radius
    low, high = features.value - reach, features.value + reach
    assert isinstance(predictor.model.network, torch.nn.Sequential)
    for layer in predictor.model.network:
        if isinstance(layer, torch.nn.Linear):
            weight, bias = layer.weight.detach().double(), layer.bias.detach().double()[:, None]
            middle = weight @ (low + high) / 2 + bias
            reach = weight.abs() @ (high - low) / 2
            low, high = middle - reach, middle + reach
        else:
            low, high = layer(low.clone()), layer(high.clone())
    return unscaled(predictor, low[0]), unscaled(predictor, high[0])


def crown(predictor: Predictor, side: NetworkSide, boxes: Boxes) -> Bounds:
    """Return bounds of a plain MLP on boxes by the package bound-propagation: [N], [N].

    CROWN as of Zhang et al. 2018, in float64, rounding left out.
    """
    from bound_propagation import (  # pyright: ignore[reportMissingImports]
        BoundModelFactory,
        HyperRectangle,
    )

    features = side.encode(boxes)
    reach = features.gradient.abs() @ features.radius
    region = HyperRectangle((features.value - reach).T, (features.value + reach).T)
    network = copy.deepcopy(predictor.model.network).double()
    with torch.no_grad():
        found = BoundModelFactory().build(network).crown(region).concretize()
    return unscaled(predictor, found.lower[:, 0]), unscaled(predictor, found.upper[:, 0])


def unscaled(predictor: Predictor, values: torch.Tensor) -> NDArray[Any]:
    """Return what a network gives in the target's own unit."""
    spec = predictor.model.decoder.to_spec()
    return (values * spec["std"][0] + spec["mean"][0]).numpy()


def table(folder: Path) -> System:
    """Tabulate a smooth function of three inputs on 12 x 12 x 12 points."""
    knots = np.linspace(0, 1, 12)
    grid = np.stack(np.meshgrid(knots, knots, knots, indexing="ij"), -1).reshape(-1, 3)
    x, y, z = grid.T
    frame = pd.DataFrame({"x": x, "y": y, "z": z, "value": np.sin(3 * x + y) * np.exp(-y * z) + z})
    frame.to_parquet(folder / "table.parquet", index=False)
    return load_system("interpolated-table", {"source": str(folder), "target": "value"})


class Ridge(System):
    """tanh of the sum of d inputs, for teachers of any number of inputs."""

    name = "ridge"

    def __init__(self, width: int):
        self.domain = Domain(
            [Continuous(name=f"x{place}", low=-1.0, high=1.0) for place in range(width)]
        )
        self.output = Output(name="y")

    def solve(self, inputs: pd.DataFrame) -> NDArray[Any]:
        unit = inputs.to_numpy(np.float64)
        return np.tanh(unit.sum(1)) + 0.3 * np.sin(2 * unit).prod(1)

    def expand(self, inputs: Mapping[str, Taylor]) -> Taylor:  # pyright: ignore
        total, *others = inputs.values()
        product = 0.3 * sin(2.0 * total)
        for x in others:
            total, product = total + x, product * sin(2.0 * x)
        return 1.0 - 2.0 / (exp(2.0 * total) + 1.0) + product


def close(width: int, seconds: float, steps: int) -> Measure:
    """Bound the distance of two networks that are nearly the same, as accurate surrogates are."""
    system = Ridge(width)
    one = train(system, steps, hidden=HIDDEN, activation="tanh")
    other = Predictor(copy.deepcopy(one.model))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.model.network.parameters():
            parameter.add_(1e-3 * parameter.abs().mean() * torch.randn_like(parameter))
    began = time.process_time()
    proof = prove(other, one, system.domain, seconds=seconds)
    spent = time.process_time() - began
    apart = proof.lower / one.model.decoder.to_spec()["std"][0]
    return Measure(
        name=f"a difference of a thousandth, {width} inputs: bound over the largest one found",
        value=proof.upper / proof.lower,
        bar=2,
        at_least=False,
        unit="times",
        peer=f"{apart:.1e} of the deviation; {proof.status} after {proof.boxes:,} boxes and "
        f"{spent:.0f} s of the processor",
    )


def students(width: int, seconds: float, steps: int) -> Measure:
    """Bound a student's distance from its teacher on a box of so many inputs."""
    system = Ridge(width)
    teacher = train(system, steps, hidden=[64, 64], activation="tanh")
    student = train(system, steps, hidden=[24, 24], activation="tanh")
    proof = prove(student, teacher, system.domain, seconds=seconds)
    return Measure(
        name=f"student and teacher on {width} inputs: bound over the largest difference found",
        value=proof.upper / proof.lower,
        unit="times",
        peer=f"{proof.status} after {proof.boxes:,} boxes and {proof.seconds:.0f} s",
    )


if __name__ == "__main__":
    start = time.monotonic()
    main()
    print(f"{time.monotonic() - start:.0f} s in all")
