"""The settings of an evaluation, and what they mean for the task at hand."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field, field_validator

from kubestill.errors import InvalidInput, Problem, nearest
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.datasets.schema import Task
from kubestill.runtime.evaluation.findings import Role
from kubestill.runtime.evaluation.fitness import STABILITY
from kubestill.runtime.metrics.catalog import metrics_of


class EvaluationSettings(Settings):
    """The `settings` of `continuous-eval`."""

    metric: str = ""
    """Metric in which an improvement is measured; empty uses log loss, or RMSE."""
    min_rows: int = Field(default=100, ge=1)
    """Labelled rows below which nothing is decided."""
    min_improvement: float = Field(default=0.01, ge=0, lt=1)
    """Smallest improvement worth having, as a share of the baseline's score."""
    min_decay: float = Field(default=0.01, ge=0, lt=1)
    """Decay that is too small to matter, as a share of the score at promotion."""
    max_bias: float = Field(default=0.01, ge=0, lt=1)
    """How much further off than at promotion predicted probabilities may be, on average."""
    max_shift: float = Field(default=0.0, ge=0)
    """Population stability index of a column from which a champion counts as decayed even if its
    scores do not show it, because it has not learned from such rows. At least 0.25, the smallest
    shift that is detected; 0 leaves the decision to the scores."""
    max_unlearned: float = Field(default=0.1, ge=0)
    """Rows that arrived since a challenger was tried, as a share of all before them, from which
    one is tried although the champion's scores show no decay: what it has not seen, it may not be
    able to do. 0 leaves that to the scores."""
    max_forgetting: float = Field(default=0.02, ge=0, lt=1)
    """How much worse a challenger may be on the golden set, as a share of the best score that any
    champion has reached there."""
    golden_half_life: float = Field(default=180.0, gt=0)
    """Days after which a loss on the golden rows counts half as much beside the gain on the fresh
    ones; it is a veto only where it still counts more. Where the golden rows are the user's own
    they are always a veto."""
    gate_slices: bool = False
    """Whether a slice alone can decide: the champion's decay on it, or a challenger that is worse
    there than the champion."""
    slice_tolerance: float = Field(default=0.05, ge=0, lt=1)
    """How much worse a slice may be before it decides, as a share of its loss."""
    min_slice_rows: int = Field(default=50, ge=2)
    """Rows below which a slice decides nothing."""
    gate_expected: bool = False
    """Whether what is expected of rows whose labels are late can decide: a champion of which worse
    is expected than at its promotion, by more than `min_decay`, is degraded."""
    ignore: tuple[str, ...] = ()
    """Columns whose shifts are expected, such as a running number; the target's name switches off
    the checks of the labels."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of every interval; less it from 1 for the chance of a false alarm in a window."""
    yearly_alarms: float = Field(default=0.2, gt=0, lt=1)
    """Chance of a false alarm in a year in which nothing changes, however many windows it has; half
    of it for promoting a challenger that is no better. A window may spend the part of it that its
    time is of a year, so that a schedule of many windows asks for more evidence in each."""
    pool_days: float = Field(default=365.0, ge=0)
    """Days after a promotion over which the gains of challengers are added up, until they are
    evidence together; then the sum begins anew. It spends half of what may be spent on promotions.
    0 leaves each window to itself."""
    resamples: int = Field(default=2000, ge=100, le=100_000)
    """No effect since intervals are computed without resampling; accepted as before."""
    group: str = ""
    """Column whose equal values mark rows of one entity, such as a customer. They are not
    independent, so that intervals and tests count entities and not rows. Empty: the column that was
    imported with the role `group`; without one, rows are. Rows without a value are entities of
    their own."""
    seed: int = Field(default=0, ge=0)
    """No effect, as `resamples`."""
    model_name: str = ""
    """Name of the model in the report; empty uses "student", "challenger" or "model"."""
    baseline_name: str = ""
    """Name of the baseline; empty uses "control" if there is a teacher, else "champion"."""
    teacher_name: str = "teacher"
    """Name of the teacher."""

    @field_validator("max_shift")
    @classmethod
    def _is_looked_for(cls, size: float) -> float:
        if 0 < size < STABILITY:
            raise ValueError(f"shifts below {STABILITY} are not looked for; give more, or 0")
        return size


def check_metric(metric: str, task: Task, field: str = "settings.metric") -> None:
    """Check that a decision can be taken on this metric.

    Raises:
        InvalidInput: The task has no such metric, or one that resampling says nothing about.
    """
    usable = [name for name, known in metrics_of(task).items() if known.decides]
    if metric and metric not in usable:
        remedy = f"no {task} metric to decide on; {nearest(metric, usable)}"
        raise InvalidInput([Problem(field, metric, remedy)])


def role_names(
    settings: EvaluationSettings, roles: Collection[Role], *, judges_champion: bool = False
) -> dict[Role, str]:
    """Return what each model is called, by its role among those present.

    Args:
        settings: May name them.
        roles: Those present.
        judges_champion: The judged model is the registry's champion.
    """
    distilled, compared = "teacher" in roles, "baseline" in roles
    model = "student" if distilled else "challenger" if compared else "model"
    if judges_champion:
        model = "champion"
    return {
        "model": settings.model_name or model,
        "baseline": settings.baseline_name or ("control" if distilled else "champion"),
        "teacher": settings.teacher_name,
    }
