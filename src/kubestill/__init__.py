"""kubestill: turn something slow, exact or huge into a small fast model on Kubeflow."""

from typing import TYPE_CHECKING, Any

from kubestill.errors import InvalidInput, KubestillError

if TYPE_CHECKING:
    from kubestill.api import Report, Run, RunFailed, distill, run, surrogate
    from kubestill.runtime.models.export import load_model

__version__ = "0.1.0"

__all__ = [
    "InvalidInput",
    "KubestillError",
    "Report",
    "Run",
    "RunFailed",
    "__version__",
    "distill",
    "load_model",
    "run",
    "surrogate",
]


def __getattr__(name: str) -> Any:
    # Late, because the client half has no torch, and the runtime no kfp.
    if name == "load_model":
        try:
            from kubestill.runtime.models.export import load_model
        except ModuleNotFoundError as error:
            remedy = f"load_model needs {error.name}: pip install 'kubestill[runtime]'"
            raise ModuleNotFoundError(remedy, name=error.name) from error
        return load_model
    if name in __all__:
        from kubestill import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
