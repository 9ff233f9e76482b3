"""The pipelines: components wired together."""

from .continuous_retraining import continuous_retraining
from .distillation import distillation
from .distillation_sweep import distillation_sweep
from .surrogate import surrogate

__all__ = ["continuous_retraining", "distillation", "distillation_sweep", "surrogate"]
