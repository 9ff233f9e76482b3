"""The `quantise-model` component."""

from .component import quantise_model

__all__ = ["quantise_model"]
