"""Systems of every kind, networks good and broken, and an adversary that tries to refute proofs.

The adversary knows nothing of how a proof is made: it takes the deployed network and the solver,
and looks for a point whose error is above the bound. `bench.bench_zoo` runs the same for longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.generation.systems import Axis, Domain, Output, System, load_system
from kubestill.runtime.generation.systems.inputs import Choice, Continuous, Input, Integer, Levels
from kubestill.runtime.generation.systems.taylor import Taylor, exp, log, sin
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor

__all__ = ["FINITE", "NETWORKS", "SYSTEMS", "Adversary", "build", "pairs"]

Floats = NDArray[np.float64]


class Formula(System):
    """A system of one formula, which arrays and Taylor arithmetic both evaluate."""

    inputs: tuple[Input, ...]
    outputs = 1

    def __init__(self) -> None:
        self.name = type(self).__name__.lower()
        self.domain = Domain(self.inputs)
        places = tuple(float(place) for place in range(self.outputs))
        axes = (Axis(name="place", values=places),) if self.outputs > 1 else ()
        self.output = Output(name="z", axes=axes)

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        """Return the solution, or a list of them."""
        raise NotImplementedError

    def solve(self, inputs: pd.DataFrame) -> Floats:
        numbers = {name: inputs[name].to_numpy() for name in self.domain.names}
        found = self.formula(numbers, np.sin, np.exp, np.log)
        return np.stack(found, 1) if isinstance(found, list) else np.asarray(found, np.float64)

    def expand(self, inputs: Mapping[str, Any]) -> Taylor | list[Taylor]:  # pyright: ignore
        return self.formula(inputs, sin, exp, log)


class Smooth(Formula):
    inputs = (Continuous(name="x", low=-1, high=1), Continuous(name="y", low=0.5, high=2))

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        return exp(x["x"] * -0.5) * sin(x["y"] + x["x"]) + x["x"] * x["y"]


class Spiky(Formula):
    """A needle that is a hundredth wide."""

    inputs = (Continuous(name="x", low=-1.0, high=1.0), Continuous(name="y", low=-1.0, high=1.0))

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        away = (x["x"] - 0.3125) * 100.0
        return 1.0 / (away * away + 1.0) + x["y"] * 0.5


class Stiff(Formula):
    """Relaxation at rates between 1 and 10,000, onto a slow swing."""

    inputs = (
        Continuous(name="time", low=0.0, high=1.0),
        Continuous(name="rate", low=1.0, high=1e4, mapping="log"),
    )

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        return exp(x["rate"] * x["time"] * -1.0) + sin(x["time"] * 3.0) * 0.5


class Periodic(Formula):
    inputs = (Continuous(name="x", low=0.0, high=6.0), Continuous(name="phase", low=0.0, high=3.0))

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        return sin(x["x"] * 5.0 + x["phase"])


class Scaled(Formula):
    """Ten orders of magnitude, by their logarithm."""

    inputs = (
        Continuous(name="x", low=1e-6, high=1e4, mapping="log"),
        Continuous(name="y", low=-1.0, high=1.0),
    )

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        return log(x["x"]) * 0.1 + x["y"] * x["y"]


class Mixed(Formula):
    """A continuous input under a whole number, a level and a label."""

    inputs = (
        Integer(name="n", low=1, high=3),
        Continuous(name="x", low=-1.0, high=2.0),
        Levels(name="level", values=(0.1, 0.7)),
        Choice(name="label", choices=("off", "on")),
    )

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        on = (np.asarray(x["label"]).astype(str) == "on").astype(np.float64)
        return sin(x["n"] * x["x"]) * x["level"] + on


class Tensor(Formula):
    inputs = (Continuous(name="x", low=-1.0, high=1.0),)
    outputs = 3

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        return [x["x"] * 1.0, x["x"] * x["x"], sin(x["x"] * 4.0)]


class Large(Formula):
    """Numbers that float32 holds to within 64."""

    inputs = (Continuous(name="x", low=0.0, high=1.0), Continuous(name="y", low=0.0, high=1.0))

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        return x["x"] * 500.0 + x["y"] * x["y"] * 300.0 + 1.7e9


class Small(Formula):
    """Numbers around 1e-20, of inputs around 1e-12."""

    inputs = (Continuous(name="x", low=1e-12, high=3e-12),)

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        return sin(x["x"] * 1e12) * 1e-20


class Jump(System):
    """Two constants and a slope, with a jump between: by an enclosure."""

    name = "jump"
    breaks = {"x": (0.3,)}

    def __init__(self) -> None:
        self.domain = Domain(
            [Continuous(name="x", low=0.0, high=1.0), Continuous(name="y", low=-1.0, high=1.0)]
        )
        self.output = Output(name="z")

    def solve(self, inputs: pd.DataFrame) -> Floats:
        x, y = (inputs[name].to_numpy(np.float64) for name in ("x", "y"))
        return np.where(x < 0.3, -1.0, 1.0) + 0.25 * y

    def enclose(self, lower: pd.DataFrame, upper: pd.DataFrame) -> tuple[Floats, Floats]:
        # At the break itself the upper piece begins; a box that ends there holds it.
        return self.solve(lower), self.solve(upper)


class Declared(System):
    """Known by the largest of its slopes alone."""

    name = "declared"
    lipschitz = {"x": 3.0, "y": 0.5}

    def __init__(self) -> None:
        self.domain = Domain(
            [Continuous(name="x", low=-1.0, high=1.0), Continuous(name="y", low=0.0, high=1.0)]
        )
        self.output = Output(name="z")

    def solve(self, inputs: pd.DataFrame) -> Floats:
        return np.abs(3 * inputs["x"].to_numpy() - 0.5) - 0.5 * np.sqrt(
            1e-4 + inputs["y"].to_numpy(np.float64) ** 2
        )


class Lattice(Formula):
    inputs = (
        Integer(name="n", low=1, high=40),
        Levels(name="level", values=(0.1, 0.7, 1.3)),
        Choice(name="label", choices=("off", "on")),
    )

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        return sin(x["n"] * x["level"]) + (np.asarray(x["label"]).astype(str) == "on")


class Board(Formula):
    inputs = (Integer(name="x", low=-30, high=29), Integer(name="y", low=0, high=59))

    def formula(self, x: Mapping[str, Any], sin: Any, exp: Any, log: Any) -> Any:
        return x["x"] * x["y"] * 1e-3 + 1e4


class Regions(System):
    """Three classes on a board, with a border that no network of this size draws."""

    name = "regions"

    def __init__(self) -> None:
        self.domain = Domain(Board.inputs)
        self.output = Output(name="region", classes=("left", "middle", "right"))

    def solve(self, inputs: pd.DataFrame) -> NDArray[Any]:
        x, y = (inputs[name].to_numpy(np.float64) for name in ("x", "y"))
        place = x + 8 * np.sin(y / 5)
        return np.where(place < -9.5, "left", np.where(place < 10.5, "middle", "right"))


FINITE: dict[str, Callable[[], System]] = {
    "lattice": Lattice,
    "board": Board,
    "regions": Regions,
}

SYSTEMS: dict[str, Callable[[], System]] = {
    **{
        kind.__name__.lower(): kind
        for kind in (
            Smooth,
            Spiky,
            Jump,
            Stiff,
            Periodic,
            Mixed,
            Scaled,
            Tensor,
            Large,
            Small,
            Declared,
        )
    },
    "heat": lambda: load_system("heat"),
    "black-scholes": lambda: load_system("black-scholes"),
}
"""Smooth, spiky, discontinuous, stiff, periodic, discrete x continuous, log-scaled; of several
outputs; large and small; enclosed in every way."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is made: architecture, training, and what is done to it afterwards."""

    network: str = "mlp"
    args: Mapping[str, Any] = field(default_factory=lambda: {"hidden": [8, 8]})
    steps: int = 0
    spoil: Callable[[torch.nn.Module], None] = lambda network: None


