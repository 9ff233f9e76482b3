"""Check the refit of a model that was judged, before it is promoted in that model's place.

The refit has learned from the rows that judged the model, so nothing is proven by doing well on
them. Doing worse is a sign that its training went wrong.
"""

from __future__ import annotations

import math
from typing import cast

from kubestill.errors import counted
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.evaluation.evaluate import evaluate
from kubestill.runtime.metrics.catalog import METRICS, TASKS
from kubestill.runtime.metrics.intervals import measure
from kubestill.runtime.models.predict import Predictor


def find_fault(refit: Predictor, judged: Predictor, rows: Dataset) -> str:
    """Return in a clause what speaks against a refit; empty where nothing does.

    Args:
        refit: The same recipe as `judged`, trained with `rows`.
        judged: What was judged by `rows`.
        rows: Labelled.
    """
    if (refit.spec.task, refit.spec.outputs) != (judged.spec.task, judged.spec.outputs):
        return "it predicts something else"
    outcomes = {"refit": evaluate(refit, rows).outcome, "": evaluate(judged, rows).outcome}
    if lost := int((~outcomes["refit"].finite).sum()):
        return f"it gives NaN or infinity on {lost:,} of {counted(rows.rows, 'row')}"
    metric = METRICS[TASKS[cast(Task, refit.spec.task)].primary]
    gain = measure(outcomes).improvement("refit", "", metric)
    # Without an interval, too few rows tell.
    if not math.isfinite(gain.high) or gain.high >= 0:
        return ""
    return (
        f"its {metric.title} is worse by {-gain.value:.3g} on the rows that judged the model, "
        "although it has learned from them"
    )
