"""`train-teacher`: a large, accurate model on real labels, or the one that there is already."""

from __future__ import annotations

from typing import Any

from kubestill.runtime.base.arguments import fill
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact
from kubestill.runtime.steps.train_model import Ports, train_model
from kubestill.runtime.training.job import Preset
from kubestill.runtime.training.run import Keeping

TEACHER = Preset(name="teacher")
TYPED = (
    *("network", "network_args", "epochs", "steps", "batch_size"),
    *("optimizer", "learning_rate", "schedule", "seed", "device"),
)
"""Settings of a training run that are parameters of their own, not keys of `settings`."""


def train_teacher(
    *,
    dataset: Artifact,
    model: Artifact,
    ledger: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    validation: Artifact | None = None,
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
    teacher_uri: str = "",
    teacher_options: dict[str, Any] = {},  # noqa: B006
) -> tuple[str]:
    """Train a model on labels, or bring one in.

    The component documents the parameters, `train_model` and `take_teacher` the errors.
    """
    given = locals()
    if teacher_uri:
        # Only here: a training run starts without it.
        from kubestill.runtime.steps.import_model import take_teacher, write_taken

        taken, judged = take_teacher(teacher_uri, teacher_options, dataset, validation, model.path)
        write_taken(taken, judged, model, metrics, report, summary)
        return (model.uri,)
    return train_model(
        TEACHER,
        {name: given[name] for name in TYPED},
        settings,
        ports=fill(Ports, given),
        keeping=fill(Keeping, given),
    )
