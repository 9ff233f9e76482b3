"""The `train-teacher` component."""

from .component import train_teacher

__all__ = ["train_teacher"]
