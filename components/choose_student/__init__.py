"""The `choose-student` component."""

from .component import choose_student

__all__ = ["choose_student"]
