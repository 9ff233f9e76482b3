"""The `generate-synthetic` component."""

from .component import generate_synthetic

__all__ = ["generate_synthetic"]
