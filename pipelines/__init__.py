"""The pipelines: how components are wired."""

from .distillation import distillation

__all__ = ["distillation"]
