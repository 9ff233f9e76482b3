"""The `certify-surrogate` component."""

from .component import certify_surrogate

__all__ = ["certify_surrogate"]
