"""`finetune-fresh`: go on training from a chosen checkpoint, on fresh rows."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from kubestill.errors import CorruptData, InvalidInput, Problems, counted
from kubestill.runtime.base.arguments import fill
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, check_kind
from kubestill.runtime.base.trust import NETWORKS, check_trusted
from kubestill.runtime.checkpoints.ledger import Checkpoint, read_checkpoint_artifact
from kubestill.runtime.checkpoints.manifest import read_manifest
from kubestill.runtime.checkpoints.restore import load_state
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.manifest import open_input
from kubestill.runtime.models.model import Model, ModelSpec
from kubestill.runtime.steps.train_model import Ports, train_and_write
from kubestill.runtime.steps.train_teacher import TYPED
from kubestill.runtime.stores import open_store
from kubestill.runtime.training.distributed import process_group
from kubestill.runtime.training.engine import Start, below
from kubestill.runtime.training.job import Preset, check_job
from kubestill.runtime.training.prepare import resolve_loss
from kubestill.runtime.training.replay import check_replay, mix
from kubestill.runtime.training.run import Keeping, Origin, check_resume, say
from kubestill.runtime.training.saved import read_saved
from kubestill.runtime.training.unfamiliar import describe_unfamiliar

_OPTIMIZER = ("optimizer", "optimizer_args")
_SCHEDULE = ("learning_rate", "schedule", "schedule_args", "schedule_unit", "warmup_steps")
"""Settings that come along with what is kept. Where there is no parameter for one, `settings` may
say otherwise."""
_KEPT = (*_OPTIMIZER, *_SCHEDULE)
_SCHEDULE_POSITION = ("schedule_from", "schedule_steps", "steps_per_epoch")


def finetune_fresh(
    *,
    checkpoint: Artifact,
    dataset: Artifact,
    model: Artifact,
    ledger: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    validation: Artifact | None = None,
    replay: Artifact | None = None,
    replay_share: float = 0.5,
    epochs: float = 5.0,
    steps: int = 0,
    batch_size: int = 128,
    optimizer: str = "AdamW",
    learning_rate: float = 0.0001,
    schedule: str = "CosineAnnealingLR",
    keep_optimizer: bool = True,
    keep_schedule: bool = False,
    keep_position: bool = False,
    shrink: float = 1.0,
    perturb: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    checkpoint_uri: str = "",
    experiment: str = "",
    resume: str = "auto",
    settings: dict[str, Any] = {},  # noqa: B006
) -> tuple[str]:
    """Fine-tune; the component describes the parameters, `train_and_write` the errors."""
    given = locals()
    # Its network is the checkpoint's.
    typed = {name: given[name] for name in TYPED if name in given}
    problems = Problems()
    _check_own(shrink, perturb, replay_share, keep_schedule, settings, problems)
    check_resume(resume, problems)
    chosen, before = _read(checkpoint, problems)
    if before and not _is_trusted(before, problems):
        before = None
    older = _older(replay, replay_share, problems)
    names = ("network", "network_args", "network_reads")
    names += (_OPTIMIZER if keep_optimizer else ()) + (_SCHEDULE if keep_schedule else ())
    known = before["settings"] if before else {}
    inherited = {name: known[name] for name in names if name in known}
    typed |= {name: value for name, value in inherited.items() if name in typed}
    preset = Preset(name="finetune", defaults=inherited)
    spec = ModelSpec.from_json(before["model_spec"]) if before else None
    job = check_job(
        preset,
        typed,
        # Without the checkpoint nobody knows what optimizer or schedule these may be for.
        settings if before else {k: v for k, v in settings.items() if k not in _KEPT},
        problems,
        dataset=dataset,
        validation=validation,
        start=spec,
        trains=True,
    )
    with suppress(InvalidInput, CorruptData):  # then it has been told
        fresh = Dataset.open(dataset.path)
        if older and spec:
            with problems.collect():
                check_replay(fresh, older, spec.schema)
    problems.raise_if_any()
    assert chosen
    assert job
    state = load_state(chosen)
    kept = {
        "keep_optimizer": keep_optimizer,
        "keep_schedule": keep_schedule,
        "keep_position": keep_position,
        "shrink": float(shrink),
        "perturb": float(perturb),
    }
    start = _start(state, keep_optimizer, keep_schedule, keep_position)
    # Where there is an average, it is what was scored and chosen.
    weights = {**below("model/", state), **below("ema/", state)}
    begun = _model(state, weights)
    if 0 < shrink < 1 or perturb:
        _shrink_and_perturb(begun, float(shrink), float(perturb), _noise_seed(chosen, int(seed)))
        start = replace(start, untouched=weights)
    # Nothing of the checkpoint is kept where its weights are not: the preprocessing is new, too.
    origin = Origin(model=begun, start=start, digest=_digest(chosen, kept)) if shrink else None
    ports, keeping = fill(Ports, given), fill(Keeping, given)
    known = begun.spec.schema
    # Outside of the group every process would take itself for the only one, and speak.
    with process_group(), tempfile.TemporaryDirectory(prefix="kubestill-replay-") as folder:
        if older:
            mixed = mix(
                job.dataset, older, known, share=float(replay_share), seed=int(seed), folder=folder
            )
            replayed = mixed.rows - job.dataset.rows
            say(f"{counted(job.dataset.rows, 'fresh row')} and {replayed:,} replayed ones")
            # Older rows may lack the target that the fresh ones have.
            resolve_loss(job.settings, mixed, distil=preset.distil)
            job = replace(job, dataset=mixed)
        for warning in describe_unfamiliar(job.dataset, begun) if origin else ():
            say(f"WARNING: {warning}")
        return train_and_write(preset.name, job, ports=ports, keeping=keeping, origin=origin)


def _is_trusted(before: dict[str, Any], problems: Problems) -> bool:
    """Note a network that the checkpoint names and nobody vouches for: it must not be imported."""
    noted = len(problems)
    with problems.collect():
        for named in (before["settings"]["network"], before["model_spec"]["network"]["factory"]):
            check_trusted(str(named), field="checkpoint.network", group=NETWORKS)
    return len(problems) == noted


def _check_own(
    shrink: float,
    perturb: float,
    replay_share: float,
    keep_schedule: bool,
    settings: dict[str, Any],
    problems: Problems,
) -> None:
    """Note what is wrong with the parameters that only fine-tuning has."""
    if not 0 <= shrink <= 1:
        remedy = "must be in [0, 1]; 1 leaves the weights alone, 0 trains from scratch"
        problems.add("shrink", shrink, remedy)
    if not 0 <= perturb < float("inf"):
        problems.add("perturb", perturb, "use 0 (off) or a positive share of the initial scale")
    if not 0 <= replay_share < 1:
        problems.add("replay_share", replay_share, "must be in [0, 1); 0 turns it off")
    if not shrink and perturb:
        problems.add("perturb", perturb, "a model from scratch has nothing to perturb; use 0")
    if settings.get("freeze") and (shrink != 1 or perturb):
        remedy = "frozen parameters keep their values; leave shrink at 1 and perturb at 0"
        problems.add("settings.freeze", settings["freeze"], remedy)
    if keep_schedule and settings.get("warmup_steps"):
        remedy = (
            "the schedule goes on after its own warm-up; leave it out, or use keep_schedule false"
        )
        problems.add("settings.warmup_steps", settings["warmup_steps"], remedy)
    for key in ("network", "network_args", "network_reads"):
        if key in settings:
            problems.add(
                f"settings.{key}", settings[key], "the checkpoint brings its network; leave it out"
            )


def _read(
    checkpoint: Artifact, problems: Problems
) -> tuple[Checkpoint | None, dict[str, Any] | None]:
    """Return the checkpoint and what its manifest says of it: its tensors are not read yet."""
    chosen = before = None
    with problems.collect("checkpoint", checkpoint.uri):
        check_kind(checkpoint, "checkpoint", "checkpoint")
        chosen = read_checkpoint_artifact(checkpoint.path)
        meta = read_manifest(open_store(chosen.uri), chosen.entry.manifest).meta
        read_saved(meta, f"{chosen.uri}/{chosen.entry.manifest.key}")
        before = meta
    return chosen, before


def _older(replay: Artifact | None, share: float, problems: Problems) -> Dataset | None:
    """Return the rows to replay some of; None where there is nothing to replay."""
    older = open_input(replay, "replay", problems) if share else None
    return older if older and older.rows else None


def _start(state: TrainingState, optimizer: bool, schedule: bool, position: bool) -> Start:
    names = (_SCHEDULE_POSITION if schedule else ()) + (("data_from",) if position else ())
    return Start(
        optimizer=below("optimizer/", state) if optimizer else {},
        **{name: state.meta["kept"][name] for name in names},
    )


def _model(state: TrainingState, weights: Mapping[str, torch.Tensor]) -> Model:
    """Rebuild the model as it was."""
    model = Model.from_spec(ModelSpec.from_json(state.model_spec), weights=weights)
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def _shrink_and_perturb(model: Model, shrink: float, perturb: float, seed: int) -> None:
    """Shrink the weights and add noise to them (Ash & Adams 2020, eq. 1).

    Noise comes from a fresh initialisation, so that every layer gets it at its own scale. `seed` is
    its own: the initial weights of the training run itself would be no noise.
    """
    spec = model.spec
    fresh = Model.create(
        spec.schema,
        encoder=model.encoder,
        decoder=model.decoder,
        network=spec.network["factory"],
        network_args=spec.network["args"],
        network_reads=spec.network.get("reads"),
        seed=seed,
    )
    for weight, noise in zip(model.parameters(), fresh.parameters(), strict=True):
        weight.mul_(shrink).add_(noise, alpha=perturb)


def _noise_seed(chosen: Checkpoint, seed: int) -> int:
    """Return a seed that neither this checkpoint nor one before it was initialised or perturbed by.

    Two runs have the same `seed` unless somebody changes it.
    """
    text = f"kubestill/perturb/2:{seed}:{chosen.entry.manifest.sha256}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _digest(chosen: Checkpoint, kept: dict[str, Any]) -> str:
    text = json.dumps({"manifest": chosen.entry.manifest.sha256, **kept}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
