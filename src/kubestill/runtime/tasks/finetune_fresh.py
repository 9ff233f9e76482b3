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

FINETUNE = Preset(name="finetune")


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
    _check(shrink, perturb, replay_share, settings, checkpoint)
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
    typed = {
        "network": before["network"],
        "network_args": before["network_args"],
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "optimizer": before["optimizer"] if keep_optimizer else optimizer,
        "learning_rate": before["learning_rate"] if keep_schedule else learning_rate,
        "schedule": before["schedule"] if keep_schedule else schedule,
        "seed": seed,
        "device": device,
    }
    origin = Origin(
        model=_model(state, shrink=float(shrink), perturb=float(perturb), seed=int(seed)),
        start=Start(
            optimizer=below("optimizer/", state) if keep_optimizer else {},
            schedule_from=chosen.entry.step if keep_schedule else 0,
            data_from=chosen.entry.step if keep_position else 0,
        ),
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
        return run_training(FINETUNE, typed, settings, ports=ports, keeping=keeping, origin=origin)


def _check(
    shrink: float,
    perturb: float,
    replay_share: float,
    settings: dict[str, Any],
    checkpoint: Artifact,
) -> None:
    problems = Problems()
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
    for key in ("network", "network_args"):
        if key in settings:
            problems.add(
                f"settings.{key}", settings[key], "the checkpoint brings its network; leave it out"
            )
    problems.raise_if_any()


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
    model.load_state_dict(below("model/", state))
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
