"""Solutions and predictions of the same rows, and how far apart they are."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.generation.systems.kept import Keep
from kubestill.runtime.generation.systems.left_out import Failures, LeftOut
from kubestill.runtime.generation.systems.solving import OnFailure, Solving
from kubestill.runtime.generation.systems.system import System
from kubestill.runtime.models.predict import Predictor

_BATCH = 4096


class Truth:
    """A system beside its surrogate.

    Args:
        system: The system.
        predictor: The surrogate.
        on_failure: Whether an input on which the solver fails ends the work; `leave-out` gives it
            NaN as its solution.
    """

    def __init__(self, system: System, predictor: Predictor, on_failure: OnFailure = "stop"):
        self.system, self.predictor = system, predictor
        self.on_failure: OnFailure = on_failure
        self._solving = Solving(system, on_failure, batch=_BATCH)
        self._failed: list[pd.DataFrame] = []
        self._probed: tuple[pd.DataFrame, NDArray[np.float64]] | None = None
        self._asked = self.timed = 0
        """Rows that were asked for before what `left_out` describes, and that `cost` timed."""

    @property
    def solved(self) -> int:
        """Rows that the solver has got so far."""
        return self._solving.solved + self.timed

    @property
    def reused(self) -> int:
        """Rows that had been solved before."""
        return self._solving.reused

    def probe(self, inputs: pd.DataFrame) -> float:
        """Solve inputs, and return the seconds that it takes."""
        began = time.perf_counter()
        answers = self.solve(inputs, fresh=True)
        seconds = time.perf_counter() - began
        self._probed = as_generated(inputs), answers
        return seconds

    def reuse(self, keep: Keep, seconds: float) -> str:
        """Solve no row that is kept, from now on, and keep the others; say what is kept.

        Args:
            keep: Opens the rows that are kept.
            seconds: That a row takes.
        """
        assert self._probed is not None
        said = keep.open(seconds, *self._probed)
        self._solving.reuse(keep)
        return said

    def solve(self, inputs: pd.DataFrame, *, fresh: bool = False) -> NDArray[np.float64]:
        """Return solutions [N, T]; for classes their codes [N, 1]; NaN for inputs left out.

        Args:
            inputs: N rows.
            fresh: Solve them even if they were solved before.

        Raises:
            InvalidInput: The solver fails on an input and must not; the message names it.
        """
        inputs = as_generated(inputs)
        solved = self._solving(inputs, fresh=fresh)
        failed = np.flatnonzero(np.isnan(solved[:, 0]))
        if len(failed):
            self._failed.append(inputs.iloc[failed])
        return solved

    def refer(self, inputs: pd.DataFrame) -> NDArray[np.float64]:
        """Return solutions of the system's reference, as `solve` does.

        Raises:
            InvalidInput: As for `solve`.
        """
        reference = self.system.reference
        return Solving(self.system, self.on_failure, solver=reference)(as_generated(inputs))

    def begin(self) -> None:
        """Forget which inputs were left out: what follows is what a certificate describes."""
        self._failed, self._asked = [], self._solving.asked
        self._solving.failures = Failures(self.system.domain)

    @property
    def left_out(self) -> LeftOut:
        """The inputs that were left out since `begin`."""
        return self._solving.failures.record(self._solving.asked - self._asked)

    @property
    def failed(self) -> pd.DataFrame | None:
        """Those inputs themselves; None if there are none."""
        return pd.concat(self._failed, ignore_index=True) if self._failed else None

    def predict(self, inputs: pd.DataFrame) -> NDArray[np.float64]:
        """Return what the surrogate says: [N, T], or codes [N, 1]."""
        raw = decode_features(inputs, self.predictor.layout)
        return answers(self.predictor, raw)


def as_generated(inputs: pd.DataFrame) -> pd.DataFrame:
    """Return rows in the types in which a domain makes them.

    Numbers and fields are float64 and labels text, whereas a dataset stores float32 and categories:
    a solver that computes in the type of its inputs would otherwise give other bits the second
    time.
    """
    columns: dict[str, object] = {}
    for name in inputs.columns:
        column = inputs[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            columns[name] = column.astype(str)
        elif column.dtype == np.float32:
            columns[name] = column.astype(np.float64)
        elif column.dtype == object and len(column) and isinstance(column.iloc[0], np.ndarray):
            columns[name] = pd.Series([cell.astype(np.float64) for cell in column], column.index)
    return inputs.assign(**columns) if columns else inputs


def answers(predictor: Predictor, raw: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return predictions [N, T] of raw features [N, R], or codes of classes [N, 1].

    Raises:
        InvalidInput: An answer is not a finite number.
    """
    logits = predictor.logits(raw)
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        where = raw[int(broken.argmax())].tolist()
        remedy = f"answers {int(broken.sum())} rows with NaN or infinity, such as {where[:8]}"
        raise InvalidInput([Problem("model", predictor.digest[:16], f"{remedy}; train it again")])
    task = predictor.spec.task
    if task == "regression":
        return logits.astype(np.float64)
    codes = logits.argmax(1) if task == "multiclass" else (logits[:, 0] > 0)
    return codes.astype(np.float64)[:, None]


def row_errors(
    solution: NDArray[np.float64], told: NDArray[np.float64], *, classes: bool
) -> NDArray[np.float64]:
    """Return one error a row [N]: the largest of its outputs; 1 where a class is wrong.

    It is NaN where there is no solution.
    """
    if classes:
        wrong = (solution[:, 0] != told[:, 0]).astype(np.float64)
        return np.where(np.isnan(solution[:, 0]), np.nan, wrong)
    return np.abs(solution - told).max(axis=1)
