"""The `select-checkpoint` component."""

from .component import select_checkpoint

__all__ = ["select_checkpoint"]
