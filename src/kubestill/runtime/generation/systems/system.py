"""Define a numerical system: a domain, and a solution exact enough to be noise-free.

A system of one's own is a subclass, given by its import path; users take all names from
`kubestill.systems`, and docs/systems.md writes one from nothing:

    class Pendulum(System):
        name = "pendulum"

        def __init__(self, length: float = 1.0):
            self.domain = Domain([Continuous(name="angle", low=-3.0, high=3.0, unit="rad")])
            self.output = Output(name="period", unit="s")

        def solve(self, inputs: pd.DataFrame) -> np.ndarray: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.runtime.datasets.schema import Column, Schema, Task
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.taylor import Taylor

Solver = Callable[[pd.DataFrame], NDArray[Any]]
Enclosure = Callable[[pd.DataFrame, pd.DataFrame], tuple[NDArray[Any], NDArray[Any]]]
Expansion = Callable[[Mapping[str, Any]], Taylor | Sequence[Taylor]]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One dimension of an output tensor."""

    name: str
    """Name, for people."""
    values: tuple[float, ...]
    """Coordinates along it, one for each number."""
    unit: str = ""
    """Unit, for people."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """The output of a system for one row: a number, a tensor, or one of several labels."""

    name: str
    """Name of the column."""
    axes: tuple[Axis, ...] = ()
    """Dimensions of a tensor; empty for a number."""
    classes: tuple[str, ...] = ()
    """Labels, if the output is a label."""
    unit: str = ""
    """Unit, for people."""
    offset: float = 0.0
    """What all answers have in common, such as 1.7e9, where float32 would swallow the differences:
    they are stored in float64, and models learn them less this."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row's output."""
        return tuple(len(axis.values) for axis in self.axes)

    @property
    def column(self) -> Column:
        """The column that stores it in a dataset."""
        if self.classes:
            return Column(
                name=self.name, kind="categorical", role="target", categories=self.classes
            )
        kind = "tensor" if self.shape else "numeric"
        return Column(
            name=self.name,
            kind=kind,
            role="target",
            shape=self.shape,
            exact=bool(self.offset),
            offset=self.offset,
        )

    @property
    def task(self) -> Task:
        """The task of a model of it."""
        if not self.classes:
            return "regression"
        return "binary" if len(self.classes) == 2 else "multiclass"


class System(ABC):
    """Labels inputs exactly: equal inputs give equal bits, whatever the other rows are."""

    name: str
    """Name in messages and provenance."""
    domain: Domain
    """The inputs; set in `__init__`."""
    output: Output
    """What `solve` gives for one row; set in `__init__`."""
    reference: Solver | None = None
    """Another solver of at least the accuracy of `solve` that shares no method with it: what shows
    that labels carry no noise. None where there is none."""

    expand: Expansion | None = None
    """Writes the solution in Taylor arithmetic (`systems.taylor`), what proofs converge fastest by:
    takes every numeric input as a `Taylor` of B boxes and every label as an array [B], by name, and
    returns one `Taylor` an output. None where the solution is no such formula."""
    enclose: Enclosure | None = None
    """Bounds the solution over boxes: takes their lower and upper ends as two frames of the
    domain's columns [N], which share labels and other discrete inputs, and returns a lowest and a
    highest solution for each, float64 [N, *shape]. None where it is not known."""
    lipschitz: Mapping[str, float] | None = None
    """Largest slope of any output along each continuous input, by name. It is taken on trust: a
    proof that uses it is conditional, and used only where neither of the others is there."""

    parallel: bool = False
    """Whether several threads may call `solve` at once, each for some of the rows, and gain by it:
    most of its time has to be in numpy, scipy or a program of its own, not in Python."""

    version: str | None = None
    """Stands for all that the solution depends on, and changes whenever `solve` would answer
    otherwise: solved rows are kept and found by it. None takes the class's package, the installed
    packages and the files among its arguments; a solver that reads other files, or starts a program
    of its own, has to declare it."""

    breaks: Mapping[str, Sequence[float] | NDArray[np.float64]] | None = None
    """Where `expand` or `enclose` changes its formula along an input, by name and ascending: proofs
    cut boxes there first."""

    @property
    def table_bytes(self) -> int:
        """Size of the table that a surrogate would replace; 0 if the labels are the table."""
        return 0

    @property
    def schema(self) -> Schema:
        """Schema of its datasets: the inputs, then the output as target."""
        return Schema(columns=(*self.domain.columns, self.output.column), task=self.output.task)

    @abstractmethod
    def solve(self, inputs: pd.DataFrame) -> NDArray[Any]:
        """Return float64 [N, *shape], or labels [N], for N rows inside the domain.

        The frame has the domain's columns; a cell of a field is an array of its shape, and
        `domain.stacked` joins a column of them.
        """
        ...
