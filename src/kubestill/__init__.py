"""kubestill: turn something slow, exact or huge into a small fast model on Kubeflow."""

__version__ = "0.1.0"

__all__ = ["__version__"]
