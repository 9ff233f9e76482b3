"""`train-teacher`: a large, accurate model on real labels, or the one that there is already."""

from __future__ import annotations

from typing import Any

from kubestill.errors import InvalidInput, Problem, Problems
from kubestill.runtime.base.arguments import fill
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact
from kubestill.runtime.datasets.manifest import Dataset, open_input
from kubestill.runtime.models.folds import seen_rows
from kubestill.runtime.steps.train_model import Ports, train_model, write_no_model
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
    cross_fit: int = 0,
) -> tuple[str]:
    """Train a model on labels, or bring one in, or find that none is needed.

    The component documents the parameters, `train_model` and `take_teacher` the errors.
    """
    given = locals()
    if if_labelled not in ("train", "skip"):
        raise InvalidInput([Problem("if_labelled", if_labelled, "use 'train' or 'skip'")])
    if teacher_uri and cross_fit:
        remedy = "a teacher that is brought in was fitted elsewhere; use 0"
        raise InvalidInput([Problem("cross_fit", cross_fit, remedy)])
    if teacher_uri:
        # Only here: a training run starts without it.
        from kubestill.runtime.steps.import_model import take_teacher, write_taken

        taken, judged = take_teacher(teacher_uri, teacher_options, dataset, validation, model.path)
        write_taken(taken, judged, model, metrics, report, summary)
        return (model.uri,)
    if if_labelled == "skip" and have_answers(dataset, validation):
        why = "No teacher is trained: the rows carry a teacher's answers."
        return write_no_model(TEACHER.name, why, fill(Ports, given))
    problems = Problems()
    folds = None
    if cross_fit:
        # Only here, as above.
        from kubestill.runtime.steps.cross_fitting import plan_folds

        folds = plan_folds(dataset, cross_fit, settings, problems)
    typed = {name: given[name] for name in TYPED}
    ports, keeping = fill(Ports, given), fill(Keeping, given)
    uri = train_model(TEACHER, typed, settings, ports=ports, keeping=keeping, problems=problems)
    if folds:
        folds.fit(TEACHER, typed, settings, ports=ports, keeping=keeping)
    # Labels of these rows are surer than others: label-with-teacher has to know.
    model.metadata["fitted_on"] = " ".join(seen_rows(Dataset.open(dataset.path)))
    return uri


def have_answers(*artifacts: Artifact | None) -> bool:
    """Return whether rows carry what a teacher put out for them: generated rows do not."""
    problems = Problems()
    opened = [open_input(one, "dataset", problems) for one in artifacts]
    problems.raise_if_any()
    return any(one is not None and one.schema.soft is not None for one in opened)
