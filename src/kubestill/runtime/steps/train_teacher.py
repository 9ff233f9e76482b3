"""`train-teacher`: a large, accurate model on real labels, or the one that there is already."""

from __future__ import annotations

import os
from typing import Any

from kubestill.errors import InvalidInput, Problem, Problems
from kubestill.runtime.base.arguments import fill
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact
from kubestill.runtime.datasets.manifest import open_input
from kubestill.runtime.reports.brought import no_teacher_report
from kubestill.runtime.steps.pages import write_pages
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
    if_labelled: str = "train",
) -> tuple[str]:
    """Train a model on labels, or bring one in, or find that none is needed.

    The component documents the parameters, `train_model` and `take_teacher` the errors.
    """
    given = locals()
    if if_labelled not in ("train", "skip"):
        raise InvalidInput([Problem("if_labelled", if_labelled, "use 'train' or 'skip'")])
    if teacher_uri:
        # Only here: a training run starts without it.
        from kubestill.runtime.steps.import_model import take_teacher, write_taken

        taken, judged = take_teacher(teacher_uri, teacher_options, dataset, validation, model.path)
        write_taken(taken, judged, model, metrics, report, summary)
        return (model.uri,)
    if if_labelled == "skip" and have_answers(dataset, validation):
        _write_none(model, metrics, report, summary)
        return ("",)
    return train_model(
        TEACHER,
        {name: given[name] for name in TYPED},
        settings,
        ports=fill(Ports, given),
        keeping=fill(Keeping, given),
    )


def have_answers(*artifacts: Artifact | None) -> bool:
    """Whether rows carry what a teacher put out for them: generated rows do not."""
    problems = Problems()
    opened = [open_input(one, "dataset", problems) for one in artifacts]
    problems.raise_if_any()
    return any(one is not None and one.schema.soft is not None for one in opened)


def _write_none(
    model: Artifact, metrics: MetricsArtifact, report: Artifact, summary: Artifact
) -> None:
    """Write what stands in for a model where there is none: later steps do without."""
    os.makedirs(model.path, exist_ok=True)
    with open(os.path.join(model.path, "README"), "w", encoding="utf-8") as file:
        file.write("No teacher was trained: the rows carry a teacher's answers.\n")
    model.metadata["kind"] = "no-model"
    metrics.metadata["kind"] = "metrics"
    write_pages(no_teacher_report(), report, summary, None)
    print("no teacher is trained: the rows carry a teacher's answers", flush=True)