def scaled(factor: float) -> Callable[[torch.nn.Module], None]:
    """Multiply all weights."""

    def spoil(network: torch.nn.Module) -> None:
        for parameter in network.parameters():
            parameter.mul_(factor)

    return spoil


def fill_last(value: float) -> Callable[[torch.nn.Module], None]:
    """Overwrite the weights and the bias of the last layer."""

    def spoil(network: torch.nn.Module) -> None:
        for parameter in list(network.parameters())[-2:]:
            parameter.fill_(value)

    return spoil


def mlp(activation: str, **more: Any) -> dict[str, Any]:
    return {"hidden": [8, 8], "activation": activation, **more}


NETWORKS: dict[str, Recipe] = {
    "untrained tanh": Recipe(args=mlp("tanh")),
    "untrained relu": Recipe(args=mlp("relu")),
    "trained tanh": Recipe(args=mlp("tanh"), steps=60),
    "trained relu": Recipe(args=mlp("relu"), steps=60),
    "trained silu": Recipe(args=mlp("silu"), steps=60),
    "trained gelu with skips": Recipe(args=mlp("gelu", residual=True), steps=60),
    "trained elu": Recipe(args=mlp("elu"), steps=20),
    "trained mish": Recipe(args=mlp("mish"), steps=20),
    "trained layer norm": Recipe(args=mlp("tanh", norm="layer"), steps=60),
    "batch norm": Recipe(args=mlp("softplus", norm="batch")),
    "siren": Recipe(network="siren", args={"hidden": [8, 8]}, steps=30),
    "fourier": Recipe(network="fourier", args={"hidden": [8], "frequencies": 4}, steps=30),
    "residual": Recipe(network="resmlp", args={"width": 8, "blocks": 2}, steps=30),
    "linear": Recipe(args={"hidden": []}, steps=60),
    "saturating": Recipe(args=mlp("sigmoid"), spoil=scaled(40.0)),
    "huge": Recipe(args=mlp("leaky_relu"), spoil=scaled(1e4)),
    "overflowing": Recipe(args=mlp("relu"), spoil=scaled(1e14)),
    "tiny": Recipe(args=mlp("tanh"), spoil=scaled(1e-15)),
    "below normal numbers": Recipe(args=mlp("relu"), spoil=scaled(1e-40)),
    "constant": Recipe(args=mlp("tanh"), spoil=fill_last(0.0)),
}


