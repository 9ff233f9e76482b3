"""The `distillation-sweep` pipeline."""

from .pipeline import distillation_sweep

__all__ = ["distillation_sweep"]
