"""The `import-model` component."""

from .component import import_model

__all__ = ["import_model"]
