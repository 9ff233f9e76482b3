"""kubestill: turn something slow, exact or huge into a small fast model on Kubeflow."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubestill.runtime.models.export import load_model

__version__ = "0.1.0"

__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # Late, because the client half has no torch.
    if name == "load_model":
        from kubestill.runtime.models.export import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
