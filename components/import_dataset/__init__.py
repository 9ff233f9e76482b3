"""The `import-dataset` component."""

from .component import import_dataset

__all__ = ["import_dataset"]
