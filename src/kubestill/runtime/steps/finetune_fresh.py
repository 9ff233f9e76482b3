"""`finetune-fresh`: go on training from a chosen checkpoint, on fresh rows."""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from kubestill.errors import CorruptData, InvalidInput, Problems, counted
from kubestill.runtime.base.arguments import fill
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, check_kind
from kubestill.runtime.base.trust import NETWORKS, check_trusted
from kubestill.runtime.checkpoints.ledger import Checkpoint, read_checkpoint_artifact
from kubestill.runtime.checkpoints.manifest import read_manifest
from kubestill.runtime.checkpoints.restore import load_state
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.manifest import open_input
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.models.model import Model, ModelSpec
from kubestill.runtime.steps.train_model import Ports, train_and_write
from kubestill.runtime.steps.train_teacher import TYPED
from kubestill.runtime.stores import open_store
from kubestill.runtime.training.distributed import process_group
from kubestill.runtime.training.engine import Start, below
from kubestill.runtime.training.job import Job, Preset, check_job
from kubestill.runtime.training.prepare import resolve_loss
from kubestill.runtime.training.record import PresetName
from kubestill.runtime.training.repeat import OriginalRun, repeat
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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What only fine-tuning is asked for, by the names of the component's parameters."""

    keep_optimizer: bool
    keep_schedule: bool
    keep_position: bool
    shrink: float
    perturb: float
    replay_share: float

    def __post_init__(self) -> None:
        # Kubeflow has no integers, and JSON tells 1 from 1.0.
        for name in ("shrink", "perturb", "replay_share"):
            object.__setattr__(self, name, float(getattr(self, name)))


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
    recipe = fill(Recipe, given)
    # Its network is the checkpoint's.
    typed = {name: given[name] for name in TYPED if name in given}
    problems = Problems()
    _check_own(recipe, settings, problems)
    check_resume(resume, problems)
    chosen, before = read_start(checkpoint, problems)
    older = read_older(replay, recipe, problems)
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
    with suppress(InvalidInput, CorruptData):  # reported already
        fresh = Dataset.open(dataset.path)
        if older and spec:
            with problems.collect():
                check_replay(fresh, older, spec.schema)
    problems.raise_if_any()
    assert chosen
    assert job
    ports, keeping = fill(Ports, given), fill(Keeping, given)
    return tune(job, recipe, chosen, older, ports=ports, keeping=keeping)


def tune(
    job: Job,
    recipe: Recipe,
    chosen: Checkpoint,
    older: Dataset | None,
    *,
    ports: Ports,
    keeping: Keeping,
    original: OriginalRun | None = None,
) -> tuple[str]:
    """Go on training from a checkpoint, on the job's rows and some of the older ones.

    Args:
        job: Checked; its dataset is the fresh rows.
        recipe: What is kept of the checkpoint, and the share of older rows.
        chosen: The checkpoint.
        older: Rows to replay some of; None for none.
        ports: Outputs.
        keeping: Where checkpoints are kept.
        original: The training run to repeat on these rows; None to find out how long to train.

    Returns:
        (model URI,).
    """
    seed = job.settings.seed
    known, origin = _begin(chosen, recipe, seed)
    # Outside of the group every process would take itself for the only one, and speak.
    with process_group(), tempfile.TemporaryDirectory(prefix="kubestill-replay-") as folder:
        if older:
            share = recipe.replay_share
            mixed = mix(job.dataset, older, known, share=share, seed=seed, folder=folder)
            replayed = mixed.rows - job.dataset.rows
            say(f"{counted(job.dataset.rows, 'fresh row')} and {replayed:,} replayed ones")
            # Older rows may lack the target that the fresh ones have.
            resolve_loss(job.settings, mixed, distil=False)
            job = replace(job, dataset=mixed)
        job = replace(job, recipe=asdict(recipe))
        for warning in describe_unfamiliar(job.dataset, origin.model) if origin else ():
            say(f"WARNING: {warning}")
        name: PresetName = "finetune"
        job = repeat(job, original) if original else job
        return train_and_write(name, job, ports=ports, keeping=keeping, origin=origin)


