"""The `label-with-teacher` component."""

from .component import label_with_teacher

__all__ = ["label_with_teacher"]
