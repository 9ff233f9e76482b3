"""Everything a training can be told, validated in full before any data is read.

The ten or so settings people change are typed parameters of the components; all others arrive in
one `settings` dict. Both end up here, in one frozen object, and every problem is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kubestill.errors import Problems, nearest
from kubestill.runtime.base.settings import check_overlap, read
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.models.serve import Serving, check_serving
from kubestill.runtime.training import losses, optimizers, schedules

Seconds = Annotated[float, Field(gt=0)]


class TrainingSettings(BaseModel):
    """One training, fully described: two equal settings on equal data give equal bits."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    network: str = "mlp"
    """Built-in name, or import path `package.module:attribute` of a class or factory."""
    network_args: dict[str, Any] = {}
    """Keyword arguments of the network."""

    epochs: float = Field(default=20.0, gt=0)
    """Passes over the dataset; fractions are allowed."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps; overrides `epochs` when above zero."""
    batch_size: int = Field(default=128, gt=0)
    """Rows a step, over all devices together."""

    optimizer: str = "AdamW"
    """Class name in `torch.optim`."""
    optimizer_args: dict[str, Any] = {}
    """Its arguments besides `lr`, such as `{"weight_decay": 0.01}`."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    schedule: str = "CosineAnnealingLR"
    """Class name in `torch.optim.lr_scheduler`, or `constant`."""
    schedule_args: dict[str, Any] = {}
    """Its arguments; the length of the training is filled in where the class asks for one."""
    schedule_unit: Literal["step", "epoch"] = "step"
    """What one tick of the schedule is."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly to the first rate of the schedule."""
    gradient_clip: float = Field(default=0.0, ge=0)
    """Largest L2 norm of the whole gradient; 0 leaves it alone."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay a step of the exponential moving average that is evaluated and exported; 0 is off.
    Early on it is (1 + step) / (10 + step), where that is less."""

    freeze: list[str] = []
    """Parameters that keep their values, by their names in the network; `0.*` matches many. Weight
    decay leaves them alone; batch norm's running statistics still follow the rows."""

    finish_steps: int = Field(default=0, ge=0)
    """Steps of ten L-BFGS iterations over all rows at once, in float64, after all others."""
    finish_history: int = Field(default=50, ge=1)
    """Pairs of vectors by which L-BFGS remembers curvature; each is twice the model in float64."""

    loss: str = "auto"
    """`auto` follows the task; else `cross_entropy` or `binary_cross_entropy`; `mse`, `l1`, `huber`
    or `relative_l2`; from a teacher's outputs `distillation` or `distillation_mse`."""
    temperature: float = Field(default=1.0, gt=0)
    """Softens teacher and student before they are compared (Hinton et al. 2015, eq. 1)."""
    hard_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of the true label beside the teacher's output, on rows that have one."""

    patience: int = Field(default=0, ge=0)
    """Milestones without improvement before an early stop; 0 never stops early."""
    min_delta: float = Field(default=0.0, ge=0)
    """Smallest change of the metric that counts as an improvement."""
    metric: str = ""
    """What early stopping and `choose` look at; empty takes log-loss or RMSE."""
    tolerance: float = Field(default=0.0, ge=0)
    """Stop as soon as `metric` is at or below this; 0 is off."""
    converged_after: int = Field(default=0, ge=0)
    """Stop once the best of `metric` has gained less than 1% of what it lacks over so many
    milestones: of an error the error itself, of R² or an accuracy what is missing to 1. They count
    where the learning rate is constant or below a tenth of its peak, and in the finish where there
    is one; 0 is off."""
    target_scale: Literal["each", "together"] = "each"
    """Whether a tensor target is standardised by each of its values, or by one mean and standard
    deviation for all, as suits fields."""
    choose: Literal["best", "last"] = "best"
    """Which milestone is exported: the best on the validation set, or the last."""
    milestone_every: float = Field(default=0.0, ge=0)
    """Distance between milestones (evaluated, saved, selectable); 0 makes 30 of the budget."""
    milestone_unit: Literal["epochs", "steps", "examples"] = "epochs"
    """Unit of `milestone_every`."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Initial weights, order of the data and dropout all follow from it."""
    shuffle: Literal["auto", "full", "blocks", "none"] = "auto"
    """`full` permutes all rows; `blocks` shuffles within windows and needs bounded memory."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`; a GPU that was asked for and is missing is an error."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of forward and backward; `auto` is bf16 where a GPU has it, else float32. Mode
    `overfit` takes float32 unless told otherwise. On a CPU, bf16 pays where it has matrix units."""
    deterministic: bool = True
    """Only kernels that give the same bits every time (matters on GPUs)."""
    step_path: Literal["auto", "autograd", "fused"] = "auto"
    """`fused` is the hand-written step for plain MLPs; `auto` takes it wherever it applies."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of one process; 0 leaves torch's default."""
    serving: Serving = "none"
    """A file beside the model that serves it without this package: `onnx` or `torch`. Where a
    network cannot be exported so, that costs the file, not the model."""
    log_seconds: Seconds = 5.0
    """Time between two progress lines."""
    checkpoints: CheckpointSettings = CheckpointSettings()
    """When recovery checkpoints are taken and which checkpoints are kept."""

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
    return parsed
