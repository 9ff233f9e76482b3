"""Solve rows of a system, of which the solver may fail on some.

A solver fails on an input if it raises, or answers with what is not finite or none of its classes.
With `stop` the first such input ends the work. With `leave-out` its answer is NaN, and the input
is described with all the others.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.base.random import uniforms
from kubestill.runtime.datasets.canonical import BLOCK_ROWS
from kubestill.runtime.datasets.parts import workers
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.kept import Keep, KeptRows
from kubestill.runtime.generation.systems.left_out import Failures, as_point
from kubestill.runtime.generation.systems.system import Solver, System

OnFailure = Literal["stop", "leave-out"]

Floats = NDArray[np.float64]

_CUT = 8
"""Into so many pieces a batch is cut in which the solver raises."""
_ALONE = 0.01
"""Seconds for a row from which on rows are solved one by one where the solver raises: repeating
the rest of a batch would cost more than what is saved by solving it at once."""
_FEWEST = 8
"""Rows for which a thread is worth its start."""
_LONGEST = 30.0
"""Seconds that a batch may take."""
_STREAM = 1002
"""Of the random numbers: neither a covering nor the samples of a certificate use it."""
_TIMEOUT = "raises Timeout"
"""Begins the reason of `TimeoutError` and `subprocess.TimeoutExpired`."""
_MACHINE = (MemoryError, ImportError, OSError)
"""The machine failed, not the input; a `TimeoutError`, which is an `OSError`, is the input's."""


@dataclass(frozen=True)
class _Batch:
    """Answers [N, T], NaN where there is none, and for each such row why."""

    answers: Floats
    reasons: list[str]


