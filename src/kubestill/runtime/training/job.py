"""Check what a training run is asked to do, all of it, before anything is done.

The gate that runs before training checks by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kubestill.errors import Problems, nearest
from kubestill.runtime.base.arguments import import_factory
from kubestill.runtime.base.artifacts import Artifact, check_kind
from kubestill.runtime.datasets.checks import check_continues, check_trainable, check_validation
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.manifest import open_input
from kubestill.runtime.metrics.catalog import TRAIN_LOSS, resolve_direction
from kubestill.runtime.models.model import ModelSpec
from kubestill.runtime.models.resolve import resolve_network, source_digest
from kubestill.runtime.models.weights import digest_weights, load_weights
from kubestill.runtime.training.beside import place_beside
from kubestill.runtime.training.device import Machine, choose_machine
from kubestill.runtime.training.imitate import ImitateSettings
from kubestill.runtime.training.nodes import leads_pods
from kubestill.runtime.training.prepare import (
    followed_metrics,
    main_metric,
    probe_network,
    resolve_loss,
)
from kubestill.runtime.training.record import PresetName
from kubestill.runtime.training.settings import PruneSettings, TrainingSettings, read_settings
from kubestill.runtime.training.step_choice import check_step_path
from kubestill.runtime.training.trainjob import check_nodes

_ADOPTING = Machine(device=torch.device("cpu"), precision="float32")
"""Where a step adopts what its pods have trained, whatever theirs is."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What distinguishes training a teacher, training a student, and fine-tuning."""

    name: PresetName
    distil: bool = False
    """Learn from a teacher's outputs."""
    whole_domain: bool = False
    """The rows are all there is: follow the error over every one of them."""
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings where the user says nothing."""
    check: Callable[[TrainingSettings, Problems], None] = lambda settings, problems: None
    """Notes settings that contradict the preset."""


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """An earlier training run whose recipe and length are repeated on other rows."""

    digest: str
    """Of the model that it exported."""
    schedule_steps: int
    """Steps of the learning-rate schedule, which goes on beyond the last step taken."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Checked parameters and inputs."""

    settings: TrainingSettings
    machine: Machine
    dataset: Dataset
    validation: Dataset | None
    loss_name: str
    whole_domain: bool
    source: str
    """Digest of the user's own network source."""
    repeated: Repeated | None = None
    """What this training run repeats; None where it finds its own length."""
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What fine-tuning was asked for besides settings; the place knows it by its starting point."""
    teacher: str = ""
    """Folder of the teacher that stands beside the student in each step; empty where none does."""
    teacher_digest: str = ""
    """Of that model."""
    weights_digest: str = ""
    """Of the weights that training begins with, where another trainer wrote them."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the data that decide the result."""
        found = {"dataset": self.dataset.fingerprint}
        # What is followed decides when training stops and which milestone is exported.
        found |= {"followed": "whole domain"} if self.whole_domain else {}
        found |= {"teacher": self.teacher_digest} if self.teacher else {}
        found |= {"weights": self.weights_digest} if self.weights_digest else {}
        if again := self.repeated:
            found |= {"repeated": again.digest, "schedule": str(again.schedule_steps)}
        return found | ({"validation": self.validation.fingerprint} if self.validation else {})


def check_job(
    preset: Preset,
    typed: Mapping[str, Any],
    settings: Mapping[str, Any],
    problems: Problems,
    *,
    dataset: Artifact,
    validation: Artifact | None = None,
    teacher: Artifact | None = None,
    start: ModelSpec | None = None,
    validation_known: bool = True,
    here: bool = True,
    trains: bool = False,
) -> Job | None:
    """Note every problem that can be found without reading features; the job where there is none.

    Args:
        preset: Which of the training components this is.
        typed: The component's typed training parameters.
        settings: Its `settings` dict.
        problems: Where problems are noted.
        dataset: Training rows.
        validation: Rows to follow.
        teacher: Whom a student learns from.
        start: The model that fine-tuning goes on from.
        validation_known: Whether the training run has no validation rows where there are none here.
        here: Whether it will run on this machine; else its device is not looked for.
        trains: Whether this step is the training run itself, which may have pods train.
    """
    machine = rows = network = loss_name = None
    source = ""
    parsed = read_settings(typed, settings, problems, defaults=preset.defaults)
    check_nodes(parsed, problems)
    parsed = _settle_imitation(preset, parsed, trains, problems)
    with problems.collect("dataset", dataset.uri):
        check_kind(dataset, "dataset", "dataset")
        rows = Dataset.open(dataset.path)
        check_trainable(rows)
    if rows and start:
        with problems.collect("dataset", dataset.uri):
            check_continues(start.schema, rows)
    held_out = _held_out(preset, validation, problems)
    if rows and held_out:
        with problems.collect("validation", held_out.root):
            check_validation(rows, held_out, learned=start.schema.classes if start else ())
    preset.check(parsed, problems)
    if validation_known or preset.whole_domain:
        _check_followed(parsed, rows, held_out, preset.whole_domain, problems)
    with problems.collect():
        if trains and leads_pods(parsed):
            machine = _ADOPTING
        else:
            machine = choose_machine(parsed) if here else None
    with problems.collect():
        source = _digest_sources(parsed)
        if rows and rows.schema.features and rows.schema.task and start is None:
            network = probe_network(rows, parsed)
    if network and machine:
        with problems.collect():
            check_step_path(network, parsed, machine)
    if rows:
        with problems.collect():
            loss_name = resolve_loss(
                parsed, rows, distil=preset.distil, whole_domain=preset.whole_domain
            )
    weights_digest = ""
    if parsed.initial_weights and start:
        remedy = "fine-tuning begins with the weights of its checkpoint; leave it out"
        problems.add("settings.initial_weights", parsed.initial_weights, remedy)
    elif parsed.initial_weights and trains:
        with problems.collect():
            field = "settings.initial_weights"
            weights_digest = digest_weights(parsed.initial_weights, field)
            if network:
                load_weights(network, parsed.initial_weights, field)
    beside = None
    if trains and rows and loss_name and loss_name.startswith("distillation"):
        with problems.collect():
            beside = place_beside(teacher, rows, network, parsed)
    if problems or not (rows and machine and loss_name):
        return None
    return Job(
        settings=parsed,
        machine=machine,
        dataset=rows,
        validation=held_out,
        loss_name=loss_name,
        source=source,
        whole_domain=preset.whole_domain,
        teacher=teacher.path if teacher and beside else "",
        teacher_digest=beside.digest if beside else "",
        weights_digest=weights_digest,
    )


