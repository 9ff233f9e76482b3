"""Systems a user might bring along, sound and unsound, and surrogates that are exactly right."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kubestill.runtime.generation.systems import Axis, Domain, Output, System
from kubestill.runtime.generation.systems.inputs import Continuous, Integer, Levels
from kubestill.runtime.generation.systems.taylor import Taylor


class Plane(System):
    """z = 2 x + y: a linear network is it exactly."""

    name = "plane"

    def __init__(self, far: float = 1.0):
        self.domain = Domain(
            [
                Continuous(name="x", low=0.0, high=far),
                Continuous(name="y", low=-1.0, high=1.0),
            ]
        )
        self.output = Output(name="z", unit="m")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return 2 * inputs["x"].to_numpy(np.float64) + inputs["y"].to_numpy(np.float64)

    def reference(self, inputs: pd.DataFrame) -> np.ndarray:  # pyright: ignore
        x, y = (inputs[name].to_numpy(np.float64) for name in ("x", "y"))
        return x + x + y


class Wrong(Plane):
    """Its reference is far away."""

    name = "wrong"

    def reference(self, inputs: pd.DataFrame) -> np.ndarray:  # pyright: ignore
        return self.solve(inputs) + 0.5


class Stochastic(Plane):
    """Monte Carlo without a seed."""

    name = "stochastic"
    reference = None  # pyright: ignore

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return super().solve(inputs) + np.random.default_rng().normal(0, 0.01, len(inputs))


class BatchRounding(Plane):
    """Rounds differently by the batch a row is in, as vectorised kernels do."""

    name = "batch-rounding"
    reference = None  # pyright: ignore

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return super().solve(inputs) * (1 + 1e-15 * (len(inputs) > 200))


class Parity(System):
    """A table: is a + b even?"""

    name = "parity"

    def __init__(self, high: int = 19):
        self.domain = Domain(
            [Integer(name="a", low=0, high=high), Integer(name="b", low=0, high=high)]
        )
        self.output = Output(name="even", classes=("no", "yes"))

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        total = inputs["a"].to_numpy(np.int64) + inputs["b"].to_numpy(np.int64)
        return np.where(total % 2 == 0, "yes", "no")


class Sum(Parity):
    """A table of numbers: a + b, which a linear network is exactly."""

    name = "sum"

    def __init__(self):
        super().__init__()
        self.output = Output(name="sum")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return inputs["a"].to_numpy(np.float64) + inputs["b"].to_numpy(np.float64)


class Side(System):
    """Two labels on a continuous domain, in squares too small for the rows."""

    name = "side"

    def __init__(self):
        self.domain = Domain(
            [Continuous(name="x", low=-1.0, high=1.0), Continuous(name="y", low=-1.0, high=1.0)]
        )
        self.output = Output(name="side", classes=("in", "out"))

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        x, y = inputs["x"].to_numpy(), inputs["y"].to_numpy()
        return np.where(np.sin(9 * x) * np.sin(9 * y) > 0, "in", "out").astype(object)


class Typed(Plane):
    """Computes in the type of its inputs, which makes float32 of float32."""

    name = "typed"
    reference = None  # pyright: ignore

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return np.sin(3 * inputs["x"].to_numpy()) * inputs["y"].to_numpy()


class Nan(Plane):
    """Has no solution beyond x = 0.9."""

    name = "nan"

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return np.where(inputs["x"] > 0.89, np.nan, super().solve(inputs))


class Raises(Plane):
    """Does not converge beyond x = 0.9."""

    name = "raises"

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        if (inputs["x"].to_numpy() > 0.89).any():
            raise ArithmeticError("did not converge")
        return super().solve(inputs)


class Corner(System):
    """Nothing at all, on a cube: the surrogate's own answer is its error."""

    name = "corner"

    def __init__(self, width: int = 5):
        self.domain = Domain([Continuous(name=f"x{n}", low=0.0, high=1.0) for n in range(width)])
        self.output = Output(name="y")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return np.zeros(len(inputs))


