"""`train-teacher`: a large, accurate model on real labels."""

from __future__ import annotations

from typing import Any

from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact
from kubestill.runtime.steps.train_model import Ports, train_model
from kubestill.runtime.training.job import Preset
from kubestill.runtime.training.run import Keeping

TEACHER = Preset(name="teacher")


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
) -> tuple[str]:
    """Train a model on labels; the component tells the parameters, `train_model` the errors."""
    typed = {
        "network": network,
        "network_args": network_args,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "seed": seed,
        "device": device,
    }
    return train_model(
        TEACHER,
        typed,
        settings,
        ports=Ports(
            dataset=dataset,
            validation=validation,
            model=model,
            ledger=ledger,
            metrics=metrics,
            report=report,
            summary=summary,
        ),
        keeping=Keeping(checkpoint_uri=checkpoint_uri, experiment=experiment, resume=resume),
    )
