"""Cover a system's domain: compute every row's inputs from its number, then their exact labels.

Row g depends on the method, the seed and g (for a Latin hypercube also on the number of rows),
never on the shard that makes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy.stats import qmc

from kubestill.runtime.base.random import uniforms
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.generation.systems.solving import OnFailure, Solving
from kubestill.runtime.generation.systems.system import Output, System

Floats = NDArray[np.float64]

SMALLEST = 2.0**-53
"""Distance of unit numbers from 0 and 1, so that every inverse distribution is finite."""


class GridSettings(Settings):
    """A full grid over the domain; with all levels of all discrete inputs it is complete."""

    points: int | dict[str, int] | None = None
    """Points along every continuous input, or a dict by the input's name; by default as many as
    keep the grid within `rows`. Discrete inputs take all their levels."""


class SobolSettings(Settings):
    """A Sobol sequence (Sobol 1967; direction numbers of Joe & Kuo 2008)."""

    scramble: bool = True
    """Random linear scrambling and a digital shift (Matousek 1998), from the seed."""


class PlainSettings(Settings):
    """Methods without options: `latin-hypercube`, `random`."""


class AdaptiveSettings(Settings):
    """Sobol candidates, of which those with the largest error of a surrogate are kept."""

    oversample: int = Field(default=8, ge=2, le=1024)
    """Candidates per row that is kept."""


COVERINGS: dict[str, type[BaseModel]] = {
    "grid": GridSettings,
    "sobol": SobolSettings,
    "latin-hypercube": PlainSettings,
    "random": PlainSettings,
    "adaptive": AdaptiveSettings,
}
"""The settings of each method."""

MAX_SOBOL_WIDTH = 21_201
"""Dimensions for which direction numbers are known."""
SOBOL_BITS = 32
"""Bits of a point. The number of rows must not change the points, of which there are 2^32."""


class Covering:
    """Rows of a system by number.

    Args:
        system: What labels them.
        method: One of `COVERINGS` but `adaptive`.
        settings: Its settings; for a grid with `points` resolved for every input.
        rows: How many there are in all.
        seed: Of the random numbers.
        on_failure: Whether an input on which the solver fails ends the work, or is left out.
    """

    def __init__(
        self,
        system: System,
        method: str,
        settings: Mapping[str, Any],
        *,
        rows: int,
        seed: int,
        on_failure: OnFailure = "stop",
    ):
        self.schema = system.schema
        self.width = system.domain.width + sum(column.width for column in self.schema.columns)
        self._system, self._method, self._settings = system, method, dict(settings)
        self._rows, self._seed = rows, seed
        self.solving = Solving(system, on_failure)
        """What solves them, and knows which were left out."""

    def make(self, start: int, stop: int) -> pd.DataFrame:
        """Return rows `start` to `stop` with their labels, without those left out."""
        inputs = self.inputs(start, stop)
        return labelled(self._system.output, inputs, self.solving(inputs))

    def inputs(self, start: int, stop: int) -> pd.DataFrame:
        """Return the inputs of rows `start` to `stop`."""
        domain = self._system.domain
        if self._method == "grid":
            return domain.grid(np.arange(start, stop), self._settings["points"])
        return domain.at(self._unit(start, stop))

    def _unit(self, start: int, stop: int) -> Floats:
        width = self._system.domain.width
        if self._method == "sobol":
            unit = sobol(start, stop, width, seed=self._seed, scramble=self._settings["scramble"])
        elif self._method == "latin-hypercube":
            unit = latin_hypercube(start, stop, width, rows=self._rows, seed=self._seed)
        else:
            unit = uniforms(self._seed, 0, start, stop, width=width)
        return np.clip(unit, SMALLEST, 1 - SMALLEST)


def sobol(start: int, stop: int, width: int, *, seed: int, scramble: bool) -> Floats:
    """Return points `start` to `stop` of a Sobol sequence: [stop - start, width]."""
    sampler = qmc.Sobol(width, scramble=scramble, bits=SOBOL_BITS, rng=seed)
    if start:
        sampler.fast_forward(start)
    with warnings.catch_warnings():
        # scipy warns that other numbers of points than powers of two are less balanced.
        warnings.simplefilter("ignore")
        return sampler.random(stop - start)


def latin_hypercube(start: int, stop: int, width: int, *, rows: int, seed: int) -> Floats:
    """Return rows `start` to `stop` of a Latin hypercube of `rows` (McKay et al. 1979).

    Not `scipy.stats.qmc`, whose hypercube exists only as a whole: here a shard holds one
    permutation at a time.
    """
    jitter = uniforms(seed, 0, start, stop, width=width)
    keys = (np.array([seed, 1 + place], np.uint64) for place in range(width))
    draws = (np.random.Generator(np.random.Philox(key=key)) for key in keys)
    cell = np.stack([draw.permutation(rows)[start:stop] for draw in draws], axis=1)
    return (cell + jitter) / rows


def labelled(output: Output, inputs: pd.DataFrame, answers: Floats) -> pd.DataFrame:
    """Return the inputs with their answers as target column, without those that have none.

    Args:
        output: Of the system.
        inputs: N rows.
        answers: What `Solving` gives: [N, T], or codes of classes [N, 1]; NaN where left out.
    """
    known = ~np.isnan(answers[:, 0])
    if not known.all():
        inputs = inputs.iloc[np.flatnonzero(known)].reset_index(drop=True)
        answers = answers[known]
    cells: Any = answers[:, 0]
    if output.classes:
        cells = np.asarray(output.classes)[cells.astype(np.int64)]
    elif output.shape:
        kind = output.column.float_type
        cells = list(answers.reshape(len(inputs), *output.shape).astype(kind))
    return inputs.assign(**{output.name: cells})
