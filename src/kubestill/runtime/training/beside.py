"""Whether a teacher can stand beside its student in each step, known before anything is trained."""

from __future__ import annotations

import torch
from torch import nn

from kubestill.errors import Problems
from kubestill.runtime.base.artifacts import Artifact, check_kind, is_no_model
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.generation.labelling import check_fit
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.prune import prune
from kubestill.runtime.training.imitation import build_imitation, needs_teacher
from kubestill.runtime.training.prepare import unread_encoder
from kubestill.runtime.training.settings import FUSED, TrainingSettings


def place_beside(
    teacher: Artifact | None, rows: Dataset, network: nn.Module | None, settings: TrainingSettings
) -> Predictor | None:
    """Return the teacher, if the student needs it in each step or begins as it.

    Args:
        teacher: The artifact, if one is connected.
        rows: What the student learns from.
        network: Of the student, as long as no row was looked at; None where that is not known.
        settings: Of the student.

    Raises:
        InvalidInput: It is needed and not there, foreign, or of other rows; it lacks a layer; or
            other settings want a step without it.
    """
    need, asked, most = needs_teacher(settings), settings.imitate.asked(), settings.prune.most
    if not need and not asked and not most:
        return None
    problems, found = Problems(), None
    wanted = need or ("prune" if most else "")
    if wanted and (teacher is None or is_no_model(teacher)):
        refuse_without(wanted, problems)
    elif wanted and teacher:
        with problems.collect("teacher", teacher.uri):
            check_kind(teacher, "model", "teacher")
            found = load_model(teacher.path)
            check_fit(found.spec, rows.schema)
            check_ours(found, wanted, teacher.uri, problems)
    ours = found.model if found and not problems else None
    if most and settings.network_args:
        remedy = "the teacher brings the network; leave it out, or leave out settings.prune"
        problems.add("network_args", settings.network_args, remedy)
    if most and settings.initial_weights:
        remedy = "the student begins with the teacher's weights; leave it out"
        problems.add("settings.initial_weights", settings.initial_weights, remedy)
    if most and ours and settings.network not in ("mlp", ours.spec.network["factory"]):
        remedy = f"the teacher is a {ours.spec.network['factory']}, and the student begins as it"
        problems.add("network", settings.network, f"{remedy}; leave it out")
    if most and ours:
        with problems.collect():
            network = prune(ours, most).network
    if need or asked:
        with problems.collect():
            width = ours.encoder.width if ours else 0
            check_beside(rows, network, settings, ours and ours.network, width)
    problems.raise_if_any()
    return found


def check_beside(
    rows: Dataset,
    network: nn.Module | None,
    settings: TrainingSettings,
    teacher: nn.Module | None,
    width: int,
) -> None:
    """Try the two networks on rows of zeros, as a training run would on its first rows.

    Args:
        rows: What the student learns from.
        network: Of the student; None where that is not known.
        settings: Of the student.
        teacher: Network of the teacher; None where it is not needed, or refused.
        width: Features that the teacher reads.

    Raises:
        InvalidInput: A part cannot be made of them, or other settings want a step without it.
    """
    problems = Problems()
    need = needs_teacher(settings)
    field = f"settings.{need or 'imitate.' + next(iter(settings.imitate.asked()), 'dkd')}"
    if settings.finish_steps:
        remedy = f"L-BFGS minimises the loss of the answers alone; use 0, or leave {field} out"
        problems.add("settings.finish_steps", settings.finish_steps, remedy)
    if settings.step_path in FUSED:
        remedy = f"the fused step has no room for {field}; use 'auto'"
        problems.add("settings.step_path", settings.step_path, remedy)
    if network is not None and (teacher is not None or not need):
        with problems.collect():
            build_imitation(
                network,
                teacher,
                settings,
                task=str(rows.schema.task),
                features=torch.zeros(2, unread_encoder(rows).width),
                teacher_features=torch.zeros(2, width) if teacher is not None else None,
                rows=rows.rows,
            )
    problems.raise_if_any()


def check_ours(found: Predictor, need: str, value: str, problems: Problems) -> None:
    """Note a teacher that is no network of this package.

    Args:
        found: The teacher.
        need: From `needs_teacher`.
        value: How the user named it.
        problems: Takes it.
    """
    if type(found.model) is Model:
        return
    kind = found.spec.network["factory"]
    remedy = f"is foreign ({kind}) and cannot stand beside the student, as {need} needs; "
    if need == "prune":
        remedy = f"is foreign ({kind}) and has no units to prune; "
    if need == "augment":
        remedy += "let generate-synthetic change the images, which it then labels"
    else:
        remedy += "leave that out, or give a teacher that train-teacher trained"
    problems.add("teacher", value, remedy)


def refuse_without(need: str, problems: Problems) -> None:
    """Note that there is no teacher, and what would need one."""
    remedy = "looks into the teacher in each step; connect `teacher`, or leave it out"
    if need == "augment":
        remedy = (
            "the answers stored beside images are not those to changed ones; connect `teacher`, "
            "which answers each changed image, or leave it out"
        )
    if need == "prune":
        remedy = "begins as the teacher; connect `teacher`, or leave it out"
    problems.add(f"settings.{need}", "no teacher", remedy)
