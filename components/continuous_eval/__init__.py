"""The `continuous-eval` component."""

from .component import continuous_eval

__all__ = ["continuous_eval"]
