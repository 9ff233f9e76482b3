"""The `surrogate` pipeline."""

from .pipeline import surrogate

__all__ = ["surrogate"]
