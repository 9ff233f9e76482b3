"""Which way a metric gets better: the only place that knows it."""

from __future__ import annotations

from typing import Literal

from kubestill.errors import InvalidInput, Problem, nearest

Direction = Literal["min", "max"]

_LOWER = (
    "bits brier calibration_error cross_entropy ece error error_rate hard_loss kl log_loss loss "
    "mae mape max_error mean_error median_error mse nll perplexity quantile_error relative_l2 rmse "
    "soft_loss"
)
_HIGHER = (
    "accuracy agreement auc average_precision balanced_accuracy cohen_kappa explained_variance f1 "
    "fidelity macro_f1 matthews pr_auc precision r2 recall roc_auc spearman top5_accuracy"
)
KNOWN: dict[str, Direction] = {
    **dict.fromkeys(_LOWER.split(), "min"),
    **dict.fromkeys(_HIGHER.split(), "max"),
}
"""Bare metric names and their directions."""

_PREFIXES = ("validation", "valid", "val", "train", "test", "eval", "golden", "fresh", "holdout")


def direction(metric: str) -> Direction:
    """Say whether smaller (`"min"`) or larger (`"max"`) values of `metric` are better.

    Case, `-`, and a leading split name (`val_loss`, `validation/accuracy`) make no difference.

    Raises:
        InvalidInput: The name is not known; the remedy lists the nearest ones.
    """
    bare = _bare(metric)
    if bare not in KNOWN:
        remedy = f"no telling whether lower or higher is better; {nearest(bare, KNOWN)}"
        raise InvalidInput([Problem("metric", metric, remedy)])
    return KNOWN[bare]


def _bare(metric: str) -> str:
    name = metric.strip().lower().replace("-", "_").replace("/", "_").replace(".", "_")
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix + "_")
    return name
