"""The settings of a training run, validated in full before any data is read.

The ten or so settings that people change are typed parameters of the components; all others arrive
in one `settings` dict. Both end up in one frozen object, and all problems are reported together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from kubestill.errors import Problems, nearest
from kubestill.runtime.base.settings import Settings, check_overlap, read
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.models.serve import Serving, check_serving
from kubestill.runtime.training import losses, optimizers, schedules
from kubestill.runtime.training.augment import AugmentSettings
from kubestill.runtime.training.imitate import ImitateSettings
from kubestill.runtime.training.trainjob_settings import TrainJobSettings

Seconds = Annotated[float, Field(gt=0)]

FUSED = frozenset({"fused", "graph"})
"""Values of `step_path` for which a network has to be a plain MLP."""


class PruneSettings(Settings):
    """How small a student that begins as its teacher becomes."""

    parameters: int = Field(default=0, ge=0)
    """Parameters that it may have; 0 begins with a network of its own. Whole units and channels go,
    those that give the layer above least, so that files and latency shrink."""
    bytes: int = Field(default=0, ge=0)
    """The same as the size of its weights in float32, 4 bytes each."""

    @property
    def most(self) -> int:
        """Parameters that it may have; 0 where nothing is pruned."""
        asked = [count for count in (self.parameters, self.bytes // 4) if count]
        return min(asked, default=0)


class TrainingSettings(Settings):
    """One training run, fully described: equal settings on equal data give equal bits."""

    model_config = ConfigDict(allow_inf_nan=False)

    network: str = "mlp"
    """Built-in name, or import path `package.module:attribute` of a class or factory."""
    network_args: dict[str, Any] = {}
    """Keyword arguments of the network."""
    network_reads: Literal["", "rows", "tensor", "1d", "2d", "3d"] = ""
    """What the network gets: rows of features; the only feature in its own shape; or fields on a
    grid of so many dimensions with their channels in front, [B, C, H, W] for `2d`. Empty leaves it
    to what the network declares."""

    epochs: float = Field(default=20.0, gt=0)
    """Passes over the dataset; fractions are allowed."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps; overrides `epochs` when above zero."""
    batch_size: int = Field(default=128, gt=0)
    """Rows per step, over all devices together."""

    optimizer: str = "AdamW"
    """Class name in `torch.optim`."""
    optimizer_args: dict[str, Any] = {}
    """Arguments of the optimizer besides `lr`, such as `{"weight_decay": 0.01}`."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    schedule: str = "CosineAnnealingLR"
    """Class name in `torch.optim.lr_scheduler`, or `constant`."""
    schedule_args: dict[str, Any] = {}
    """Arguments of the schedule; a length that the class requires is filled in."""
    schedule_unit: Literal["step", "epoch"] = "step"
    """Unit of one tick of the schedule."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly to the first rate of the schedule."""
    gradient_clip: float = Field(default=0.0, ge=0)
    """Largest L2 norm of the whole gradient; 0 turns clipping off."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay per step of the exponential moving average that is evaluated and exported; 0 turns it
    off. Early on it is (1 + step) / (10 + step), as long as that is less."""

    initial_weights: str = ""
    """Folder of safetensors files, local or in a store, with the weights that training begins with,
    by their names in the network: what `torch.distributed.checkpoint` writes by its
    `HuggingFaceStorageWriter`, or this package as checkpoints and models. Empty draws them."""
    freeze: list[str] = []
    """Parameters that keep their values, by their names in the network; `0.*` matches many. Weight
    decay does not change them; the running statistics of batch norm still follow the rows."""

    finish_steps: int = Field(default=0, ge=0)
    """Steps of ten L-BFGS iterations over all rows at once, in float64, after all others."""
    finish_history: int = Field(default=50, ge=1)
    """Pairs of vectors in which L-BFGS stores curvature; each takes twice the model in float64."""

    loss: str = "auto"
    """`auto` follows the task; otherwise `cross_entropy`, `binary_cross_entropy`, `mse`, `l1`,
    `huber` or `relative_l2`; for a teacher's outputs `distillation` or `distillation_mse`."""
    temperature: float = Field(default=1.0, gt=0)
    """Softens teacher and student before they are compared (Hinton et al. 2015, eq. 1)."""
    hard_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of the true label against the teacher's output, on rows that have a label."""

    imitate: ImitateSettings = ImitateSettings()
    """What else a student imitates of its teacher: parts that are added to the loss in mode
    `distil`. Mode `hard` leaves them out."""

    class_weights: Literal["", "balanced"] | dict[str, Annotated[float, Field(ge=0)]] = ""
    """How many rows a row of a class counts for in the loss, such as `{"fraud": 20}`; 1 for classes
    left out, on top of the weights of rows. `balanced` gives all classes the same total. Metrics
    do not heed it."""

    prune: PruneSettings = PruneSettings()
    """Begin as the teacher, with fewer units (Sun et al. 2024; Muralidharan et al. 2024), in mode
    `distil`: `teacher` brings network and preprocessing. Mode `hard` leaves it out."""

    quantise_aware: float = Field(default=0.0, ge=0, le=1)
    """Share of the training run, its end, in which layers compute in 8 bits as an int8 runtime does
    (Jacob et al. 2018); 0 turns it off. Scores on the way are those of 8 bits, and `serving` writes
    an ONNX file with weights of 8 bits."""

    augment: AugmentSettings = AugmentSettings()
    """Random changes to images, drawn anew at each step of training and never in validation."""

    patience: int = Field(default=0, ge=0)
    """Milestones without improvement before an early stop; 0 never stops early."""
    min_delta: float = Field(default=0.0, ge=0)
    """Smallest change of the metric that counts as an improvement."""
    metric: str = ""
    """Metric for early stopping and `choose`; empty uses log loss or RMSE."""
    tolerance: float = Field(default=0.0, ge=0)
    """Stop as soon as `metric` is at or below this; 0 turns this off."""
    converged_after: int = Field(default=0, ge=0)
    """Stop once the best value of `metric` has improved over so many milestones by less than 1% of
    what it lacks: the value of an error, the distance of R² or an accuracy from 1. Milestones count
    while the learning rate is constant or below a tenth of its peak, and in the finish if there is
    one; 0 turns this off."""
    target_scale: Literal["each", "together"] = "each"
    """Standardise each value of a tensor target by itself, or all by one mean and standard
    deviation, as suits fields."""
    choose: Literal["best", "last"] = "best"
    """Milestone to export: the best on the validation set (fine-tuning counts its starting point as
    one), or the last."""
    milestone_every: float = Field(default=0.0, ge=0)
    """Distance between milestones (evaluated, saved, selectable); 0 divides the budget into 30."""
    milestone_unit: Literal["epochs", "steps", "examples"] = "epochs"
    """Unit of `milestone_every`."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seeds the initial weights, the order of the rows, dropout and augmentation."""
    shuffle: Literal["auto", "full", "blocks", "none"] = "auto"
    """`full` permutes all rows; `blocks` shuffles within windows, in bounded memory."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`; requesting a GPU that is missing is an error."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of forward and backward passes; `auto` is bf16 on a GPU that supports it, else
    float32. Mode `overfit` uses float32 by default. On a CPU, bf16 pays if it has matrix units."""
    deterministic: bool = True
    """Use only kernels that give the same bits every time (matters on GPUs)."""
    step_path: Literal["auto", "autograd", "fused", "graph"] = "auto"
    """`fused` is the hand-written step for plain MLPs; `auto` uses it wherever it applies. `graph`
    plays it as one CUDA graph, with the learning rate in float32: one process on a GPU, Adam, AdamW
    or SGD. Not tried on a GPU yet: each recording is held against the kernels before it is used."""
    recompute: Literal["", "auto"] | list[str] = ""
    """Modules of the network whose activations are not kept but computed again in the backward pass
    (activation checkpointing): less memory, a forward pass more, the same bits. Names, where
    `layers.*` matches many, or `auto` for the blocks that the network repeats."""
    shard: Literal["", "auto"] | list[str] = ""
    """Modules of the network whose weights processes gather one at a time, while each keeps a share
    of weights, gradients and optimizer state: less memory, more traffic, the same bits. Names as in
    `recompute`; empty has every process keep everything."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of one process; 0 uses torch's default, or 1 with `virtual_workers` on CPUs."""
    virtual_workers: int = Field(default=1, ge=1)
    """Micro-batches that each batch is cut into, a power of two. Up to so many processes can share
    a training run, and their number never changes a bit of the result."""
    processes: int = Field(default=0, ge=0)
    """Processes that share the training run, at most `virtual_workers`; 0 starts one for each
    visible GPU, and one on CPUs. With `nodes`, those of all pods together."""
    nodes: int = Field(default=1, ge=1)
    """Pods that share the training run: above 1, the step makes a TrainJob of Kubeflow Trainer."""
    trainjob: TrainJobSettings = TrainJobSettings()
    """How those pods are made and placed."""
    rank_timeout: Seconds = 1800.0
    """Seconds that a step may take. A process that does none for longer hangs: the attempt ends and
    the step starts again. Scoring, saving and L-BFGS have no such bound."""
    serving: Serving = "none"
    """A file beside the model that serves it without this package: `onnx` or `torch`. If a network
    cannot be exported that way, only the file is missing, not the model."""
    log_seconds: Seconds = 5.0
    """Seconds between two progress lines."""
    checkpoints: CheckpointSettings = CheckpointSettings()
    """When recovery checkpoints are saved and which checkpoints are kept."""

    @field_validator("virtual_workers")
    @classmethod
    def _power_of_two(cls, count: int) -> int:
        if count & (count - 1):
            below = 1 << (count.bit_length() - 1)
            raise ValueError(f"is not a power of two; use {below} or {2 * below}")
        return count

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        return _known(name, optimizers.names(), "optimizer in torch.optim", optimizers.EXCLUDED)

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        return _known(name, schedules.names(), "schedule", schedules.EXCLUDED)

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        return _known(name, ["auto", *losses.NAMES], "loss")


