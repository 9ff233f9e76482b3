"""Networks of a system, untrained, spoilt or trained for an instant, and systems to prove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.generation.systems import Axis, Domain, Output, System
from kubestill.runtime.generation.systems.inputs import Choice, Continuous, Integer
from kubestill.runtime.generation.systems.taylor import Taylor, exp, sin
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import ColumnEncoding, Encoder
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor


def make_predictor(
    system: System,
    network: str = "mlp",
    *,
    seed: int = 0,
    scale: float = 1.0,
    steps: int = 0,
    **args: Any,
) -> Predictor:
    """Build a network of a system, its weights scaled, or trained for some steps."""
    frame = system.domain.at(np.random.default_rng(seed).random((500, system.domain.width)))
    target = np.asarray(system.solve(frame), np.float32).reshape(len(frame), -1)
    layout = RawLayout(system.schema)
    raw = decode_features(frame, layout)
    model = Model.create(
        system.schema,
        encoder=Encoder.fit([raw], layout),
        decoder=Decoder.fit([target]),
        network=network,
        network_args=args,
        seed=seed,
    )
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(scale)
    if steps:
        features = model.encoder(torch.from_numpy(np.array(raw)))
        wanted = model.decoder.standardise(torch.from_numpy(target))
        optimizer = torch.optim.Adam(model.network.parameters(), lr=1e-2)
        for _ in range(steps):
            loss = (model.network(features) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Predictor(model)


def plain_predictor(
    network: torch.nn.Module,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    target: tuple[float, float] = (0.0, 1.0),
) -> Predictor:
    """Wrap a network of one input `x`, standardised by these numbers; `target` is mean and std."""
    encoding = ColumnEncoding(name="x", kind="numeric", mean=(mean,), std=(std,))
    model = Model.create(
        Line().schema,
        encoder=Encoder([encoding]),
        decoder=Decoder(mean=[target[0]], std=[target[1]]),
        network_args={"hidden": []},
    )
    model.network = network
    return Predictor(model)


class Line(System):
    """0 everywhere, of one input."""

    name = "line"

    def __init__(self, low: float = 0.0, high: float = 1.0, mapping: Any = "linear") -> None:
        self.domain = Domain([Continuous(name="x", low=low, high=high, mapping=mapping)])
        self.output = Output(name="z")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return np.zeros(len(inputs))

    def enclose(self, lower: pd.DataFrame, upper: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(lower)), np.zeros(len(lower))


class Waves(System):
    """sin(a x) exp(-y / 2) + b, for the levels a and the labels b."""

    name = "waves"

    def __init__(self) -> None:
        self.domain = Domain(
            [
                Continuous(name="x", low=-1.0, high=2.0),
                Integer(name="a", low=1, high=3),
                Continuous(name="y", low=0.1, high=10.0, mapping="log"),
                Choice(name="b", choices=("none", "one")),
            ]
        )
        self.output = Output(name="z")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        x, a, y = (inputs[name].to_numpy(np.float64) for name in ("x", "a", "y"))
        return np.sin(a * x) * np.exp(-y / 2) + (inputs["b"] == "one").to_numpy(np.float64)

    def expand(self, inputs: Mapping[str, Any]) -> Taylor:
        shift = (inputs["b"] == "one").astype(np.float64)
        return sin(inputs["a"] * inputs["x"]) * exp(inputs["y"] / -2.0) + shift


class Saddle(System):
    """x y and x + y: two outputs, for networks of two inputs."""

    name = "saddle"

    def __init__(self, far: float = 1.0) -> None:
        self.domain = Domain([Continuous(name=name, low=-far, high=far) for name in ("x", "y")])
        self.output = Output(name="z")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return inputs["x"].to_numpy(np.float64) * inputs["y"].to_numpy(np.float64)


class Expanded(Saddle):
    """Encloses itself by a formula."""

    def expand(self, inputs: Mapping[str, Any]) -> Taylor:
        return inputs["x"] * inputs["y"]


class Powers(System):
    """x, x^2 and x^3."""

    name = "powers"

    def __init__(self) -> None:
        self.domain = Domain([Continuous(name="x", low=-1.0, high=1.0)])
        self.output = Output(name="z", axes=(Axis(name="power", values=(1.0, 2.0, 3.0)),))

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return inputs["x"].to_numpy(np.float64)[:, None] ** np.arange(1, 4)

    def expand(self, inputs: Mapping[str, Any]) -> list[Taylor]:
        x = inputs["x"]
        return [x, x * x, x * x * x]


class Enclosed(Saddle):
    """Encloses itself by intervals."""

    def __init__(self, short: float = 0.0, turned: bool = False) -> None:
        super().__init__()
        self.short, self.turned = short, turned

    def enclose(self, lower: pd.DataFrame, upper: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        ends = [
            a["x"].to_numpy() * b["y"].to_numpy() for a in (lower, upper) for b in (lower, upper)
        ]
        low, high = np.min(ends, axis=0), np.max(ends, axis=0)
        high = high - self.short * (high - low)
        return (high, low) if self.turned else (low, high)


class Declared(Saddle):
    """Declares its slopes."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.lipschitz = {"x": slope, "y": slope}
