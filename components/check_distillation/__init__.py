"""The `check-distillation` component."""

from .component import check_distillation

__all__ = ["check_distillation"]
