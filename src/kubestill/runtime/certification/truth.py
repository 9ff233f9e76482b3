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
            InvalidInput: A solution is not a finite number, or none of the classes.
        """
        inputs = as_generated(inputs)
        if solver is None:
            self.tally.rows += len(inputs)
        parts = [
            self._numbers((solver or self.system.solve)(inputs.iloc[at : at + _CHUNK]))
            for at in range(0, len(inputs), _CHUNK)
        ]
        width = max(1, int(np.prod(self.system.output.shape)))
        solved = np.concatenate(parts) if parts else np.zeros((0, width))
        broken = ~np.isfinite(solved).all(axis=1)
        if self.system.output.classes:
            broken = solved[:, 0] < 0
        if broken.any():
            what = "none of its classes" if self.system.output.classes else "not finite"
            where = inputs.iloc[int(broken.argmax())].to_dict()
            remedy = f"`solve` gives what is {what} in {int(broken.sum())} rows, such as {where}"
            raise InvalidInput([Problem("system", self.system.name, f"{remedy}; leave them out")])
        return solved

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