def _known(
    name: str, known: Sequence[str], what: str, excluded: Mapping[str, str] | None = None
) -> str:
    """Return a name that is known; of one that is `excluded`, say why.

    Raises:
        ValueError: It is not, with the nearest that are.
    """
    if name in known:
        return name
    if excluded and name in excluded:
        raise ValueError(f"{name} {excluded[name]}; use one of {', '.join(known)}")
    raise ValueError(f"no such {what}; {nearest(name, known)}")


def parse_settings(
    typed: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
) -> TrainingSettings:
    """Join a component's typed parameters and its `settings` dict into one validated object.

    Args:
        typed: Typed parameters by name.
        settings: Everything else.
        defaults: What the preset wants where neither says anything.

    Raises:
        InvalidInput: With every unknown key, wrong type and value out of range of both.
    """
    problems = Problems()
    parsed = read_settings(typed, settings, problems, defaults=defaults)
    problems.raise_if_any()
    return parsed


def read_settings(
    typed: Mapping[str, Any],
    settings: Mapping[str, Any],
    problems: Problems,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> TrainingSettings:
    """Do what `parse_settings` does, but note what is wrong and leave that at its default."""
    own = check_overlap(settings, typed, problems)
    merged = {**(defaults or {}), **settings, **typed}
    parsed = read(TrainingSettings, merged, problems, prefixed=own)
    assert parsed, "every field has a default"
    wrong = {problem.field.rpartition(".")[2] for problem in problems}
    # Arguments are those of a name: where that is misspelt nobody knows what they are for.
    with problems.collect():
        if "optimizer" not in wrong:
            optimizers.check_arguments(parsed.optimizer, parsed.optimizer_args)
    with problems.collect():
        if "schedule" not in wrong:
            schedules.check_arguments(parsed.schedule, parsed.schedule_args)
    with problems.collect():
        check_serving(parsed.serving, "settings.serving")
    if parsed.quantise_aware:
        _check_quantised(parsed, problems)
    if parsed.initial_weights and parsed.prune.most:
        remedy = "prune begins with the teacher's; leave one of them out"
        problems.add("settings.initial_weights", parsed.initial_weights, remedy)
    if not wrong & {"virtual_workers", "processes", "nodes", "batch_size", "device"}:
        _check_shares(parsed, problems)
    return parsed


def _check_shard(settings: TrainingSettings, problems: Problems) -> None:
    """Note what needs all of the state in one process."""
    fused = settings.step_path if settings.step_path in FUSED else ""
    for field, value, remedy in (
        ("step_path", fused, "has one flat vector; use 'auto'"),
        ("ema_decay", settings.ema_decay, "the average is not shared out; use 0"),
        ("finish_steps", settings.finish_steps, "L-BFGS takes all weights at once; use 0"),
        ("precision", settings.precision == "fp16" and "fp16", "looks at all gradients; use bf16"),
        ("imitate", ", ".join(settings.imitate.asked()), "a student's parts are not shared out"),
        ("quantise_aware", settings.quantise_aware, "ranges are not shared out; use 0"),
    ):
        if value:
            problems.add(f"settings.{field}", value, f"{remedy}, or leave out shard")
    if settings.virtual_workers == 1:
        remedy = "shares a training run between processes; set virtual_workers to their number"
        problems.add("settings.shard", settings.shard, remedy)


def _check_shares(settings: TrainingSettings, problems: Problems) -> None:
    """Note what keeps processes from sharing the training run."""
    leaves, processes, nodes = settings.virtual_workers, settings.processes, settings.nodes
    if leaves > settings.batch_size:
        remedy = f"a batch has {settings.batch_size} rows; use at most so many, or larger batches"
        problems.add("settings.virtual_workers", leaves, remedy)
    if settings.shard:
        _check_shard(settings, problems)
    if processes > leaves:
        fitting = 1 << (processes - 1).bit_length()
        remedy = f"each takes one of {leaves} virtual_workers; set virtual_workers to {fitting}"
        problems.add("settings.processes", processes, remedy)
    if nodes > leaves:
        fitting = 1 << (nodes - 1).bit_length()
        remedy = f"each takes one of {leaves} virtual_workers; set virtual_workers to {fitting}"
        problems.add("settings.nodes", nodes, remedy)
    if processes % nodes:
        remedy = f"{nodes} nodes share them; use {nodes} or a multiple, or 0"
        problems.add("settings.processes", processes, remedy)
    if processes > 1 and settings.device.startswith("cuda:"):
        remedy = f"is one GPU, and {processes} processes take one each; use 'auto'"
        problems.add("device", settings.device, remedy)


def _check_quantised(settings: TrainingSettings, problems: Problems) -> None:
    """Note what layers in 8 bits have no place for."""
    half = settings.precision if settings.precision not in ("auto", "float32") else ""
    fused = settings.step_path if settings.step_path in FUSED else ""
    for field, value, remedy in (
        ("precision", half, "whole numbers need float32 to be exact; use 'auto'"),
        ("step_path", fused, "the fused step has no layers in 8 bits; use 'auto'"),
        ("finish_steps", settings.finish_steps, "L-BFGS needs a smooth loss, not steps; use 0"),
        ("recompute", settings.recompute, "ranges would follow each batch twice; use ''"),
    ):
        if value:
            problems.add(f"settings.{field}", value, f"{remedy}, or leave out quantise_aware")
