"""What training follows are the catalog's metrics, as scikit-learn computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from kubestill.runtime.metrics.catalog import METRICS, TASKS
from kubestill.runtime.metrics.running import ON_VALIDATION_ROWS, OVER_THE_DOMAIN
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.training.batches import ResidentRows
from kubestill.runtime.training.validation import Validation

ROWS = 8192 + 500  # more than a chunk
OUTPUTS = {"regression": 2, "binary": 1, "multiclass": 4}


def scores(task: str, said: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return every metric by scikit-learn, from target values or probabilities."""
    if task == "regression":
        return {
            "rmse": metrics.root_mean_squared_error(truth.ravel(), said.ravel()),
            "mae": metrics.mean_absolute_error(truth, said),
            "mean_error": metrics.mean_absolute_error(truth, said),
            "r2": metrics.r2_score(truth, said, multioutput="variance_weighted"),
            "max_error": metrics.max_error(truth.ravel(), said.ravel()),
        }
    labels = said.argmax(1)
    return {
        "accuracy": metrics.accuracy_score(truth, labels),
        "error_rate": 1 - metrics.accuracy_score(truth, labels),
        "log_loss": metrics.log_loss(truth, said),
    }


@pytest.mark.parametrize("whole_domain", [False, True], ids=["validation", "domain"])
@pytest.mark.parametrize("task", TASKS)
def test_what_is_followed_is_what_scikit_learn_measures(task: str, whole_domain: bool) -> None:
    torch.manual_seed(0)
    count = OUTPUTS[task]
    features, network = torch.randn(ROWS, 3), nn.Linear(3, count)
    decoder = Decoder([1.0, -2.0], [3.0, 0.5]) if task == "regression" else Decoder()
    outputs = network(features).detach()
    if task == "regression":
        truth = torch.randn(ROWS, count) * 3
        said = decoder(outputs)
        given = decoder.standardise(truth) if whole_domain else truth
    else:
        truth = torch.randint(0, max(2, count), (ROWS,))
        logits = torch.cat([torch.zeros(ROWS, 1), outputs], 1) if count == 1 else outputs
        said = logits.double().softmax(1)
        given = truth[:, None].float() if whole_domain and task == "binary" else truth
    followed = Validation(
        ResidentRows([features, given]), task=task, decoder=decoder, whole_domain=whole_domain
    )(network)
    names = TASKS[task].enumerated if whole_domain else TASKS[task].validated
    assert tuple(followed) == names
    expected = scores(task, said.numpy(), truth.numpy())
    assert followed == pytest.approx({name: expected[name] for name in names}, rel=1e-5)


def test_every_formula_is_of_a_metric_that_some_task_follows() -> None:
    for formulas, names in (
        (ON_VALIDATION_ROWS, {name for task in TASKS.values() for name in task.validated}),
        (OVER_THE_DOMAIN, {name for task in TASKS.values() for name in task.enumerated}),
    ):
        assert set(formulas) == names
        assert names <= set(METRICS)