def build(system: System, recipe: Recipe, *, seed: int = 0) -> Predictor:
    """Make a network of a system, on 400 of its rows."""
    frame = system.domain.at(np.random.default_rng(seed).random((400, system.domain.width)))
    layout, classes = RawLayout(system.schema), system.output.classes
    solved = np.asarray(system.solve(frame)).reshape(len(frame), -1)
    if classes:
        solved = np.array([classes.index(label) for label in solved[:, 0]])
    target = solved if classes else solved.astype(np.float32)
    raw = decode_features(frame, layout)
    model = Model.create(
        system.schema,
        encoder=Encoder.fit([raw], layout),
        decoder=Decoder() if classes else Decoder.fit([target]),
        network=recipe.network,
        network_args=recipe.args,
        seed=seed,
        prove=False,
    )
    features = model.encoder(torch.from_numpy(np.array(raw)))
    wanted = model.decoder.standardise(torch.from_numpy(target))
    distance = torch.nn.functional.cross_entropy if classes else torch.nn.functional.mse_loss
    optimizer = torch.optim.Adam(model.network.parameters(), lr=2e-2)
    for _ in range(recipe.steps):
        loss = distance(model.network(features), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        recipe.spoil(model.network)
    return Predictor(model)


def pairs() -> Iterator[tuple[str, str]]:
    """Return every system with every network."""
    return ((system, network) for system in SYSTEMS for network in NETWORKS)


class Adversary:
    """Looks for the largest error of a deployed network, by its own arithmetic.

    It starts at random points, faces and corners, for every combination of the discrete inputs;
    follows the gradient of the network less the slope of the solver; looks around the worst at
    ever smaller distances; and tries the neighbours of the worst in the last bits of float32.
    """

    def __init__(self, predictor: Predictor, system: System, *, seed: int = 0):
        self.predictor, self.system = predictor, system
        self.evaluations = 0
        """Points at which network and solver were compared."""
        self.worst = 0.0
        """Largest error; infinite where the network answers with what is no number."""
        self._random = np.random.default_rng(seed)
        inputs = system.domain.inputs
        self._free = [given for given in inputs if isinstance(given, Continuous)]
        fixed = [given for given in inputs if not isinstance(given, Continuous)]
        levels = [given.on_grid(np.arange(given.levels or 0), given.levels or 0) for given in fixed]
        grid = np.meshgrid(*(np.arange(len(values)) for values in levels), indexing="ij")
        self._discrete = {
            given.name: values[index.ravel()]
            for given, values, index in zip(fixed, levels, grid, strict=True)
        }
        self._choices = max(1, math.prod(len(values) for values in levels))
        self._low, self._high = np.array([given.bounds for given in self._free], np.float64).T

    def search(self, budget: int, *, starts: int = 32) -> float:
        """Spend so many evaluations; return the largest error so far."""
        random, width = self._random, len(self._free)
        stop = self.evaluations + budget
        batch = max(64, min(budget // 4, 1 << 18))
        while self.evaluations < stop:
            unit = random.random((batch, width))
            ends = random.random(unit.shape) < random.choice([0.0, 0.2, 0.6], (batch, 1))
            unit = np.where(ends, np.round(unit), unit)
            points, choice = self._at(unit), random.integers(0, self._choices, batch)
            errors = self.errors(points, choice)
            top = np.argsort(-errors)[:starts]
            points, choice, errors = points[top], choice[top], errors[top]
            for size in (0.1, 0.01, 1e-3, 1e-5):
                looks = max(2, batch // (8 * len(points)))
                moved = np.concatenate(
                    [
                        self._climbed(points, choice, size),
                        self._around(points, size, looks),
                        self._neighbours(points, looks),
                    ]
                )
                where = np.tile(choice, len(moved) // len(points))
                found = self.errors(moved, where)
                every = np.concatenate([errors, found])
                best = np.argsort(-every)[:starts]
                points = np.concatenate([points, moved])[best]
                choice, errors = np.concatenate([choice, where])[best], every[best]
        return self.worst

    def errors(self, points: Floats, choice: NDArray[np.int64]) -> Floats:
        """Return the largest error of the outputs at points [N, d]: [N]."""
        frame = self._frame(points, choice)
        with np.errstate(all="ignore"):
            solved = np.asarray(self.system.solve(frame), np.float64).reshape(len(points), -1)
        told = self.predictor.logits(decode_features(frame, self.predictor.layout))
        apart = np.abs(told.astype(np.float64) - solved).max(1)
        apart[np.isnan(apart)] = np.inf
        self.evaluations += len(points)
        self.worst = max(self.worst, float(apart.max()))
        return apart

    def _at(self, unit: Floats) -> Floats:
        """Return unit numbers as points, drawn as the inputs are mapped: [N, d]."""
        points = np.empty_like(unit)
        for place, given in enumerate(self._free):
            low, high = given.bounds
            if given.mapping == "log":
                points[:, place] = low * (high / low) ** unit[:, place]
            else:
                points[:, place] = low + (high - low) * unit[:, place]
        return np.clip(points, self._low, self._high)

    def _frame(self, points: Floats, choice: NDArray[np.int64]) -> pd.DataFrame:
        columns: dict[str, Any] = {
            given.name: points[:, place] for place, given in enumerate(self._free)
        }
        columns |= {name: values[choice] for name, values in self._discrete.items()}
        return pd.DataFrame({name: columns[name] for name in self.system.domain.names})

    def _climbed(self, points: Floats, choice: NDArray[np.int64], size: float) -> Floats:
        """Step up the error: the network's own gradient, less the solver's slope by differences."""
        raw = decode_features(self._frame(points, choice), self.predictor.layout)
        given = torch.from_numpy(np.array(raw)).requires_grad_()
        told = self.predictor.model(given)
        (gradient,) = torch.autograd.grad(told.sum(), given, allow_unused=True)
        slices = self.predictor.layout.slices
        span = self._high - self._low
        uphill = np.zeros_like(points)
        with np.errstate(all="ignore"):
            apart = told.detach().double().numpy().sum(1)
            frame = self._frame(points, choice)
            apart = apart - np.reshape(self.system.solve(frame), (len(points), -1)).sum(1)
            for place, one in enumerate(self._free):
                ends = [points.copy(), points.copy()]
                for end, side in zip(ends, (-1, 1), strict=True):
                    end[:, place] += side * 1e-4 * span[place]
                    np.clip(end, self._low, self._high, out=end)
                low, high = (
                    np.reshape(self.system.solve(self._frame(e, choice)), (len(points), -1)).sum(1)
                    for e in ends
                )
                slope = (high - low) / (ends[1] - ends[0])[:, place]
                mine = gradient[:, slices[one.name].start].double().numpy()
                uphill[:, place] = np.sign((mine - slope) * apart)
        steps = [points + np.nan_to_num(uphill) * span * size * share for share in (0.3, 1, 3)]
        return np.clip(np.concatenate(steps), self._low, self._high)

    def _around(self, points: Floats, size: float, looks: int) -> Floats:
        moved = np.tile(points, (looks, 1))
        moved = moved + self._random.normal(0, size, moved.shape) * (self._high - self._low)
        # Along a log-scaled input, small values are as far apart as large ones.
        factor = np.exp(self._random.normal(0, size * 5, moved.shape))
        log_scaled = np.array([given.mapping == "log" for given in self._free])
        moved = np.where(log_scaled, np.tile(points, (looks, 1)) * factor, moved)
        return np.clip(moved, self._low, self._high)

    def _neighbours(self, points: Floats, looks: int) -> Floats:
        """Return numbers a few float32 steps away, some of them between two float32 numbers."""
        near = np.tile(points, (looks, 1)).astype(np.float32)
        steps = self._random.integers(-8, 9, near.shape) / self._random.choice([1.0, 2.0, 3.0])
        moved = near.astype(np.float64) + steps * np.spacing(np.abs(near)).astype(np.float64)
        return np.clip(moved, self._low, self._high)
