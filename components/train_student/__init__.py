"""The `train-student` component."""

from .component import train_student

__all__ = ["train_student"]
