"""The `promote-model` component."""

from .component import promote_model

__all__ = ["promote_model"]