def _settle_imitation(
    preset: Preset, settings: TrainingSettings, trains: bool, problems: Problems
) -> TrainingSettings:
    """Return the settings, without what a student has of its teacher where a run has no use for it.

    The control learns labels alone, and the gate asks whether a network can learn at all. Anywhere
    else but in a student it is a mistake.
    """
    asked = {f"imitate.{name}": "imitate" for name in settings.imitate.asked()}
    asked |= {"prune": "prune"} if settings.prune.most else {}
    if not asked or (preset.distil and trains):
        return settings
    if not preset.distil and preset.name != "control":
        for field in dict.fromkeys(asked.values()):
            remedy = "only train-student in mode 'distil' has a teacher to imitate; leave it out"
            told = ", ".join(name for name, one in asked.items() if one == field)
            problems.add(f"settings.{field}", told, remedy)
    return settings.model_copy(update={"imitate": ImitateSettings(), "prune": PruneSettings()})


def _digest_sources(settings: TrainingSettings) -> str:
    """Return the digest of the user's own source: of the network, and of parts of the loss.

    Raises:
        InvalidInput: An import path cannot be followed.
    """
    own = [import_factory(path, field="settings.imitate.own") for path in settings.imitate.own]
    digests = (source_digest(one) or "" for one in (resolve_network(settings.network), *own))
    return "/".join(digests)


def _held_out(preset: Preset, validation: Artifact | None, problems: Problems) -> Dataset | None:
    if validation is None:
        return None
    if preset.whole_domain:
        remedy = (
            "the error is followed over every row of the dataset; disconnect it, and let "
            "certify-surrogate tell the error between the rows"
        )
        problems.add("validation", validation.uri, remedy)
        return None
    opened = open_input(validation, "validation", problems)
    # An import with a validation share of zero writes a dataset without rows.
    return opened if opened and opened.rows else None


def _check_followed(
    settings: TrainingSettings,
    dataset: Dataset | None,
    validation: Dataset | None,
    whole_domain: bool,
    problems: Problems,
) -> None:
    followed = dataset if whole_domain else validation
    if followed is None and settings.patience:
        problems.add(
            "patience",
            settings.patience,
            "early stopping needs a validation set; connect one, or use 0",
        )
    if followed is None and settings.metric not in ("", "train_loss"):
        problems.add(
            "metric", settings.metric, "it needs a validation set; connect one, or use 'train_loss'"
        )
    if followed and settings.choose == "best" and not settings.checkpoints.keep_best:
        problems.add(
            "settings.checkpoints.keep_best", 0, "choose='best' exports a kept one; use 1 or more"
        )
    kept_by = settings.checkpoints.metric
    task = followed.schema.task if followed else None
    default = main_metric(task, True, whole_domain) if task else ""
    ranked_by = kept_by or settings.metric or default
    measured = [*followed_metrics(task, whole_domain)] if task else [TRAIN_LOSS]
    if kept_by and kept_by not in measured:
        remedy = f"not followed while training; {nearest(kept_by, measured)}"
        problems.add("settings.checkpoints.metric", kept_by, remedy)
    elif ranked_by in measured:
        mode = settings.checkpoints.mode
        with problems.collect():
            resolve_direction(ranked_by, mode, field="settings.checkpoints.mode")
    if task and settings.choose == "best" and kept_by in measured:
        exported_by = settings.metric or main_metric(task, True, whole_domain)
        if kept_by != exported_by:
            remedy = f"choose='best' exports the best by {exported_by}, which is kept; leave it out"
            problems.add("settings.checkpoints.metric", kept_by, remedy)
    if settings.finish_steps and settings.ema_decay:
        remedy = "the finish moves the weights themselves, not their average; use 0"
        problems.add("settings.ema_decay", settings.ema_decay, remedy)
    if settings.finish_steps and settings.network_args.get("dropout"):
        remedy = "L-BFGS needs the same loss for the same weights; use 0, or no finish_steps"
        problems.add("network_args.dropout", settings.network_args["dropout"], remedy)