class Solving:
    """A solver with what it takes to ask it for many rows.

    Args:
        system: What is solved.
        on_failure: Whether an input on which the solver fails ends the work.
        solver: Another one than `system.solve`: its reference.
        batch: Rows that it gets at a time, at most.
    """

    def __init__(
        self,
        system: System,
        on_failure: OnFailure = "stop",
        *,
        solver: Solver | None = None,
        batch: int = BLOCK_ROWS,
    ):
        self.system = system
        self.on_failure: OnFailure = on_failure
        self.asked = 0
        """Rows that it was asked for."""
        self.solved = 0
        """Rows that the solver got: those of batches that were cut and solved again count twice."""
        self.reused = 0
        """Rows that had been solved before."""
        self.failures = Failures(system.domain)
        self.kept: KeptRows | None = None
        self._solver = solver or (_on_cores(system.solve) if system.parallel else system.solve)
        self._width = math.prod(system.output.shape)
        self._most = self._batch = batch
        self._seconds = 0.0

    def __call__(self, inputs: pd.DataFrame, *, fresh: bool = False) -> Floats:
        """Return answers [N, T], of classes their codes [N, 1]; NaN where the solver fails.

        Args:
            inputs: N rows.
            fresh: Solve them even if they were solved before.

        Raises:
            InvalidInput: The solver fails on an input, which the message names, and `on_failure`
                is `stop`; or its answer has another shape than the output.
        """
        self.asked += len(inputs)
        if self.kept is None or fresh:
            found, reasons = self._solve(inputs)
        else:
            found, known, reasons = self.kept.find(inputs)
            if reasons and self.on_failure == "stop":
                lost = np.flatnonzero(known & np.isnan(found[:, 0]))
                raise self._stop(inputs.iloc[lost], reasons[0])
            self.reused += int(known.sum())
            found[~known], more = self._solve(inputs.iloc[np.flatnonzero(~known)])
            # In the order of the rows, whether they were known or not.
            ways, lost = (iter(reasons), iter(more)), np.isnan(found[:, 0])
            reasons = [next(ways[0] if one else ways[1]) for one in known[lost]]
        if reasons:
            lost = np.flatnonzero(np.isnan(found[:, 0]))
            self.failures.note(inputs.iloc[lost], reasons)
        return found

    def reuse(self, keep: Keep) -> None:
        """Look rows up from now on before they are solved, and keep those that are."""
        if keep.seconds:
            self.kept, self._seconds = keep.rows, keep.seconds
            self._batch = min(self._batch, max(1, int(_LONGEST / keep.seconds)))

    def _solve(self, inputs: pd.DataFrame) -> tuple[Floats, list[str]]:
        """Solve rows in batches: answers [N, T], and for each row without one why."""
        found = np.full((len(inputs), self._width), np.nan)
        reasons: list[str] = []
        at = 0
        while at < len(inputs):
            rows = inputs.iloc[at : at + self._batch]
            solved = self._try(rows)
            if solved is None:
                continue
            if solved.reasons and self.on_failure == "stop":
                lost = np.flatnonzero(np.isnan(solved.answers[:, 0]))
                raise self._stop(rows.iloc[lost], solved.reasons[0])
            found[at : at + len(rows)] = solved.answers
            reasons += solved.reasons
            at += len(rows)
            if self.kept is not None:
                self._keep(self.kept, rows, solved)
        return found, reasons

    @staticmethod
    def _keep(kept: KeptRows, rows: pd.DataFrame, solved: _Batch) -> None:
        """Keep what a batch gave, but for time-outs: the next time there may be none."""
        steady = np.ones(len(rows), np.bool_)
        why = [reason for reason in solved.reasons if not reason.startswith(_TIMEOUT)]
        if len(why) < len(solved.reasons):
            failed = np.flatnonzero(np.isnan(solved.answers[:, 0]))
            steady[failed] = [not reason.startswith(_TIMEOUT) for reason in solved.reasons]
        places = np.flatnonzero(steady)
        kept.add(rows.iloc[places], solved.answers[places], why)

    def _try(self, rows: pd.DataFrame) -> _Batch | None:
        """Solve one batch; None where it is to be cut first."""
        self.solved += len(rows)
        began = time.perf_counter()
        try:
            solution = np.asarray(self._solver(rows))
        except Exception as error:
            machine = isinstance(error, _MACHINE) and not isinstance(error, TimeoutError)
            if machine and self.on_failure == "leave-out":
                raise
            seconds = (time.perf_counter() - began) / len(rows)
            if len(rows) > 1:
                slow = max(seconds, self._seconds) > _ALONE
                self._batch = 1 if slow else max(1, len(rows) // _CUT)
                return None
            reason = f"raises {type(error).__name__}: {error}".removesuffix(": ")
            if self.on_failure == "stop":
                raise self._stop(rows, reason) from error
            return _Batch(np.full((1, self._width), np.nan), [reason])
        self._seconds = (time.perf_counter() - began) / len(rows)
        if self._seconds < _ALONE:
            self._batch = min(2 * self._batch, self._most)
        self._batch = max(1, min(self._batch, int(_LONGEST / max(self._seconds, 1e-9))))
        return self._read(solution, len(rows))

    def _read(self, solution: NDArray[Any], count: int) -> _Batch:
        """Turn what the solver gave into numbers."""
        output = self.system.output
        if solution.shape != (count, *output.shape):
            shape = [count, *output.shape]
            remedy = f"`solve` gave an array {list(solution.shape)}, its output is {shape}"
            raise InvalidInput([Problem("system", self.system.name, remedy)])
        if output.classes:
            codes = pd.Index(output.classes).get_indexer_for(solution)
            answers = np.where(codes < 0, np.nan, codes.astype(np.float64))[:, None]
            reason = "gives a value that is not one of its classes"
        else:
            answers = np.array(solution, np.float64).reshape(count, self._width)
            answers[~np.isfinite(answers).all(axis=1)] = np.nan
            reason = "gives what is not finite"
        return _Batch(answers, [reason] * int(np.isnan(answers[:, 0]).sum()))

    def _stop(self, rows: pd.DataFrame, reason: str) -> InvalidInput:
        where = as_point(rows.iloc[0].to_dict())
        remedy = (
            f"`solve` {reason} in {len(rows)} of the rows, such as {where}; correct it, make the "
            "domain smaller, or leave such inputs out: on_failure='leave-out'"
        )
        return InvalidInput([Problem("system", self.system.name, remedy)])


def _on_cores(solver: Solver) -> Solver:
    """Return what solves rows as `solver` does, some of them on each of up to 8 cores."""

    def solve(inputs: pd.DataFrame) -> NDArray[Any]:
        threads = min(workers(), len(inputs) // _FEWEST)
        if threads < 2:
            return solver(inputs)
        ends = [len(inputs) * number // threads for number in range(threads + 1)]
        parts = [inputs.iloc[at:end] for at, end in zip(ends, ends[1:], strict=False)]
        with ThreadPoolExecutor(threads) as pool:
            return np.concatenate(list(pool.map(solver, parts)))

    return solve


def probe_inputs(domain: Domain, count: int) -> pd.DataFrame:
    """Return the random inputs that a solver is timed on: everywhere the same ones."""
    return domain.at(uniforms(0, _STREAM, 0, count, width=domain.width))
