"""`finetune-fresh`: go on training from a chosen checkpoint, on fresh rows."""

from __future__ import annotations

import hashlib
import json
import tempfile
from typing import Any

import torch

from kubestill.errors import Problems
from kubestill.runtime.artifacts import Artifact, LocalArtifact, MetricsArtifact, check_kind
from kubestill.runtime.checkpoints.ledger import Checkpoint, read_checkpoint_artifact
from kubestill.runtime.checkpoints.restore import load_state
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.data.dataset import Dataset
from kubestill.runtime.models.model import Model, ModelSpec
from kubestill.runtime.replay import check_replay, mix
from kubestill.runtime.training.engine import Start, below
from kubestill.runtime.training.run import Keeping, Origin, Ports, Preset, run_training
from kubestill.runtime.training.settings import read_settings

_OPTIMIZER = ("optimizer", "optimizer_args")
_SCHEDULE = ("learning_rate", "schedule", "schedule_args", "schedule_unit", "warmup_steps")
"""Settings that come along with what is kept. Where there is no parameter for one, `settings` may
say otherwise."""
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
    """Fine-tune; the component tells the parameters, `run_training` the errors."""
    typed = {
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "seed": seed,
        "device": device,
    }
    _check(shrink, perturb, replay_share, keep_schedule, typed, settings, checkpoint)
    older = _older(dataset, replay, float(replay_share))
    chosen = read_checkpoint_artifact(checkpoint.path)
    state = load_state(chosen)
    kept = {
        "keep_optimizer": keep_optimizer,
        "keep_schedule": keep_schedule,
        "keep_position": keep_position,
        "shrink": float(shrink),
        "perturb": float(perturb),
    }
    before = state.meta["settings"]
    names = ("network", "network_args")
    names += (_OPTIMIZER if keep_optimizer else ()) + (_SCHEDULE if keep_schedule else ())
    inherited = {name: before[name] for name in names}
    typed |= {name: value for name, value in inherited.items() if name in typed}
    preset = Preset(name="finetune", defaults=inherited)
    origin = Origin(
        model=_model(state, shrink=float(shrink), perturb=float(perturb), seed=int(seed)),
        start=_start(state, keep_optimizer, keep_schedule, keep_position),
        digest=_digest(chosen, kept),
    )
    keeping = Keeping(checkpoint_uri=checkpoint_uri, experiment=experiment, resume=resume)
    with tempfile.TemporaryDirectory(prefix="kubestill-replay-") as folder:
        rows = dataset if older is None else _mixed(dataset, older, replay_share, seed, folder)
        ports = Ports(
            dataset=rows,
            validation=validation,
            model=model,
            ledger=ledger,
            metrics=metrics,
            report=report,
            summary=summary,
        )
        return run_training(preset, typed, settings, ports=ports, keeping=keeping, origin=origin)


def _check(
    shrink: float,
    perturb: float,
    replay_share: float,
    keep_schedule: bool,
    typed: dict[str, Any],
    settings: dict[str, Any],
    checkpoint: Artifact,
) -> None:
    """Find what is wrong before anything is downloaded."""
    problems = Problems()
    # What may be for the checkpoint's own optimizer and schedule is checked once they are known.
    later = {*_OPTIMIZER, *_SCHEDULE} - typed.keys()
    own = {name: value for name, value in settings.items() if name not in later}
    read_settings(typed, own, problems)
    with problems.collect():
        check_kind(checkpoint, "checkpoint", "checkpoint")
    if not 0 < shrink <= 1:
        problems.add(
            "shrink", shrink, "use a factor above 0 and up to 1 (1 leaves the weights alone)"
        )
    if not 0 <= perturb < float("inf"):
        problems.add("perturb", perturb, "use 0 (off) or a positive share of the initial scale")
    if not 0 <= replay_share < 1:
        remedy = "use a share of the mix from 0 (off) up to, but not, 1"
        problems.add("replay_share", replay_share, remedy)
    if keep_schedule and settings.get("warmup_steps"):
        remedy = (
            "the schedule goes on after its own warm-up; leave it out, or use keep_schedule false"
        )
        problems.add("settings.warmup_steps", settings["warmup_steps"], remedy)
    for key in ("network", "network_args"):
        if key in settings:
            problems.add(
                f"settings.{key}", settings[key], "the checkpoint brings its network; leave it out"
            )
    problems.raise_if_any()


def _start(state: TrainingState, optimizer: bool, schedule: bool, position: bool) -> Start:
    names = (_SCHEDULE_POSITION if schedule else ()) + (("data_from",) if position else ())
    return Start(
        optimizer=below("optimizer/", state) if optimizer else {},
        **{name: state.meta["kept"][name] for name in names},
    )


def _older(dataset: Artifact, replay: Artifact | None, share: float) -> Dataset | None:
    """Return the rows to replay some of; None where there is nothing to replay."""
    if replay is None or not share:
        return None
    problems = Problems()
    with problems.collect():
        check_kind(dataset, "dataset")
    with problems.collect():
        check_kind(replay, "dataset", "replay")
    problems.raise_if_any()
    older = Dataset.open(replay.path)
    if not older.rows:
        return None
    check_replay(Dataset.open(dataset.path), older)
    return older


def _mixed(dataset: Artifact, older: Dataset, share: float, seed: int, folder: str) -> Artifact:
    fresh = Dataset.open(dataset.path)
    mixed = mix(fresh, older, share=float(share), seed=int(seed), folder=folder)
    print(f"{fresh.rows:,} fresh rows and {mixed.rows - fresh.rows:,} replayed ones", flush=True)
    return LocalArtifact(mixed.root, metadata={**dataset.metadata})


@torch.no_grad()
def _model(state: TrainingState, *, shrink: float, perturb: float, seed: int) -> Model:
    """Rebuild the model, shrunk and perturbed where that was asked for (Ash & Adams 2020, eq. 1).

    Noise comes from a fresh initialisation, so that every layer gets it at its own scale.
    """
    spec = ModelSpec.from_json(state.meta["model_spec"])
    model = Model.from_spec(spec)
    # Where there is an average, it is what was scored and chosen.
    model.load_state_dict({**below("model/", state), **below("ema/", state)})
    if shrink != 1.0 or perturb:
        fresh = Model.create(
            spec.schema,
            encoder=model.encoder,
            decoder=model.decoder,
            network=spec.network["factory"],
            network_args=spec.network["args"],
            seed=seed,
        )
        for weight, noise in zip(model.parameters(), fresh.parameters(), strict=True):
            weight.mul_(shrink).add_(noise, alpha=perturb)
    return model


def _digest(chosen: Checkpoint, kept: dict[str, Any]) -> str:
    text = json.dumps({"manifest": chosen.entry.manifest.sha256, **kept}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
