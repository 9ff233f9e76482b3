"""Tell whether a model was fitted on rows: it is surer of their labels than of others."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kubestill.runtime.datasets.decode import decode
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.metrics.formulas import losses
from kubestill.runtime.metrics.outcome import Floats, Outcome
from kubestill.runtime.models.predict import Predictor

_ROWS = 4096
_ERRORS = 3.0
"""Standard errors that the difference has to be above: chance reaches that once in 700 models."""
_SHARE = 0.1
"""Of the loss on other rows: a smaller difference changes nothing for a student."""


def fitted_on(predictor: Predictor, dataset: Dataset, others: Floats) -> str:
    """Return a warning where the model was fitted on the first rows of a dataset, else nothing.

    Args:
        predictor: The model.
        dataset: Rows that it may have been fitted on, with labels.
        others: [N] its losses on rows that it has not seen; see `Evaluation.per_row`.
    """
    block = next(dataset.iter_blocks(), None)
    if block is None or dataset.schema.target is None:
        return ""
    found = decode(block.slice(0, _ROWS), predictor.layout, ("raw", "target"))
    target = cast(NDArray[Any], found.target)
    task = cast("Task", predictor.spec.task)
    labelled = np.isfinite(target).all(axis=1) if task == "regression" else target >= 0
    if labelled.sum() < 2 or len(others) < 2:
        return ""
    logits = predictor.logits(found.raw[labelled])
    here = losses(Outcome.from_logits(task, logits, target[labelled]))
    error = math.sqrt(here.var() / len(here) + others.var() / len(others))
    less = float(others.mean() - here.mean())
    if not less > max(_ERRORS * error, _SHARE * float(others.mean())):
        return ""
    share = less / float(others.mean())
    return (
        f"it was fitted on the rows of the dataset, where its loss is {share:.0%} lower than on "
        "rows held out: its answers there are surer than elsewhere, and a student learns that; "
        "give rows that it has not seen, or take all from a method such as munge"
    )