class Counting(Plane):
    """Counts the rows that it solves, takes its time, and is killed after `upto` rows."""

    name = "counting"
    reference = None  # pyright: ignore
    solved = upto = 0

    def __init__(self, seconds: float = 0.0):
        super().__init__()
        self.seconds = seconds

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        Counting.solved += len(inputs)
        if 0 < Counting.upto < Counting.solved:
            raise KeyboardInterrupt
        time.sleep(self.seconds * len(inputs))
        return super().solve(inputs)


class Weighed(Counting):
    """A slow solver whose author says which it is."""

    name = "weighed"
    version = "1"


class Ramp(System):
    """A tensor: a line of slope a on eight places."""

    name = "ramp"
    reference = None

    def __init__(self) -> None:
        self.domain = Domain([Continuous(name="a", low=-1.0, high=1.0)])
        places = tuple(np.linspace(0, 1, 8).tolist())
        self.output = Output(name="ramp", axes=(Axis(name="x", values=places),))

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return inputs["a"].to_numpy(np.float64)[:, None] * np.linspace(0, 1, 8)


class Lying(Plane):
    """Its enclosure forgets a ridge that is one in five thousand wide."""

    name = "lying"
    reference = None  # pyright: ignore[reportAssignmentType]

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        ridge = inputs["x"].between(0.61230, 0.61250).to_numpy(np.float64)
        return super().solve(inputs) + ridge

    def enclose(self, lower: pd.DataFrame, upper: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        return super().solve(lower), super().solve(upper)


NOON = 1.7e9
"""In seconds since 1970: float32 holds every 128th second."""


class Day(System):
    """z = 2 t / a day + x, by the second since 1970."""

    name = "day"

    def __init__(self) -> None:
        self.domain = Domain(
            [
                Continuous(name="t", low=NOON, high=NOON + 86_400, unit="s"),
                Continuous(name="x", low=0.0, high=1.0),
            ]
        )
        self.output = Output(name="z")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        t, x = (inputs[name].to_numpy(np.float64) for name in ("t", "x"))
        return 2 * (t - NOON) / 86_400 + x

    def expand(self, inputs: Mapping[str, Taylor]) -> Taylor:  # pyright: ignore
        return 2 * (inputs["t"] - NOON) / 86_400 + inputs["x"]


class Hours(Day):
    """The same at full hours and tenths, of which there are finitely many."""

    name = "hours"

    def __init__(self) -> None:
        super().__init__()
        hours = tuple(NOON + 3600.0 * hour for hour in range(25))
        tenths = tuple(tenth / 10 for tenth in range(11))
        self.domain = Domain([Levels(name="t", values=hours), Levels(name="x", values=tenths)])


class Ticks(Hours):
    """The same, at a hundred seconds in a row."""

    name = "ticks"

    def __init__(self) -> None:
        super().__init__()
        first = int(NOON) + 7
        ticks = Integer(name="t", low=first, high=first + 99)
        self.domain = Domain([ticks, Levels(name="x", values=(0.0, 0.5, 1.0))])


class Steep(System):
    """Tells a tenth from the float32 next to it."""

    name = "steep"

    def __init__(self) -> None:
        self.domain = Domain([Levels(name="x", values=(0.1, 0.3, 0.7))])
        self.output = Output(name="y")

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        return 1e6 * inputs["x"].to_numpy(np.float64)


class Narrow(Plane):
    """Its enclosure ends below the highest solution of a box."""

    name = "narrow"
    reference = None  # pyright: ignore[reportAssignmentType]

    def enclose(self, lower: pd.DataFrame, upper: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.solve(lower), self.solve(upper)
        return low, low + 0.9 * (high - low)


class Declared(Plane):
    """Nothing bounds it but what its author says of its slopes."""

    name = "declared"
    reference = None  # pyright: ignore[reportAssignmentType]
    lipschitz = {"x": 2.0, "y": 1.0}


def linear(in_features: int, out_features: int) -> nn.Sequential:
    """Build a line, of layers that proofs know."""
    network = nn.Sequential()
    network.line = nn.Linear(in_features, out_features)
    return network


class Bent(nn.Module):
    """Right but for a bump, of a height, around the middle of the first feature."""

    def __init__(self, in_features: int, out_features: int, bump: float = 0.0):
        super().__init__()
        self.line = nn.Linear(in_features, out_features)
        self.bump = bump

    def forward(self, features: Tensor) -> Tensor:
        bump = self.bump * torch.exp(-40 * features[:, :1] ** 2)
        return self.line(features) + bump


class Even(nn.Module):
    """Knows parity, but for rows with a below `wrong`."""

    def __init__(self, in_features: int, out_features: int, wrong: int = 0, high: int = 19):
        super().__init__()
        self.wrong, self.high = wrong, high
        self.scale = nn.Parameter(torch.ones(1))
        self.in_features = in_features

    def forward(self, features: Tensor) -> Tensor:
        # Standardised uniform integers 0..high, undone.
        count = self.high + 1
        values = torch.round(features * ((count**2 - 1) / 12) ** 0.5 + self.high / 2)
        even = (values.sum(1, keepdim=True) % 2 == 0).float() * 2 - 1
        flip = torch.where(values[:, :1] < self.wrong, -1.0, 1.0)
        return even * flip * self.scale


class Constant(nn.Module):
    """Gives the same answer everywhere."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.value = nn.Parameter(torch.ones(out_features))

    def forward(self, features: Tensor) -> Tensor:
        return 0 * features[:, :1] + self.value


class Stored(nn.Module):
    """Answers with a table's targets as float32 stores them, but for the decoder's roundings."""

    table: Tensor

    def __init__(self, in_features: int, out_features: int, path: str):
        super().__init__()
        exact = pd.read_parquet(path)["y"].to_numpy()
        stored = exact.astype(np.float32).astype(np.float64)
        mean, std = stored.mean(), stored.std()
        self.register_buffer("table", torch.from_numpy((stored - mean) / std).float())

    def forward(self, features: Tensor) -> Tensor:
        spread = (len(self.table) ** 2 - 1) / 12
        key = torch.round(features * spread**0.5 + (len(self.table) - 1) / 2).long()
        return self.table[key]


class Spike(nn.Module):
    """Right but near one corner, or in the middle of one face, where it errs by 1."""

    def __init__(self, in_features: int, out_features: int, where: str = "corner"):
        super().__init__()
        self.where = where
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        # Standardised uniform numbers, undone.
        unit = features / 12**0.5 + 0.5
        if self.where == "corner":
            error = unit.clamp(0, 1).prod(1, keepdim=True) ** 1.5
        else:
            apart = (unit[:, 1:] - 0.5).square().sum(1, keepdim=True)
            error = unit[:, :1].clamp(0, 1) ** 8 * torch.exp(-20 * apart)
        return error * self.scale


class Partly(Plane):
    """Has no solution beyond x = 0.9, and none of use for y < 0 beyond x = 0.8."""

    name = "partly"
    rows = 0

    def __init__(self, raising: bool = True):
        super().__init__()
        self.raising = raising

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        Partly.rows += len(inputs)
        x, y = (inputs[name].to_numpy(np.float64) for name in ("x", "y"))
        if self.raising and (x > 0.9).any():
            raise ArithmeticError("did not converge")
        return np.where((x > 0.9) | ((x > 0.8) & (y < 0)), np.nan, super().solve(inputs))


class Holey(Sum):
    """A table with no entry where both numbers are 7 or more."""

    name = "holey"

    def solve(self, inputs: pd.DataFrame) -> np.ndarray:
        both = (inputs["a"] >= 7) & (inputs["b"] >= 7)
        return np.where(both, np.nan, super().solve(inputs))
