"""The `distillation` pipeline."""

from .pipeline import distillation

__all__ = ["distillation"]
