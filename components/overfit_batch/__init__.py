"""The `overfit-batch` component."""

from .component import overfit_batch

__all__ = ["overfit_batch"]
