"""One model on one dataset: its answers, its losses, its scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from kubestill.errors import InvalidInput, Problem, Problems
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.decode import RawLayout, check_columns
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.metrics.catalog import score
from kubestill.runtime.metrics.formulas import losses
from kubestill.runtime.metrics.outcome import Floats, Ints, Outcome
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model said about the N labelled rows of a dataset."""

    logits: npt.NDArray[np.float32]
    """[N, K], [N, 1] for a binary task, or [N, T] predictions in the target's unit."""
    outcome: Outcome
    rows: npt.NDArray[np.int64]
    """[N] which rows of the dataset these are: those with a label and a weight above 0."""

    @property
    def targets(self) -> npt.NDArray[Any]:
        """[N] class indices in the model's order, or [N, T] values."""
        return self.outcome.targets

    @cached_property
    def per_row(self) -> Floats:
        """[N] loss of each row: negative log-likelihood in nats, or squared error over T."""
        return losses(self.outcome)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric of the task; NaN where an answer was not finite."""
        return score(self.outcome)


def check_scorable(layout: RawLayout, dataset: Dataset) -> None:
    """Check, without reading a row, that a model can be scored on a dataset.

    Raises:
        InvalidInput: There is no target, or columns that the model needs are missing or of another
            kind; all of them.
    """
    problems = Problems()
    column, wanted = layout.schema.target, ["raw", "target"]
    if column is None or dataset.schema.target is None:
        remedy = f"has no target column; the model predicts {column.name if column else '?'!r}"
        problems.add("dataset", dataset.root, remedy)
        wanted.remove("target")
    with problems.collect():
        check_columns(dataset, layout, wanted)
    problems.raise_if_any()


def evaluate(model: Model | Predictor, dataset: Dataset) -> Evaluation:
    """Score a model on the labelled rows of a dataset.

    Args:
        model: Computes on the device it is on, in batches of 8,192 rows.
        dataset: Must hold the model's feature and target columns; rows without a label are
            left out.

    Raises:
        InvalidInput: The dataset does not fit the model, has no labelled row, or holds classes that
            the model does not know.
    """
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    task = cast("Task", predictor.spec.task)
    check_scorable(predictor.layout, dataset)
    decoded = load_decoded(dataset, predictor.layout)
    target = decoded.target
    assert target is not None
    labelled = np.isfinite(target).all(axis=1) if task == "regression" else np.asarray(target) >= 0
    weights = dataset.weights()
    if weights is not None:
        labelled &= weights > 0
    rows = np.flatnonzero(labelled)
    if not len(rows):
        remedy = "no row has a label, so there is nothing to score against"
        raise InvalidInput([Problem("dataset", dataset.root, remedy)])
    raw, known = (decoded.raw, target) if labelled.all() else (decoded.raw[rows], target[rows])
    logits = predictor.logits(raw)
    counts = None if weights is None else weights[rows].astype(np.float64)
    outcome = Outcome.from_logits(task, logits, known, counts)
    return Evaluation(logits=logits, outcome=outcome, rows=rows)


def groups_of(dataset: Dataset, rows: npt.NDArray[np.int64], name: str = "") -> Ints | None:
    """Return the group of each of these rows, [N] from 0, or None where each stands for itself.

    Args:
        dataset: Holds the rows.
        rows: [N] places in it.
        name: Column of the groups; empty takes the one with the role `group`, if there is one. A
            row without a value is a group of its own.
    """
    entity = entities_of(dataset, rows, name)
    if entity is None:
        return None
    import pandas as pd

    codes = pd.factorize(entity)[0].astype(np.int64)
    alone = codes < 0
    codes[alone] = codes.max(initial=-1) + 1 + np.arange(alone.sum())
    return codes


def entities_of(dataset: Dataset, rows: npt.NDArray[np.int64], name: str = "") -> Any:
    """Return the column that `groups_of` numbers, [N] as pandas' series, or None."""
    declared = dataset.schema.group
    if not (name := name or (declared.name if declared else "")):
        return None
    return dataset.to_pandas(columns=[name])[name].iloc[rows]