def _is_trusted(before: dict[str, Any], problems: Problems) -> bool:
    """Note a network that the checkpoint names and nobody vouches for: it must not be imported."""
    noted = len(problems)
    with problems.collect():
        for named in (before["settings"]["network"], before["model_spec"]["network"]["factory"]):
            check_trusted(str(named), field="checkpoint.network", group=NETWORKS)
    return len(problems) == noted


def _check_own(recipe: Recipe, settings: dict[str, Any], problems: Problems) -> None:
    """Note what is wrong with the parameters that only fine-tuning has."""
    shrink, perturb, replay_share = recipe.shrink, recipe.perturb, recipe.replay_share
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
    if settings.get("quantise_aware") and (shrink != 1 or perturb):
        remedy = "ranges are those of the checkpoint's weights; leave shrink at 1 and perturb at 0"
        problems.add("settings.quantise_aware", settings["quantise_aware"], remedy)
    if recipe.keep_schedule and settings.get("warmup_steps"):
        remedy = (
            "the schedule goes on after its own warm-up; leave it out, or use keep_schedule false"
        )
        problems.add("settings.warmup_steps", settings["warmup_steps"], remedy)
    for key in ("network", "network_args", "network_reads"):
        if key in settings:
            problems.add(
                f"settings.{key}", settings[key], "the checkpoint brings its network; leave it out"
            )


def read_start(
    checkpoint: Artifact, problems: Problems
) -> tuple[Checkpoint | None, dict[str, Any] | None]:
    """Return the checkpoint and what its manifest says of it: its tensors are not read yet.

    What it says is None where its network is one that nobody vouches for.
    """
    chosen = before = None
    with problems.collect("checkpoint", checkpoint.uri):
        check_kind(checkpoint, "checkpoint", "checkpoint")
        chosen = read_checkpoint_artifact(checkpoint.path)
        meta = read_manifest(open_store(chosen.uri), chosen.entry.manifest).meta
        read_saved(meta, f"{chosen.uri}/{chosen.entry.manifest.key}")
        before = meta
    if before and not _is_trusted(before, problems):
        before = None
    return chosen, before


def read_older(replay: Artifact | None, recipe: Recipe, problems: Problems) -> Dataset | None:
    """Return the rows to replay some of; None where there is nothing to replay."""
    older = open_input(replay, "replay", problems) if recipe.replay_share else None
    return older if older and older.rows else None


def _begin(chosen: Checkpoint, recipe: Recipe, seed: int) -> tuple[Schema, Origin | None]:
    """Rebuild the model as it was, from its weights alone; return its schema and where to begin.

    Nothing of the checkpoint is kept where its weights are not: the preprocessing is new, too.
    """
    prefixes = ("model/", "ema/") if recipe.shrink else ()
    # Here, and only here, the weights are in memory twice.
    state = load_state(chosen, lambda name: name.startswith(prefixes))
    spec = ModelSpec.from_json(state.model_spec)
    if not recipe.shrink:
        return spec.schema, None
    # Where there is an average, it is what was scored and chosen.
    weights = {**below("model/", state), **below("ema/", state)}
    model = Model.from_spec(spec, weights=weights)
    model.load_state_dict(weights)
    touched = recipe.shrink < 1 or bool(recipe.perturb)
    if touched:
        _shrink_and_perturb(model, recipe.shrink, recipe.perturb, _noise_seed(chosen, seed))
    names = _SCHEDULE_POSITION if recipe.keep_schedule else ()
    names += ("data_from",) if recipe.keep_position else ()
    start = Start(
        checkpoint=chosen,
        keeps_optimizer=recipe.keep_optimizer,
        touched=touched,
        **{name: state.meta["kept"][name] for name in names},
    )
    return spec.schema, Origin(model=model, start=start, digest=_digest(chosen, recipe))


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


def _digest(chosen: Checkpoint, recipe: Recipe) -> str:
    # The replayed rows are in the dataset's fingerprint.
    kept = {name: value for name, value in asdict(recipe).items() if name != "replay_share"}
    text = json.dumps({"manifest": chosen.entry.manifest.sha256, **kept}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
