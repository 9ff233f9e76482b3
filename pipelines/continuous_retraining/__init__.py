"""The `continuous-retraining` pipeline."""

from .pipeline import continuous_retraining

__all__ = ["continuous_retraining"]
