"""What a numerical system is: a domain, and a solution exact enough to be called noise-free.

A system of one's own is a subclass, given by its import path:

    class Pendulum(System):
        name = "pendulum"

        def __init__(self, length: float = 1.0):
            self.domain = Domain([Continuous(name="angle", low=-3.0, high=3.0, unit="rad")])
            self.output = Output(name="period", unit="s")

        def solve(self, inputs: pd.DataFrame) -> np.ndarray: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from kubestill.runtime.datasets.schema import Column, Schema, Task
from kubestill.runtime.generation.systems.domain import Domain

__all__ = ["Axis", "Output", "Solver", "System"]

Solver = Callable[[pd.DataFrame], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One dimension of an output tensor."""

    name: str
    values: tuple[float, ...]
    """Coordinate of each place along it."""
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a system gives for a row: a number, a tensor, or one of several labels."""

    name: str
    axes: tuple[Axis, ...] = ()
    """Dimensions of a tensor; empty for a number."""
    classes: tuple[str, ...] = ()
    """Labels, where the output is one."""
    unit: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row's output."""
        return tuple(len(axis.values) for axis in self.axes)

    @property
    def column(self) -> Column:
        """How a dataset holds it."""
        if self.classes:
            return Column(
                name=self.name, kind="categorical", role="target", categories=self.classes
            )
        kind = "tensor" if self.shape else "numeric"
        return Column(name=self.name, kind=kind, role="target", shape=self.shape)

    @property
    def task(self) -> Task:
        """What a model of it does."""
        if not self.classes:
            return "regression"
        return "binary" if len(self.classes) == 2 else "multiclass"


class System(ABC):
    """Labels inputs exactly: equal inputs give equal bits, whatever rows stand beside them."""

    name: str
    """For people and provenance."""
    domain: Domain
    output: Output
    reference: Solver | None = None
    """Another solver of at least the accuracy of `solve` that shares no method with it: what shows
    that labels carry no noise. None where there is none."""

    @property
    def table_bytes(self) -> int:
        """Size of the table that a surrogate would replace; 0 where its labels alone are it."""
        return 0

    @property
    def schema(self) -> Schema:
        """Of the datasets it makes: the inputs, then the output as target."""
        return Schema(columns=(*self.domain.columns, self.output.column), task=self.output.task)

    @abstractmethod
    def solve(self, inputs: pd.DataFrame) -> NDArray[Any]:
        """Return float64 [N, *shape], or labels [N], for N rows inside the domain.

        The frame has the domain's columns; a field is a flat array per cell (`domain.stacked`).
        """
        ...
