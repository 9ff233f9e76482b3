"""Train a model once more, with the rows that were kept from it, to be promoted in its place."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from kubestill.errors import CorruptData, Diverged, InvalidInput, Problems, TrainingFailed
from kubestill.runtime.base.artifacts import Artifact, LocalArtifact
from kubestill.runtime.base.trust import NETWORKS, check_trusted
from kubestill.runtime.checkpoints.ledger import Checkpoint
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.models.model import ModelSpec
from kubestill.runtime.steps.finetune_fresh import Recipe, read_older, read_start, tune
from kubestill.runtime.steps.train_model import Ports, train_and_write
from kubestill.runtime.training.job import Job, Preset, check_job
from kubestill.runtime.training.repeat import OriginalRun, read_original, repeat, without_guidance
from kubestill.runtime.training.replay import check_replay
from kubestill.runtime.training.run import Keeping
from kubestill.supervision import TRAINJOB_VARIABLE


@dataclass(frozen=True, kw_only=True)
class RefitInputs:
    """What a refit learns from, and what it starts with."""

    whole: Artifact
    """Every row of the window, and whatever else no judged model has learned from."""
    checkpoint: Artifact | None
    """Where finetune-fresh started from, if it trained the model."""
    replay: Artifact | None
    """Older rows that it mixed in."""


def train_once_more(
    model: Artifact, inputs: RefitInputs, *, device: str, checkpoint_uri: str, folder: str, uri: str
) -> tuple[Artifact | None, str]:
    """Repeat the training run of a model on more rows: resumes, and gives the same bits.

    Args:
        model: Of train-teacher or finetune-fresh.
        inputs: What to learn from, and what to start with.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        checkpoint_uri: Root of the checkpoints; empty keeps them below `uri`.
        folder: Local, where the export goes.
        uri: What the export is called: the same in each attempt.

    Returns:
        model: The export; None where there is none.
        why: Why there is none, in a clause.

    Raises:
        InvalidInput: The rows do not fit the model's training run.
        CorruptData: Model, rows or checkpoint are damaged.
    """
    original = read_original(model)
    record = original.record
    if not record.chosen.step:
        return None, "it is the model that its training run started from"
    if record.preset == "finetune" and not record.recipe:
        return None, "an older version trained it, which did not keep how"
    tuning, job = _check(original, inputs, device)
    ports = Ports(
        dataset=inputs.whole,
        validation=None,
        **{
            name: LocalArtifact(os.path.join(folder, name), f"{uri}/{name}")
            for name in ("model", "ledger", "metrics", "report", "summary")
        },
    )
    keeping = Keeping(checkpoint_uri=checkpoint_uri, experiment="refit", resume="auto")
    try:
        if tuning:
            tune(job, *tuning, ports=ports, keeping=keeping, original=original)
        else:
            train_and_write(record.preset, repeat(job, original), ports=ports, keeping=keeping)
    except (Diverged, TrainingFailed) as error:
        if TRAINJOB_VARIABLE in os.environ:  # the step that made the pods hears of it
            raise
        return None, f"trained with all rows, it failed: {error}"
    return ports.model, ""


def _check(
    original: OriginalRun, inputs: RefitInputs, device: str
) -> tuple[tuple[Recipe, Checkpoint, Dataset | None] | None, Job]:
    """Find every problem before training; returns what only fine-tuning needs, and the job."""
    problems = Problems()
    recipe = chosen = start = older = job = None
    if original.record.preset == "finetune":
        recipe = Recipe(**original.record.recipe)
        if inputs.checkpoint is None:
            remedy = "the model was fine-tuned; connect the checkpoint that it started from"
            problems.add("checkpoint", "not connected", remedy)
        else:
            chosen, start = read_start(inputs.checkpoint, problems)
        older = read_older(inputs.replay, recipe, problems)
    spec = ModelSpec.from_json(start["model_spec"]) if start else None
    settings = {**without_guidance(original.record.settings), "device": device}
    with problems.collect():
        check_trusted(str(settings["network"]), field="model.network", group=NETWORKS)
        job = check_job(
            Preset(name=original.record.preset),
            {},
            settings,
            problems,
            dataset=inputs.whole,
            start=spec,
            trains=True,
        )
    with suppress(InvalidInput, CorruptData):  # reported already
        fresh = Dataset.open(inputs.whole.path)
        if older and spec:
            with problems.collect():
                check_replay(fresh, older, spec.schema)
    problems.raise_if_any()
    assert job
    if recipe is None:
        return None, job
    assert chosen
    return (recipe, chosen, older), job
