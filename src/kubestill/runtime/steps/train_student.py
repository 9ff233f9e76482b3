"""`train-student`: a small model on soft outputs, on hard labels, or by pure overfitting."""

from __future__ import annotations

import math
from typing import Any

from kubestill.errors import Problems, nearest
from kubestill.runtime.base.arguments import fill
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact
from kubestill.runtime.metrics.catalog import TASKS, TRAIN_LOSS
from kubestill.runtime.steps.train_model import Ports, train_model
from kubestill.runtime.steps.train_teacher import TYPED
from kubestill.runtime.training.job import Preset
from kubestill.runtime.training.run import Keeping
from kubestill.runtime.training.settings import TrainingSettings


def train_student(
    *,
    dataset: Artifact,
    model: Artifact,
    ledger: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    validation: Artifact | None = None,
    teacher: Artifact | None = None,
    mode: str = "distil",
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    tolerance: float = 0.0,
    statistic: str = "max",
    network: str = "mlp",
    network_args: dict[str, Any] = {},  # noqa: B006
    epochs: float = 20.0,
    steps: int = 0,
    batch_size: int = 128,
    optimizer: str = "AdamW",
    learning_rate: float = 0.001,
    schedule: str = "CosineAnnealingLR",
    seed: int = 0,
    device: str = "auto",
    checkpoint_uri: str = "",
    experiment: str = "",
    resume: str = "auto",
    settings: dict[str, Any] = {},  # noqa: B006
) -> tuple[str]:
    """Train the small model; the component documents the parameters, `train_model` the errors."""
    given = locals()
    problems = Problems()
    if mode not in MODES:
        problems.add("mode", mode, nearest(mode, MODES))
    return train_model(
        MODES.get(mode, MODES["hard"]),
        {name: given[name] for name in ("temperature", "hard_weight", *TYPED)},
        {**stop_settings(mode, tolerance, statistic, problems), **settings},
        ports=fill(Ports, given),
        keeping=fill(Keeping, given),
        problems=problems,
        teacher=teacher,
    )


def stop_settings(
    mode: str, tolerance: float, statistic: str, problems: Problems
) -> dict[str, Any]:
    """Return the settings that stop a training run whose certificate asks for this tolerance."""
    if statistic not in _FOLLOWED:
        problems.add("statistic", statistic, nearest(statistic, _FOLLOWED))
    if not 0 <= tolerance < math.inf:
        problems.add("tolerance", tolerance, "give a number from 0, in the output's own unit")
    if tolerance and mode != "overfit":
        remedy = "only mode 'overfit' follows an error over the whole domain; use settings"
        problems.add("tolerance", tolerance, remedy)
    usable = tolerance and not problems
    return {"tolerance": MARGIN * tolerance, **_FOLLOWED[statistic]} if usable else {}


def _check_overfit(settings: TrainingSettings, problems: Problems) -> None:
    """Overfitting on purpose and regularising contradict each other."""
    contradictions = {
        "network_args.dropout": settings.network_args.get("dropout", 0.0),
        "network_args.norm": settings.network_args.get("norm") == "batch",
        "settings.optimizer_args.weight_decay": settings.optimizer_args.get("weight_decay", 0.0),
        "settings.patience": settings.patience,
        "settings.ema_decay": settings.ema_decay,
        "settings.metric": settings.metric == TRAIN_LOSS,
    }
    for name, value in contradictions.items():
        if value:
            problems.add(
                name,
                value,
                "mode 'overfit' interpolates exact labels without regularisation, noise or early "
                f"stopping; {_INSTEAD.get(name, 'use 0')}",
            )
    if settings.choose == "last" and settings.tolerance:
        remedy = "the tolerance is met by the best milestone; use 'best'"
        problems.add("settings.choose", "last", remedy)


MARGIN = 0.5
"""Of the tolerance: between the rows, where the certificate looks too, the error is larger."""
_FOLLOWED: dict[str, dict[str, Any]] = {
    # Followed where nobody says otherwise: the largest error, or the share of wrong labels.
    "max": {},
    "p999": {},
    "mean": {"metric": "mean_error"},
}

_INSTEAD = {
    "network_args.norm": "use 'layer' or 'none': statistics of a batch are noise",
    "settings.metric": "use an error over the whole domain: "
    + ", ".join(sorted({name for used in TASKS.values() for name in used.enumerated})),
}


MODES = {
    "distil": Preset(name="student", distil=True),
    "hard": Preset(name="control"),
    "overfit": Preset(
        name="overfit",
        whole_domain=True,
        # What bf16 rounds away is part of the error that a certificate is about.
        defaults={
            "optimizer_args": {"weight_decay": 0.0},
            "converged_after": 10,
            "precision": "float32",
        },
        check=_check_overfit,
    ),
}
