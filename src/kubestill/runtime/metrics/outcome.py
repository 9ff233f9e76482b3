"""What one model said about labelled rows, in the form every metric reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kubestill.runtime.datasets.schema import Task

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Targets and predictions of the same N rows.

    Classification speaks in log-probabilities of K classes (a binary model's single logit becomes
    two), regression in T values a row.
    """

    task: Task
    targets: npt.NDArray[Any]
    """[N] class indices, or [N, T] values in the target's own unit."""
    predictions: Floats
    """[N, K] log-probabilities, or [N, T] values."""
    weights: Floats | None = None
    """[N] how many rows each row counts for, above 0; None where all count the same."""

    @classmethod
    def from_logits(
        cls,
        task: Task,
        logits: npt.ArrayLike,
        targets: npt.ArrayLike,
        weights: Floats | None = None,
    ) -> Outcome:
        """Build an outcome from a model's raw output.

        Args:
            task: Decides how the output is read.
            logits: [N, 1] for a binary task, [N, K] for a multiclass one, [N, T] for a regression.
            targets: [N] class indices, or [N] or [N, T] values.
            weights: [N] how many rows each row counts for, above 0.
        """
        raw = np.asarray(logits, dtype=np.float64)
        raw = raw.reshape(len(raw), -1)
        if task == "regression":
            values = np.asarray(targets, dtype=np.float64).reshape(raw.shape)
            return cls(task=task, targets=values, predictions=raw, weights=weights)
        if task == "binary" and raw.shape[1] == 1:
            raw = np.concatenate([np.zeros_like(raw), raw], axis=1)
        classes = np.asarray(targets, dtype=np.int64)
        # Not scipy's log_softmax: importing it takes longer than many a training.
        with np.errstate(invalid="ignore"):
            log_shares = raw - np.logaddexp.reduce(raw, axis=1, keepdims=True)
        return cls(task=task, targets=classes, predictions=log_shares, weights=weights)

    @property
    def rows(self) -> int:
        """How many rows were scored."""
        return len(self.predictions)

    @property
    def counts(self) -> Floats:
        """[N] how many rows each row counts for."""
        return np.ones(self.rows) if self.weights is None else self.weights

    @property
    def shares(self) -> Floats:
        """[N] weights, 1 on average."""
        return self.counts * (self.rows / self.counts.sum())

    @property
    def probabilities(self) -> Floats:
        """[N, K] probabilities of a classification."""
        return np.exp(self.predictions)

    @property
    def labels(self) -> Ints:
        """[N] most probable class of each row."""
        return self.predictions.argmax(axis=1)

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """[N] whether the model gave a usable answer."""
        return np.asarray(np.isfinite(self.predictions).all(axis=1))

    def take(self, rows: npt.NDArray[np.bool_] | Ints) -> Outcome:
        """Return the outcome of some rows: a mask [N], or indices."""
        return Outcome(
            task=self.task,
            targets=self.targets[rows],
            predictions=self.predictions[rows],
            weights=None if self.weights is None else self.weights[rows],
        )
