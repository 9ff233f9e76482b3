"""Solutions and predictions of the same rows, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.generation.systems.system import Solver, System
from kubestill.runtime.models.predict import Predictor

__all__ = ["Truth", "answers", "as_generated", "row_errors"]

_CHUNK = 4096


@dataclass
class Tally:
    """Rows solved so far."""

    rows: int = 0


@dataclass(frozen=True)
class Truth:
    """A system beside its surrogate."""

    system: System
    predictor: Predictor
    tally: Tally = field(default_factory=Tally)

    def solve(self, inputs: pd.DataFrame, solver: Solver | None = None) -> NDArray[np.float64]:
        """Return solutions [N, T]; for classes their codes [N, 1].

        Raises:
            InvalidInput: The solver raises, or a solution is not a finite number or none of the
                classes; with the first row for which it does.
        """
        inputs = as_generated(inputs)
        if solver is None:
            self.tally.rows += len(inputs)
        width = max(1, int(np.prod(self.system.output.shape)))
        parts = [
            self._solved(inputs.iloc[at : at + _CHUNK], solver or self.system.solve)
            for at in range(0, len(inputs), _CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, width))

    def _solved(self, inputs: pd.DataFrame, solver: Solver) -> NDArray[np.float64]:
        try:
            solved = self._numbers(solver(inputs))
        except Exception as error:
            if len(inputs) > 1:
                # Which row it was: the halves are solved until one is left that raises.
                middle = len(inputs) // 2
                halves = (inputs.iloc[:middle], inputs.iloc[middle:])
                return np.concatenate([self._solved(half, solver) for half in halves])
            raise self._failed(inputs, f"raises {type(error).__name__}: {error}") from error
        if self.system.output.classes:
            broken, what = solved[:, 0] < 0, "gives what is none of its classes"
        else:
            broken, what = ~np.isfinite(solved).all(axis=1), "gives what is not finite"
        if broken.any():
            raise self._failed(inputs.iloc[np.flatnonzero(broken)], what)
        return solved

    def _failed(self, rows: pd.DataFrame, what: str) -> InvalidInput:
        where = rows.iloc[0].to_dict()
        remedy = f"`solve` {what} in {len(rows)} of the rows, such as {where}; leave them out"
        return InvalidInput([Problem("system", self.system.name, remedy)])

    def predict(self, inputs: pd.DataFrame) -> NDArray[np.float64]:
        """Return what the surrogate says: [N, T], or codes [N, 1]."""
        raw = decode_features(inputs, self.predictor.layout)
        return answers(self.predictor, raw)

    def _numbers(self, solution: NDArray[np.generic]) -> NDArray[np.float64]:
        if not self.system.output.classes:
            return np.asarray(solution, np.float64).reshape(len(solution), -1)
        codes = pd.Categorical(solution, categories=list(self.system.output.classes)).codes
        return np.asarray(codes, np.float64)[:, None]


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
    """Return one error a row [N]: the largest of its outputs; 1 where a class is wrong."""
    if classes:
        return (solution[:, 0] != told[:, 0]).astype(np.float64)
    return np.abs(solution - told).max(axis=1)
